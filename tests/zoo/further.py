"""Further networks of our own: constructs that classifiers of images seldom hold.

Graphs, rotary positions, Fourier transforms, routing by the largest value, several entry points, frames in
the batch, time first, weights computed from others. Each entry is (how to build it, what a call takes by
batch size and seed).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from own import Net, cbr, pooled
from torch import Tensor, nn
from torch.nn import functional as F

Drawn = Callable[[int, int], Any]


def noise(*shapes: tuple[int, ...]) -> Drawn:
    """Tensors of normal numbers; the batch comes first in each."""

    def drawn(batch: int, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)

    return drawn


def time_first(length: int, width: int) -> Drawn:
    """[length, batch, width]"""
    return lambda batch, seed: (
        torch.randn(length, batch, width, generator=torch.Generator().manual_seed(seed)),
    )


def tokens(length: int = 9, vocabulary: int = 50) -> Drawn:
    def drawn(batch: int, seed: int) -> tuple[Tensor]:
        return (torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed)),)

    return drawn


def graphs(width: int = 6, nodes: int = 6, edges: int = 14) -> Drawn:
    """`batch` graphs side by side: features of all nodes [batch * nodes, width], edges [2, batch * edges]."""

    def drawn(batch: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ends = (
            torch.randint(0, nodes, (batch, 2, edges), generator=generator)
            + nodes * torch.arange(batch)[:, None, None]
        )
        x = torch.randn(batch * nodes, width, generator=generator)
        return x, ends.transpose(0, 1).reshape(2, -1)

    return drawn


IMAGE, SIGNAL, SEQUENCE, TABLE = noise((3, 16, 16)), noise((4, 24)), noise((9, 6)), noise((6,))


# graphs


class GraphConvolution(nn.Module):
    """Sums over neighbours by index_add, divided by the degree."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        degree = x.new_zeros(len(x)).index_add_(0, target, x.new_ones(len(target))).clamp(min=1)
        for layer in (self.a, self.b):
            y = layer(x)
            x = (y + torch.zeros_like(y).index_add_(0, target, y[source]) / degree[:, None]).relu()
        return self.fc(x)


class GraphAttention(nn.Module):
    """Heads with a softmax over the edges that end in a node."""

    def __init__(self, heads: int = 4, size: int = 6) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.a, self.fc = nn.Linear(6, heads * size), nn.Linear(heads * size, 3)
        self.left, self.right = (nn.Parameter(torch.randn(1, heads, size)) for _ in range(2))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        y = self.a(x).view(len(x), self.heads, -1)
        score = F.leaky_relu((y * self.left).sum(-1)[source] + (y * self.right).sum(-1)[target], 0.2).exp()
        total = score.new_zeros(len(x), self.heads).index_add_(0, target, score)
        weight = score / (total[target] + 1e-9)
        made = torch.zeros_like(y).index_add_(0, target, y[source] * weight[..., None])
        return self.fc(made.flatten(1).relu())


class GraphIsomorphism(nn.Module):
    """A sum over neighbours through an MLP with a BatchNorm; the graph's mean at the end by scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(1))
        self.first = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16))
        self.second = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16))
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        for block in (self.first, self.second):
            place = target[:, None].expand(-1, x.shape[1])
            near = torch.zeros_like(x).scatter_add(0, place, x[source])
            x = block((1 + self.eps) * x + near).relu()
        return self.fc(x)


class EdgeConvolution(nn.Module):
    """DGCNN: differences along edges through an MLP, the largest over edges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.mlp, self.fc = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 16)), nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        x = self.stem(x)
        y = self.mlp(torch.cat([x[target], x[source] - x[target]], 1))
        place = target[:, None].expand_as(y)
        return self.fc(
            y.new_zeros(len(x), y.shape[1]).scatter_reduce(0, place, y, "amax", include_self=False)
        )


class SparseGraph(nn.Module):
    """A fixed graph as a sparse buffer."""

    def __init__(self, nodes: int = 8) -> None:
        super().__init__()
        ring = torch.eye(nodes).roll(1, 0) + torch.eye(nodes)
        self.register_buffer("ring", ring.to_sparse(), persistent=False)
        self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        ring = self.ring.to(x.dtype)
        y = torch.stack([torch.sparse.mm(ring, self.a(own)) for own in x]).relu()
        return self.fc(self.b(y).relu().mean(1))


# rotary positions


def angles(length: int, size: int) -> Tensor:
    return torch.arange(length)[:, None] * 10.0 ** -torch.linspace(0, 2, size // 2)


def split_half(x: Tensor) -> Tensor:
    angle = torch.cat([angles(x.shape[-2], x.shape[-1])] * 2, -1).to(x.dtype)
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


def interleaved(x: Tensor) -> Tensor:
    angle = angles(x.shape[-2], x.shape[-1]).to(x.dtype)
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)


