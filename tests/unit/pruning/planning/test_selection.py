"""Choosing: budgets, demands, floors, multiples, ties; on hand-made maps without any tensor."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.graph.model_map import Coupled, Layer, ModelMap, Slice, Span, Tensor
from sparsify.pruning.planning.plan import Assignment, Plan
from sparsify.pruning.planning.selection import choose, choose_by_macs, choose_evenly, count_share, find_least
from sparsify_schemas.recipe import Recipe


def chain(*widths: int) -> ModelMap:
    """Linear layers l0, l1, ... of these widths (first: inputs, last: outputs); one MAC per weight."""
    layers, tensors, coupled = [], [], []
    last = len(widths) - 2
    for n, (i, o) in enumerate(itertools.pairwise(widths)):
        name = f"l{n}"
        layers.append(Layer(name, "Linear", (o, i), o * i, i, o))
        tensors.append(Tensor(f"{name}.weight", (o, i), 4, True))
        slices = [Slice(f"{name}.weight", 0, "out", (Span(0, 0, o),))]
        if n < last:
            slices.append(Slice(f"l{n + 1}.weight", 1, "in", (Span(0, 0, o),)))
        coupled.append(Coupled(name, o, tuple(slices), protected=None if n < last else "output"))
    return ModelMap(tuple(layers), tuple(tensors), tuple(coupled), sum(w.numel for w in tensors))


def plan(map: ModelMap, *rules: dict[str, object], **budget: str) -> Plan:
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "title": "t",
            "budget": budget,
            "rules": [{"layers": "l*", "group": "neuron", **r} for r in rules],
        }
    )
    names = [c.name for c in map.coupled if c.protected is None]
    if len(rules) == 1:
        return Plan(
            recipe,
            map,
            (Assignment(0, tuple(names), tuple(names), multiple=recipe.rules[0].keep.multiple_of or 1),),
        )
    return Plan(
        recipe,
        map,
        tuple(
            Assignment(i, (names[i],), (names[i],), multiple=recipe.rules[i].keep.multiple_of or 1)
            for i in range(len(rules))
        ),
    )


def kept(chosen: dict[str, list[int]]) -> dict[str, int]:
    return {name: len(units) for name, units in chosen.items()}


def test_costs_by_hand() -> None:
    costs = Costs(chain(4, 6, 8, 3))
    assert costs.dense == {"macs": 24 + 48 + 24, "params": 96, "bytes": 384}
    # two of six neurons of l0 gone: l0 4x4, l1 8x4, l2 stays
    assert costs.of({"l0": [1, 5]}) == {"macs": 16 + 32 + 24, "params": 72, "bytes": 288}
    assert costs.of({"l0": [0], "l1": [0, 1, 2, 3]})["params"] == 4 * 5 + 5 * 4 + 4 * 3


def test_after_a_wide_step_narrow_ones_return_until_nothing_more_fits() -> None:
    """l1's units are the least of all and go first; then 32 of l0 leave at once, and there is room for
    most of l1 again."""
    map = chain(64, 64, 128, 10)
    asked = plan(map, {"keep": {"multiple_of": 32}}, {"keep": {"multiple_of": 4}}, macs="30%")
    scores = {"l0": [1.0] * 64, "l1": [1e-3 * (u + 1) for u in range(128)], "l2": [0.0] * 10}
    found, costs = kept(choose(asked, scores, {})), Costs(map)
    assert found["l0"] == 32 and found["l1"] % 4 == 0

    def macs(l1: int) -> float:
        return costs.of({"l0": range(32), "l1": range(128 - l1)})["macs"] / costs.dense["macs"]

    assert macs(found["l1"]) <= 0.3 < macs(found["l1"] + 4)


def test_evenly_is_the_same_share_of_every_group_and_the_smallest_that_holds() -> None:
    map = chain(16, 64, 128, 32, 10)
    scores = {c.name: [float((7 * u) % c.width) for u in range(c.width)] for c in map.coupled}
    found = choose_evenly(plan(map, {}, macs="30%"), scores, {})
    shares = {name: len(units) / map.by_name[name].width for name, units in found.items()}
    assert max(shares.values()) - min(shares.values()) <= 1 / 32 and 0.4 < min(shares.values()) < 0.6
    costs = Costs(map)

    def left(more: int) -> float:
        return costs.of({n: range(map.by_name[n].width - len(units) - more) for n, units in found.items()})[
            "macs"
        ]

    assert left(0) <= 0.3 * costs.dense["macs"] < left(2)
    assert min(scores["l1"][u] for u in found["l1"]) == 128 - len(found["l1"]), "the smallest went"


def test_by_macs_is_the_choice_of_a_budget_of_macs_and_the_least_that_every_budget_allows() -> None:
    map = chain(16, 64, 128, 32, 10)
    scores = {c.name: [float((7 * u) % c.width) for u in range(c.width)] for c in map.coupled}
    costs = Costs(map)

    def macs(found: dict[str, list[int]]) -> float:
        return (
            costs.of({n: range(map.by_name[n].width - len(units)) for n, units in found.items()})["macs"]
            / map.macs
        )

    other = choose_by_macs(plan(map, {}, params="40%"), scores, {})
    assert other == choose(plan(map, {}, macs=f"{100 * (macs(other) + 1e-9)!r}%"), scores, {})
    assert macs(other) <= 0.4 < macs(choose(plan(map, {}, macs="41%"), scores, {})), (
        "of this chain parameters are MACs"
    )
    assert macs(other) > 0.4 - 1 / 256


def test_by_macs_where_most_of_them_stay_whatever_goes() -> None:
    """As of a recurrent layer, whose MACs count as constant: a share of all of them could never be met,
    and all would go."""
    map = chain(16, 64, 128, 10)
    fixed = replace(map, macs=1000 * map.macs)
    scores = {c.name: [float(u) for u in range(c.width)] for c in map.coupled}
    found = choose_by_macs(plan(fixed, {}, params="50%"), scores, {})
    left = (
        Costs(map).of({n: range(map.by_name[n].width - len(units)) for n, units in found.items()})["params"]
        / Costs(map).dense["params"]
    )
    assert 0.47 < left <= 0.5


def test_evenly_keeps_floors_and_multiples() -> None:
    found = kept(
        choose_evenly(
            plan(chain(16, 64, 24, 10), {"keep": {"at_least": 20, "multiple_of": 8}}, macs="30%"), {}, {}
        )
    )
    assert found == {"l0": 24, "l1": 24}


def test_macs_of_a_tied_layer_count_as_constant() -> None:
    """l1 shares l0's weight, so it has no tensor of its own; its MACs must not vanish from the budget."""
    whole = chain(8, 8, 8, 3)
    tied = replace(whole, tensors=tuple(t for t in whole.tensors if t.name != "l1.weight"))
    costs = Costs(tied)
    assert costs.dense["macs"] == whole.macs == 64 + 64 + 24
    assert costs.of({"l0": [0, 1]})["macs"] == 48 + 64 + 24


