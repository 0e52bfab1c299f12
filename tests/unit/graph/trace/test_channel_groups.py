"""Layers whose channels fall into groups: whole groups leave, or the same places of all.

The reference is the dense model in float64 with zeros in what the log removes, a GroupNorm taking its
statistics over the channels that stay.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.cost.latency.calibrate import list_needed_widths, note_leaving_groups
from sparsify.cost.latency.layer_geometry import read_layers
from sparsify.cost.latency_model import Work
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.trace.channel_groups import ChannelGroups, Side, choose_sides
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.table import Steps


class Chain(nn.Module):
    """A convolution, what stands between, and a convolution that reads it."""

    def __init__(self, width: int, *between: nn.Module, read: int = 0) -> None:
        super().__init__()
        self.a, self.between = nn.Conv2d(3, width, 3, padding=1), nn.Sequential(*between)
        self.b, self.fc = nn.Conv2d(read or width, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.between(self.a(x)).relu()).relu().mean((2, 3)))


def images(seed: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def make(build: Any) -> nn.Module:
    """A network whose scales and shifts are none of 0 and 1."""
    torch.manual_seed(0)
    model: nn.Module = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def cut(model: nn.Module, layers: str = "a", group: str = "filter", **rule: Any) -> tuple[Plan, Result]:
    own = {"layers": layers, "group": group, "sparsity": "50%", "criterion": {"kind": "random"}, **rule}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [own]}, model, (images(0),))
    return plan, sparsify.cut(plan, model)


def check_right(model: nn.Module, result: Result) -> None:
    for seed, batch in ((5, 1), (6, 3)):
        assert reference.difference(result, model, (images(seed, batch),)) < 1e-6


@pytest.mark.parametrize(
    ("groups", "width", "affine", "units", "left"),
    [(8, 64, True, 8, 4), (16, 32, True, 16, 8), (8, 8, True, 8, 4), (16, 32, False, 16, 8)],
)
def test_whole_groups_of_a_normalisation_leave(
    groups: int, width: int, affine: bool, units: int, left: int
) -> None:
    """Statistics of the groups that stay do not change, so the cut is exact."""
    model = make(lambda: Chain(width, nn.GroupNorm(groups, width, affine=affine)))
    plan, result = cut(model)
    assert plan.map.by_name["a"].width == units and not plan.map.by_name["a"].statistics
    assert result.verdicts[0].outcome == "equal"
    norm = result.model.get_submodule("between.0")
    kept = left * width // groups
    assert (norm.num_groups, norm.num_channels) == (left, kept)
    assert result.model.get_submodule("a").out_channels == kept
    check_right(model, result)


def test_places_leave_where_they_are_more() -> None:
    model = make(lambda: Chain(32, nn.GroupNorm(2, 32)))
    plan, result = cut(model)
    assert plan.map.by_name["a"].width == 16 and plan.map.by_name["a"].statistics
    assert result.verdicts[0].outcome == "statistics change"
    assert result.model.get_submodule("between.0").num_groups == 2
    check_right(model, result)


class Literal(nn.Module):
    """A normalisation whose number of groups stands in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 8)


def test_a_number_of_groups_in_the_code_stays() -> None:
    model = make(lambda: Chain(32, Literal()))
    plan, result = cut(model)
    assert plan.map.by_name["a"].width == 4 and plan.map.by_name["a"].statistics
    assert result.model.get_submodule("a").out_channels == 16


def test_norms_that_share_channels_take_one_side() -> None:
    """By itself the second would lose places (8 to 4); with the first, four groups are as many as four
    places."""
    model = make(lambda: Chain(32, nn.GroupNorm(8, 32), nn.GroupNorm(4, 32)))
    plan, result = cut(model)
    assert plan.map.by_name["a"].width == 4
    norms = [result.model.get_submodule(f"between.{number}") for number in (0, 1)]
    assert [norm.num_groups for norm in norms] == [4, 2]
    check_right(model, result)


def test_other_statistics_of_the_same_cut_leave_whole_groups_right() -> None:
    """One layer loses whole norm groups, another one places, in one masked model."""
    model = make(
        lambda: Chain(16, nn.GroupNorm(8, 16), nn.Conv2d(16, 32, 1), nn.GroupNorm(2, 32), nn.SiLU(), read=32)
    )
    _, result = cut(model, "Conv2d")
    assert result.verdicts[0].outcome == "statistics change" and result.verdicts[0].difference < 1e-9
    norms = [result.model.get_submodule(f"between.{number}") for number in (0, 2)]
    assert norms[0].num_groups < 8 and norms[0].num_channels == 2 * norms[0].num_groups
    assert norms[1].num_groups == 2 and norms[1].num_channels < 32
    check_right(model, result)


def test_joined_sides_are_chosen_by_units_that_can_leave() -> None:
    channels = np.arange(1, 9).reshape(4, 2)
    own = ChannelGroups(channels, [], [], False)
    whole, places = np.array([0, 1, 1, 3, 3, 5, 5, 7, 7]), np.array([0, 1, 2, 1, 2, 1, 2, 1, 2])
    nothing, most = np.zeros(9, bool), np.isin(np.arange(9), (1, 3, 5))
    together = np.ones(9, int)
    assert choose_sides([own], together, Side(whole, nothing), Side(places, nothing)) == [True]
    assert choose_sides([own], together, Side(whole, most), Side(places, nothing)) == [False]