def complex_turn(x: Tensor) -> Tensor:
    angle = angles(x.shape[-2], x.shape[-1]).to(x.dtype)
    turn = torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)


class Rotary(nn.Module):
    """Causal attention of two blocks whose queries and keys are turned by their positions."""

    def __init__(
        self, turn: Callable[[Tensor], Tensor], norms: bool = False, heads: int = 4, size: int = 6
    ) -> None:
        super().__init__()
        self.turn, self.heads, self.size = turn, heads, size
        width = heads * size
        self.stem, self.fc = nn.Linear(6, width), nn.Linear(width, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm_q, self.norm_k = (nn.RMSNorm(size) if norms else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(
            self.turn(self.norm_q(q)), self.turn(self.norm_k(k)), v, is_causal=True
        )
        x = x + self.o(y.transpose(1, 2).flatten(2))
        return self.fc(x + self.down(self.up(x).relu()))


# Fourier transforms


class FourierTokens(nn.Module):
    """FNet: the real part of a transform over places and channels mixes tokens in place of attention."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims
        self.stem, self.up, self.down, self.fc = (
            nn.Linear(6, 16),
            nn.Linear(16, 24),
            nn.Linear(24, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.fft.fftn(x, dim=self.dims).real / 8
        return self.fc((x + self.down(self.up(x).relu())).mean(1))


class GlobalFilter(nn.Module):
    """GFNet: a learnt complex filter in the frequency domain of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 12), cbr(12, 16), nn.Linear(16, 4)
        self.filter = nn.Parameter(torch.randn(12, 16, 9, 2) / 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.rfft2(self.a(x), norm="ortho")
        y = y * torch.view_as_complex(self.filter)
        return self.fc(pooled(self.b(torch.fft.irfft2(y, s=(16, 16), norm="ortho"))))


# parts that the tracer cannot enter


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 1:
            return x * torch.sigmoid(1.5 * x)
        return x


def _scripted() -> Net:
    return Net(
        lambda m, x: m.fc(pooled(m.b(m.gate(m.a(x))).relu())),
        a=nn.Conv2d(3, 12, 3),
        gate=torch.jit.script(Gate()),
        b=nn.Conv2d(12, 8, 3),
        fc=nn.Linear(8, 4),
    )


def _vmapped(m: Net, x: Tensor) -> Tensor:
    def one(y: Tensor) -> Tensor:
        return (y @ y.t()).softmax(-1) @ y

    return m.fc(m.b(torch.vmap(one)(m.a(x) / 4)).relu().mean(1))


def _mixed_precision(m: Net, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.b(y).relu()
    return m.fc(pooled(y.to(x.dtype)))


def _inference(m: Net, x: Tensor) -> Tensor:
    with torch.inference_mode(not m.training):
        y = m.a(x).relu()
    return m.fc(pooled(m.b(y.clone()).relu()))


# routing


class Switch(nn.Module):
    """Each token goes to the expert of its largest score, which also weighs the result."""

    def __init__(self, experts: int = 4, width: int = 12) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(6, width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, width)) for _ in range(experts)
        )
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weight, chosen = self.router(x).softmax(-1).max(-1)
        made = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            made = made + expert(x) * (weight * (chosen == number))[..., None]
        return self.fc(x + made)


class TopTwo(nn.Module):
    """The two best experts of each token; each expert sees its own tokens alone, added back by index_add."""

    def __init__(self, experts: int = 4, width: int = 12) -> None:
        super().__init__()
        self.stem, self.router = nn.Linear(6, width), nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 20), nn.SiLU(), nn.Linear(20, width)) for _ in range(experts)
        )
        self.fc = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        made = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            made = made.index_add(0, token, expert(flat[token]) * weights[token, place, None])
        return self.fc(x + made.view_as(x))


class Quantised(nn.Module):
    """VQ-VAE: the nearest of a table of codes, found by distance, looked up by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 16, stride=2), nn.Conv2d(16, 12, 1)
        self.codes = nn.Embedding(20, 12)
        self.c, self.out = nn.ConvTranspose2d(12, 16, 2, 2), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x)).movedim(1, -1)
        number = torch.cdist(y.flatten(1, 2), self.codes.weight.expand(len(y), -1, -1)).argmin(-1)
        code = self.codes(number).view_as(y)
        return self.out(self.c((y + (code - y).detach()).movedim(-1, 1)).relu())


class LargestThenLooked(nn.Module):
    """The number of the largest unit is looked up in a table: units must not be renumbered."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.score, self.table = (
            nn.Linear(6, 16),
            nn.Linear(16, 12),
            nn.Linear(12, 10),
            nn.Embedding(10, 8),
        )
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight, number = self.score(self.b(self.a(x).relu()).relu()).softmax(-1).max(-1)
        return self.fc(self.table(number) * weight[..., None])


