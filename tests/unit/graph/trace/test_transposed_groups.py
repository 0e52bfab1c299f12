"""Grouped transposed convolutions: whole groups leave, or the same places of all groups.

Judged by tests/reference.py, which zeroes the logged indices in the dense model.
"""

from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn

import sparsify
from sparsify.cost.cost_model import Costs
from sparsify.cost.latency_model import Work
from sparsify.cost.measure import count_macs_by_module
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.trace.made_labels import GroupOutputs, extend_marks
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.cuts import Narrow

KINDS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


class Upward(nn.Module):
    """A convolution, a grouped transposed one, and one that reads it."""

    def __init__(
        self, width: int, made: int, groups: int, rank: int = 2, read: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        plain, transposed = KINDS[rank]
        self.a = plain(3, width, 3, padding=1)
        self.t = transposed(width, made, 2, 2, groups=groups, bias=bias)
        self.b, self.c = plain(made, 8, 1, groups=read), plain(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.t(self.a(x).relu()).relu()).relu())


def cut(model: nn.Module, layers: str = "*", rank: int = 2, **rule: Any) -> tuple[Plan, Result]:
    own = {"layers": layers, "group": "filter", "sparsity": "50%", "criterion": {"kind": "random"}, **rule}
    inputs = (torch.randn(2, 3, *[5] * rank, generator=torch.Generator().manual_seed(0)),)
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [own]}, model, inputs)
    result = sparsify.cut(plan, model)
    for seed, batch in ((1, 1), (2, 4)):
        assert reference.difference(result, model, reference.fresh(inputs, batch, seed)) <= 1e-9
    again = replay_cuts(model, result.cuts)
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again.eval()(*inputs), result.model.eval()(*inputs))
    return plan, result


def make(*given: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return Upward(*given, **more).eval()


@pytest.mark.parametrize("rank", KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_whole_groups_leave_with_what_they_read_and_make(rank: int, bias: bool) -> None:
    _, result = cut(make(12, 24, 4, rank, bias=bias), layers="t", rank=rank)
    t: Any = result.model.get_submodule("t")
    assert (t.groups, t.in_channels, t.out_channels) == (2, 6, 12)
    assert t.weight.shape[:2] == (6, 6)
    a, b = result.model.get_submodule("a"), result.model.get_submodule("b")
    assert a.weight.shape[0] == 6 and b.weight.shape[1] == 12
    narrowed = [op for op in result.cuts.operations if isinstance(op, Narrow)]
    (kept,) = [op.keep for op in narrowed if (op.tensor, op.dim) == ("t.weight", 0)]
    assert all(start % 3 == 0 and end % 3 == 0 for start, end in kept)


def test_one_output_a_group_leaves_with_its_group() -> None:
    _, result = cut(make(24, 8, 8), layers="a")
    t: Any = result.model.get_submodule("t")
    assert (t.groups, t.in_channels, t.out_channels, t.weight.shape[1]) == (4, 12, 4, 1)


def test_places_leave_where_they_are_more() -> None:
    """3 groups of 4 inputs: places of all groups, of the inputs and of the outputs each for themselves."""
    plan, result = cut(make(12, 24, 3))
    assert [(g.name, g.width) for g in plan.map.coupled[:2]] == [("a", 4), ("t", 8)]
    t: Any = result.model.get_submodule("t")
    assert t.groups == 3 and t.in_channels % 3 == 0 and t.out_channels % 3 == 0
    assert (t.in_channels, t.out_channels) != (12, 24)


def test_a_grouped_reader_with_the_same_groups_lets_whole_groups_leave() -> None:
    _, result = cut(make(8, 16, 4, read=4), layers="a")
    groups = [result.model.get_submodule(name).groups for name in ("t", "b")]
    assert groups in ([2, 2], [4, 4])


def test_what_stays_inside_whole_groups_has_its_reason() -> None:
    plan, _ = cut(make(12, 24, 4), layers="a")
    (inside,) = [group for group in plan.map.coupled if group.name == "t"]
    assert inside.protected == "whole groups leave, and each has as many channels"


@pytest.mark.parametrize(("width", "made", "groups"), [(12, 24, 4), (12, 24, 3), (12, 24, 12), (24, 8, 8)])
def test_costs_are_those_of_the_cut_model(width: int, made: int, groups: int) -> None:
    plan, result = cut(make(width, made, groups))
    gone = {}
    for own in result.cuts.widths:
        kept = {unit for start, end in own.keep for unit in range(start, end)}
        gone[own.group] = [unit for unit in range(own.width) if unit not in kept]
    costs = Costs(plan.map).of(gone)
    macs = sum(count_macs_by_module(result.model, (torch.randn(2, 3, 5, 5),)).by_module.values())
    assert costs["params"] == sum(p.numel() for p in result.model.parameters())
    assert costs["macs"] == macs


def test_widths_of_a_layer_without_some_groups_follow_from_its_weight() -> None:
    work = Work("t.weight", "conv", "key", 12, 24, 1, groups=4, group_outputs=6, transposed=True)
    assert work.widths({"t.weight": (6, 6, 2, 2)}) == (6, 12)


def test_marks_of_outputs_are_those_of_their_group_or_place() -> None:
    """Two groups of two inputs (labels 1 to 4) and two outputs (7 to 10), places 5 and 6."""
    read, made = np.array([[1, 2], [3, 4]]), np.array([[7, 8], [9, 10]])
    outputs = [GroupOutputs(made, read, np.array([5, 6]))]
    whole = torch.tensor([-1, 0, 0, -1, -1, -1, -1])
    assert extend_marks(whole, 11, outputs, -1).tolist()[7:] == [0, 0, -1, -1]
    places = torch.tensor([-1, 3, -1, 3, -1, -1, 4])
    assert extend_marks(places, 12, outputs, -1).tolist()[7:] == [-1, 4, -1, 4, -1]
    assert extend_marks(places, 7, outputs, -1) is places


def test_dead_groups_leave_and_their_constants_are_kept() -> None:
    model = make(12, 24, 4)
    with torch.no_grad():
        model.a.weight[3:6] = 0
        model.a.bias[3:6] = torch.tensor([0.5, 1.0, 1.5])
        model.t.weight[3:6] = 0
    inputs = (torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)),)
    rules = [{"layers": "t", "group": "filter"}]
    result = sparsify.cut(
        sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, inputs), model
    )
    assert result.model.get_submodule("t").groups == 3
    assert reference.to_dense(result, model, reference.fresh(inputs, 4, 1)) <= 1e-6