def test_lowest_scores_go_first_and_budget_holds() -> None:
    map = chain(4, 10, 3)
    chosen = choose(plan(map, {}, macs="50%"), {"l0": [float(v) for v in (5, 1, 9, 2, 8, 3, 7, 4, 6, 0)]}, {})
    assert chosen == {"l0": [0, 2, 4, 6, 8]}


def test_what_is_left_over_goes_by_the_least_loss() -> None:
    """Of l0 units are dear and of low score per MAC; when but one MAC is missing, a unit of l1 that loses
    less goes in place of another."""
    map = chain(100, 10, 40, 3)  # a unit of l0 is worth 140 MACs, one of l1 at most 13
    scores = {"l0": [100.0 + u for u in range(10)], "l1": [20.0 + u for u in range(40)]}
    dense, one_gone = Costs(map).dense["macs"], Costs(map).of({"l0": [0]})["macs"]

    def left(macs: float) -> dict[str, int]:
        return kept(choose(plan(map, {}, macs=f"{100 * macs / dense:.9f}%"), scores, {}))

    assert left(one_gone + 0.5) == {"l0": 9, "l1": 40}
    assert left(one_gone - 5) == {"l0": 9, "l1": 39}


def test_ties_are_not_all_cut() -> None:
    chosen = choose(plan(chain(4, 10, 3), {}, macs="70%"), {"l0": [1.0] * 10}, {})
    assert kept(chosen) == {"l0": 7}


def test_without_a_budget_only_the_dead_go() -> None:
    dead = [True, False, True, False, False]
    assert choose(plan(chain(4, 5, 3), {}), {"l0": [0.0] * 5}, {"l0": dead}) == {"l0": [1, 3, 4]}


def test_a_whole_dead_layer_keeps_its_floor() -> None:
    assert kept(choose(plan(chain(4, 5, 3), {}), {"l0": [0.0] * 5}, {"l0": [True] * 5})) == {"l0": 1}
    assert kept(
        choose(plan(chain(4, 5, 3), {"keep": {"at_least": 3}}), {"l0": [0.0] * 5}, {"l0": [True] * 5})
    ) == {"l0": 3}


