"""Networks that route by numbers of elements, and networks around one operator each, small and with random
weights.

Routing: experts, codebooks, pointers, pruned tokens, chosen channels, neighbours. Operators: `TOKENS` stand
between two Linear layers over [N, T, C], `PLANES` between two convolutions over [N, C, H, W]. `NETWORKS`
holds all of them.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from own import Net, pooled
from torch import Tensor, nn
from torch.nn import functional as F

Built = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]
"""(the network, inputs of one forward call)"""


def drawn(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: tuple(torch.randn(shape) for shape in shapes)


SERIES = drawn((8, 5, 6))
IMAGE = drawn((8, 3, 8, 8))
VECTOR = drawn((16, 6))
CLOUD = drawn((8, 3, 12))


class Stack(nn.Module):
    """The weights of several experts with one hidden layer each."""

    def __init__(self, count: int, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(count, width, hidden) / width**0.5)
        self.down = nn.Parameter(torch.randn(count, hidden, width) / hidden**0.5)


class Experts(nn.Module):
    """A mixture of experts with stacked weights; `route` chooses an expert for each example: (its share,
    its number)."""

    def __init__(self, route: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.route = route
        self.a, self.router = nn.Linear(6, 16), nn.Linear(16, 4)
        self.experts, self.fc = Stack(4, 16, 12), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        share, number = self.route(self.router(x).softmax(-1))
        y = torch.einsum("bi,bij->bj", x, self.experts.up[number]).relu()
        y = torch.einsum("bi,bij->bj", y, self.experts.down[number])
        return self.fc(x + y * share.unsqueeze(-1))


def by_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    share, number = scores.max(-1)
    return share, number


def by_topk(scores: Tensor) -> tuple[Tensor, Tensor]:
    shares, numbers = scores.topk(2, -1)
    return shares[:, 0], numbers[:, 0]


def by_argsort(scores: Tensor) -> tuple[Tensor, Tensor]:
    number = scores.argsort(-1, descending=True)[:, 0]
    return scores.gather(1, number[:, None])[:, 0], number


def by_gumbel(scores: Tensor) -> tuple[Tensor, Tensor]:
    chosen = F.gumbel_softmax(scores, hard=True)
    return scores.amax(-1), chosen.argmax(-1)


def by_draw(scores: Tensor) -> tuple[Tensor, Tensor]:
    return scores.amax(-1), scores.multinomial(1)[:, 0]


class Dispatched(nn.Module):
    """Experts that see their own tokens alone, whose results are added where the tokens lie: Mixtral's
    way."""

    def __init__(self, viewed: bool = False) -> None:
        super().__init__()
        self.viewed = viewed
        self.a, self.router = nn.Linear(6, 16), nn.Linear(16, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16)) for _ in range(3)
        )
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        flat = y.flatten(0, 1)
        shares, numbers = self.router(flat).softmax(-1).topk(2, -1)
        made = torch.zeros_like(y) if self.viewed else torch.zeros_like(flat)
        target = made.view(flat.shape)
        for number, expert in enumerate(self.experts):
            tokens, place = torch.where(numbers == number)
            target.index_add_(0, tokens, expert(flat[tokens]) * shares[tokens, place, None])
        return self.fc(made.view(y.shape) + y)


class Grouped(nn.Module):
    """Tokens sorted by their expert, and one grouped product for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.router = nn.Linear(6, 32), nn.Linear(32, 4)
        self.experts, self.fc = Stack(4, 32, 48), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).flatten(0, 1)
        number = self.router(y).argmax(-1)
        order = number.argsort(stable=True)
        ends = F.one_hot(number, 4).sum(0).cumsum(0).int()
        made = F.grouped_mm(
            F.grouped_mm(y[order], self.experts.up, offs=ends).relu(), self.experts.down, offs=ends
        )
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return self.fc(y + made[back])


class Codebook(nn.Module):
    """VQ-VAE: each place takes the nearest entry of a codebook; `distance` of [places, C] and [entries,
    C]."""

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.distance = distance
        self.a, self.book, self.b = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Embedding(10, 8),
            nn.ConvTranspose2d(8, 6, 2, 2),
        )
        self.out = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        z = self.a(x).permute(0, 2, 3, 1)
        number = self.distance(z.flatten(0, 2), self.book.weight).argmin(1)
        code = self.book(number).view(z.shape)
        loss = F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(code.detach(), z)
        return self.out(self.b((z + (code - z).detach()).permute(0, 3, 1, 2)).relu()), loss


def squares(z: Tensor, book: Tensor) -> Tensor:
    return z.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * z @ book.t()


