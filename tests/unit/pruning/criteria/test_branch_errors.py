"""Criterion reconstruction on residual branches, against networks written out with a linear map in place of
the branch."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.pruning.criteria import reconstruction
from sparsify.pruning.criteria.reconstruction import CannotScoreError, reconstruction_scores
from sparsify.pruning.planning.plan import Plan

RIDGE = 1e-3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """A branch of two layers on a shortcut; `linear` leaves out what is between them."""

    def __init__(self, make: type[nn.Module], width: int, linear: bool) -> None:
        super().__init__()
        options = {"kernel_size": 1} if make is nn.Conv2d else {}
        self.first, self.second = make(width, 7, **options), make(7, width, **options)
        self.linear = linear

    def branch(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        out: Tensor = self.second(hidden if self.linear else F.relu(hidden))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Network(nn.Module):
    """Three blocks on a stream; the branch of the second is a linear map of its shortcut."""

    def __init__(self, make: type[nn.Module] = nn.Linear, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.blocks = nn.ModuleList([Block(make, width, linear=at == 1) for at in range(3)])
        self.head = nn.Linear(width, 3)

    def read_out(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.mean((2, 3)) if x.dim() == 4 else x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.read_out(x)


def plan_of(model: nn.Module, x: Tensor) -> Plan:
    rules = [{"layers": "blocks.*", "group": "depth", "sparsity": "30%"}]
    return sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model.eval(), (x[:2],))


def score(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, float]:
    plan = plan_of(model, batches[0])
    names = [name for assignment in plan.assignments for name in assignment.coupled]
    pairs = [(x, torch.zeros(len(x))) for x in batches]
    found = reconstruction_scores(model, plan.map, names, pairs, RIDGE, 0)
    return {name: float(values) for name, values in found.items()}


def rows_of(value: Tensor) -> np.ndarray:
    """[places of all examples, channels]"""
    laid_out = value.movedim(1, -1) if value.dim() == 4 else value
    return laid_out.reshape(-1, laid_out.shape[-1]).double().numpy()


@torch.no_grad()
def compute_error(model: Network, x: Tensor, left_out: int) -> float:
    """Squared change of the centred outputs, mean over examples, with the best linear map in place of one
    block's branch: by the normal equations of numpy."""

    def centre(out: Tensor) -> Tensor:
        return out - out.mean(1, keepdim=True)

    dense = model(x)
    stream = x
    for at, block in enumerate(model.blocks):
        if at != left_out:
            stream = block(stream)
            continue
        p, q = rows_of(stream), rows_of(block.branch(stream))
        p_mean, q_mean = p.mean(0), q.mean(0)
        covariance = np.cov(p.T, bias=True)
        covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        slopes = np.linalg.solve(covariance, (p - p_mean).T @ (q - q_mean) / len(p))
        predicted = torch.from_numpy((p - p_mean) @ slopes + q_mean).float()
        if stream.dim() == 4:
            n, _, height, width = stream.shape
            predicted = predicted.reshape(n, height, width, -1).permute(0, 3, 1, 2)
        stream = stream + predicted
    change = centre(model.read_out(stream)) - centre(dense)
    return float(change.double().square().sum(1).mean())


@pytest.mark.parametrize(("make", "shape"), [(nn.Linear, (64, 6)), (nn.Conv2d, (24, 6, 5, 4))])
def test_the_error_is_what_a_linear_map_of_the_shortcut_leaves(
    make: type[nn.Module], shape: tuple[int, ...]
) -> None:
    model, x = Network(make), draw(*shape)
    found = score(model, [x])
    expected = {f"blocks.{at}": compute_error(model, x, at) for at in range(3)}
    assert found.keys() == expected.keys()
    for name, error in expected.items():
        assert found[name] == pytest.approx(error, rel=1e-3, abs=1e-9), name
    assert found["blocks.1"] < 1e-3 * min(found["blocks.0"], found["blocks.2"])