def _gumbel(m: Net, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    gate = F.gumbel_softmax(m.gate(y), tau=0.7, hard=True)
    return m.fc((torch.stack([m.e1(y), m.e2(y), m.e3(y)], 1).relu() * gate[..., None]).sum(1))


# entry points, batches


class EntryPoints(nn.Module):
    """`forward` classifies; `reconstruct` goes another way through the same trunk. both: `forward` does
    both."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both
        self.encoder = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 6))
        self.fc = nn.Linear(16, 3)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        scores = self.fc(self.encode(x))
        return (scores, self.reconstruct(x)) if self.both else scores


def _frames(m: Net, x: Tensor) -> Tensor:
    """[batch, frames, 3, height, width]: frames go through a 2-D trunk as examples."""
    y = pooled(m.b(m.a(x.flatten(0, 1)))).unflatten(0, x.shape[:2])
    return m.fc(m.time(y.transpose(1, 2)).relu().mean(2))


def _shifted_frames(m: Net, x: Tensor) -> Tensor:
    """TSM: a quarter of the channels moves to the next frame."""
    y = m.a(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    part = y.shape[2] // 4
    moved = torch.cat([F.pad(y[:, :-1, :part], (0, 0, 0, 0, 0, 0, 1, 0)), y[:, :, part:]], 2)
    return m.fc(pooled(m.b(moved.flatten(0, 1))).unflatten(0, x.shape[:2]).mean(1))


def _several_scales(m: Net, x: Tensor) -> Tensor:
    """One trunk, called on three sizes of the image."""
    trunk = [pooled(m.b(m.a(F.interpolate(x, scale_factor=s)))) for s in (1.0, 0.5, 0.25)]
    return m.fc(torch.cat(trunk, 1))


@dataclass
class Detected:
    """What a detector returns."""

    scores: Tensor
    boxes: list[Tensor]


def _dataclass(m: Net, x: Tensor) -> Detected:
    y = m.b(m.a(x))
    return Detected(m.scores(y), [m.boxes(y), m.boxes(F.avg_pool2d(y, 2))])


def _loss(m: Net, x: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    y = m.fc(m.b(m.a(x).relu()).relu())
    return {"loss": F.mse_loss(y, wanted) + F.smooth_l1_loss(y, wanted), "output": y}


# convolutions


class RepBlock(nn.Module):
    """RepVGG as it is trained: 3 x 3, 1 x 1 and the identity, each normalised, added up."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)
        self.b, self.nb = nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o)
        self.same = nn.BatchNorm2d(i) if i == o else None
        self.width = o

    def forward(self, x: Tensor) -> Tensor:
        y = self.na(self.a(x)) + self.nb(self.b(x))
        return (y if self.same is None else y + self.same(x)).relu()


class ConvMixer(nn.Module):
    def __init__(self, width: int = 20, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width))
        self.places = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding="same", groups=width), nn.GELU(), nn.BatchNorm2d(width)
            )
            for _ in range(depth)
        )
        self.mixers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)) for _ in range(depth)
        )
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for place, mix in zip(self.places, self.mixers, strict=True):
            x = mix(x + place(x))
        return self.fc(pooled(x))