class Edges(nn.Module):
    """DGCNN: the features of each point's nearest neighbours, and a convolution over the edges."""

    def __init__(self, nearest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.nearest = nearest
        self.a, self.b, self.c, self.fc = (
            nn.Conv2d(6, 8, 1),
            nn.Conv2d(16, 12, 1),
            nn.Conv1d(20, 10, 1),
            nn.Linear(10, 3),
        )

    def edges(self, x: Tensor) -> Tensor:
        batch, channels, points = x.shape
        number = self.nearest(x) + torch.arange(batch, device=x.device).view(-1, 1, 1) * points
        flat = x.transpose(2, 1).reshape(batch * points, channels)
        around = flat[number.view(-1)].view(batch, points, -1, channels)
        own = flat.view(batch, points, 1, channels).expand(-1, -1, around.shape[2], -1)
        return torch.cat((around - own, own), 3).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.a(self.edges(x)).relu().max(-1)[0]
        two = self.b(self.edges(one)).relu().max(-1)[0]
        return self.fc(self.c(torch.cat([one, two], 1)).relu().max(-1)[0])


def by_products(x: Tensor) -> Tensor:
    square = x.pow(2).sum(1, keepdim=True)
    return (2 * x.transpose(2, 1) @ x - square - square.transpose(2, 1)).topk(4, -1)[1]


def by_distance(x: Tensor) -> Tensor:
    return torch.cdist(x.transpose(2, 1), x.transpose(2, 1)).topk(4, -1, largest=False)[1]


class Segmenter(nn.Module):
    """SegNet: what was the largest of a window goes back to its place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.Conv2d(12, 8, 3, padding=1),
            nn.Conv2d(8, 2, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(self.a(x).relu(), 2, return_indices=True)
        return self.out(F.max_unpool2d(self.c(self.b(y).relu()).relu(), places, 2))


def _pointer(m: Net, x: Tensor) -> Tensor:
    y = m.encode(x).tanh()
    number = (y @ m.query(y.mean(1)).unsqueeze(2)).squeeze(2).argmax(1)
    return m.fc(m.b(y[torch.arange(len(y)), number]).relu())


def _pruned_tokens(m: Net, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    number = m.score(y).squeeze(2).topk(3, 1)[1]
    return m.fc(m.b(y.gather(1, number.unsqueeze(2).expand(-1, -1, y.shape[2]))).relu().mean(1))


def _top_channels(m: Net, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    number = m.score(pooled(y)).topk(4, 1)[1]
    return m.fc(pooled(m.b(y.gather(1, number[:, :, None, None].expand(-1, -1, *y.shape[2:])))))


def _masked_channels(m: Net, x: Tensor) -> Tensor:
    y = m.a(x).relu()
    scores = m.score(pooled(y))
    mask = torch.zeros_like(scores).scatter(1, scores.topk(4, 1)[1], 1.0)
    return m.fc(pooled(m.b(y * mask[:, :, None, None])))


def _one_channel(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.fc(y[torch.arange(len(y)), pooled(y).argmax(1)].flatten(1))


def _hashed(m: Net, x: Tensor) -> Tensor:
    bits = (m.hash(x) > 0).long()
    return m.fc(m.b(m.table((bits * 2 ** torch.arange(5, device=x.device)).sum(1))).relu())


def _lsh(m: Net, x: Tensor) -> Tensor:
    turned = m.hash(x)
    return m.fc(m.b(m.table(torch.cat([turned, -turned], -1).argmax(-1))).relu().mean(1))


def _beam(m: Net, x: Tensor) -> Tensor:
    scores, number = m.words(m.a(x).relu()).sort(-1, descending=True)
    return m.fc(m.b(m.table(number[:, 0])).relu() * scores[:, :1])


def _greedy(m: Net, x: Tensor) -> Any:
    scores = m.words(m.a(x).relu())
    return m.fc(m.b(m.a(x)).relu()), scores.argmax(-1)


def _largest_hidden(m: Net, x: Tensor) -> Any:
    y = m.a(x).relu()
    return m.fc(m.b(y).relu()), y.max(-1)[1]


def _gated_by_number(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    first = (m.gate(y).max(1)[1] < 2).to(y.dtype)
    return m.fc(m.b(y).relu() * first[:, None] + m.c(y).relu() * (1 - first[:, None]))


def _hard_attention(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    chosen = F.one_hot(m.score(pooled(y)).argmax(1), 8).to(y.dtype)
    return m.fc(pooled(m.b(y * chosen[:, :, None, None])))


def _where_positive(m: Net, x: Tensor) -> Tensor:
    y = m.a(x)
    rows, columns = torch.where(m.gate(y) > 0)
    return m.fc(m.b(y).relu().index_add(0, rows, m.table(columns)))


def _nearest_edges(m: Net, x: Tensor, number: Callable[[Net, Tensor], Tensor]) -> Tensor:
    y = m.a(x)
    return m.fc(m.b(y).relu() + m.table(number(m, y)))


def _signs(m: Net, x: Tensor) -> Tensor:
    """An embedding of one bit for each channel: channels of the bits are channels of the sum."""
    y = m.a(x)
    return m.fc(m.b((m.table((y > 0).long()) * y.unsqueeze(-1)).sum(2)).relu().mean(1))


def _read_in_python(m: Net, x: Tensor) -> Tensor:
    numbers = m.gate(y := m.a(x)).max(1)[1].tolist()
    rows = [row * (1.0 if number < 2 else 0.2) for row, number in zip(m.b(y).relu(), numbers, strict=True)]
    return m.fc(torch.stack(rows))


ROUTING: dict[str, Built] = {
    "experts by max": (lambda: Experts(by_max), VECTOR),
    "experts by topk": (lambda: Experts(by_topk), VECTOR),
    "experts by argsort": (lambda: Experts(by_argsort), VECTOR),
    "experts by a hard softmax": (lambda: Experts(by_gumbel), VECTOR),
    "experts by a draw": (lambda: Experts(by_draw), VECTOR),
    "experts that get their tokens": (Dispatched, SERIES),
    "experts that get their tokens, added into a view": (lambda: Dispatched(True), SERIES),
    "grouped products": (Grouped, SERIES),
    "codebook by cdist": (lambda: Codebook(torch.cdist), IMAGE),
    "codebook by squares": (lambda: Codebook(squares), IMAGE),
    "pointer": (
        lambda: Net(
            _pointer,
            encode=nn.Linear(6, 16),
            query=nn.Linear(16, 16),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        SERIES,
    ),
    "pruned tokens": (
        lambda: Net(
            _pruned_tokens,
            a=nn.Linear(6, 16),
            score=nn.Linear(16, 1),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        SERIES,
    ),
    "top channels": (
        lambda: Net(
            _top_channels,
            a=nn.Conv2d(3, 8, 3),
            score=nn.Linear(8, 8),
            b=nn.Conv2d(4, 6, 3),
            fc=nn.Linear(6, 3),
        ),
        IMAGE,
    ),
    "top channels by a mask": (
        lambda: Net(
            _masked_channels,
            a=nn.Conv2d(3, 8, 3),
            score=nn.Linear(8, 8),
            b=nn.Conv2d(8, 6, 3),
            fc=nn.Linear(6, 3),
        ),
        IMAGE,
    ),
    "one channel": (lambda: Net(_one_channel, a=nn.Conv2d(3, 8, 3), fc=nn.Linear(36, 3)), IMAGE),
    "unpooling": (Segmenter, IMAGE),
    "neighbours by products": (lambda: Edges(by_products), CLOUD),
    "neighbours by cdist": (lambda: Edges(by_distance), CLOUD),
    "hash of bits": (
        lambda: Net(
            _hashed,
            hash=nn.Linear(6, 5),
            table=nn.Embedding(32, 16),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
    "hash of turned vectors": (
        lambda: Net(
            _lsh, hash=nn.Linear(6, 4), table=nn.Embedding(8, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)
        ),
        SERIES,
    ),
    "beam": (
        lambda: Net(
            _beam,
            a=nn.Linear(6, 16),
            words=nn.Linear(16, 10),
            table=nn.Embedding(10, 14),
            b=nn.Linear(14, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
    "greedy decoding": (
        lambda: Net(
            _greedy, a=nn.Linear(6, 16), words=nn.Linear(16, 10), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)
        ),
        VECTOR,
    ),
    "number of the largest, returned": (
        lambda: Net(_largest_hidden, a=nn.Linear(6, 16), b=nn.Linear(16, 12), fc=nn.Linear(12, 3)),
        VECTOR,
    ),
    "number compared with a constant": (
        lambda: Net(
            _gated_by_number,
            a=nn.Linear(6, 16),
            gate=nn.Linear(16, 4),
            b=nn.Linear(16, 12),
            c=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
    "number read in Python": (
        lambda: Net(
            _read_in_python,
            a=nn.Linear(6, 16),
            gate=nn.Linear(16, 4),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
    "hard attention": (
        lambda: Net(
            _hard_attention,
            a=nn.Conv2d(3, 8, 3),
            score=nn.Linear(8, 8),
            b=nn.Conv2d(8, 6, 3),
            fc=nn.Linear(6, 3),
        ),
        IMAGE,
    ),
    "where positive": (
        lambda: Net(
            _where_positive,
            a=nn.Linear(6, 16),
            gate=nn.Linear(16, 4),
            table=nn.Embedding(4, 12),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
    "interval of learnt edges": (
        lambda: Net(
            partial(
                _nearest_edges,
                number=lambda m, y: torch.searchsorted(m.edges(y).cumsum(1), y[:, :1].contiguous())[:, 0],
            ),
            a=nn.Linear(6, 16),
            edges=nn.Linear(16, 9),
            table=nn.Embedding(10, 12),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
    "interval of edges": (
        lambda: Net(
            partial(
                _nearest_edges,
                number=lambda m, y: torch.bucketize(y[:, 0].contiguous(), m.edges.weight[:, 0]),
            ),
            a=nn.Linear(6, 16),
            edges=nn.Linear(1, 9),
            table=nn.Embedding(10, 12),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
    "embedded signs": (
        lambda: Net(
            _signs, a=nn.Linear(6, 16), table=nn.Embedding(2, 8), b=nn.Linear(8, 12), fc=nn.Linear(12, 3)
        ),
        SERIES,
    ),
    "values of max alone": (
        lambda: Net(
            lambda m, x: m.fc(m.b((y := m.a(x)) * y.max(1, keepdim=True)[0].sigmoid()).relu()),
            a=nn.Linear(6, 16),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
    "mask of the largest": (
        lambda: Net(
            lambda m, x: m.fc(m.b((y := m.a(x)) * (y == y.max(1, keepdim=True)[0])).relu()),
            a=nn.Linear(6, 16),
            b=nn.Linear(16, 12),
            fc=nn.Linear(12, 3),
        ),
        VECTOR,
    ),
}
"""networks that choose by the number of an element"""


def tokens(run: Callable[[Net, Tensor], Tensor], width: int = 16, **layers: nn.Module) -> Built:
    """[N, T, 6] -> a -> [N, T, 16] -> run -> [N, ..., width] -> b, and a mean over the tokens."""

    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.b(run(m, m.a(x))).relu()
        return m.fc(y.flatten(1, -2).mean(1) if y.dim() > 2 else y)

    return lambda: Net(
        forward,
        a=nn.Linear(6, 16),
        b=nn.Linear(width, 12),
        fc=nn.Linear(12, 3),
        **{k: deepcopy(v) for k, v in layers.items()},
    ), SERIES


def planes(run: Callable[[Net, Tensor], Tensor], width: int = 8, **layers: nn.Module) -> Built:
    """[N, 3, H, W] -> a -> [N, 8, H, W] -> run -> [N, width, ...] -> b, and a mean over the places."""

    def forward(m: Net, x: Tensor) -> Tensor:
        return m.fc(m.b(run(m, m.a(x)).flatten(2)).relu().mean(2))

    return lambda: Net(
        forward,
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv1d(width, 6, 1),
        fc=nn.Linear(6, 3),
        **{k: deepcopy(v) for k, v in layers.items()},
    ), IMAGE


def at(y: Tensor, *numbers: int) -> Tensor:
    return torch.tensor(numbers, device=y.device)


def index_for(y: Tensor, rows: int) -> Tensor:
    """[N, rows, C]: the first tokens in turned order, for each channel."""
    return torch.arange(rows - 1, -1, -1, device=y.device).view(1, -1, 1).expand(len(y), rows, y.shape[2])


def _masked(y: Tensor) -> Tensor:
    """Some of the tokens, whatever they hold."""
    return torch.arange(y.shape[1], device=y.device).expand(len(y), -1) % 2 == 0


def _mask_token(m: Net, y: Tensor) -> Tensor:
    y = y.clone()
    y[_masked(y)] = m.word.weight[0]
    return y


def _written_rows(m: Net, y: Tensor) -> Tensor:
    made = torch.zeros_like(y)
    made[:, at(y, 1, 3)] = y[:, :2]
    return made + y


def _negative_to_zero(m: Net, y: Tensor) -> Tensor:
    y = y.clone()
    y[y < 0] = 0.1
    return y


def _image_tokens(m: Net, y: Tensor) -> Tensor:
    """Rows of another sequence in the place of some tokens: a language model that sees."""
    mask = _masked(y).unsqueeze(-1)
    return y.masked_scatter(mask.expand_as(y), m.c(torch.ones(len(y) * 3, 5, device=y.device, dtype=y.dtype)))


def _filled_rows(m: Net, y: Tensor) -> Tensor:
    made = y.new_zeros(len(y), 7, y.shape[2])
    for t in range(y.shape[1]):
        made[:, t + 1] = y[:, t]
    return made


def _own_rows(m: Net, y: Tensor) -> Tensor:
    """Written by number into a view of a part."""
    made = y.new_zeros(len(y), 7, y.shape[2])
    made[:, 1:6].index_add_(1, at(y, 0, 2), y[:, :2])
    made[:, 1:6].scatter_add_(1, index_for(y, 3), y[:, 1:4])
    return made


def _signs_of_largest(m: Net, y: Tensor) -> Tensor:
    """Whoever is largest along the tokens, for each channel; the channels are untouched by that."""
    number = y.max(1)[1]
    return y + m.place(number)[..., 0].unsqueeze(1)


def _losses(name: str) -> Callable[[Net, Tensor], Tensor]:
    def run(m: Net, y: Tensor) -> Tensor:
        other = m.c(y).sigmoid()
        mine = y.sigmoid()
        loss = {
            "mse_loss": lambda: F.mse_loss(mine, other),
            "smooth_l1_loss": lambda: F.smooth_l1_loss(mine, other, beta=0.1),
            "huber_loss": lambda: F.huber_loss(mine, other, delta=0.1),
            "binary_cross_entropy": lambda: F.binary_cross_entropy(mine, other),
            "binary_cross_entropy_with_logits": lambda: F.binary_cross_entropy_with_logits(y, other),
            "soft_margin_loss": lambda: F.soft_margin_loss(y, other.detach()),
            "dist": lambda: torch.dist(mine, other),
            "l1_loss": lambda: F.l1_loss(mine, other),
            "kl_div": lambda: F.kl_div(mine.log(), other, reduction="batchmean"),
            "mse_loss, each": lambda: F.mse_loss(mine, other, reduction="none").mean(1, keepdim=True),
        }[name]()
        return y * loss

    return run


def _by_class(name: str) -> Callable[[Net, Tensor], Tensor]:
    def run(m: Net, y: Tensor) -> Tensor:
        flat = y.flatten(0, 1)
        target = torch.arange(len(flat), device=y.device) % 5
        loss = {
            "cross_entropy": lambda: F.cross_entropy(flat, target),
            "cross_entropy, smoothed": lambda: F.cross_entropy(flat, target, label_smoothing=0.1),
            "cross_entropy of planes": lambda: F.cross_entropy(y.transpose(1, 2), target.view(y.shape[:2])),
            "multi_margin_loss": lambda: F.multi_margin_loss(flat, target),
            "ctc_loss": lambda: F.ctc_loss(
                y.transpose(0, 1).log_softmax(-1),
                target[: 2 * len(y)].view(-1, 2) + 1,
                torch.full((len(y),), y.shape[1]),
                torch.full((len(y),), 2),
            ),
        }[name]()
        return y.detach() * loss

    return run


def _segments(m: Net, y: Tensor) -> Tensor:
    return torch.segment_reduce(
        y.flatten(0, 1), "mean", lengths=torch.full((len(y),), y.shape[1], device=y.device), axis=0
    ).unsqueeze(1)


def _grid(m: Net, y: Tensor) -> Tensor:
    """A spatial transformer: where to sample is computed by a layer."""
    theta = m.where(pooled(y)).view(-1, 2, 3)
    return F.grid_sample(y, F.affine_grid(theta, list(y.shape), align_corners=False), align_corners=False)


def _grid_of_channels(m: Net, y: Tensor) -> Tensor:
    """Offsets for each place by a convolution."""
    return F.grid_sample(y, m.where(y).permute(0, 2, 3, 1).tanh(), align_corners=False)


def _grid3(m: Net, y: Tensor) -> Tensor:
    """[N, C, H, W] read as a volume of one slice."""
    grid = torch.zeros(len(y), 1, *y.shape[2:], 3, device=y.device, dtype=y.dtype) + 0.3
    return F.grid_sample(y.unsqueeze(2), grid, align_corners=False).squeeze(2)


def _unpooled(dims: int) -> Callable[[Net, Tensor], Tensor]:
    def run(m: Net, y: Tensor) -> Tensor:
        if dims == 1:
            return F.max_unpool1d(*F.max_pool1d(y.flatten(2), 2, return_indices=True), 2).view(y.shape)
        if dims == 2:
            return F.max_unpool2d(*F.max_pool2d(y, 2, return_indices=True), 2)
        return F.max_unpool3d(*F.max_pool3d(y.unflatten(2, (2, -1)), 2, return_indices=True), 2)

    return run


def _of_first(m: Net, y: Tensor) -> Tensor:
    """A pooling of one image without a batch: its first dimension are the channels."""
    return torch.stack([F.max_pool2d(one, 3, 1, 1) for one in y.unbind(0)])


def _quantised(m: Net, y: Tensor) -> Tensor:
    return torch.fake_quantize_per_channel_affine(
        y,
        m.scale.weight[:, 0].detach().abs() + 0.01,
        torch.zeros(y.shape[1], dtype=torch.int32, device=y.device),
        1,
        -128,
        127,
    )


def _quantised_weight(m: Net, y: Tensor) -> Tensor:
    own = m.c.weight
    scale = own.detach().abs().amax((1, 2, 3)) / 127
    return F.conv2d(
        y,
        torch.fake_quantize_per_channel_affine(own, scale, torch.zeros_like(scale).int(), 0, -128, 127),
        padding=1,
    )


# Operators of torchvision, which its builds for other devices lack: the same schemas, sampled by torch's own
# operators.

VISION = None


def _deform(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    sh: int,
    sw: int,
    ph: int,
    pw: int,
    dh: int,
    dw: int,
    groups: int,
    parts: int,
    masked: bool,
) -> Tensor:
    taps, (height, width) = weight.shape[2] * weight.shape[3], x.shape[2:]
    rows = torch.arange(offset.shape[2]).view(-1, 1) * sh - ph
    columns = torch.arange(offset.shape[3]) * sw - pw
    read = []
    for tap in range(taps):
        i, j = divmod(tap, weight.shape[3])
        for part, own in enumerate(x.chunk(parts, 1)):
            at = part * taps + tap
            y, z = rows + i * dh + offset[:, 2 * at], columns + j * dw + offset[:, 2 * at + 1]
            grid = torch.stack([2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1], 3)
            sampled = F.grid_sample(own, grid, align_corners=True)
            read.append(sampled * mask[:, at : at + 1] if masked else sampled)
    per_tap = [torch.cat(read[tap * parts : (tap + 1) * parts], 1) for tap in range(taps)]
    made = F.conv2d(
        torch.stack(per_tap, 2).flatten(1, 2), weight.flatten(1)[..., None, None], bias, groups=groups
    )
    return made.contiguous()


def _roi_align(
    x: Tensor, boxes: Tensor, scale: float, height: int, width: int, samples: int, aligned: bool
) -> Tensor:
    made = []
    for number, left, top, right, bottom in boxes.tolist():
        y = top * scale + (torch.arange(height, dtype=x.dtype) + 0.5) * (bottom - top) * scale / height
        z = left * scale + (torch.arange(width, dtype=x.dtype) + 0.5) * (right - left) * scale / width
        spread = [
            2 * z.expand(height, -1) / (x.shape[3] - 1) - 1,
            2 * y.view(-1, 1).expand(-1, width) / (x.shape[2] - 1) - 1,
        ]
        made.append(F.grid_sample(x[int(number)][None], torch.stack(spread, 2)[None], align_corners=True)[0])
    return torch.stack(made)


def define_vision() -> None:
    """The operators, where torchvision brings none."""
    global VISION
    if VISION is not None or hasattr(torch.ops.torchvision, "deform_conv2d"):
        return
    VISION = torch.library.Library("torchvision", "FRAGMENT")
    sizes = (
        "SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, "
        "SymInt dilation_w, SymInt groups, SymInt offset_groups"
    )
    VISION.define(
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
        f"{sizes}, bool use_mask) -> Tensor"
    )
    VISION.impl("deform_conv2d", _deform, "CPU")
    VISION.impl(
        "deform_conv2d",
        lambda x, weight, offset, *_: x.new_empty(len(x), len(weight), *offset.shape[2:]),
        "Meta",
    )
    VISION.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, "
        "SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor"
    )
    VISION.impl("roi_align", _roi_align, "CPU")
    VISION.impl(
        "roi_align",
        lambda x, boxes, _scale, height, width, *_: x.new_empty(len(boxes), x.shape[1], height, width),
        "Meta",
    )


def _deformed(parts: int, masked: bool, groups: int = 1) -> Built:
    """Offsets, and masks, by convolutions of their own."""
    taps = 9 * parts

    def run(m: Net, y: Tensor) -> Tensor:
        mask = m.mask(y).sigmoid() if masked else y.new_zeros(len(y), 1)
        return torch.ops.torchvision.deform_conv2d(
            y, m.c.weight, m.offset(y), mask, m.c.bias, 1, 1, 1, 1, 1, 1, groups, parts, masked
        )

    own = {"mask": nn.Conv2d(8, taps, 3, padding=1)} if masked else {}
    return _frozen(
        planes(
            run,
            width=12,
            c=nn.Conv2d(8, 12, 3, groups=groups),
            offset=nn.Conv2d(8, 2 * taps, 3, padding=1),
            **own,
        )
    )


def _frozen(built: Built) -> Built:
    """Its operators have no gradients."""
    return lambda: built[0]().requires_grad_(False), built[1]


def _boxes(m: Net, y: Tensor) -> Tensor:
    boxes = torch.tensor([[n, 0.5, 1, 5, 6.0] for n in range(len(y))], device=y.device, dtype=y.dtype)
    return torch.ops.torchvision.roi_align(y, boxes, 1.0, 3, 3, 1, False)


define_vision()


def _written_twice(m: Net, y: Tensor) -> Tensor:
    """The same operators on two tensors of zeros, each written into by a view of it."""
    parts = []
    for tokens in (y, y.flip(1)):
        made = torch.zeros_like(y[:, :0]).new_zeros(len(y), 7, y.shape[2])
        made[:, 1:6].index_add_(1, at(y, 0, 2), tokens[:, :2])
        parts.append(made)
    return torch.cat(parts, 1)


TOKENS: dict[str, Built] = {
    "kthvalue": tokens(lambda m, y: y.kthvalue(2, 1)[0]),
    "median": tokens(lambda m, y: y.median(1)[0]),
    "nanmedian": tokens(lambda m, y: y.nanmedian(1, keepdim=True)[0]),
    "mode": tokens(lambda m, y: y.mode(1)[0]),
    "quantile": tokens(lambda m, y: y.quantile(0.3, 1)),
    "nanquantile": tokens(lambda m, y: y.nanquantile(0.3, 1, keepdim=True)),
    "cummax": tokens(lambda m, y: y.cummax(1)[0]),
    "cummin": tokens(lambda m, y: y.cummin(1)[0]),
    "aminmax": tokens(lambda m, y: torch.sub(*y.aminmax(dim=1))),
    "sort": tokens(lambda m, y: y.sort(1)[0][:, :3]),
    "topk": tokens(lambda m, y: y.topk(2, 1)[0]),
    "median of channels": tokens(lambda m, y: y * y.median(2, keepdim=True)[0].sigmoid()),
    "kthvalue of channels": tokens(lambda m, y: y * y.kthvalue(3, 2, keepdim=True)[0].sigmoid()),
    "mode of channels": tokens(lambda m, y: y * y.mode(2, keepdim=True)[0].sigmoid()),
    "cummax of channels": tokens(lambda m, y: y.cummax(2)[0]),
    "median of all": tokens(lambda m, y: y * y.median()),
    "aminmax of channels": tokens(lambda m, y: y * torch.sub(*y.aminmax(dim=2, keepdim=True)[::-1])),
    "count_nonzero of channels": tokens(lambda m, y: y * y.relu().count_nonzero(2).unsqueeze(2)),
    "number along tokens": tokens(_signs_of_largest, place=nn.Embedding(5, 1)),
    "gather of tokens": tokens(lambda m, y: y.gather(1, index_for(y, 3))),
    "take_along_dim": tokens(lambda m, y: y.take_along_dim(y.argsort(1), 1)),
    "index_select of tokens": tokens(lambda m, y: y.index_select(1, at(y, 4, 0, 2))),
    "index of tokens": tokens(lambda m, y: y[:, at(y, 4, 0, 2)]),
    "index of rows and tokens": tokens(lambda m, y: y[at(y, 0, 0, 0, 0), at(y, 4, 0, 2, 1)]),
    "mask of tokens": tokens(lambda m, y: y[_masked(y)].view(len(y), -1, y.shape[2])),
    "take": tokens(lambda m, y: y.take(torch.arange(32, device=y.device).view(2, 16))),
    "gather of channels": tokens(
        lambda m, y: y.gather(2, torch.zeros(len(y), y.shape[1], 4, dtype=torch.long, device=y.device)),
        width=4,
    ),
    "index_add": tokens(lambda m, y: y.index_add(1, at(y, 0, 2), y[:, :2])),
    "index_add into zeros": tokens(lambda m, y: torch.zeros_like(y[0]).index_add(0, at(y, 0, 2), y[0, :2])),
    "index_copy": tokens(lambda m, y: y.index_copy(1, at(y, 0, 2), y[:, 3:5])),
    "index_fill": tokens(lambda m, y: y.index_fill(1, at(y, 0, 2), 0.5)),
    "index_reduce": tokens(lambda m, y: y.index_reduce(1, at(y, 0, 2), y[:, 3:5], "amax")),
    "index_add along channels": tokens(lambda m, y: y.index_add(2, at(y, 0, 2), y[:, :, :2])),
    "index_put of rows": tokens(_written_rows),
    "index_put with a mask of tokens": tokens(_mask_token, word=nn.Embedding(2, 16)),
    "index_put with a mask of elements": tokens(_negative_to_zero),
    "scatter": tokens(lambda m, y: y.scatter(1, index_for(y, 3), y[:, :3])),
    "scatter of a number": tokens(lambda m, y: y.scatter(1, index_for(y, 3), 0.5)),
    "scatter_add into zeros": tokens(
        lambda m, y: y.new_zeros(y.shape).scatter_add(1, index_for(y, 3), y[:, 1:4])
    ),
    "scatter_reduce": tokens(lambda m, y: y.scatter_reduce(1, index_for(y, 3), y[:, 1:4], "amax")),
    "scatter along channels": tokens(lambda m, y: y.scatter(2, torch.zeros_like(y[:, :, :1]).long(), 0.0)),
    "slice_scatter": tokens(lambda m, y: y.slice_scatter(y[:, 2:4] * 2, 1, 0, 2)),
    "select_scatter": tokens(lambda m, y: y.select_scatter(y[:, 3] * 2, 1, 0)),
    "slice_scatter of channels": tokens(lambda m, y: y.slice_scatter(y[:, :, 2:4], 2, 0, 2)),
    "diagonal_scatter": tokens(
        lambda m, y: y.diagonal_scatter(torch.zeros_like(y.diagonal(0, 1, 2)), 0, 1, 2)
    ),
    "masked_scatter of rows": tokens(_image_tokens, c=nn.Linear(5, 16)),
    "masked_scatter of elements": tokens(lambda m, y: y.masked_scatter(y > 0, y.flip(1))),
    "masked_select": tokens(lambda m, y: y + y.masked_select(y > 0).mean()),
    "put": tokens(lambda m, y: y.put(at(y, 0, 20), y[0, 0, :2])),
    "rows written one by one": tokens(_filled_rows),
    "rows written by number into a part": tokens(_own_rows),
    "rows written by number into a part, twice": tokens(_written_twice),
    "index by signs": tokens(lambda m, y: y * m.t.weight[(y > 0).long(), 0], t=nn.Embedding(2, 2)),
    "index_select by signs": tokens(
        lambda m, y: y * m.t.weight[:, 0].index_select(0, (y[0, 0] > 0).long()), t=nn.Embedding(2, 2)
    ),
    "take by signs": tokens(lambda m, y: y * m.t.weight.take((y > 0).long()), t=nn.Embedding(2, 2)),
    "gather by signs": tokens(
        lambda m, y: m.t.weight[:, :1].expand(2, y.shape[2]).gather(0, (y[0] > 0).long()),
        t=nn.Embedding(2, 2),
    ),
    "segment_reduce": tokens(_segments),
    "renorm": tokens(lambda m, y: y.renorm(2, 2, 1.0)),
    "renorm of channels": tokens(lambda m, y: y.renorm(2, 1, 1.0)),
    "trapezoid": tokens(lambda m, y: torch.trapezoid(y, dim=1).unsqueeze(1)),
    "cumulative_trapezoid": tokens(lambda m, y: torch.cumulative_trapezoid(y, dim=1)),
    "diff": tokens(lambda m, y: y.diff(dim=1)),
    "cross": tokens(lambda m, y: torch.linalg.cross(y[:, :3], y[:, 2:], dim=1)),
    "searchsorted": tokens(
        lambda m, y: y * torch.searchsorted(torch.linspace(-1, 1, 5, device=y.device, dtype=y.dtype), y)
    ),
    "bucketize": tokens(
        lambda m, y: y * torch.bucketize(y, torch.linspace(-1, 1, 5, device=y.device, dtype=y.dtype))
    ),
    "histc": tokens(lambda m, y: y * torch.histc(y, 4, -3, 3)[0]),
    "unique": tokens(lambda m, y: y * len((y * 10).round().unique())),
    "cdist": tokens(lambda m, y: torch.cdist(y, m.c(y)).sigmoid() @ y, c=nn.Linear(16, 16)),
    "cdist, by the first norm": tokens(lambda m, y: torch.cdist(y, y, p=1.0).sigmoid() @ y),
    "pdist": tokens(lambda m, y: y * F.pdist(y.flatten(0, 1)).mean()),
    "cosine_similarity": tokens(
        lambda m, y: y * F.cosine_similarity(y, m.c(y), -1).unsqueeze(2), c=nn.Linear(16, 16)
    ),
    "pairwise_distance": tokens(
        lambda m, y: y * F.pairwise_distance(y, m.c(y)).unsqueeze(2), c=nn.Linear(16, 16)
    ),
    "normalize": tokens(lambda m, y: F.normalize(y, dim=-1)),
    "vector_norm": tokens(lambda m, y: y / (1 + torch.linalg.vector_norm(y, 3.0, dim=-1, keepdim=True))),
    **{
        name: tokens(_losses(name), c=nn.Linear(16, 16))
        for name in (
            "mse_loss",
            "smooth_l1_loss",
            "huber_loss",
            "binary_cross_entropy",
            "binary_cross_entropy_with_logits",
            "soft_margin_loss",
            "dist",
            "l1_loss",
            "kl_div",
            "mse_loss, each",
        )
    },
    **{
        name: tokens(_by_class(name))
        for name in (
            "cross_entropy",
            "cross_entropy, smoothed",
            "cross_entropy of planes",
            "multi_margin_loss",
            "ctc_loss",
        )
    },
    "fake_quantize": tokens(lambda m, y: torch.fake_quantize_per_tensor_affine(y, 0.05, 3, -128, 127)),
    "fake_quantize by a tensor": tokens(
        lambda m, y: torch.fake_quantize_per_tensor_affine(
            y,
            m.s.weight[0].detach().abs() + 0.01,
            torch.zeros(1, dtype=torch.int32, device=y.device),
            -128,
            127,
        ),
        s=nn.Linear(1, 1),
    ),
    "fake_quantize, learnable": tokens(
        lambda m, y: torch._fake_quantize_learnable_per_tensor_affine(
            y, m.s.weight[0].abs() + 0.01, m.s.bias * 0, -128, 127, 1.0
        ),
        s=nn.Linear(1, 1),
    ),
    "prelu": tokens(lambda m, y: m.p(y.transpose(1, 2)).transpose(1, 2), p=nn.PReLU(16)),
    "celu, rrelu, dropouts": tokens(
        lambda m, y: F.alpha_dropout(F.dropout(F.rrelu(F.celu(y)), 0.1, m.training), 0.1, m.training)
    ),
    "addbmm": tokens(lambda m, y: torch.addbmm(y[0], (y @ y.transpose(1, 2)).softmax(2), y)),
    "baddbmm": tokens(lambda m, y: torch.baddbmm(y, (y @ y.transpose(1, 2)).softmax(2), y)),
    "addmv": tokens(
        lambda m, y: y[0] * torch.addmv(m.u.weight[:, 0], y[0], m.v.weight[0]).unsqueeze(1),
        u=nn.Linear(1, 5),
        v=nn.Linear(16, 1),
    ),
    "addr": tokens(
        lambda m, y: torch.addr(y[0], m.u.weight[:, 0], m.v.weight[0]), u=nn.Linear(1, 5), v=nn.Linear(16, 1)
    ),
    "outer": tokens(
        lambda m, y: y[0] * torch.outer(m.u.weight[:, 0], m.v.weight[0]),
        u=nn.Linear(1, 5),
        v=nn.Linear(16, 1),
    ),
    "kron": tokens(lambda m, y: torch.kron(y, torch.ones(1, 1, 2, device=y.device, dtype=y.dtype)), width=32),
    "tensordot": tokens(
        lambda m, y: torch.tensordot(y, m.v.weight, dims=([2], [1])), width=10, v=nn.Linear(16, 10)
    ),
    "einsum of three": tokens(
        lambda m, y: torch.einsum("btc,bsc,c->bts", y, y, m.v.weight[0]) @ y, v=nn.Linear(16, 1)
    ),
    "chain_matmul": tokens(
        lambda m, y: torch.linalg.multi_dot([y[0], m.v.weight.t(), m.w.weight]),
        width=7,
        v=nn.Linear(16, 10),
        w=nn.Linear(7, 10),
    ),
    "tril": tokens(lambda m, y: (y @ y.transpose(1, 2)).tril() @ y),
    "triu of channels": tokens(lambda m, y: y.triu()),
    "embedding bag of tokens": tokens(
        lambda m, y: F.embedding_bag(
            torch.zeros(len(y), 16, dtype=torch.long, device=y.device),
            m.t.weight,
            per_sample_weights=y.mean(1),
            mode="sum",
        ),
        width=10,
        t=nn.Embedding(3, 10),
    ),
    "embedding with a largest norm": tokens(
        lambda m, y: (
            y
            + F.embedding(torch.zeros(5, dtype=torch.long, device=y.device), m.t.weight.clone(), max_norm=0.5)
        ),
        t=nn.EmbeddingBag(3, 16),
    ),
    "isin": tokens(
        lambda m, y: y * torch.isin((y * 3).round(), torch.arange(3, device=y.device)).to(y.dtype)
    ),
    "rot90": tokens(lambda m, y: y.rot90(1, (0, 1))),
}
PLANES: dict[str, Built] = {
    "max_unpool1d": planes(_unpooled(1)),
    "max_unpool2d": planes(_unpooled(2)),
    "max_unpool3d": planes(_unpooled(3)),
    "adaptive_max_pool": planes(lambda m, y: F.adaptive_max_pool2d(y, 3)),
    "adaptive_max_pool3d": planes(lambda m, y: F.adaptive_max_pool3d(y.unflatten(2, (2, -1)), (1, 2, 2))),
    "fractional_max_pool": planes(
        lambda m, y: F.fractional_max_pool2d(
            y,
            2,
            output_size=(4, 4),
            _random_samples=torch.full((*y.shape[:2], 2), 0.3, device=y.device, dtype=y.dtype),
        )
    ),
    "lp_pool": planes(lambda m, y: F.lp_pool2d(y.relu() + 0.1, 2, 2)),
    "pooling without a batch": planes(_of_first),
    "spatial transformer": planes(_grid, where=nn.Linear(8, 6)),
    "sampled at computed places": planes(_grid_of_channels, where=nn.Conv2d(8, 2, 3, padding=1)),
    "sampled in a volume": planes(_grid3),
    "fold of unfold": planes(lambda m, y: F.fold(F.unfold(y, 2, stride=2), (8, 8), 2, stride=2)),
    "pixel_unshuffle": planes(lambda m, y: F.pixel_unshuffle(y, 2), width=32),
    "local response norm": planes(lambda m, y: F.local_response_norm(y, 3)),
    "instance norm": planes(lambda m, y: F.instance_norm(y)),
    "dropouts": planes(
        lambda m, y: F.feature_alpha_dropout(
            F.dropout2d(F.dropout1d(y.flatten(2), 0.1, m.training).view(y.shape), 0.1, m.training),
            0.1,
            m.training,
        )
    ),
    "upsampling": planes(
        lambda m, y: F.interpolate(
            F.interpolate(y, (5, 5), mode="area"), (7, 7), mode="bicubic", antialias=True
        )
    ),
    "fake_quantize of channels": planes(_quantised, scale=nn.Linear(1, 8)),
    "fake_quantize of a weight": planes(_quantised_weight, width=10, c=nn.Conv2d(8, 10, 3, bias=False)),
    "quantile of planes": planes(lambda m, y: y.flatten(2).quantile(0.5, 2, keepdim=True)),
    "median of channels at each place": planes(lambda m, y: y * y.median(1, keepdim=True)[0].sigmoid()),
    "deformable convolution": _deformed(1, False),
    "deformable convolution with a mask": _deformed(2, True),
    "deformable convolution in groups": _deformed(1, True, groups=2),
    "roi_align": _frozen(planes(_boxes)),
    "mask of elements": planes(lambda m, y: torch.where(y > y.mean((2, 3), keepdim=True), y, -y)),
}
NETWORKS: dict[str, Built] = {**ROUTING, **TOKENS, **PLANES}