def test_multiples_are_rounded_up_and_the_budget_still_holds() -> None:
    map = chain(16, 40, 24, 4)
    chosen = choose(
        plan(map, {"keep": {"multiple_of": 8}}, macs="50%"),
        {"l0": [float(i) for i in range(40)], "l1": [float(i) for i in range(24)]},
        {},
    )
    assert all(n % 8 == 0 for n in kept(chosen).values())
    costs = Costs(map)
    gone = {name: sorted(set(range(map.by_name[name].width)) - set(units)) for name, units in chosen.items()}
    assert costs.of(gone)["macs"] <= 0.5 * costs.dense["macs"]


def test_a_width_that_is_no_multiple_stays_whole_rather_than_grow() -> None:
    chosen = choose(plan(chain(4, 12, 3), {"keep": {"multiple_of": 16}}, macs="99%"), {"l0": [1.0] * 12}, {})
    assert kept(chosen) == {"l0": 12}


def test_sparsity_is_a_demand_over_all_layers_of_the_rule() -> None:
    scores = {"l0": [0.1] * 6, "l1": [0.9] * 8}
    assert kept(
        choose(plan(chain(4, 6, 8, 3), {"sparsity": "50%", "keep": {"at_least": 2}}), scores, {})
    ) == {"l0": 2, "l1": 5}


def test_a_budget_takes_only_from_rules_that_leave_their_amount_open() -> None:
    map = chain(4, 10, 10, 3)
    chosen = choose(
        plan(map, {"sparsity": "20%"}, {}, params="30%"), {"l0": [1.0] * 10, "l1": [1.0] * 10}, {}
    )
    assert kept(chosen)["l0"] == 8 and kept(chosen)["l1"] < 10


def test_several_budgets_hold_together() -> None:
    map = chain(64, 32, 128, 8)
    scores = {c.name: [float((7 * i) % 11) for i in range(c.width)] for c in map.coupled}
    p = plan(map, {}, macs="60%", bytes="1kB")
    chosen = choose(p, scores, {})
    costs = Costs(map)
    now = costs.of(
        {name: sorted(set(range(map.by_name[name].width)) - set(units)) for name, units in chosen.items()}
    )
    for what, limit in absolute_limits(p.recipe.budget, costs.dense).items():
        assert now[what] <= limit


@pytest.mark.parametrize(
    ("total", "share", "count"), [(10, 0.0, 0), (10, 1.0, 10), (10, 0.25, 3), (3, 0.5, 2), (1000, 0.999, 999)]
)
def test_share_of(total: int, share: float, count: int) -> None:
    assert count_share(total, share) == count


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_laws_of_choosing(data: st.DataObject) -> None:
    """Never above a reachable budget; within one unit of it; multiples and floors kept; kept + gone =
    width."""
    widths = data.draw(st.lists(st.integers(2, 40), min_size=3, max_size=5))
    map = chain(*widths)
    at_least, multiple = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 1, 2, 4, 8]))
    share = data.draw(st.integers(1, 100))
    p = plan(map, {"keep": {"at_least": at_least, "multiple_of": multiple}}, macs=f"{share}%")
    open_groups = [c for c in map.coupled if c.protected is None]
    scores = {
        c.name: data.draw(st.lists(st.floats(0, 10), min_size=c.width, max_size=c.width)) for c in open_groups
    }
    dead = {
        c.name: data.draw(st.lists(st.booleans(), min_size=c.width, max_size=c.width)) for c in open_groups
    }
    chosen = choose(p, scores, dead)
    assert choose(p, scores, dead) == chosen, "choosing is deterministic"
    costs, gone = Costs(map), {}
    for c in open_groups:
        units = chosen[c.name]
        assert units == sorted(set(units)) and units[0] >= 0 and units[-1] < c.width
        assert len(units) >= min(at_least, c.width)
        assert len(units) == c.width or len(units) % multiple == 0
        gone[c.name] = sorted(set(range(c.width)) - set(units))
    floor = costs.of(
        {c.name: list(range(c.width - _least(c.width, at_least, multiple))) for c in open_groups}
    )["macs"]
    limit = share / 100 * costs.dense["macs"]
    if floor <= limit:
        assert costs.of(gone)["macs"] <= limit
        if any(_more(c.width, len(chosen[c.name]), multiple) for c in open_groups) and not any(
            any(d) for d in dead.values()
        ):
            tighter = [
                costs.of({**gone, c.name: gone[c.name][: -_more(c.width, len(chosen[c.name]), multiple)]})[
                    "macs"
                ]
                for c in open_groups
                if _more(c.width, len(chosen[c.name]), multiple)
            ]
            assert max(tighter) > limit, "some group must not fit back"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_uniform_keeps_one_number_and_the_budget(data: st.DataObject) -> None:
    """Never above a reachable budget, and one unit more in every layer would be; a demand is met within
    one unit per layer."""
    width, count = data.draw(st.integers(2, 24)), data.draw(st.integers(2, 4))
    map = chain(5, *[width] * count, 3)
    keep = {
        "uniform": True,
        "multiple_of": data.draw(st.sampled_from([1, 1, 2, 4])),
        "at_least": data.draw(st.integers(1, 3)),
    }
    names = [c.name for c in map.coupled if c.protected is None]
    scores = {name: data.draw(st.lists(st.floats(0, 10), min_size=width, max_size=width)) for name in names}
    share, asked = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 90))
    chosen = choose(plan(map, {"keep": keep}, macs=f"{share}%"), scores, {})
    (same,) = set(kept(chosen).values())
    assert same == width or (same % keep["multiple_of"] == 0 and same >= min(keep["at_least"], width))
    costs, limit = Costs(map), share / 100 * Costs(map).dense["macs"]

    def spent(stay: int) -> float:
        return costs.of({name: range(width - stay) for name in names})["macs"]

    if spent(_least(width, keep["at_least"], keep["multiple_of"])) <= limit:
        assert spent(same) <= limit and (
            same == width or spent(same + _more(width, same, keep["multiple_of"])) > limit
        )
    for name in names:  # the lowest scores of each layer went
        order = sorted(range(width), key=lambda u: (scores[name][u], u))
        assert sorted(order[width - same :]) == chosen[name]
    (now,) = set(
        kept(choose(plan(map, {"keep": {"uniform": True}, "sparsity": f"{asked}%"}), scores, {})).values()
    )
    assert abs(now - max(1, width * (1 - asked / 100))) <= 1


