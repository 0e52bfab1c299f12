"""Laws of the difference, and what counts as one."""

import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sparsify.reporting.diff import Change, diff_recipes, diff_runs, resolve_recipe
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Report

GOLDEN = Path(__file__).parents[2] / "golden"
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-2, 2)
    | st.just(math.nan)
    | st.sampled_from(["40%", "25%", "5ep", "conv*", ""])
)
words = st.sampled_from(["kind", "strength", "epochs", "args", "x"])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
rules = st.fixed_dictionaries(
    {
        "layers": st.lists(st.sampled_from(["conv*", "fc*"]), min_size=1, max_size=2, unique=True).map(
            sorted
        ),
        "group": st.sampled_from(["filter", "neuron", None]),
        "penalty": values,
        "override": st.booleans(),
    }
)
stages = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["learn", "cut", "tune"]),
        "kind": st.sampled_from(["train", "cut"]),
        "epochs": st.integers(1, 9),
    }
)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "title": values,
        "data": values,
        "budget": st.dictionaries(st.sampled_from(["macs", "params"]), scalars),
        "targets": st.dictionaries(st.sampled_from(["laptop", "a.b"]), values),
        "rules": st.lists(rules, max_size=4),
        "stages": st.lists(stages, max_size=3, unique_by=lambda s: s["name"]),
        "inputs": st.none() | st.lists(st.fixed_dictionaries({"shape": values}), max_size=2),
    },
)


@given(recipes)
def test_nothing_differs_from_itself(a: dict[str, Any]) -> None:
    assert diff_recipes(a, a) == ()


@given(recipes, recipes)
def test_both_directions_name_the_same_paths(a: dict[str, Any], b: dict[str, Any]) -> None:
    there, back = diff_recipes(a, b), diff_recipes(b, a)
    assert sorted(c.path for c in there) == sorted(c.path for c in back)


@given(recipes, recipes)
def test_the_way_back_swaps_old_and_new(a: dict[str, Any], b: dict[str, Any]) -> None:
    there = {c.path: c for c in diff_recipes(a, b)}
    for c in diff_recipes(b, a):
        if not c.path.endswith(".order"):
            assert (repr(c.old), repr(c.new)) == (repr(there[c.path].new), repr(there[c.path].old))
            assert c.delta is None or c.delta == -(there[c.path].delta or 0.0)


@given(recipes, recipes)
def test_a_path_appears_once_and_the_changes_are_among_all(a: dict[str, Any], b: dict[str, Any]) -> None:
    changed, everything = diff_recipes(a, b), diff_recipes(a, b, unchanged=True)
    assert len({c.path for c in everything}) == len(everything)
    assert {c.path for c in changed} == {c.path for c in everything if not c.same}


def recipe(**changes: Any) -> Recipe:
    body: dict[str, Any] = {
        "version": 1,
        "title": "t",
        "data": {"source": "digits"},
        "targets": {"laptop": {"kind": "cpu"}},
        "budget": {"macs": "40%"},
        "rules": [
            {"layers": ["conv*"], "group": "filter", "penalty": {"kind": "group_lasso", "strength": 0.001}},
            {"layers": "fc*", "group": "neuron"},
            {"layers": "head", "protect": True},
        ],
        "stages": [
            {"kind": "train", "name": "learn", "epochs": 5, "optimizer": {"kind": "sgd", "lr": 0.1}},
            {"kind": "cut"},
        ],
    }
    return Recipe.model_validate({**body, **changes})


def changes(**edits: Any) -> dict[str, Change]:
    return {c.path: c for c in diff_recipes(resolve_recipe(recipe()), resolve_recipe(recipe(**edits)))}


def test_a_default_written_out_is_no_change() -> None:
    assert not changes(
        seed=0, targets={"laptop": {"kind": "cpu", "runtime": "eager", "threads": 1, "batch": 1}}
    )


def test_a_number_and_its_constant_schedule_are_the_same() -> None:
    optimizer = {"kind": "sgd", "lr": {"kind": "constant", "value": 0.1}}
    assert not changes(
        stages=[{"kind": "train", "name": "learn", "epochs": 5, "optimizer": optimizer}, {"kind": "cut"}]
    )