class CausalWaveNet(nn.Module):
    """Padding on the left by F.pad, one convolution for filter and gate, split by chunk, conditioned on a
    vector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(4, 12, 1)
        self.convs = nn.ModuleList(nn.Conv1d(12, 24, 2, dilation=d) for d in (1, 2, 4))
        self.conditions = nn.ModuleList(nn.Linear(5, 24) for _ in range(3))
        self.back, self.skips = (nn.ModuleList(nn.Conv1d(12, o, 1) for _ in range(3)) for o in (12, 16))
        self.out = nn.Sequential(nn.ReLU(), nn.Conv1d(16, 10, 1), nn.ReLU(), nn.Conv1d(10, 4, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x, skips = self.stem(x), []
        for n, (conv, cond) in enumerate(zip(self.convs, self.conditions, strict=True)):
            a, b = (conv(F.pad(x, (2**n, 0))) + cond(condition)[..., None]).chunk(2, 1)
            y = a.tanh() * b.sigmoid()
            x, skips = x + self.back[n](y), [*skips, self.skips[n](y)]
        return self.out(torch.stack(skips).sum(0))


class LinkNet(nn.Module):
    """A U-Net whose skips are added, with transposed convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 12), cbr(12, 16, stride=2), cbr(16, 24, stride=2)
        self.up1 = nn.Sequential(
            nn.ConvTranspose2d(24, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.up2 = nn.Sequential(nn.ConvTranspose2d(16, 12, 3, 2, 1, output_padding=1), nn.ReLU())
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        return self.out(self.up2(self.up1(self.c(b)) + b) + a)


def _hypernetwork(m: Net, x: Tensor, code: Tensor) -> Tensor:
    """The weight of a convolution is made from a code, one for each example."""
    y = m.a(x).relu()
    weight = m.make(m.code(code).relu()).view(len(x) * 6, 12, 3, 3)
    made = F.conv2d(y.flatten(0, 1)[None], weight, groups=len(x))
    return m.fc(pooled(made.view(len(x), 6, *made.shape[2:]).relu()))


def _tied_autoencoder(m: Net, x: Tensor) -> Tensor:
    y = m.b(m.a(x).relu()).relu()
    return F.conv_transpose2d(F.conv_transpose2d(y, m.b.weight).relu(), m.a.weight, m.shift)


def _with_shift(net: Net, width: int) -> Net:
    net.shift = nn.Parameter(torch.randn(width))
    return net


class ChannelAndPlace(nn.Module):
    """CBAM as published: both pools through one MLP of 1 x 1 convolutions, then the largest and the mean
    over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = cbr(3, 16), cbr(16, 12), nn.Linear(12, 4)
        self.mlp = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 16, 1, bias=False))
        self.place = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = y * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(y, 1)) + self.mlp(F.adaptive_max_pool2d(y, 1)))
        seen = torch.cat([y.mean(1, keepdim=True), y.max(1, keepdim=True).values], 1)
        return self.fc(pooled(self.b(y * torch.sigmoid(self.place(seen)))))


class Modulated(nn.Module):
    """StyleGAN 2: the weight is scaled by a style, brought to length one, and applied with the batch in the
    groups."""

    def __init__(self, i: int, o: int, style: int = 8) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(1, o, i, 3, 3)), nn.Linear(style, i)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        b, c, height, width = x.shape
        weight = self.weight * self.style(w).view(b, 1, -1, 1, 1)
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        made = F.conv2d(x.reshape(1, b * c, height, width), weight.flatten(0, 1), padding=1, groups=b)
        return made.view(b, -1, height, width)


class StyleGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 8))
        self.start = nn.Parameter(torch.randn(1, 12, 4, 4))
        self.a, self.b, self.out = Modulated(12, 16), Modulated(16, 10), nn.Conv2d(10, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(z)
        y = F.leaky_relu(self.a(self.start.expand(len(z), -1, -1, -1), w), 0.2)
        return self.out(F.leaky_relu(self.b(F.interpolate(y, scale_factor=2.0), w), 0.2))


class Ghost(nn.Module):
    """Half of the channels is made from the other half by cheap convolutions, one a channel."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.first, self.cheap, self.width = cbr(i, o // 2, 1), cbr(o // 2, o // 2, groups=o // 2), o

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return torch.cat([y, self.cheap(y)], 1)[:, : self.width]


class Involution(nn.Module):
    """The kernel of each place is made from the place, shared by the channels of a group."""

    def __init__(self, width: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.groups, self.reduce, self.span = groups, nn.Conv2d(width, 8, 1), nn.Conv2d(8, 9 * groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        kernel = self.span(self.reduce(x).relu()).view(b, self.groups, 1, 9, h, w)
        places = F.unfold(x, 3, padding=1).view(b, self.groups, -1, 9, h, w)
        return (kernel * places).sum(3).view(b, -1, h, w)


class Warped(nn.Module):
    """Spatial transformer: offsets from a convolution move the places at which features are read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.offset, self.b, self.fc = (
            cbr(3, 12),
            nn.Conv2d(12, 2, 3, padding=1),
            cbr(12, 16),
            nn.Linear(16, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        steps = torch.linspace(-1, 1, 16, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        moved = F.grid_sample(y, grid + 0.1 * self.offset(y).tanh().movedim(1, -1), align_corners=False)
        return self.fc(pooled(self.b(moved)))


def _hook_weight_norm() -> nn.Module:
    wrap = nn.utils.weight_norm
    return Net(
        lambda m, x: m.fc(m.c(m.b(m.a(x).relu()).relu()).relu().mean(2)),
        a=wrap(nn.Conv1d(4, 16, 3)),
        b=wrap(nn.Conv1d(16, 12, 3)),
        c=wrap(nn.Conv1d(12, 10, 1), dim=None),
        fc=wrap(nn.Linear(10, 3)),
    )


class SegNet(nn.Module):
    """Places of the largest values are remembered and used on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = cbr(3, 16), cbr(16, 16), cbr(16, 12), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(self.a(x), 2, return_indices=True)
        return self.out(self.c(F.max_unpool2d(self.b(y), places, 2)))


def _conditional_norm(m: Net, x: Tensor, number: Tensor) -> Tensor:
    y = m.n(m.a(x))
    y = y * (1 + m.scale(number))[..., None, None] + m.shift(number)[..., None, None]
    return m.out(m.b(y.relu()).relu())


def _numbered(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    (x,) = IMAGE(batch, seed)
    return x, torch.randint(0, 7, (batch,), generator=torch.Generator().manual_seed(seed))


def _depth_to_space(m: Net, x: Tensor) -> Tensor:
    """Super-resolution whose rearrangement is written by hand, channels outermost."""
    y = m.b(m.a(x).relu())
    b, c, h, w = y.shape
    y = y.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)
    return m.out(m.c(y).relu())


def _hard_excite(m: Net, x: Tensor) -> Tensor:
    y = m.dw(m.a(x))
    y = y * F.hardsigmoid(m.e(m.s(F.adaptive_avg_pool2d(y, 1)).relu()))
    return m.fc(pooled(m.c(F.hardswish(y))))


def _middle(m: Net, x: Tensor) -> Tensor:
    """Statistics by order along places: median, quantile, the k-th least."""
    y = m.a(x).flatten(2)
    found = [y.median(2).values, y.quantile(0.3, 2), y.kthvalue(5, 2).values, y.logsumexp(2)]
    return m.fc(m.b(torch.cat(found, 1)).relu())


def _faked(m: Net, x: Tensor) -> Tensor:
    y = torch.fake_quantize_per_tensor_affine(m.a(x).relu(), 0.05, 0, -128, 127)
    return m.fc(pooled(m.b(y).relu()))


# sequences


def _time_first(m: Net, x: Tensor) -> Tensor:
    """[time, batch, features]"""
    y, _ = m.rnn(m.a(x).relu())
    return m.fc(m.b(y[-1]).relu())


def _encoder_time_first(m: Net, x: Tensor) -> Tensor:
    return m.fc(m.t(m.a(x)).mean(0))


class AttentiveDecoder(nn.Module):
    """Bahdanau: at each step a GRU cell reads a weighted mean of the encoder's states."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell = nn.GRU(6, 16, batch_first=True), nn.GRUCell(16 + 5, 20)
        self.query, self.key, self.score = nn.Linear(20, 12), nn.Linear(16, 12), nn.Linear(12, 1)
        self.start, self.out = nn.Linear(16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.encoder(x)
        h, y, keys = self.start(last[0]).tanh(), x.new_zeros(len(x), 5), self.key(states)
        made = []
        for _ in range(4):
            weight = self.score((keys + self.query(h)[:, None]).tanh()).softmax(1)
            h = self.cell(torch.cat([(weight * states).sum(1), y], 1), h)
            y = self.out(h)
            made.append(y)
        return torch.stack(made, 1)


class SetTransformer(nn.Module):
    """Induced attention over a set, pooled by learnt seeds."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.fc = nn.Linear(6, width), nn.Linear(width, 3)
        self.points, self.seeds = (
            nn.Parameter(torch.randn(1, 5, width)),
            nn.Parameter(torch.randn(1, 2, width)),
        )
        self.inward, self.outward, self.pool = (
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(3)
        )
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        points = self.inward(self.points.expand(len(x), -1, -1), x, x)[0]
        x = x + self.outward(x, points, points)[0]
        x = x + self.mlp(x)
        return self.fc(self.pool(self.seeds.expand(len(x), -1, -1), x, x)[0].mean(1))


class Perceiver(nn.Module):
    """A few learnt latents read the input by cross attention, then each other."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(4, width))
        self.q, self.k, self.v, self.o = (
            nn.Linear(width, 12),
            nn.Linear(6, 12),
            nn.Linear(6, 20),
            nn.Linear(20, width),
        )
        self.norm, self.up, self.down, self.fc = (
            nn.LayerNorm(width),
            nn.Linear(width, 24),
            nn.Linear(24, width),
            nn.Linear(width, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(len(x), -1, -1)
        scores = self.q(latents) @ self.k(x).transpose(1, 2) / 12**0.5
        y = latents + self.o(scores.softmax(-1) @ self.v(x))
        y = y + self.down(F.gelu(self.up(self.norm(y))))
        return self.fc(y.mean(1))


class Memory(nn.Module):
    """Keys and values of a memory are parameters; a query reads the values of the keys near to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.fc = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(10, 3)
        self.keys, self.values = nn.Parameter(torch.randn(7, 12)), nn.Parameter(torch.randn(7, 10))

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cosine_similarity(self.q(self.a(x).relu())[:, None], self.keys[None], dim=-1)
        return self.fc((8 * near).softmax(-1) @ self.values)


class Capsules(nn.Module):
    """Capsules of 8 numbers vote for others of 6; agreement decides in three rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 5, 2), nn.Conv2d(16, 16, 3, 2)
        self.vote = nn.Parameter(torch.randn(8, 4, 6, 8) / 4)
        self.fc = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        u = self.b(self.a(x).relu()).view(len(x), 2, 8, -1).permute(0, 1, 3, 2).flatten(1, 2)
        u = self._squash(u)
        votes = torch.einsum("ijok,bik->bijo", self.vote, u)
        logits = votes.new_zeros(votes.shape[:3])
        for _ in range(3):
            v = self._squash((logits.softmax(2)[..., None] * votes).sum(1))
            logits = logits + (votes * v[:, None]).sum(-1)
        return self.fc(v.flatten(1))

    def _squash(self, x: Tensor) -> Tensor:
        power = x.square().sum(-1, keepdim=True)
        return x * power / (1 + power) / (power + 1e-9).sqrt()


class Spline(nn.Module):
    """KAN: a learnt function on each edge, a sum of bumps on a grid."""

    def __init__(self, i: int, o: int, grid: int = 5) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, grid))
        self.base, self.bumps = nn.Linear(i, o), nn.Parameter(torch.randn(o, i, grid) / (i * grid) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(F.silu(x)) + torch.einsum(
            "big,oig->bo", torch.exp(-(x[..., None] - self.grid).square()), self.bumps
        )


def _ode(m: Net, x: Tensor) -> Tensor:
    """Two Runge-Kutta steps of one learnt derivative, with the time as a further input."""

    def slope(y: Tensor, t: float) -> Tensor:
        return m.down(m.up(torch.cat([y, torch.full_like(y[:, :1], t)], 1)).tanh())

    y, h = m.stem(x), 0.5
    for step in range(2):
        k1 = slope(y, step * h)
        k2 = slope(y + h / 2 * k1, (step + 0.5) * h)
        k3 = slope(y + h / 2 * k2, (step + 0.5) * h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, (step + 1) * h))
    return m.fc(y)


class Flow(nn.Module):
    """RealNVP: one half is scaled and shifted by the other; halves change places; the density comes along."""

    def __init__(self, width: int = 6, layers: int = 3) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width // 2, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, width)
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        density = x.new_zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, 1)
            scale, shift = net(a).chunk(2, 1)
            b = b * scale.tanh().exp() + shift
            density = density + scale.tanh().sum(1)
            x = torch.cat([b, a], 1)
        return x, density - 0.5 * x.square().sum(1)


def _mixture(m: Net, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = m.b(m.a(x).tanh()).tanh()
    weight, mean, spread = m.weight(y), m.mean(y).view(len(x), 5, 2), m.spread(y)
    return weight.log_softmax(-1), mean, F.softplus(spread) + 1e-3


class StateSpace(nn.Module):
    """A selective scan: steps, inputs and read-outs made from the token, a state for each channel, gated."""

    def __init__(self, width: int = 12, state: int = 4) -> None:
        super().__init__()
        self.stem, self.both, self.conv = (
            nn.Linear(6, 10),
            nn.Linear(10, 2 * width),
            nn.Conv1d(width, width, 3, padding=2, groups=width),
        )
        self.step, self.read, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * state),
            nn.Linear(width, 10),
        )
        self.decay, self.skip, self.fc = (
            nn.Parameter(torch.rand(width, state)),
            nn.Parameter(torch.ones(width)),
            nn.Linear(10, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        start = self.stem(x)
        u, gate = self.both(start).chunk(2, -1)
        u = F.silu(self.conv(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        step, (b, c) = F.softplus(self.step(u)), self.read(u).chunk(2, -1)
        h, made = u.new_zeros(*u[:, 0].shape, b.shape[-1]), []
        for t in range(x.shape[1]):
            h = (
                h * torch.exp(-step[:, t, :, None] * self.decay)
                + (step[:, t] * u[:, t])[..., None] * b[:, t, None]
            )
            made.append((h * c[:, t, None]).sum(-1))
        y = torch.stack(made, 1) + u * self.skip
        return self.fc(start + self.out(y * F.silu(gate)))


def _linear_attention(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    q, k, v = (layer(y).unflatten(2, (3, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    made = q @ (k.transpose(2, 3) @ v) / (q @ k.sum(2)[..., None] + 1e-6)
    return m.fc(y + m.o(made.transpose(1, 2).flatten(2)))


class TokenPruning(nn.Module):
    """The tokens of the largest scores go on, gathered by their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.score, self.b, self.fc = (
            nn.Linear(6, 16),
            nn.Linear(16, 1),
            nn.Linear(16, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        number = self.score(y).squeeze(-1).topk(4).indices
        kept = y.gather(1, number[..., None].expand(-1, -1, y.shape[2]))
        return self.fc(self.b(kept).relu().mean(1))


class LanguageModel(nn.Module):
    """Embeddings of tokens and places, tied to the output, with a buffer of positions and a causal mask."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, width), nn.Embedding(16, width)
        self.register_buffer("numbers", torch.arange(16))
        self.register_buffer("causal", torch.ones(16, 16, dtype=torch.bool).triu(1))
        self.att, self.norm = nn.MultiheadAttention(width, 4, batch_first=True), nn.LayerNorm(width)
        self.up, self.down, self.out = (
            nn.Linear(width, 40),
            nn.Linear(40, width),
            nn.Linear(width, 50, bias=False),
        )
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        y = self.words(x) * math.sqrt(self.words.embedding_dim) + self.places(self.numbers[:n])
        y = y + self.att(y, y, y, attn_mask=self.causal[:n, :n], need_weights=False)[0]
        return self.out(y + self.down(F.gelu(self.up(self.norm(y)))))


def _dcgan() -> nn.Module:
    def up(i: int, o: int, *more: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(i, o, 4, *more, bias=False), nn.BatchNorm2d(o), nn.ReLU()]

    return nn.Sequential(
        nn.Unflatten(1, (6, 1, 1)),
        *up(6, 32, 1, 0),
        *up(32, 24, 2, 1),
        *up(24, 16, 2, 1),
        nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Drawn]] = {
    "graph convolution over edges": (GraphConvolution, graphs()),
    "graph attention": (GraphAttention, graphs()),
    "graph isomorphism": (GraphIsomorphism, graphs()),
    "edge convolution": (EdgeConvolution, graphs()),
    "sparse graph": (SparseGraph, noise((8, 6))),
    "rotary, split in halves": (lambda: Rotary(split_half), SEQUENCE),
    "rotary, interleaved": (lambda: Rotary(interleaved), SEQUENCE),
    "rotary, complex": (lambda: Rotary(complex_turn), SEQUENCE),
    "queries and keys normalised": (lambda: Rotary(split_half, norms=True), SEQUENCE),
    "Fourier over places": (lambda: FourierTokens((1,)), SEQUENCE),
    "Fourier over places and channels": (lambda: FourierTokens((1, 2)), SEQUENCE),
    "global filter": (GlobalFilter, IMAGE),
    "scripted part": (_scripted, IMAGE),
    "vmapped part": (
        lambda: Net(_vmapped, a=nn.Linear(6, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)),
        SEQUENCE,
    ),
    "autocast part": (
        lambda: Net(_mixed_precision, a=cbr(3, 12), b=nn.Conv2d(12, 8, 3), fc=nn.Linear(8, 4)),
        IMAGE,
    ),
    "part in inference mode": (
        lambda: Net(_inference, a=cbr(3, 12), b=nn.Conv2d(12, 8, 3), fc=nn.Linear(8, 4)),
        IMAGE,
    ),
    "switch": (Switch, SEQUENCE),
    "two best experts": (TopTwo, SEQUENCE),
    "quantised code": (Quantised, IMAGE),
    "largest, then looked up": (LargestThenLooked, SEQUENCE),
    "gumbel softmax": (
        lambda: Net(
            _gumbel,
            a=nn.Linear(6, 16),
            gate=nn.Linear(16, 3),
            e1=nn.Linear(16, 12),
            e2=nn.Linear(16, 12),
            e3=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        TABLE,
    ),
    "several entry points, all called": (lambda: EntryPoints(both=True), TABLE),
    "an entry point beside forward": (lambda: EntryPoints(both=False), TABLE),
    "frames in the batch": (
        lambda: Net(
            _frames,
            a=cbr(3, 12),
            b=cbr(12, 16, stride=2),
            time=nn.Conv1d(16, 12, 3, padding=1),
            fc=nn.Linear(12, 4),
        ),
        noise((4, 3, 8, 8)),
    ),
    "temporal shift": (
        lambda: Net(_shifted_frames, a=cbr(3, 12), b=cbr(12, 16), fc=nn.Linear(16, 4)),
        noise((4, 3, 8, 8)),
    ),
    "one trunk, several scales": (
        lambda: Net(_several_scales, a=cbr(3, 12), b=cbr(12, 16), fc=nn.Linear(48, 4)),
        IMAGE,
    ),
    "dataclass output": (
        lambda: Net(
            _dataclass, a=cbr(3, 12), b=cbr(12, 16), scores=nn.Conv2d(16, 5, 1), boxes=nn.Conv2d(16, 4, 1)
        ),
        IMAGE,
    ),
    "loss inside": (
        lambda: Net(_loss, a=nn.Linear(6, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)),
        noise((6,), (3,)),
    ),
    "RepVGG": (
        lambda: nn.Sequential(
            RepBlock(3, 16),
            RepBlock(16, 16),
            RepBlock(16, 24),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 4),
        ),
        IMAGE,
    ),
    "ConvMixer": (ConvMixer, IMAGE),
    "WaveNet, conditioned": (CausalWaveNet, noise((4, 24), (5,))),
    "U-Net with sums": (LinkNet, IMAGE),
    "hypernetwork": (
        lambda: Net(
            _hypernetwork,
            a=nn.Conv2d(3, 12, 3),
            code=nn.Linear(5, 16),
            make=nn.Linear(16, 6 * 12 * 9),
            fc=nn.Linear(6, 3),
        ),
        noise((3, 10, 10), (5,)),
    ),
    "tied autoencoder of convolutions": (
        lambda: _with_shift(Net(_tied_autoencoder, a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 10, 3)), 3),
        IMAGE,
    ),
    "channels, then places": (ChannelAndPlace, IMAGE),
    "style generator": (StyleGenerator, TABLE),
    "ghost modules": (
        lambda: nn.Sequential(
            cbr(3, 12), Ghost(12, 16), Ghost(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)
        ),
        IMAGE,
    ),
    "involution": (
        lambda: nn.Sequential(
            cbr(3, 16),
            Involution(),
            nn.ReLU(),
            nn.Conv2d(16, 12, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 4),
        ),
        IMAGE,
    ),
    "features read at moved places": (Warped, IMAGE),
    "weight norm by hooks": (_hook_weight_norm, SIGNAL),
    "SegNet": (SegNet, IMAGE),
    "conditional normalisation": (
        lambda: Net(
            _conditional_norm,
            a=nn.Conv2d(3, 12, 3),
            n=nn.BatchNorm2d(12, affine=False),
            scale=nn.Embedding(7, 12),
            shift=nn.Embedding(7, 12),
            b=nn.Conv2d(12, 8, 1),
            out=nn.Conv2d(8, 3, 1),
        ),
        _numbered,
    ),
    "depth to space": (
        lambda: Net(
            _depth_to_space,
            a=nn.Conv2d(3, 12, 3, padding=1),
            b=nn.Conv2d(12, 32, 3, padding=1),
            c=nn.Conv2d(8, 10, 1),
            out=nn.Conv2d(10, 3, 1),
        ),
        IMAGE,
    ),
    "squeeze and excite, hard": (
        lambda: Net(
            _hard_excite,
            a=cbr(3, 16, 1),
            dw=cbr(16, 16, groups=16),
            s=nn.Conv2d(16, 8, 1),
            e=nn.Conv2d(8, 16, 1),
            c=nn.Conv2d(16, 12, 1),
            fc=nn.Linear(12, 4),
        ),
        IMAGE,
    ),
    "median over places": (
        lambda: Net(_middle, a=cbr(3, 8), b=nn.Linear(32, 12), fc=nn.Linear(12, 4)),
        IMAGE,
    ),
    "fake quantisation": (
        lambda: Net(_faked, a=cbr(3, 12), b=nn.Conv2d(12, 8, 3), fc=nn.Linear(8, 4)),
        IMAGE,
    ),
    "LSTM, time first": (
        lambda: Net(
            _time_first, a=nn.Linear(6, 12), rnn=nn.LSTM(12, 16, 2), b=nn.Linear(16, 8), fc=nn.Linear(8, 3)
        ),
        time_first(7, 6),
    ),
    "transformer, time first": (
        lambda: Net(
            _encoder_time_first,
            a=nn.Linear(6, 16),
            t=nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2, enable_nested_tensor=False),
            fc=nn.Linear(16, 3),
        ),
        time_first(7, 6),
    ),
    "decoder with attention": (AttentiveDecoder, SEQUENCE),
    "set transformer": (SetTransformer, SEQUENCE),
    "perceiver": (Perceiver, SEQUENCE),
    "memory": (Memory, TABLE),
    "capsules": (Capsules, IMAGE),
    "splines": (lambda: nn.Sequential(Spline(6, 16), Spline(16, 12), nn.Linear(12, 3)), TABLE),
    "Runge-Kutta steps": (
        lambda: Net(
            _ode, stem=nn.Linear(6, 12), up=nn.Linear(13, 20), down=nn.Linear(20, 12), fc=nn.Linear(12, 3)
        ),
        TABLE,
    ),
    "coupling flow": (Flow, TABLE),
    "mixture density": (
        lambda: Net(
            _mixture,
            a=nn.Linear(6, 20),
            b=nn.Linear(20, 16),
            weight=nn.Linear(16, 5),
            mean=nn.Linear(16, 10),
            spread=nn.Linear(16, 5),
        ),
        TABLE,
    ),
    "state space": (StateSpace, SEQUENCE),
    "linear attention, by head": (
        lambda: Net(
            _linear_attention,
            a=nn.Linear(6, 18),
            q=nn.Linear(18, 12),
            k=nn.Linear(18, 12),
            v=nn.Linear(18, 15),
            o=nn.Linear(15, 18),
            fc=nn.Linear(18, 3),
        ),
        SEQUENCE,
    ),
    "tokens of the largest scores": (TokenPruning, SEQUENCE),
    "language model with places": (LanguageModel, tokens()),
    "DCGAN": (_dcgan, TABLE),
}

METHODS: dict[str, tuple[str, ...]] = {"an entry point beside forward": ("reconstruct",)}
"""Further methods that users call with the same inputs."""
