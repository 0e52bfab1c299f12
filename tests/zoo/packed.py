"""Networks that pack several things into one tensor and take it apart at numbers that they hold.

Queries, keys and values of one projection; time steps and states; input and hidden state of cells; groups of
transposed convolutions; LSTMs that project. Each entry is as in further.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from further import IMAGE, SEQUENCE, Drawn, noise, time_first
from own import Net, cbr, pooled
from torch import Tensor, nn
from torch.nn import functional as F

FRAMES = noise((4, 3, 8, 8))


@dataclass
class Config:
    """One for all layers, as in transformers."""

    hidden_size: int = 24
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 4


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[N, heads, T, d], with fewer keys and values -> [N, T, heads * d]"""
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def by_head(x: Tensor, size: int) -> Tensor:
    """[N, T, heads * d] -> [N, heads, T, d]"""
    return x.view(*x.shape[:2], -1, size).transpose(1, 2)


class SlicedByConfig(nn.Module):
    """Phi-3: slices where the configuration that all layers share says."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.head_dim = config, config.head_dim
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        self.qkv_proj = nn.Linear(config.hidden_size, (heads + 2 * groups) * self.head_dim)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        first = self.config.num_attention_heads * self.head_dim
        second = first + self.config.num_key_value_heads * self.head_dim
        y = self.qkv_proj(x)
        parts = y[..., :first], y[..., first:second], y[..., second:]
        return self.o_proj(attend(*(by_head(part, self.head_dim) for part in parts)))


class SplitByConfig(SlicedByConfig):
    def forward(self, x: Tensor) -> Tensor:
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        sizes = [heads * self.head_dim, groups * self.head_dim, groups * self.head_dim]
        parts = self.qkv_proj(x).split(sizes, -1)
        return self.o_proj(attend(*(by_head(part, self.head_dim) for part in parts)))


class SplitBySizes(nn.Module):
    """ChatGLM, vLLM: the sizes of the parts are kept."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_size = config.num_attention_heads * self.head_dim
        self.kv_size = config.num_key_value_heads * self.head_dim
        self.qkv = nn.Linear(config.hidden_size, self.q_size + 2 * self.kv_size)
        self.out = nn.Linear(self.q_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).split([self.q_size, self.kv_size, self.kv_size], -1)
        return self.out(attend(*(by_head(part, self.head_dim) for part in parts)))


class HeadByHead(nn.Module):
    """GPT-NeoX, BLOOM: queries, keys and values of each head side by side, [heads, 3, d]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.query_key_value(x).view(*x.shape[:2], self.num_heads, 3, self.head_dim)
        return self.dense(attend(*(part.transpose(1, 2) for part in y.unbind(3))))


class GroupByGroup(nn.Module):
    """Falcon: the queries of a group beside its key and value, [groups, queries + 2, d]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_kv_heads, self.head_dim = config.num_key_value_heads, config.head_dim
        self.times = config.num_attention_heads // self.num_kv_heads
        self.qkv = nn.Linear(config.hidden_size, (self.times + 2) * self.num_kv_heads * self.head_dim)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x).view(*x.shape[:2], self.num_kv_heads, self.times + 2, self.head_dim)
        q, k, v = y[..., :-2, :].flatten(2, 3), y[..., -2, :], y[..., -1, :]
        return self.dense(attend(*(part.transpose(1, 2) for part in (q, k, v))))


class ThreeFirst(nn.Module):
    """ViT of timm: reshape to [N, T, 3, heads, d]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.proj(attend(*qkv.unbind(0)))


class OneKey(nn.Module):
    """Multi-query attention (Shazeer, arXiv:1911.02150), as in GPTBigCode: all queries, a key, a value."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim, self.embed_dim = config.head_dim, config.hidden_size
        self.qkv = nn.Linear(config.hidden_size, config.hidden_size + 2 * self.head_dim)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split((self.embed_dim, self.head_dim, self.head_dim), -1)
        return self.out(attend(by_head(q, self.head_dim), k.unsqueeze(1), v.unsqueeze(1)))


