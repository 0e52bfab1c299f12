"""How much of what rules inside tensors cover earlier cuts have left, and what the next cut is then asked
for."""

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.pruning.planning.cut_targets import Target, measure_left_inside, rewrite_recipe
from sparsify.pruning.planning.plan import Plan, join_ranked
from sparsify_schemas.cuts import Cuts, Execution, Width


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.conv(x))


class Net(nn.Module):
    """Taps: 9 of the stem, 9 of each block, 25 of the last, whose weight has far more columns than the
    stem's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(Block(), Block())
        self.last, self.head = nn.Conv2d(4, 6, 5, padding=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.last(self.blocks(torch.relu(self.stem(x))))).mean((2, 3)))


def plan_of(rules: list[dict[str, object]]) -> Plan:
    torch.manual_seed(0)
    return sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, Net(), (torch.randn(2, 1, 8, 8),))


def cropped(columns: int, live: int, *widths: Width) -> Cuts:
    how = Execution(module="last", form="cropped", columns=columns, live=live, why="smaller")
    return Cuts(plan="x", widths=widths, executions=(how,))


def test_taps_are_counted_as_taps_and_layers_that_left_are_not() -> None:
    plan = plan_of(
        [
            {"layers": "Conv2d", "group": "tap", "sparsity": "40%"},
            {"layers": "blocks.*", "group": "depth", "sparsity": "50%"},
        ]
    )
    together = plan.assignments[:1]
    first, second = cropped(100, 36), cropped(36, 4, Width(group="blocks.0", width=1, keep=()))
    assert measure_left_inside(plan, together, ()) == 1
    assert measure_left_inside(plan, together, (first,)) == pytest.approx((9 + 18 + 9) / 52)
    assert measure_left_inside(plan, together, (first, second)) == pytest.approx((9 + 9 + 1) / 43)
    assert measure_left_inside(plan, together, (cropped(50, 18),)) == pytest.approx((9 + 18 + 9) / 52), (
        "channels had left before"
    )
    rules = rewrite_recipe(plan, Target(), (first, second)).rules
    assert rules[0].sparsity is not None and rules[0].sparsity.value == 0, "56 % are gone already"


def test_units_that_died_of_zeros_are_gone_and_those_of_a_rule_of_their_own_are_not_counted() -> None:
    """Four of six filters of the last layer left: of its 600 weights 200 stay, and of the head's 18 six."""
    died = Cuts(plan="x", widths=(Width(group="last", width=6, keep=((0, 2),)),))
    alone = plan_of([{"layers": ["last", "head"], "group": "weight", "sparsity": "80%"}])
    assert measure_left_inside(alone, alone.assignments, (died,)) == pytest.approx((200 + 6) / 618)
    share = rewrite_recipe(alone, Target(), (died,)).rules[0].sparsity
    assert share is not None and share.fraction == pytest.approx(1 - 0.2 * 618 / 206), (
        "20 % of the dense model's stay"
    )
    beside = plan_of(
        [
            {"layers": "last", "group": "weight", "sparsity": "80%"},
            {"layers": "last", "group": "filter", "sparsity": "60%"},
        ]
    )
    assert measure_left_inside(beside, beside.assignments[:1], (died,)) == 1


def test_gsm_rules_that_compete_go_on_competing() -> None:
    gsm = {"group": "filter", "sparsity": "50%", "penalty": {"kind": "gsm"}}
    plan = plan_of([{"layers": "last", **gsm}, {"layers": "stem", **gsm}])
    done = Cuts(
        plan="x",
        widths=(Width(group="last", width=6, keep=((0, 3),)), Width(group="stem", width=4, keep=((0, 4),))),
    )
    shares = [
        rule.sparsity and rule.sparsity.fraction for rule in rewrite_recipe(plan, Target(), (done,)).rules
    ]
    assert shares == [pytest.approx(2 / 7)] * 2, "of the seven of ten that are left two more"


def test_gsm_rules_on_filters_and_on_shapes_are_judged_apart() -> None:
    gsm = {"sparsity": "50%", "penalty": {"kind": "gsm"}}
    plan = plan_of(
        [{"layers": "stem", "group": "filter", **gsm}, {"layers": "last", "group": "shape", **gsm}]
    )
    assert [[a.rule for a in together] for together in join_ranked(plan)] == [[0], [1]]
