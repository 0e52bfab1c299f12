"""Weights of trial models: large ones repeat random numbers, and are written anew after a trial."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsify.forward.copies import copy_model
from sparsify.graph import build_map
from sparsify.graph.surgery import operations
from sparsify.graph.verify import trial_weights
from sparsify.graph.verify.group_trials import choose_half, judge_cut
from sparsify.graph.verify.trial_weights import randomize_weights

X = (torch.randn(3, 64, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture(autouse=True)
def weights_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_weights, "PERIOD", 101)


def build() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 70), nn.ReLU(), nn.Linear(70, 64)).eval()


@pytest.mark.parametrize("at_fault", [False, True])
def test_a_trial_with_repeated_numbers_finds_faults_and_leaves_the_weights(
    at_fault: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = operations.cut_on_trial

    def confuse_units(*given: Any) -> nn.Module:
        thin = cut(*given)
        reader: Tensor = thin[2].weight  # type: ignore[index,union-attr,assignment]
        reader.data = reader.data.roll(1, 1)
        return thin

    if at_fault:
        monkeypatch.setattr(operations, "cut_on_trial", confuse_units)
    model = build()
    map = build_map.build_map(model, X, {})
    trial = copy_model(model)
    drawn = randomize_weights(model, trial, X)
    assert len(drawn.places) == 2
    before = copy_model(trial).state_dict()
    found = judge_cut(trial, map, {"0": choose_half(map.by_name["0"])}, X, drawn=drawn)
    assert (found is not None and "differs from the masked one" in found) is at_fault
    assert all(torch.equal(value, before[name]) for name, value in trial.state_dict().items())


def test_no_two_rows_are_the_same_and_the_matrix_is_regular() -> None:
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 300, bias=False))
    drawn = randomize_weights(model, model, X)
    square, tall = model[0].weight, model[1].weight
    assert drawn.holds(square) and not drawn.holds(tall)  # as many rows as numbers would meet the same ones
    assert int(torch.linalg.matrix_rank(square)) == 64
    assert len(torch.unique(tall, dim=0)) == 300
    assert float(square.detach().abs().max()) == pytest.approx(1.5 * (3 / 64) ** 0.5, rel=0.05)


def test_a_transposed_view_of_a_weight_is_written_in_the_order_of_its_memory() -> None:
    model = build()
    drawn = randomize_weights(model, model, X)
    weight = model[0].weight.detach()
    before = weight.clone()
    weight.t()[:, ::2] = 0
    drawn.fill(weight.t())
    assert torch.equal(weight, before)