def test_rules_in_another_place_are_the_same_rules() -> None:
    _, fc, head = recipe().rules
    conv = {"layers": "conv*", "group": "filter", "penalty": {"kind": "group_lasso", "strength": 0.002}}
    found = changes(rules=[head.model_dump(exclude_unset=True), fc.model_dump(exclude_unset=True), conv])
    assert list(found) == ["rules[conv*/filter].penalty.strength"]
    assert found["rules[conv*/filter].penalty.strength"].delta == 0.001


def test_the_order_of_rules_is_told_where_one_overrides_another() -> None:
    a = {"layers": "conv*", "group": "filter"}
    b = {"layers": "conv1", "group": "filter", "override": True}
    before, after = resolve_recipe(recipe(rules=[a, b])), resolve_recipe(recipe(rules=[b, a]))
    assert diff_recipes(before, after) == (
        Change("rules.order", ["conv*/filter", "conv1/filter"], ["conv1/filter", "conv*/filter"]),
    )


def test_quantities_of_one_unit_have_a_delta() -> None:
    assert changes(budget={"macs": "25%"}) == {"budget.macs": Change("budget.macs", "40%", "25%", -15.0)}
    assert changes(budget={"macs": "25M"})["budget.macs"].delta is None


def test_an_added_rule_is_one_change_and_says_only_what_it_sets() -> None:
    first, *rest = [r.model_dump(exclude_unset=True) for r in recipe().rules]
    found = changes(rules=[first, *rest, {"layers": "stem", "group": "filter", "sparsity": "10%"}])
    assert found == {
        "rules[stem/filter]": Change(
            "rules[stem/filter]", None, {"layers": ["stem"], "group": "filter", "sparsity": "10%"}
        )
    }


def test_a_rule_whose_selector_changed_is_matched_by_its_place() -> None:
    _, *rest = [r.model_dump(exclude_unset=True) for r in recipe().rules]
    found = changes(
        rules=[
            {"layers": "conv?", "group": "filter", "penalty": {"kind": "group_lasso", "strength": 0.001}},
            *rest,
        ]
    )
    assert found == {"rules[0].layers": Change("rules[0].layers", ["conv*"], ["conv?"])}


def test_stages_are_matched_by_name() -> None:
    learn, cut = (s.model_dump(mode="json", by_alias=True) for s in recipe().stages)
    warm = {"kind": "train", "name": "warm", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}
    found = changes(stages=[warm, {**learn, "epochs": 8}, cut])
    assert list(found) == ["stages[warm]", "stages[learn].epochs"]
    assert found["stages[learn].epochs"].delta == 3


def report() -> Report:
    return Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())


def test_runs_alike_have_no_difference() -> None:
    assert diff_runs(report(), report(), {"seed": 0}, {"seed": 0}) == ()


def test_recipes_come_first_then_figures_then_widths() -> None:
    a = report()
    cut = a.cut.model_copy(update={"macs": a.cut.macs - 1000, "test_metric": 0.974})
    layers = (a.layers[0].model_copy(update={"outputs_after": 6}), *a.layers[1:])
    b = a.model_copy(update={"cut": cut, "layers": layers})
    found = diff_runs(a, b, {"seed": 0}, {"seed": 1})
    assert [c.path for c in found] == [
        "recipe.seed",
        "metrics.cut.macs",
        "metrics.cut.test_accuracy",
        "metrics.macs_left",
        "widths.conv1",
    ]
    assert {c.path: c.delta for c in found}["widths.conv1"] == -2


def test_speed_ups_whose_intervals_meet_do_not_differ() -> None:
    a = report()
    timing = a.latency[0].model_copy(update={"speedup": 1.93, "low": 1.9, "high": 1.96})
    b = a.model_copy(update={"latency": (timing, a.latency[1])})
    (found,) = diff_runs(a, b, {}, {})
    assert (found.path, found.remark) == ("metrics.latency[laptop].speedup", "no measurable difference")


def test_speed_on_another_processor_says_so() -> None:
    a = report()
    b = a.model_copy(
        update={
            "environment": a.environment.model_copy(update={"processor": "arm"}),
            "latency": (a.latency[0].model_copy(update={"speedup": 3.0, "low": 2.9, "high": 3.1}),),
        }
    )
    found = {c.path: c.remark for c in diff_runs(a, b, {}, {})}
    assert found["metrics.latency[laptop].speedup"] == "other processor"
