"""Networks of our own, small, one family each: what libraries of image classifiers do not hold."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    """Layers by name, and a forward given as a function of the module and the inputs."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Any:
        return self.run(self, *args, **kwargs)


def cbr(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o), nn.SiLU()
    )


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


class UNet(nn.Module):
    """Two floors down, two up; skips are concatenated, the decoder widens by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 16), cbr(16, 32), cbr(32, 48)
        self.up1, self.d = nn.ConvTranspose2d(48, 32, 2, 2), cbr(64, 32)
        self.up2, self.e = nn.ConvTranspose2d(32, 16, 2, 2), cbr(32, 16)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        y = self.d(torch.cat([b, self.up1(c)], 1))
        return self.out(self.e(torch.cat([a, self.up2(y)], 1)))


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = cbr(width, width), cbr(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


class C2f(nn.Module):
    """As in YOLOv8: a 1 x 1 convolution is chunked, one half goes through blocks, all stages are
    concatenated."""

    def __init__(self, i: int, o: int, blocks: int) -> None:
        super().__init__()
        self.first, self.last = cbr(i, o, 1), cbr((2 + blocks) * (o // 2), o, 1)
        self.blocks = nn.ModuleList(Bottleneck(o // 2) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.blocks)
        return self.last(torch.cat(parts, 1))


class Sppf(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = cbr(width, width // 2, 1), cbr(width * 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        stages = [self.first(x)]
        for _ in range(3):
            stages.append(F.max_pool2d(stages[-1], 5, 1, 2))
        return self.last(torch.cat(stages, 1))


class Yolo(nn.Module):
    """Backbone of C2f and SPPF blocks, a neck that comes back up, heads at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down1, self.c1 = cbr(3, 16, stride=2), cbr(16, 32, stride=2), C2f(32, 32, 2)
        self.down2, self.c2, self.sppf = cbr(32, 48, stride=2), C2f(48, 48, 1), Sppf(48)
        self.c3, self.down3, self.c4 = C2f(80, 32, 1), cbr(32, 32, stride=2), C2f(80, 48, 1)
        self.heads = nn.ModuleList(nn.Sequential(cbr(w, 24), nn.Conv2d(24, 9, 1)) for w in (32, 48))

    def forward(self, x: Tensor) -> list[Tensor]:
        p = self.c1(self.down1(self.stem(x)))
        q = self.sppf(self.c2(self.down2(p)))
        small = self.c3(torch.cat([F.interpolate(q, scale_factor=2.0), p], 1))
        large = self.c4(torch.cat([self.down3(small), q], 1))
        return [head(y) for head, y in zip(self.heads, (small, large), strict=True)]


class Pyramid(nn.Module):
    """Lateral 1 x 1 convolutions, sums from the top down, one output per floor, in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        widths = (12, 24, 36)
        self.floors = nn.ModuleList(
            cbr(i, o, stride=2) for i, o in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(w, 16, 1) for w in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in widths)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        found = []
        for floor, lateral in zip(self.floors, self.lateral, strict=True):
            x = floor(x)
            found.append(lateral(x))
        for n in (1, 0):
            found[n] = found[n] + F.interpolate(found[n + 1], size=found[n].shape[-2:])
        return {
            f"p{n}": self.head(smooth(y).relu())
            for n, (smooth, y) in enumerate(zip(self.smooth, found, strict=True))
        }


class Causal(nn.Module):
    """Temporal convolutions, dilated, cut back in time, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 16, 1)
        self.convs = nn.ModuleList(nn.Conv1d(16, 16, 3, padding=2 * d, dilation=d) for d in (1, 2, 4))
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for n, conv in enumerate(self.convs):
            x = x + conv(x)[:, :, : -2 * 2**n].relu()
        return self.fc(x[:, :, -1])