def test_other_rules_are_not_levelled() -> None:
    map = chain(4, 8, 8, 8, 3)
    scores = {"l0": [float(n) for n in range(8)], "l1": [9.0] * 8, "l2": [9.0] * 8}
    ranked: dict[str, object] = {"sparsity": "25%", "keep": {"at_least": 1}}
    assert kept(choose(plan(map, ranked), scores, {})) == {"l0": 2, "l1": 8, "l2": 8}
    assert kept(choose(plan(map, {"sparsity": "25%"}), scores, {}))["l0"] == 3  # half of 75 %
    assert kept(choose(plan(map, {"sparsity": "25%", "keep": {"uniform": True}}), scores, {})) == {
        "l0": 6,
        "l1": 6,
        "l2": 6,
    }


def test_uniform_takes_only_what_is_dead_in_every_layer() -> None:
    dead = {"l0": [True] * 5 + [False] * 3, "l1": [True] * 3 + [False] * 5}
    assert kept(choose(plan(chain(4, 8, 8, 3), {"keep": {"uniform": True}}), {}, dead)) == {"l0": 5, "l1": 5}


def _least(width: int, at_least: int, multiple: int) -> int:
    return min(width, -(-min(at_least, width) // multiple) * multiple)


def _more(width: int, now: int, multiple: int) -> int:
    """How many units the next larger width of a group has more; 0 when it is whole."""
    return 0 if now == width else min(width, now + multiple) - now


def test_a_demand_is_spread_so_that_the_budget_holds() -> None:
    """By score nearly all go from l1 and leave 0.6 of the MACs; as many units from l0 meet the budget."""
    map = chain(20, 10, 10, 2)  # l0 and l1 share a matrix; a unit of l0 costs 30 MACs, one of l1 costs 12
    scores = {"l0": [2.0] * 10, "l1": [1.0] * 10}
    rule: dict[str, object] = {"sparsity": "50%", "keep": {"at_least": 1}}

    def remaining(**budget: str) -> tuple[dict[str, int], float]:
        recipe = Recipe.model_validate(
            {
                "version": 1,
                "title": "t",
                "budget": budget,
                "rules": [{"layers": "l*", "group": "neuron", **rule}],
            }
        )
        chosen = choose(Plan(recipe, map, (Assignment(0, ("l0", "l1"), ("l0", "l1")),)), scores, {})
        costs = Costs(map)
        return kept(chosen), costs.of({n: [u for u in range(10) if u not in k] for n, k in chosen.items()})[
            "macs"
        ] / costs.dense["macs"]

    assert remaining()[0] == remaining(macs="70%")[0] == {"l0": 9, "l1": 1}
    widths, share = remaining(macs="30%")
    assert sum(widths.values()) == 10
    assert share <= 0.3


def test_the_floor_of_demands_is_what_choosing_can_reach() -> None:
    map = chain(20, 10, 10, 2)
    tight = plan(map, {"sparsity": "50%"}, macs="1%")
    gone = find_least(tight)
    assert sum(len(units) for units in gone.values()) == 10
    chosen = choose(tight, {"l0": [9.0] * 10, "l1": [1.0] * 10}, {})
    assert {name: 10 - len(units) for name, units in gone.items()} == kept(chosen)
