"""Outputs of whole numbers are the same in the cut model, but for choices between equal numbers."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import VerificationError
from sparsify.graph.verify.whole_outputs import are_ties, count_differing, find_differing
from sparsify_schemas.report import Verdict

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Linear, a norm where asked for, ReLU, and what `run` makes of that."""

    def __init__(self, run: Callable[[Any, Tensor], Any], norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.a, self.b = nn.Linear(6, 64), nn.Linear(64, 5)
        self.norm: nn.Module = nn.LayerNorm(64) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, F.relu(self.norm(self.a(x))))


def prove(model: nn.Module) -> Verdict:
    rule = {"layers": "a", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "random"}}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model.eval(), (X,))
    (verdict,) = sparsify.cut(plan, model).verdicts
    return verdict


def choose(model: Any, hidden: Tensor) -> Any:
    scores = model.b(hidden)
    kept = scores.flatten().topk(4).indices
    return {"scores": scores, "classes": scores.argmax(-1), "mask": scores > 0, "kept": kept}


def choose_of_equal(model: Any, hidden: Tensor) -> Any:
    """Two scores that are equal but for the order of their additions."""
    scores = torch.stack([model.b(hidden), F.linear(hidden.flip(-1), model.b.weight.flip(-1), model.b.bias)])
    return scores, scores.argmax(0)


@pytest.mark.parametrize("norm", [False, True])
def test_classes_masks_and_indices_that_follow_from_equal_numbers_are_equal(norm: bool) -> None:
    verdict = prove(Net(choose, norm))
    assert "whole numbers" not in verdict.note and verdict.difference <= 1e-12


@pytest.mark.parametrize("norm", [False, True])
def test_choices_between_equal_numbers_may_differ_and_are_counted(norm: bool) -> None:
    model = Net(choose_of_equal, norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verdict = prove(model)
    assert verdict.outcome == ("statistics change" if norm else "equal")
    assert re.search(
        r"(^|; )outputs of whole numbers \(classes, indices, masks\) differ in [1-9]\d* places, each a "
        r"choice between numbers that are equal to rounding; all others are equal$",
        verdict.note,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "count",
    [
        lambda model, hidden: torch.tensor(hidden.shape[-1]),
        lambda model, hidden: (model.b(hidden) * model.b.in_features).round().long(),
        lambda model, hidden: (model.b(hidden) * model.b.in_features > 1).nonzero(),
    ],
)
def test_whole_numbers_that_the_cut_changes_are_refused(count: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(VerificationError) as caught:
        prove(Net(lambda model, hidden: (model.b(hidden), count(model, hidden))))
    assert re.match(
        r"the cut model's outputs of whole numbers \(classes, indices, masks\) differ from those of the "
        r"masked one in \d+ of \d+ places, and not by ties alone \[groups: a\]; group 'a' fails by itself",
        str(caught.value),
    )


def test_what_noise_does_not_change_is_no_tie() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight[1] = model.weight[0]
        model.bias[1] = model.bias[0]
    before = model.weight.clone()

    def run() -> list[Tensor]:
        with torch.no_grad():
            y = model(X)
        return [y[:, 0] > y[:, 1], y[:, 0] > y[:, 2] + 1]

    wanted = run()
    tied = find_differing([~wanted[0], wanted[1]], wanted)
    other = find_differing([wanted[0], ~wanted[1]], wanted)
    assert (count_differing(tied), count_differing(other)) == (16, 16)
    assert are_ties(tied, wanted, model, run, 1e-6) and not are_ties(other, wanted, model, run, 1e-6)
    assert torch.equal(model.weight, before) and not model._forward_hooks
    shorter = find_differing([wanted[0], wanted[1][:3]], wanted)
    assert count_differing(shorter) == 1 and not are_ties(shorter, wanted, model, run, 1e-6)
    assert find_differing(wanted[:1], wanted) == [None]
    assert not are_ties([None], wanted, model, run, 1e-6)