class WaveNet(nn.Module):
    """Gated dilated convolutions (tanh times sigmoid), a residual and a summed skip path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 16, 1)
        self.filters = nn.ModuleList(nn.Conv1d(16, 12, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.gates = nn.ModuleList(nn.Conv1d(16, 12, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.back = nn.ModuleList(nn.Conv1d(12, 16, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(12, 20, 1) for _ in range(3))
        self.out = nn.Conv1d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros(())
        for f, g, back, skip in zip(self.filters, self.gates, self.back, self.skip, strict=True):
            y = f(x).tanh() * g(x).sigmoid()
            x, total = x + back(y), total + skip(y)
        return self.out(total.relu())


class Attention(nn.Module):
    """Self-attention as most write it: one projection to queries, keys and values, heads by a reshape."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * self.size**-0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


class Windows(nn.Module):
    """Attention inside windows, the size of a head computed from the width of the stream, as in Swin."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        q, k, v = (
            self.qkv(self.norm(y)).reshape(-1, 16, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        )
        y = self.out(
            ((q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c)
        )
        return x + y.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


class Encoder(nn.Module):
    """Patches, a class token, learnt positions, two blocks of attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.attention = nn.ModuleList(Attention() for _ in range(2))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)
        )
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        for n in range(2):
            x = x + self.attention[n](self.norms[2 * n](x))
            x = x + self.mlps[n](self.norms[2 * n + 1](x))
        return self.fc(x[:, 0])