# grouped convolutions


@pytest.mark.parametrize("group", ["filter", "channel"])
def test_whole_groups_of_a_convolution_leave(group: str) -> None:
    model = make(lambda: Chain(24, nn.Conv2d(24, 36, 3, padding=1, groups=6), nn.BatchNorm2d(36), read=36))
    plan, result = cut(model, "between.0", group)
    assert plan.map.by_name["a"].width == 6
    thin = result.model.get_submodule("between.0")
    assert (thin.groups, thin.in_channels, thin.out_channels) == (3, 12, 18)
    assert thin.weight.shape == (18, 4, 3, 3) and result.verdicts[0].outcome == "equal"
    check_right(model, result)


def test_places_of_a_convolution_leave_where_they_are_more() -> None:
    model = make(lambda: Chain(24, nn.Conv2d(24, 24, 3, padding=1, groups=2), nn.BatchNorm2d(24)))
    plan, result = cut(model, "between.0")
    assert plan.map.by_name["a"].width == 12 and plan.map.by_name["between.0"].width == 12
    assert result.model.get_submodule("between.0").groups == 2
    check_right(model, result)


def test_multiples_count_channels() -> None:
    """Groups of eight channels: any number of them is a multiple of eight, an even number one of sixteen."""
    for multiple, left in ((8, 7), (16, 6)):
        model = make(lambda: Chain(80, nn.Conv2d(80, 80, 3, padding=1, groups=10)))
        _, result = cut(model, "between.0", sparsity="30%", keep={"multiple_of": multiple})
        assert result.model.get_submodule("between.0").groups == left
        check_right(model, result)


def test_a_kernel_as_long_as_the_groups_are_many_keeps_its_length() -> None:
    model = make(lambda: Chain(12, nn.Conv2d(12, 12, (3, 1), padding=(1, 0), groups=3)))
    _, result = cut(model, "between.0", sparsity="34%")
    assert result.model.get_submodule("between.0").kernel_size == (3, 1)
    check_right(model, result)


def test_a_repair_refits_what_reads_fewer_groups() -> None:
    model = make(lambda: Chain(24, nn.Conv2d(24, 36, 3, padding=1, groups=6), read=36))
    _, result = cut(model, "between.0")
    x = images(3, 64)
    before, wanted = result.model(x), model(x)
    repaired = sparsify.repair(result, [x])
    assert (repaired.model(x) - wanted).norm() < 0.9 * (before - wanted).norm()


def test_a_log_is_replayed_and_a_second_cut_takes_the_side_with_more_units() -> None:
    model = make(lambda: Chain(64, nn.GroupNorm(8, 64), nn.Conv2d(64, 64, 3, padding=1, groups=8)))
    _, once = cut(model, "between.1")
    again, x = replay_cuts(model, once.cuts).eval(), images(4)
    assert torch.equal(again(x), once.model.eval()(x))
    _, twice = cut(once.model, "between.1")
    norm, thin = (twice.model.get_submodule(f"between.{number}") for number in (0, 1))
    assert (norm.num_groups, thin.groups, thin.weight.shape[0]) == (4, 4, 16)
    check_right(once.model, twice)


def test_layers_are_timed_with_as_many_groups_as_their_width_says() -> None:
    model = make(lambda: Chain(80, nn.Conv2d(80, 160, 3, padding=1, groups=10), read=160))
    plan, _ = cut(model, "between.0")
    works, geometries = note_leaving_groups(*read_layers(model, (images(0),), 1), plan.map)
    work = next(work for work in works if work.tensor == "between.0.weight")
    assert work.key == "conv 3x3 pad 1 groups of 8 at 8x8"
    assert work.widths({work.tensor: (48, 8, 3, 3)}) == (24, 48)
    assert geometries[work.key].count_groups(24) == 3
    points = list_needed_widths([work], plan.map, Steps(convolution=8, linear=8, inputs=8))[work.key]
    assert points == {(16, 32), (24, 48), (40, 80), (64, 128), (80, 160)}
    assert isinstance(work, Work)


@pytest.mark.nightly
def test_regnet_loses_groups_in_steps_of_eight_channels() -> None:
    """Of a RegNetY-400MF at 60 % of its MACs every grouped 3 x 3 convolution of 13 groups or more is
    narrower."""
    pytest.importorskip("torchvision")
    sys.path.append(str(Path(__file__).parents[3] / "zoo"))
    importlib.import_module("shim")
    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    model = models.regnet_y_400mf(weights=None).eval()
    rule = {"layers": "Conv2d", "group": "filter", "criterion": {"kind": "random"}}
    recipe = {"version": 1, "title": "t", "rules": [{**rule, "keep": {"multiple_of": 8}}]}
    x = torch.randn(1, 3, 32, 32)
    plan = sparsify.make_plan({**recipe, "budget": {"macs": "60%"}}, model, (x,))
    result = sparsify.cut(plan, model)
    dense = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert len(dense) == 16
    for name, layer in dense.items():
        thin = result.model.get_submodule(name)
        assert thin.out_channels < layer.out_channels and thin.out_channels % 8 == 0, name
    fresh = torch.randn(2, 3, 32, 32)
    assert reference.difference(result, model, (fresh,)) < 1e-6
