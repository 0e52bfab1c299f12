"""Heads whose places, or which themselves, have parameters and norms of their own; judged by the dense model
with the heads at zero, made by hand."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify

HEADS, PLACES, WIDTH = 4, 6, 10


class Attention(nn.Module):
    """Queries and keys pass through something between their projection and their product."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * PLACES) for _ in range(3))
        self.on_q, self.on_k = make(), make()
        self.out = nn.Linear(HEADS * PLACES, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, PLACES) for layer in (self.q, self.k, self.v))
        q, k = (y.transpose(1, 2) for y in (self.on_q(q), self.on_k(k)))
        mixed = F.scaled_dot_product_attention(q, k, v.transpose(1, 2))
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class WrittenRms(nn.Module):
    """As Qwen3 writes it, in elementary operators."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(PLACES) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class ScaleOfPlaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.rand(PLACES) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        rotated = torch.cat([-x[..., PLACES // 2 :], x[..., : PLACES // 2]], -1)
        angle = torch.arange(PLACES, dtype=x.dtype, device=x.device)
        return (x * angle.cos() + rotated * angle.sin()) * self.scale + self.shift


class ScaleOfHeads(nn.Module):
    """A temperature for each head; it leaves with its head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.rand(HEADS, 1) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class ScaleOfBoth(nn.Module):
    """As Conformer's two biases of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.rand(HEADS, PLACES) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


MADE: dict[str, Callable[[], nn.Module]] = {
    "rms norm of places, written out": WrittenRms,
    "layer norm of places": lambda: nn.LayerNorm(PLACES),
    "rms norm of places": lambda: nn.RMSNorm(PLACES),
    "scale of places": ScaleOfPlaces,
    "scale of heads": ScaleOfHeads,
    "shift of heads and places": ScaleOfBoth,
}
RECIPE = {
    "version": 1,
    "title": "heads",
    "rules": [
        {"layers": "att.q", "group": "head", "sparsity": "50%", "criterion": {"kind": "random"}},
    ],
}


@pytest.mark.parametrize("name", MADE)
def test_heads_leave_whole(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("att", Attention(MADE[name]))
    model.add_module("head", nn.Linear(WIDTH, 3))
    model.eval()
    inputs = (torch.randn(2, 5, WIDTH),)
    plan = sparsify.make_plan(RECIPE, model, inputs)
    (group,) = [c for c in plan.map.coupled if c.name == "att.q"]
    assert (group.width, group.protected, group.statistics) == (HEADS, None, False)
    result = sparsify.cut(plan, model)
    assert result.verdicts[0].outcome == "equal"
    (width,) = [w for w in result.cuts.widths if w.group == "att.q"]
    gone = sorted(set(range(HEADS)) - {i for a, b in width.keep for i in range(a, b)})
    assert len(gone) == 2
    masked = deepcopy(model).double()
    columns = masked.att.out.weight.data.view(WIDTH, HEADS, PLACES)
    columns[:, gone] = 0  # what a head computes reaches nothing but these columns
    x = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    assert torch.allclose(result.model.double()(x), masked(x), atol=1e-12)
    assert not torch.allclose(model.double()(x), masked(x), atol=1e-3)


def test_what_belongs_to_places_stays_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("att", Attention(WrittenRms))
    model.add_module("head", nn.Linear(WIDTH, 3))
    result = sparsify.cut(sparsify.make_plan(RECIPE, model.eval(), (torch.randn(2, 5, WIDTH),)), model)
    assert result.model.att.on_q.weight.shape == (PLACES,)
    assert result.model.att.q.out_features == 2 * PLACES


class Window(nn.Module):
    """The last tokens alone, more of them than there are, as a sliding window is written."""

    def __init__(self, start: int | None, end: int | None) -> None:
        super().__init__()
        self.first, self.second, self.start, self.end = nn.Linear(4, 8), nn.Linear(8, 3), start, end

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()[:, self.start : self.end])


@pytest.mark.parametrize(("start", "end"), [(-4095, None), (None, 4095), (-3, 99), (-99, 99), (2, -1)])
def test_slices_beyond_the_ends(start: int | None, end: int | None) -> None:
    torch.manual_seed(0)
    model, inputs = Window(start, end).eval(), (torch.randn(2, 5, 4),)
    rule = {"layers": "first", "group": "neuron", "sparsity": "50%"}
    plan = sparsify.make_plan({"version": 1, "title": "window", "rules": [rule]}, model, inputs)
    result = sparsify.cut(plan, model)
    assert result.model.first.out_features == 4
    assert result.verdicts[0].outcome == "equal"
