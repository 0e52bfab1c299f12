"""Layers that are called by keyword are seen as if they were called by position."""

import torch
from torch import Tensor, nn

import sparsify
from sparsify.cost.latency.layer_geometry import read_layers
from sparsify.pruning.cut import Result

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, by_keyword: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_keyword = by_keyword
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.by_keyword:
            y = self.b(input=self.n(input=self.a(input=x)).relu())
            y = self.c(input=y.mean((2, 3)))
            return y
        y = self.c(self.b(self.n(self.a(x)).relu()).mean((2, 3)))
        return y


def cut(by_keyword: bool, kind: str) -> Result:
    rules = [{"layers": ["a", "b"], "group": "filter", "sparsity": "50%", "criterion": {"kind": kind}}]
    model = Net(by_keyword).eval()
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (X[:2],))
    return sparsify.cut(plan, model, batches=[(X, torch.arange(64) % 4)])


def test_criteria_that_look_at_inputs_choose_the_same() -> None:
    for kind in ("wanda", "activation", "reconstruction"):
        assert cut(True, kind).cuts.widths == cut(False, kind).cuts.widths, kind


def test_repairs_are_the_same() -> None:
    results = [cut(by_keyword, "magnitude") for by_keyword in (True, False)]
    repaired = [sparsify.repair(result, [X]) for result in results]
    assert repaired[0].layers == repaired[1].layers and repaired[0].after == repaired[1].after
    assert "refitted" in {row.outcome for row in repaired[0].layers}


def test_layers_are_timed_at_the_same_sizes() -> None:
    assert read_layers(Net(True), (X[:2],), 1) == read_layers(Net(False), (X[:2],), 1)