class Mixer(nn.Module):
    """Linear layers over places and over channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.places = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.places(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.fc(x.mean(1))


class Dense(nn.Module):
    """Each layer sees the concatenation of all before it, behind a normalisation of its own."""

    def __init__(self, depth: int = 4, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * growth, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(growth * (2 + n)) for n in range(depth + 1))
        self.convs = nn.ModuleList(nn.Conv2d(growth * (2 + n), growth, 3, padding=1) for n in range(depth))
        self.fc = nn.Linear(growth * (2 + depth), 5)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            seen.append(conv(norm(torch.cat(seen, 1)).relu()))
        return self.fc(pooled(self.norms[-1](torch.cat(seen, 1)).relu()))


class ShuffleUnit(nn.Module):
    """Half the channels pass by; the two halves are shuffled by a reshape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.a, self.b, self.c = cbr(half, half, 1), cbr(half, half, 3, groups=half), cbr(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        y = torch.cat([left, self.c(self.b(self.a(right)))], 1)
        b, c, h, w = y.shape
        return y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class Tied(nn.Module):
    """A language model of convolutions whose last layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.conv, self.mix = nn.Conv1d(24, 32, 3, padding=2), nn.Conv1d(32, 24, 1)
        self.out = nn.Linear(24, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids).transpose(1, 2)
        x = x + self.mix(self.conv(x)[..., :-2].relu())
        return self.out(x.transpose(1, 2))


class Gaussian(nn.Module):
    """Encoder to mean and spread, both halves of one layer; decoder from the mean; three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU()
        )
        self.code = nn.Linear(24 * 16, 16)
        self.decode = nn.Sequential(
            nn.Linear(8, 64),
            nn.ReLU(),
            nn.Unflatten(1, (16, 2, 2)),
            nn.ConvTranspose2d(16, 12, 4, 4),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 3, 2, 2),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = self.code(self.encode(x).flatten(1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp() if self.training else mean
        return self.decode(z), mean, spread


class Cells(nn.Module):
    """A recurrent cell of the network's own, unrolled over time by a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h, self.fc = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], self.h.weight.shape[1], dtype=x.dtype, device=x.device)
        for t in range(x.shape[1]):
            h = (self.x(x[:, t]) + self.h(h)).tanh()
        return self.fc(h)


class Standardised(nn.Conv2d):
    """A convolution whose filters are brought to mean 0 and spread 1 before each use."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-3)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class Experts(nn.Module):
    """A mixture whose experts lie in stacked weights [E, I, O], all of them run, mixed by a router's
    largest weights."""

    def __init__(self, experts: int = 4, width: int = 12, inner: int = 20) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.up, self.down = (
            nn.Parameter(torch.randn(experts, *shape) / 4) for shape in ((width, inner), (inner, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).softmax(-1)
        each = torch.bmm(torch.bmm(x.expand(len(self.up), -1, -1), self.up).relu(), self.down)
        return torch.einsum("end,ne->nd", each, chosen)


class Routed(nn.Module):
    """A mixture of several layers, of which each example sees its best two."""

    def __init__(self, width: int = 12, experts: int = 4) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        y = torch.zeros_like(x)
        for n, expert in enumerate(self.experts):
            own = (weights * (chosen == n)).sum(-1, keepdim=True)
            y = y + own * expert(x)
        return y


class Bare(nn.Module):
    """No layers: parameters of its own and functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.filters, self.shift = nn.Parameter(torch.randn(12, 3, 3, 3) / 4), nn.Parameter(torch.randn(12))
        self.matrix, self.scale = nn.Parameter(torch.randn(8, 12) / 3), nn.Parameter(torch.ones(12))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.filters, self.shift, padding=1).relu() * self.scale[:, None, None]
        return self.fc(F.linear(pooled(y), self.matrix).relu())


class Patches(nn.Module):
    """Windows taken out by unfold, mixed by a Linear layer, put back by fold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.b = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(8 * 16, 8 * 16),
            nn.Conv2d(8, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(self.a(x), 4, stride=4).transpose(1, 2)
        return self.b(F.fold(self.mix(columns).relu().transpose(1, 2), x.shape[2:], 4, stride=4))


class CrossAttention(nn.Module):
    """Learnt queries read a sequence by torch's attention, with keys and values of their own widths and
    padding masked."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (
            nn.Parameter(torch.randn(1, 5, 16)),
            nn.Linear(6, 10),
            nn.Linear(6, 14),
        )
        self.att = nn.MultiheadAttention(16, 4, kdim=10, vdim=14, batch_first=True)
        self.norm, self.mlp, self.fc = (
            nn.LayerNorm(16),
            nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        q = self.queries.expand(len(x), -1, -1)
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        y = q + self.att(q, self.keys(x), self.values(x), key_padding_mask=padding, need_weights=False)[0]
        return self.fc((y + self.mlp(self.norm(y))).mean(1))


class Packed(nn.Module):
    """Sequences of several lengths, packed for a recurrent layer and unpacked behind it."""

    def __init__(self, kind: type[nn.RNNBase], enforce_sorted: bool, **more: Any) -> None:
        super().__init__()
        self.sorted = enforce_sorted
        self.a, self.rnn = nn.Linear(6, 12), kind(12, 16, batch_first=True, **more)
        self.fc = nn.Linear(32 if more.get("bidirectional") else 16, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.a(x).relu(), lengths.cpu(), batch_first=True, enforce_sorted=self.sorted
        )
        y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.fc(y.sum(1) / lengths[:, None])


class Filled(nn.Module):
    """Results written step by step into a tensor made before."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.b, self.fc = nn.GRUCell(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.cell.weight_hh.shape[1])
        seen = x.new_zeros(*x.shape[:2], self.cell.weight_hh.shape[1])
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            seen[:, t] = h
        return self.fc(self.b(seen).relu().mean(1))


class Points(nn.Module):
    """PointNet: shared layers per point, the largest value over points, concatenated back to each point."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU()),
            nn.Conv1d(16, 32, 1),
        )
        self.c, self.out = nn.Conv1d(48, 24, 1), nn.Conv1d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = self.a(x)
        whole = self.b(local).amax(2, keepdim=True)
        return self.out(self.c(torch.cat([local, whole.expand(-1, -1, x.shape[2])], 1)).relu())


def noise(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(
        torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n, shape in enumerate(shapes)
    )


def draw_tokens() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(2, 50, (2, 9), generator=draw)}


IMAGE = noise((2, 3, 16, 16))
TOKENS = draw_tokens
SIGNAL = noise((2, 4, 24))
SEQUENCE = noise((2, 9, 6))
LENGTHS = lambda: {"x": SEQUENCE()[0], "lengths": torch.tensor([9, 6])}  # noqa: E731


def _recurrent(kind: type[nn.Module], **more: Any) -> Net:
    width = 32 if more.get("bidirectional") else 16
    return Net(
        lambda m, x: m.fc(m.b(m.rnn(m.a(x.transpose(1, 2)).relu().transpose(1, 2))[0][:, -1]).relu()),
        a=nn.Conv1d(6, 12, 3, padding=1),
        rnn=kind(12, 16, batch_first=True, **more),
        b=nn.Linear(width, 8),
        fc=nn.Linear(8, 3),
    )


def _film(m: Net, image: Tensor, condition: Tensor) -> Tensor:
    scale, shift = m.film(condition).chunk(2, 1)
    return m.fc(pooled(m.b((m.a(image) * scale[..., None, None] + shift[..., None, None]).relu())))


def _cbam(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    y = y * (m.mlp(pooled(y)) + m.mlp(y.amax((2, 3)))).sigmoid()[..., None, None]
    y = y * m.place(torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)).sigmoid()
    return m.fc(pooled(m.b(y).relu()))


def _nonlocal(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    q, k, v = (f(y).flatten(2) for f in (m.q, m.k, m.v))
    z = (v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)).unflatten(2, y.shape[2:])
    return m.fc(pooled(y + m.z(z)))


def _dueling(m: Net, x: Tensor) -> Tensor:
    y = m.a(x).flatten(1).relu()
    advantage = m.advantage(y)
    return m.value(y) + advantage - advantage.mean(1, keepdim=True)


def _experts(m: Net, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    stacked = torch.stack([m.e1(y).relu(), m.e2(y).relu(), m.e3(y).relu()], 1)
    return m.fc((stacked * m.gate(y).softmax(1)[..., None]).sum(1))


def _nerf(m: Net, x: Tensor) -> Tensor:
    coded = torch.cat([x, x.sin(), x.cos()], 1)
    y = m.b(m.a(coded).relu()).relu()
    return m.out(m.d(m.c(torch.cat([y, coded], 1)).relu()).relu())


def _adain(m: Net, image: Tensor, style: Tensor) -> Tensor:
    y = m.a(image)
    y = (y - y.mean((2, 3), keepdim=True)) / (y.std((2, 3), keepdim=True) + 1e-3)
    return m.out((y * m.scale(style)[..., None, None] + m.shift(style)[..., None, None]).relu())


def _frozen_first() -> Net:
    net = Net(
        lambda m, x: m.fc(pooled(m.b(m.a(x).relu()).relu())), a=cbr(3, 16), b=cbr(16, 16), fc=nn.Linear(16, 4)
    )
    for parameter in net.a.parameters():
        parameter.requires_grad_(False)
    return net


def _tied_convolutions() -> Net:
    net = Net(
        lambda m, x: m.fc(pooled(m.c(m.b(y := m.a(x)).relu()) + y)),
        a=cbr(3, 12),
        b=nn.Conv2d(12, 12, 3, padding=1),
        c=nn.Conv2d(12, 12, 3, padding=1),
        fc=nn.Linear(12, 4),
    )
    net.c.weight = net.b.weight
    return net


def _conv1() -> Net:
    return Net(
        lambda m, x: m.fc(m.c(m.b(m.a(x))).mean(2)),
        a=nn.Sequential(nn.Conv1d(4, 16, 7, padding=3), nn.BatchNorm1d(16), nn.ReLU()),
        b=nn.Sequential(nn.Conv1d(16, 24, 5, 2, 2), nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2)),
        c=nn.Conv1d(24, 16, 3, groups=4),
        fc=nn.Linear(16, 3),
    )


def _conv3() -> Net:
    return Net(
        lambda m, x: m.fc((m.b(m.a(x).relu()) + m.s(x)).relu().mean((2, 3, 4))),
        a=nn.Sequential(nn.Conv3d(3, 12, 3, padding=1), nn.BatchNorm3d(12)),
        b=nn.Sequential(nn.Conv3d(12, 16, 3, padding=1), nn.BatchNorm3d(16)),
        s=nn.Conv3d(3, 16, 1),
        fc=nn.Linear(16, 3),
    )


def _autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1),
        nn.Sigmoid(),
    )


def _generator() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(10, 32, 4),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 3, 4, 2, 1),
        nn.Tanh(),
    )


def cgs(i: int, o: int, groups: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(groups, o), nn.SiLU())


class NormedUNet(nn.Module):
    """A diffusion U-Net's floors: GroupNorm(8) of 32, 64 and 128 channels, skips concatenated before a
    normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cgs(3, 32), cgs(32, 64), cgs(64, 64)
        self.up, self.norm = nn.ConvTranspose2d(64, 32, 2, 2), nn.GroupNorm(8, 64)
        self.d, self.out = cgs(64, 32), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        c = self.c(self.b(F.max_pool2d(a, 2)))
        return self.out(self.d(self.norm(torch.cat([a, self.up(c)], 1)).relu()))


class SegResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())


class SegResNet(nn.Module):
    """Residual blocks with GroupNorm(8) in front, of 8 channels at first; the decoder adds its skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), SegResBlock(8)
        self.down, self.two = nn.Conv2d(8, 16, 3, 2, 1), SegResBlock(16)
        self.up, self.three = nn.Conv2d(16, 8, 1), SegResBlock(8)
        self.norm, self.out = nn.GroupNorm(8, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(self.stem(x))
        up = F.interpolate(self.up(self.two(self.down(one))), scale_factor=2.0)
        return self.out(self.norm(self.three(one + up)).relu())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "unet": (UNet, IMAGE),
    "yolo": (Yolo, noise((2, 3, 32, 32))),
    "pyramid": (Pyramid, IMAGE),
    "densenet": (Dense, IMAGE),
    "shufflenet": (
        lambda: nn.Sequential(
            cbr(3, 24),
            ShuffleUnit(24),
            ShuffleUnit(24),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 4),
        ),
        IMAGE,
    ),
    "conv1d": (_conv1, SIGNAL),
    "causal": (Causal, SIGNAL),
    "wavenet": (WaveNet, SIGNAL),
    "conv3d": (_conv3, noise((2, 3, 4, 8, 8))),
    "autoencoder": (_autoencoder, IMAGE),
    "generator": (_generator, noise((2, 10, 1, 1))),
    "variational": (Gaussian, IMAGE),
    "grouped transposed": (
        lambda: Net(
            lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
            a=nn.Conv2d(3, 16, 3, padding=1),
            b=nn.ConvTranspose2d(16, 8, 2, 2, groups=2),
            c=nn.Conv2d(8, 3, 1),
        ),
        IMAGE,
    ),
    "super-resolution": (
        lambda: Net(
            lambda m, x: (
                F.interpolate(x, scale_factor=2.0) + F.pixel_shuffle(m.c(m.b(m.a(x).relu()).relu()), 2)
            ),
            a=nn.Conv2d(3, 16, 3, padding=1),
            b=nn.Conv2d(16, 16, 3, padding=1),
            c=nn.Conv2d(16, 12, 3, padding=1),
        ),
        IMAGE,
    ),
    "siamese": (
        lambda: Net(
            lambda m, x, y: m.fc((m.b(m.a(x)).flatten(1) - m.b(m.a(y)).flatten(1)).abs()),
            a=cbr(3, 12, stride=2),
            b=cbr(12, 8, stride=2),
            fc=nn.Linear(8 * 16, 2),
        ),
        noise((2, 3, 16, 16), (2, 3, 16, 16)),
    ),
    "two towers": (
        lambda: Net(
            lambda m, x, y: torch.einsum("bd,bd->b", m.b(m.a(x).relu()), m.d(m.c(y).relu())),
            a=nn.Linear(6, 16),
            b=nn.Linear(16, 12),
            c=nn.Linear(5, 20),
            d=nn.Linear(20, 12),
        ),
        noise((4, 6), (4, 5)),
    ),
    "image and vector": (
        lambda: Net(
            lambda m, x, v: m.fc(torch.cat([pooled(m.a(x)), m.b(v).relu()], 1).relu()),
            a=cbr(3, 12),
            b=nn.Linear(5, 8),
            fc=nn.Linear(20, 4),
        ),
        noise((2, 3, 16, 16), (2, 5)),
    ),
    "FiLM": (
        lambda: Net(
            _film,
            a=nn.Conv2d(3, 12, 3, padding=1),
            film=nn.Linear(5, 24),
            b=nn.Conv2d(12, 8, 3),
            fc=nn.Linear(8, 4),
        ),
        noise((2, 3, 16, 16), (2, 5)),
    ),
    "adaptive instance norm": (
        lambda: Net(
            _adain,
            a=nn.Conv2d(3, 12, 3, padding=1),
            scale=nn.Linear(5, 12),
            shift=nn.Linear(5, 12),
            out=nn.Conv2d(12, 3, 3, padding=1),
        ),
        noise((2, 3, 16, 16), (2, 5)),
    ),
    "mapping in, mapping out": (
        lambda: Net(
            lambda m, image, vector: {
                "class": m.fc(y := m.c(pooled(m.a(image)) * m.b(vector)).relu()),
                "size": (m.d(y),),
            },
            a=cbr(3, 12),
            b=nn.Linear(5, 12),
            c=nn.Linear(12, 10),
            fc=nn.Linear(10, 4),
            d=nn.Linear(10, 1),
        ),
        lambda: dict(zip(("image", "vector"), noise((2, 3, 16, 16), (2, 5))(), strict=True)),
    ),
    "several heads": (
        lambda: Net(
            lambda m, x: (m.cls(y := pooled(m.b(m.a(x)))), m.box(y).sigmoid(), m.seg(m.a(x))),
            a=cbr(3, 12),
            b=cbr(12, 16),
            cls=nn.Linear(16, 4),
            box=nn.Linear(16, 4),
            seg=nn.Conv2d(12, 2, 1),
        ),
        IMAGE,
    ),
    "LSTM": (lambda: _recurrent(nn.LSTM), SEQUENCE),
    "LSTM, two ways": (lambda: _recurrent(nn.LSTM, bidirectional=True), SEQUENCE),
    "LSTM, two layers": (lambda: _recurrent(nn.LSTM, num_layers=2), SEQUENCE),
    "GRU": (lambda: _recurrent(nn.GRU), SEQUENCE),
    "RNN": (lambda: _recurrent(nn.RNN), SEQUENCE),
    "LSTM, packed": (lambda: Packed(nn.LSTM, False, bidirectional=True), LENGTHS),
    "GRU, packed": (lambda: Packed(nn.GRU, True, num_layers=2), LENGTHS),
    "states written step by step": (Filled, SEQUENCE),
    "own recurrent cell": (Cells, SEQUENCE),
    "multi-head attention": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.att(*[m.a(x)] * 3)[0].mean(1)).relu()),
            a=nn.Linear(6, 16),
            att=nn.MultiheadAttention(16, 4, batch_first=True),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        SEQUENCE,
    ),
    "transformer encoder": (
        lambda: Net(
            lambda m, x: m.fc(m.t(m.a(x)).mean(1)),
            a=nn.Linear(6, 16),
            t=nn.TransformerEncoder(
                nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2, enable_nested_tensor=False
            ),
            fc=nn.Linear(16, 3),
        ),
        SEQUENCE,
    ),
    "transformer decoder": (
        lambda: Net(
            lambda m, x: m.fc(m.t(m.a(x), m.b(x))),
            a=nn.Linear(6, 16),
            b=nn.Linear(6, 16),
            t=nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 1),
            fc=nn.Linear(16, 3),
        ),
        SEQUENCE,
    ),
    "attention, one projection": (Encoder, IMAGE),
    "attention in windows": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.d(m.c(m.b(m.a(x)))).relu())),
            a=nn.Conv2d(3, 24, 2, 2),
            b=Windows(),
            c=Windows(),
            d=nn.Conv2d(24, 16, 1),
            fc=nn.Linear(16, 4),
        ),
        IMAGE,
    ),
    "mixer": (Mixer, IMAGE),
    "tied language model": (Tied, TOKENS),
    "text convolutions": (
        lambda: Net(
            lambda m, input_ids: m.fc(
                torch.cat([c(m.e(input_ids).transpose(1, 2)).relu().amax(2) for c in (m.a, m.b, m.c)], 1)
            ),
            e=nn.Embedding(50, 16),
            a=nn.Conv1d(16, 8, 2),
            b=nn.Conv1d(16, 8, 3),
            c=nn.Conv1d(16, 8, 4),
            fc=nn.Linear(24, 3),
        ),
        TOKENS,
    ),
    "bag of words": (
        lambda: Net(
            lambda m, input_ids: m.fc(m.a(m.e(input_ids)).relu()),
            e=nn.EmbeddingBag(50, 16),
            a=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        TOKENS,
    ),
    "tied autoencoder": (
        lambda: Net(
            lambda m, x: F.linear(F.linear(m.b(m.a(x).relu()).relu(), m.b.weight.t()).relu(), m.a.weight.t()),
            a=nn.Linear(20, 16),
            b=nn.Linear(16, 8),
        ),
        noise((4, 20)),
    ),
    "weight norm": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.b(m.a(x).relu()).relu())),
            a=nn.Conv2d(3, 12, 3),
            b=nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 8, 3)),
            fc=nn.Linear(8, 4),
        ),
        IMAGE,
    ),
    "spectral norm": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.c(m.b(m.a(x).relu()).relu()))),
            a=nn.Conv2d(3, 12, 3),
            b=nn.utils.parametrizations.spectral_norm(nn.Conv2d(12, 8, 3)),
            c=nn.Conv2d(8, 10, 3),
            fc=nn.Linear(10, 4),
        ),
        IMAGE,
    ),
    "frozen first layers": (_frozen_first, IMAGE),
    "checkpointed": (
        lambda: Net(
            lambda m, x: m.fc(pooled(checkpoint(m.b, m.a(x), use_reentrant=False))),
            a=cbr(3, 12),
            b=cbr(12, 8),
            fc=nn.Linear(8, 4),
        ),
        IMAGE,
    ),
    "attention over channels and places": (
        lambda: Net(
            _cbam,
            a=cbr(3, 16),
            mlp=nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)),
            place=nn.Conv2d(2, 1, 3, padding=1),
            b=nn.Conv2d(16, 8, 3),
            fc=nn.Linear(8, 4),
        ),
        IMAGE,
    ),
    "non-local block": (
        lambda: Net(
            _nonlocal,
            a=cbr(3, 16, stride=2),
            q=nn.Conv2d(16, 8, 1),
            k=nn.Conv2d(16, 8, 1),
            v=nn.Conv2d(16, 12, 1),
            z=nn.Conv2d(12, 16, 1),
            fc=nn.Linear(16, 4),
        ),
        IMAGE,
    ),
    "dueling heads": (
        lambda: Net(
            _dueling,
            a=cbr(3, 8, stride=4),
            value=nn.Sequential(nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 1)),
            advantage=nn.Sequential(nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 4)),
        ),
        IMAGE,
    ),
    "soft experts": (
        lambda: Net(
            _experts,
            a=nn.Linear(6, 16),
            gate=nn.Linear(16, 3),
            e1=nn.Linear(16, 12),
            e2=nn.Linear(16, 12),
            e3=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        noise((4, 6)),
    ),
    "radiance field": (
        lambda: Net(
            _nerf,
            a=nn.Linear(9, 24),
            b=nn.Linear(24, 24),
            c=nn.Linear(33, 24),
            d=nn.Linear(24, 16),
            out=nn.Linear(16, 4),
        ),
        noise((4, 3)),
    ),
    "graph convolution": (
        lambda: Net(
            lambda m, x, a: m.fc((a @ m.b((a @ m.a(x)).relu())).relu().mean(1)),
            a=nn.Linear(6, 16),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        noise((2, 7, 6), (2, 7, 7)),
    ),
    "highway": (
        lambda: Net(
            lambda m, x: m.fc((g := m.gate(y := m.a(x)).sigmoid()) * m.b(y).relu() + (1 - g) * y),
            a=nn.Linear(6, 16),
            gate=nn.Linear(16, 16),
            b=nn.Linear(16, 16),
            fc=nn.Linear(16, 3),
        ),
        noise((4, 6)),
    ),
    "gated block": (
        lambda: Net(
            lambda m, x: m.fc((y := m.a(x)) + m.down(F.silu(m.gate(m.n(y))) * m.up(m.n(y)))),
            a=nn.Linear(6, 16),
            n=nn.RMSNorm(16),
            gate=nn.Linear(16, 32),
            up=nn.Linear(16, 32),
            down=nn.Linear(32, 16),
            fc=nn.Linear(16, 3),
        ),
        noise((4, 6)),
    ),
    "bilinear": (
        lambda: Net(
            lambda m, x, y: m.fc(m.bi(m.a(x).relu(), m.b(y).relu())),
            a=nn.Linear(6, 12),
            b=nn.Linear(5, 10),
            bi=nn.Bilinear(12, 10, 8),
            fc=nn.Linear(8, 3),
        ),
        noise((4, 6), (4, 5)),
    ),
    "weight standardisation": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.c(m.n(m.b(m.a(x).relu())).relu()))),
            a=Standardised(3, 12, 3),
            b=Standardised(12, 16, 3),
            n=nn.BatchNorm2d(16),
            c=nn.Conv2d(16, 8, 1),
            fc=nn.Linear(8, 4),
        ),
        IMAGE,
    ),
    "RMS norm without weights": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.n(m.a(x))).relu()),
            a=nn.Linear(6, 16),
            n=nn.RMSNorm(16, elementwise_affine=False),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        noise((4, 6)),
    ),
    "stacked experts": (
        lambda: nn.Sequential(nn.Linear(6, 12), Experts(), nn.ReLU(), nn.Linear(12, 3)),
        noise((4, 6)),
    ),
    "routed experts": (lambda: nn.Sequential(nn.Linear(6, 12), Routed(), nn.Linear(12, 3)), noise((4, 6))),
    "bare parameters": (Bare, IMAGE),
    "unfold and fold": (Patches, IMAGE),
    "cross attention": (CrossAttention, LENGTHS),
    "encoder and decoder": (
        lambda: Net(
            lambda m, x, y: m.fc(m.t(m.a(x), m.b(y))),
            a=nn.Linear(6, 16),
            b=nn.Linear(6, 16),
            t=nn.Transformer(16, 4, 1, 1, 24, batch_first=True),
            fc=nn.Linear(16, 3),
        ),
        noise((2, 9, 6), (2, 5, 6)),
    ),
    "depthwise transposed": (
        lambda: Net(
            lambda m, x: m.c(m.b(m.a(x).relu()).relu()),
            a=nn.Conv2d(3, 12, 3, padding=1),
            b=nn.ConvTranspose2d(12, 24, 2, 2, groups=12),
            c=nn.Conv2d(24, 3, 1),
        ),
        IMAGE,
    ),
    "queries and keys by einsum": (
        lambda: Net(
            lambda m, x: m.fc(
                torch.einsum(
                    "bnm,bmd->bnd", torch.einsum("bnd,bmd->bnm", m.q(x), m.k(x)).softmax(-1), m.v(x)
                ).mean(1)
            ),
            q=nn.Linear(6, 12),
            k=nn.Linear(6, 12),
            v=nn.Linear(6, 16),
            fc=nn.Linear(16, 3),
        ),
        SEQUENCE,
    ),
    "tied convolutions": (lambda: _tied_convolutions(), IMAGE),
    "points": (Points, noise((2, 3, 20))),
    "U-Net with norm groups": (NormedUNet, IMAGE),
    "SegResNet": (SegResNet, IMAGE),
    "groups in groups": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.c(m.b(m.a(x))))),
            a=cgs(3, 36, 9),
            b=nn.Sequential(nn.Conv2d(36, 72, 3, padding=1, groups=9), nn.GroupNorm(18, 72), nn.SiLU()),
            c=cbr(72, 24),
            fc=nn.Linear(24, 4),
        ),
        IMAGE,
    ),
    "loop with shared weights": (
        lambda: Net(
            lambda m, x: m.fc(pooled(m.b(m.b(m.b(y := m.a(x)).relu() + y).relu() + y))),
            a=cbr(3, 12),
            b=nn.Conv2d(12, 12, 3, padding=1),
            fc=nn.Linear(12, 4),
        ),
        IMAGE,
    ),
}