def test_batches_add_up_and_only_some_are_run_without_each_branch() -> None:
    model, x = Network(), draw(96, 6)
    whole, parts = score(model, [x]), score(model, list(x.split(48)))
    for name, error in whole.items():
        assert parts[name] == pytest.approx(error, rel=1e-3, abs=1e-9)
    # Three batches for each that is looked at, over three branches; of more, the maps are fitted to all.
    many = score(model, list(draw(480, 6, seed=1).split(48)))
    assert many["blocks.1"] < 1e-3 * many["blocks.0"]


def test_tokens_have_their_channels_last_whatever_their_number() -> None:
    model = Network()
    x = draw(16, 6, 6)  # as many tokens as channels
    tokens = nn.Sequential(*model.blocks)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = tokens, model.head

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.blocks(x).mean(1))
            return out

    found = score(Tokens(), [x])
    assert found["blocks.1"] < 1e-3 * min(found["blocks.0"], found["blocks.2"])


def test_the_branch_that_a_linear_map_replaces_leaves_and_the_repair_makes_up_for_it() -> None:
    model, x = Network(), draw(400, 6)
    rules = [
        {"layers": "blocks.*", "group": "depth", "sparsity": "34%", "criterion": {"kind": "reconstruction"}}
    ]
    recipe = {"version": 1, "title": "t", "data": {"source": "digits"}, "rules": rules}
    plan = sparsify.make_plan(recipe, model.eval(), (x[:2],))
    result = sparsify.cut(plan, model, batches=[(part, part[:, 0]) for part in x.split(100)])
    kept = {name.split(".")[1] for name in result.model.state_dict() if name.startswith("blocks.")}
    assert kept == {"0", "2"}
    repaired = sparsify.repair(result, [draw(400, 6, seed=5)])
    assert repaired.before is not None and repaired.after is not None
    assert repaired.after.error < 0.1 * repaired.before.error


def test_branches_and_units_of_layers_are_scored_in_one_unit() -> None:
    """A block whose hidden layer has one unit: without that unit, and refitted, its branch is a constant; so
    the unit's score is at least the error of the block, whose place a linear map takes."""
    model, x = Network(), draw(300, 6)
    model.blocks[0].first, model.blocks[0].second = nn.Linear(6, 2), nn.Linear(2, 6)
    rules = [
        {"layers": "blocks.*", "group": "depth", "sparsity": "30%"},
        {"layers": "blocks.0.first", "group": "neuron", "sparsity": "50%"},
    ]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model.eval(), (x[:2],))
    names = ["blocks.0", "blocks.0.first"]
    found = reconstruction_scores(model, plan.map, names, [(x, x[:, 0])], RIDGE, 0)
    units, block = found["blocks.0.first"], float(found["blocks.0"])
    assert units.shape == (2,)
    assert 0 < block < float(units.sum()) < 20 * block


def test_matrices_that_take_too_much_are_left_to_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Network(), draw(32, 6)
    plan = plan_of(model, x)
    arguments = model, plan.map, ["blocks.0", "blocks.1", "blocks.2"], [(x, x)], RIDGE, 0
    size = 3 * 2 * 8 * 6**2  # for each sum, both matrices of its six channels
    monkeypatch.setattr(reconstruction, "MEMORY", size)
    assert reconstruction_scores(*arguments, required=False)
    monkeypatch.setattr(reconstruction, "MEMORY", size - 1)
    with pytest.raises(CannotScoreError, match=r"its matrices take 0\.0 GiB, which is more than 0"):
        reconstruction_scores(*arguments, required=False)
    assert reconstruction_scores(*arguments)


def test_outputs_that_are_not_finite_without_a_branch_are_refused() -> None:
    model, x = Network(), draw(32, 6)
    with torch.no_grad():
        model.head.weight.fill_(1e38)
    plan = plan_of(Network(), x)
    names = [name for assignment in plan.assignments for name in assignment.coupled]
    with pytest.raises(CannotScoreError, match=r"without 'blocks\.0' the outputs are NaN or infinite"):
        reconstruction_scores(model.eval(), plan.map, names, [(x, x)], RIDGE, 0)