class OneTable(nn.Module):
    """Positions relative to each query (Shaw et al., arXiv:1803.02155; BoTNet): the queries of all heads
    times one matrix, which becomes a product of two matrices with the heads among the rows."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.places = nn.Parameter(torch.randn(9, self.head_dim))
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (by_head(part, self.head_dim) for part in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) + q @ self.places.t()
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class OneLayer(OneTable):
    """A layer that all heads share on each query, and whose results of all heads a further layer reads."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.shared = nn.Linear(self.head_dim, 5)
        self.out = nn.Linear(config.num_attention_heads * 5, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (by_head(part, self.head_dim) for part in self.qkv(x).chunk(3, -1))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(self.shared(mixed).relu().transpose(1, 2).flatten(2))


class OneKeyBehind(OneKey):
    """Falcon: the key and the value behind the queries, [heads + 2, d]."""

    def forward(self, x: Tensor) -> Tensor:
        y = by_head(self.qkv(x), self.head_dim)
        return self.out(attend(y[:, :-2], y[:, [-2]], y[:, [-1]]))


class OneKeyApart(nn.Module):
    """Gemma, 2 billion parameters: layers of their own, the key and the value expanded to all heads."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q, self.out = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2))
        self.k, self.v = (nn.Linear(config.hidden_size, self.head_dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q = by_head(self.q(x), self.head_dim)
        return self.out(attend(q, self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)))


def turned(x: Tensor) -> Tensor:
    """[N, heads, T, d] with the two halves of the places turned by the time."""
    angle = torch.arange(x.shape[2], dtype=x.dtype)[:, None] / 3
    a, b = x.chunk(2, -1)
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)


class LatentAttention(nn.Module):
    """Multi-head latent attention of DeepSeek-V2 (arXiv:2405.04434): queries, and keys with values, by a
    narrow layer each; the rotated part of the keys is one for all heads."""

    def __init__(self, config: Config, rank: int = 8, rotated: int = 4, plain: int = 3) -> None:
        super().__init__()
        self.num_heads, self.v_head_dim = config.num_attention_heads, config.head_dim
        self.kv_lora_rank, self.rope_dim, self.nope_dim = rank, rotated, plain
        self.q_a, self.q_b = (
            nn.Linear(config.hidden_size, 10),
            nn.Linear(10, self.num_heads * (plain + rotated)),
        )
        self.kv_a = nn.Linear(config.hidden_size, rank + rotated)
        self.kv_b = nn.Linear(rank, self.num_heads * (plain + self.v_head_dim))
        self.out = nn.Linear(self.num_heads * self.v_head_dim, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.nope_dim, self.rope_dim]
        q, q_rotated = by_head(self.q_b(self.q_a(x)), sum(parts)).split(parts, -1)
        latent, k_rotated = self.kv_a(x).split([self.kv_lora_rank, self.rope_dim], -1)
        kv = by_head(self.kv_b(latent), self.nope_dim + self.v_head_dim)
        k, v = kv.split([self.nope_dim, self.v_head_dim], -1)
        keys = k.new_empty(*k.shape[:-1], sum(parts))
        keys[..., : self.nope_dim] = k
        keys[..., self.nope_dim :] = turned(k_rotated.unsqueeze(1))
        return self.out(attend(torch.cat([q, turned(q_rotated)], -1), keys, v))


def slopes_of(heads: int) -> Tensor:
    """The slopes of ALiBi (Press et al., arXiv:2108.12409), which depend on how many heads there are."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


class Sloped(nn.Module):
    """ALiBi with its slopes in a buffer that is saved, or that is not."""

    def __init__(self, config: Config, saved: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.register_buffer("slopes", slopes_of(self.num_heads).view(-1, 1, 1), persistent=saved)

    def bias(self, x: Tensor) -> Tensor:
        return self.get_buffer("slopes") * torch.arange(x.shape[1], dtype=x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.query_key_value(x).view(*x.shape[:2], self.num_heads, 3, self.head_dim)
        q, k, v = (part.transpose(1, 2) for part in y.unbind(3))
        scores = q @ k.mT / self.head_dim**0.5 + self.bias(x)
        return self.dense((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class SlopedAnew(Sloped):
    """The same, computed in each call from the number of heads."""

    def bias(self, x: Tensor) -> Tensor:
        times = torch.arange(x.shape[1], dtype=x.dtype)
        return slopes_of(self.num_heads).to(x)[:, None, None] * times


class SlopedByOther(HeadByHead):
    """BLOOM: the attention is given the positions of all examples and heads, [examples * heads, 1, times]."""

    def forward(self, x: Tensor, alibi: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = self.query_key_value(x).view(n, t, self.num_heads, 3, self.head_dim)
        q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in y.unbind(3))
        scores = alibi.baddbmm(q, k.mT, alpha=self.head_dim**-0.5).view(n, self.num_heads, t, t)
        made = scores.softmax(-1).flatten(0, 1) @ v
        return self.dense(made.view(n, self.num_heads, t, -1).transpose(1, 2).flatten(2))


class Positions(nn.Module):
    """Two attentions in turn, whose positions are made once, for as many heads as the configuration says."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.embed, self.head = nn.Linear(6, 24), nn.Linear(24, 3)
        self.attentions = nn.ModuleList(SlopedByOther(self.config) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        slopes = slopes_of(self.config.num_attention_heads).to(x)[:, None, None]
        alibi = (slopes * torch.arange(x.shape[1], dtype=x.dtype)).repeat(len(x), 1, 1)
        x = self.embed(x)
        for attention in self.attentions:
            x = x + attention(x, alibi=alibi)
        return self.head(x.mean(1))


class Blocks(nn.Module):
    """Attentions and neurons in turn; all layers share one configuration."""

    def __init__(self, attention: Callable[[Config], nn.Module], own: int = 2) -> None:
        super().__init__()
        self.config = Config()
        width = self.config.hidden_size
        self.embed = nn.Linear(6, width)
        self.attentions = nn.ModuleList(attention(self.config) for _ in range(own))
        self.up = nn.ModuleList(nn.Linear(width, 32) for _ in range(own))
        self.down = nn.ModuleList(nn.Linear(32, width) for _ in range(own))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for attention, up, down in zip(self.attentions, self.up, self.down, strict=True):
            x = x + attention(x)
            x = x + down(F.gelu(up(x)))
        return self.head(x.mean(1))


class SelectiveScan(nn.Module):
    """Mamba: time steps, what enters the states and what is read of them, from one projection."""

    def __init__(self, width: int = 12, states: int = 6, rank: int = 4) -> None:
        super().__init__()
        self.time_step_rank, self.ssm_state_size = rank, states
        self.embed = nn.Linear(6, width)
        self.x_proj = nn.Linear(width, rank + 2 * states)
        self.dt_proj = nn.Linear(rank, width)
        self.A_log = nn.Parameter(torch.randn(width, states) * 0.3)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        step, enters, read = self.x_proj(x).split(
            [self.time_step_rank, self.ssm_state_size, self.ssm_state_size], -1
        )
        step = F.softplus(self.dt_proj(step))
        kept = torch.exp(-step.unsqueeze(-1) * self.A_log.exp())
        given = step.unsqueeze(-1) * enters.unsqueeze(2) * x.unsqueeze(-1)
        state = torch.zeros_like(given[:, 0])
        made = []
        for t in range(x.shape[1]):
            state = kept[:, t] * state + given[:, t]
            made.append((state * read[:, t].unsqueeze(1)).sum(-1))
        return self.head(torch.stack(made, 1).mean(1))


class PartialConvolution(nn.Module):
    """FasterNet: a convolution over the first channels, all others pass by."""

    def __init__(self, width: int, convolved: int) -> None:
        super().__init__()
        self.dim_conv, self.dim_untouched = convolved, width - convolved
        self.conv = nn.Conv2d(convolved, convolved, 3, padding=1, bias=False)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(x, [self.dim_conv, self.dim_untouched], 1)
        return x + self.down(self.up(torch.cat([self.conv(first), rest], 1)).relu())


class FocalModulation(nn.Module):
    """FocalNet: queries, context and gates from one projection, split by the width of the input."""

    def __init__(self, width: int, levels: int = 2) -> None:
        super().__init__()
        self.levels = levels
        self.proj_in = nn.Conv2d(width, 2 * width + levels + 1, 1)
        kinds = [nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(levels)]
        self.focal = nn.ModuleList(kinds)
        self.context, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        query, context, gates = torch.split(self.proj_in(x), (width, width, self.levels + 1), 1)
        summed = torch.zeros_like(context)
        for level, layer in enumerate(self.focal):
            context = F.gelu(layer(context))
            summed = summed + context * gates[:, level : level + 1]
        summed = summed + context.mean((2, 3), keepdim=True) * gates[:, self.levels :]
        return x + self.proj_out(query * self.context(summed))


class GatedCell(nn.Module):
    """A GRU cell whose layers read input and state side by side."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden_size = hidden
        self.gates, self.new = nn.Linear(inputs + hidden, 2 * hidden), nn.Linear(inputs + hidden, hidden)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        update, reset = torch.sigmoid(self.gates(torch.cat([x, state], 1))).chunk(2, 1)
        new = torch.tanh(self.new(torch.cat([x, reset * state], 1)))
        return update * state + (1 - update) * new


def _gated(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    state = x.new_zeros(len(x), m.cell.hidden_size)
    for t in range(x.shape[1]):
        state = m.cell(x[:, t], state)
    return m.fc(state)


class MemoryCell(nn.Module):
    """An LSTM cell: one layer, four parts of the hidden size; with peepholes, a weight for each unit."""

    def __init__(self, inputs: int, hidden: int, part: Callable[[Tensor, int], Any]) -> None:
        super().__init__()
        self.hidden_dim, self.part = hidden, part
        self.layer = nn.Linear(inputs + hidden, 4 * hidden)
        self.peep = nn.Parameter(torch.randn(2, hidden))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, memory = state
        enter, forget, out, new = self.part(self.layer(torch.cat((x, hidden), -1)), self.hidden_dim)
        kept = torch.sigmoid(forget + self.peep[0] * memory) * memory
        memory = kept + torch.sigmoid(enter + self.peep[1] * memory) * torch.tanh(new)
        return torch.sigmoid(out) * torch.tanh(memory), memory

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(len(x), self.hidden_dim), x.new_zeros(len(x), self.hidden_dim)


def _memories(m: Net, x: Tensor) -> Tensor:
    x = m.a(x)
    first, second = m.one.start(x), m.two.start(x)
    for t in range(x.shape[1]):
        first = m.one(x[:, t], first)
        second = m.two(first[0], second)
    return m.fc(second[0])


class ConvCell(nn.Module):
    """ConvLSTM (Shi et al., arXiv:1506.04214) as it is mostly written."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input_dim, self.hidden_dim = inputs, hidden
        self.conv = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, memory = state
        enter, forget, out, new = torch.split(self.conv(torch.cat([x, hidden], 1)), self.hidden_dim, 1)
        memory = forget.sigmoid() * memory + enter.sigmoid() * new.tanh()
        return out.sigmoid() * memory.tanh(), memory

    def start(self, batch: int, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        weight = self.conv.weight
        zeros = torch.zeros(batch, self.hidden_dim, *size, dtype=weight.dtype, device=weight.device)
        return zeros, zeros


class ConvLSTM(nn.Module):
    def __init__(self, *hidden: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(ConvCell(i, h) for i, h in zip((3, *hidden), hidden, strict=False))
        self.out = nn.Conv2d(hidden[-1], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        states = [cell.start(len(x), tuple(x.shape[-2:])) for cell in self.cells]
        for t in range(x.shape[1]):
            y = x[:, t]
            for place, cell in enumerate(self.cells):
                states[place] = cell(y, states[place])
                y = states[place][0]
        return self.out(y)


class ConvGated(nn.Module):
    """A ConvGRU with separate layers for input and state; the state begins as None."""

    def __init__(self, inputs: int = 10, hidden: int = 12) -> None:
        super().__init__()
        self.hidden = hidden
        self.stem = nn.Conv2d(3, inputs, 3, padding=1)
        self.read, self.keep = (nn.Conv2d(n, 3 * hidden, 3, padding=1) for n in (inputs, hidden))
        self.out = nn.Conv2d(hidden, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            y = self.stem(x[:, t]).relu()
            if state is None:
                state = y.new_zeros(len(y), self.hidden, *y.shape[2:])
            given, kept = self.read(y).chunk(3, 1), self.keep(state).chunk(3, 1)
            update, reset = (given[0] + kept[0]).sigmoid(), (given[1] + kept[1]).sigmoid()
            state = update * state + (1 - update) * (given[2] + reset * kept[2]).tanh()
        return self.out(state)


class Characters(nn.Module):
    """The recurrent network of PyTorch's tutorial: two layers read input and state side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 16
        self.i2h, self.i2o, self.o2o = nn.Linear(6 + 16, 16), nn.Linear(6 + 16, 8), nn.Linear(16 + 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), self.hidden_size, dtype=x.dtype, device=x.device)
        for t in range(x.shape[1]):
            both = torch.cat((x[:, t], state), 1)
            state, out = self.i2h(both).tanh(), self.i2o(both)
        return self.o2o(torch.cat((state, out), 1))


def _projected(first: bool = True, **more: Any) -> Net:
    """An LSTM of 16 hidden units that projects them to 6."""
    width = 12 if more.get("bidirectional") else 6
    return Net(
        lambda m, x: m.fc(m.b(m.rnn(m.a(x))[0]).relu().mean(1 if first else 0)),
        a=nn.Linear(6, 10),
        rnn=nn.LSTM(10, 16, proj_size=6, batch_first=first, **more),
        b=nn.Linear(width, 12),
        fc=nn.Linear(12, 3),
    )


def _last_projection(m: Net, x: Tensor) -> Tensor:
    """Read from the last states: what is projected, and the memory, which is not."""
    _, (hidden, memory) = m.rnn(m.a(x))
    return m.fc(torch.cat([hidden[-1], memory[-1]], 1))


def _deepen(one: nn.Module, two: nn.Module, three: nn.Module) -> Net:
    return Net(
        lambda m, x: m.fc(pooled(m.three(m.two(m.one(x)).relu()).relu())),
        one=one,
        two=two,
        three=three,
        fc=nn.Linear(12, 4),
    )


class PointwiseMixer(nn.Module):
    """MLP-Mixer (arXiv:2105.01601) with the tokens mixed by convolutions of one place, which slide over
    nothing: [N, T, C] has its channels where a convolution has places."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mix, self.back = nn.Conv1d(9, 20, 1), nn.Conv1d(20, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.mix(self.norm(x)).relu())


class ChannelByChannel(nn.Module):
    """One filter for all channels: they are put to the examples, and taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return self.one(x.reshape(n * c, 1, h, w)).reshape(n, c, h, w)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Drawn]] = {
    "heads sliced by a configuration": (lambda: Blocks(SlicedByConfig), SEQUENCE),
    "heads split by a configuration": (lambda: Blocks(SplitByConfig), SEQUENCE),
    "heads split by sizes": (lambda: Blocks(SplitBySizes), SEQUENCE),
    "heads side by side": (lambda: Blocks(HeadByHead), SEQUENCE),
    "heads in groups": (lambda: Blocks(GroupByGroup), SEQUENCE),
    "heads, three first": (lambda: Blocks(ThreeFirst), SEQUENCE),
    "heads with one key": (lambda: Blocks(OneKey), SEQUENCE),
    "heads with one table of places": (lambda: Blocks(OneTable), SEQUENCE),
    "heads with one layer": (lambda: Blocks(OneLayer), SEQUENCE),
    "tokens mixed by convolutions": (lambda: Blocks(PointwiseMixer), SEQUENCE),
    "channels among the examples": (lambda: _deepen(cbr(3, 16), ChannelByChannel(), cbr(16, 12)), IMAGE),
    "heads before one key": (lambda: Blocks(OneKeyBehind), SEQUENCE),
    "heads and one key apart": (lambda: Blocks(OneKeyApart), SEQUENCE),
    "heads of latents": (lambda: Blocks(LatentAttention), SEQUENCE),
    "heads with slopes": (lambda: Blocks(Sloped), SEQUENCE),
    "heads with slopes, not saved": (lambda: Blocks(partial(Sloped, saved=False)), SEQUENCE),
    "heads with slopes made for all": (Positions, SEQUENCE),
    "selective scan": (SelectiveScan, SEQUENCE),
    "partial convolutions": (
        lambda: _deepen(cbr(3, 16), PartialConvolution(16, 6), cbr(16, 12)),
        IMAGE,
    ),
    "focal modulation": (lambda: _deepen(cbr(3, 16), FocalModulation(16), cbr(16, 12)), IMAGE),
    "projected LSTM": (_projected, SEQUENCE),
    "projected LSTM, deep and both ways": (
        lambda: _projected(num_layers=2, bidirectional=True),
        SEQUENCE,
    ),
    "projected LSTM, time first": (lambda: _projected(first=False, num_layers=2), time_first(7, 6)),
    "states of a projected LSTM": (
        lambda: Net(
            _last_projection,
            a=nn.Linear(6, 10),
            rnn=nn.LSTM(10, 15, proj_size=4, batch_first=True),
            fc=nn.Linear(19, 3),
        ),
        SEQUENCE,
    ),
    "transposed in groups": (
        lambda: _deepen(cbr(3, 16), nn.ConvTranspose2d(16, 24, 2, 2, groups=4), cbr(24, 12)),
        IMAGE,
    ),
    "places of transposed groups": (
        lambda: _deepen(cbr(3, 16), nn.ConvTranspose2d(16, 24, 2, 2, groups=2), cbr(24, 12, groups=2)),
        IMAGE,
    ),
    "one channel of each transposed group": (
        lambda: _deepen(cbr(3, 24), nn.ConvTranspose2d(24, 8, 4, 2, 1, groups=8), cbr(8, 12)),
        IMAGE,
    ),
    "grouped down and up": (
        lambda: _deepen(
            cbr(3, 24),
            nn.Sequential(
                cbr(24, 24, stride=2, groups=6),
                nn.GroupNorm(6, 24),
                nn.ConvTranspose2d(24, 18, 2, 2, groups=6),
            ),
            cbr(18, 12),
        ),
        IMAGE,
    ),
    "own GRU cell": (
        lambda: Net(_gated, a=nn.Linear(6, 10), cell=GatedCell(10, 16), fc=nn.Linear(16, 3)),
        SEQUENCE,
    ),
    "own LSTM cells": (
        lambda: Net(
            _memories,
            a=nn.Linear(6, 10),
            one=MemoryCell(10, 16, lambda y, n: y.chunk(4, -1)),
            two=MemoryCell(16, 12, lambda y, n: [y[:, i * n : (i + 1) * n] for i in range(4)]),
            fc=nn.Linear(12, 3),
        ),
        SEQUENCE,
    ),
    "ConvLSTM": (lambda: ConvLSTM(12, 8), FRAMES),
    "ConvLSTM of equal layers": (lambda: ConvLSTM(8, 8), FRAMES),
    "ConvGRU, two layers": (ConvGated, FRAMES),
    "recurrent network of characters": (Characters, SEQUENCE),
}
