"""Rules reach what no convolution and no Linear layer makes: weight-normed layers, embeddings, cells, bare
parameters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify


class Bare(nn.Module):
    """A functional call on a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.fc = nn.Parameter(torch.randn(8, 6)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.linear(x, self.matrix).relu())


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = nn.LSTMCell(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.cell(x)
        return self.fc(self.cell(x, (h, c))[0])


def weight_norm() -> nn.Module:
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 8, 3, bias=False)),
        nn.Flatten(),
        nn.Linear(8 * 4, 3),
    )


def bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 3))


NUMBERS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, str, str, str]] = {
    "bare parameter": (lambda: nn.Sequential(Bare()), NUMBERS, "Bare", "neuron", "0.matrix"),
    "cell": (Cell, NUMBERS, "cell", "hidden", "cell"),
    "weight norm": (weight_norm, NUMBERS[:, None], "Conv1d", "filter", "0"),
    "embedding bag": (
        bag,
        torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(0)),
        "0",
        "neuron",
        "0",
    ),
    "bilinear": (lambda: Both(), NUMBERS, "Bilinear", "neuron", "bi"),
}


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bi, self.fc = nn.Bilinear(6, 6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bi(x, x.flip(1)).relu())


@pytest.mark.parametrize("name", CASES)
def test_a_rule_reaches_it(name: str) -> None:
    torch.manual_seed(0)
    build, x, layer, group, coupled = CASES[name]
    model = build()
    recipe = {
        "version": 1,
        "title": name,
        "rules": [{"layers": [layer], "group": group, "sparsity": "50%"}],
        "stages": [{"kind": "cut"}],
    }
    plan = sparsify.make_plan(recipe, model, (x,))
    assert plan.assignments[0].coupled == (coupled,) and plan.map.by_name[coupled].width == 8
    result = sparsify.cut(plan, model)
    assert [w.kept for w in result.cuts.widths] == [4]
    assert sum(p.numel() for p in result.model.parameters()) < 0.6 * sum(
        p.numel() for p in model.parameters()
    )
