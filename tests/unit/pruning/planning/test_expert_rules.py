"""Rules on whole experts: what they match, what they refuse, what a plan says and counts."""

from typing import Any

import mixtures
import pytest
import torch
from torch import nn

import sparsify
from sparsify.cost import measure
from sparsify.cost.cost_model import Costs
from sparsify.errors import RecipeError
from sparsify.pruning.planning.plan import Plan

INPUTS = (torch.randn(mixtures.SHAPE, generator=torch.Generator().manual_seed(3)),)
EXPERTS = {"layers": "mix", "group": "expert", "sparsity": "50%"}


def make_plan(model: nn.Module, *rules: dict[str, Any], **more: Any) -> Plan:
    recipe = {"version": 1, "title": "t", "rules": [*rules], **more}
    return sparsify.make_plan(recipe, model, INPUTS)


def refuse(model: nn.Module, *rules: dict[str, Any], **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        make_plan(model, *rules, **more)
    return str(caught.value)


@pytest.mark.parametrize("pattern", ["mix", "TopTwo", "m*", "mix.experts", "re:mi.", "*"])
def test_a_mixture_is_matched_by_its_module_its_class_or_its_list(pattern: str) -> None:
    plan = make_plan(mixtures.build(mixtures.TopTwo), EXPERTS | {"layers": pattern})
    assert plan.assignments[0].coupled == ("mix",)


def test_what_is_no_mixture_is_refused() -> None:
    assert refuse(mixtures.build(mixtures.TopTwo), EXPERTS | {"layers": "stem"}) == (
        "<recipe>: rules.0.layers: 'stem' matches no mixture of experts of the model; "
        "the mixtures are mix; their classes are TopTwo"
    )
    assert refuse(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), EXPERTS | {"layers": "0"}) == (
        "<recipe>: rules.0.layers: '0' matches no mixture of experts of the model; none was found: a list of "
        "modules that are built alike, or stacked weights, and a router"
    )


@pytest.mark.parametrize(
    ("pattern", "named"), [("mix", "mix"), ("mix.gate", "mix.gate"), ("mix.experts.3.*", "mix.experts.3.0")]
)
def test_a_protected_mixture_stays(pattern: str, named: str) -> None:
    plan = make_plan(
        mixtures.build(mixtures.TopTwo),
        {"layers": "*", "group": "expert"},
        {"layers": pattern, "protect": True},
    )
    assert plan.assignments[0].coupled == ()
    assert f"rules.0: 'mix' stays: rules.1 protects '{named}'" in plan.notes


def test_two_rules_do_not_share_a_router() -> None:
    text = refuse(
        mixtures.build(mixtures.Stacked), EXPERTS, {"layers": "mix", "group": "neuron", "sparsity": "50%"}
    )
    assert "are pruned together" in text and "rules.0 already covers that group" in text


def test_weights_of_experts_with_new_numbers_are_not_set_to_zero() -> None:
    assert refuse(
        mixtures.build(mixtures.TopTwo), EXPERTS, {"layers": "mix.experts.*.0", "group": "2:4"}
    ) == (
        "<recipe>: rules.1.layers: 'mix.experts.0.0' is part of an expert that may leave by rules.0, and "
        "experts get new numbers by that; group '2:4' cannot be combined with it; cut the experts by a "
        "recipe of their own, and what is left by another one"
    )


def test_the_plan_lists_mixtures() -> None:
    plan = make_plan(mixtures.build(mixtures.Corrected), EXPERTS)
    text = sparsify.describe(plan)
    assert "1 of 1 mixture of experts" in text
    row = next(line for line in text.splitlines() if line.startswith("mix "))
    # 8 (12 * 16 + 16 + 16 * 12 + 12) + 8 * 12 of these, 12 * 7 + 3 * 13, and a shared expert
    assert row.split() == ["mix", "Corrected", "86.4", "%", "8", "4", "4"]
    assert "rules.0: experts of mix" in text


def test_parameters_are_exact_and_operations_as_measured() -> None:
    """Where everything runs everywhere, an expert takes its operations with it; where each place goes to two
    experts, the others take them over."""
    for make, is_soft in ((mixtures.Soft, True), (mixtures.TopTwo, False)):
        model = mixtures.build(make)
        plan = make_plan(model, EXPERTS)
        result = sparsify.cut(plan, model, inputs=INPUTS)
        after = Costs(plan.map).of({"mix": range(3)})
        assert after["params"] == sum(p.numel() for p in result.model.parameters())
        macs = sum(measure.count_macs_by_module(result.model, INPUTS).by_module.values())
        assert after["macs"] == pytest.approx(macs)
        left = after["macs"] / plan.map.macs
        assert left < 0.55 if is_soft else left > 0.9


def test_budgets_on_parameters_and_operations_hold() -> None:
    model = mixtures.build(mixtures.Soft)
    rule = {"layers": "mix", "group": "expert"}
    for budget in ({"params": "60%"}, {"macs": "60%"}):
        plan = make_plan(model, rule, budget=budget)
        ((name, kept),) = plan.preview
        assert (name, kept) == ("mix", 3)
    text = refuse(mixtures.build(mixtures.TopTwo), rule, budget={"macs": "60%"})
    assert text.startswith("<recipe>: budget.macs: 60% cannot be reached: with everything removed")


def test_a_mixture_is_no_part_of_a_plan_without_such_a_rule() -> None:
    plan = make_plan(
        mixtures.build(mixtures.TopTwo), {"layers": "stem", "group": "neuron", "sparsity": "50%"}
    )
    assert plan.map.mixtures == ()


def test_a_budget_does_not_choose_among_experts_and_the_neurons_inside_them() -> None:
    experts = {"layers": "mix", "group": "expert"}
    neurons = {"layers": "mix.experts.*.0", "group": "neuron", "sparsity": "25%"}
    budget = {"params": "70%"}
    assert refuse(mixtures.build(mixtures.Soft), experts, neurons, budget=budget) == (
        "<recipe>: rules.1.layers: 'mix.experts.0.0' is part of an expert that may leave by rules.0, so a "
        "budget cannot tell what group 'neuron' frees there; give rules.0 and rules.1 a 'sparsity' each, or "
        "cut the experts first"
    )
    make_plan(mixtures.build(mixtures.Soft), {**experts, "sparsity": "50%"}, neurons, budget=budget)
