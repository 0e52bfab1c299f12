"""The latency model: surfaces along a staircase, the fit to whole networks, and choosing by milliseconds.
No tensors, no timing."""

from dataclasses import replace
from itertools import pairwise, product
from math import ceil

import numpy as np
import pytest

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.cost.latency_model import LatencyModel, Surface, TimedNetwork, Work, choose_widths, fit_thetas
from sparsify.graph.model_map import Coupled, Layer, ModelMap, Slice, Span, Tensor
from sparsify.pruning.planning.plan import Assignment, Plan
from sparsify.pruning.planning.selection import choose
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.table import Point, Steps

STEPS = Steps(convolution=16, inputs=16, linear=4)


def staircase(inputs: int, outputs: int) -> float:
    """5 us, and 10 us for every 16 x 16 channels."""
    return 0.005 + 0.01 * ceil(inputs / 16) * ceil(outputs / 16)


def surface(inputs: int = 64, outputs: int = 64) -> Surface:
    widths = [(i, o) for i in choose_widths(inputs, 16, True) for o in choose_widths(outputs, 16, True)]
    return Surface(tuple((i, o, staircase(i, o)) for i, o in widths), (inputs, outputs), (16, 16))


def test_the_grid_is_in_whole_steps_and_ends_with_the_dense_width() -> None:
    assert choose_widths(64, 16, True) == (16, 32, 48, 64)
    assert choose_widths(512, 16, True) == (64, 128, 256, 384, 512)
    assert choose_widths(20, 16, True) == (16, 20)
    assert choose_widths(64, 16, False) == (64,)
    assert choose_widths(1, 4, True) == (1,)


def test_measured_widths_are_met_and_others_follow_the_staircase() -> None:
    found = surface()
    for inputs, outputs, ms in found.points:
        assert found.ms(inputs, outputs) == pytest.approx(ms, rel=1e-3)
    for inputs, outputs in ((20, 64), (64, 33 + 3), (36, 20)):
        assert found.ms(inputs, outputs) == pytest.approx(staircase(inputs, outputs), rel=0.02)
    assert found.ms(64, 36) == found.ms(64, 48), "a width costs as much as the next step"


def test_widths_off_the_fast_path_are_as_dear_as_they_were_measured() -> None:
    odd: tuple[Point, ...] = ((31, 32, 2.0 * staircase(31, 32)),)
    found = replace(surface(), points=surface().points + odd)
    assert found.ms(47, 32) == pytest.approx(2.0 * 0.01 * 2 * 47 / 16, rel=0.15)
    assert found.ms(48, 32) == pytest.approx(staircase(48, 32), rel=0.02), "multiples of four are not"


def test_the_fit_finds_what_the_layers_do_not_tell() -> None:
    """ms = 1.1 * layers + 0.2 * elements + 0.5, from a few networks; the dense one is met exactly."""
    rng = np.random.default_rng(0)
    networks = []
    for part in (1.0, 0.8, 0.6, 0.4, 0.3, 0.2):
        layers, written = 10 * part**2 * rng.uniform(0.8, 1.2), 4 * part * rng.uniform(0.8, 1.2)
        networks.append(
            TimedNetwork((layers, 0.0, 0.0, 0.0, written, 0.0, 1.0), 1.1 * layers + 0.2 * written + 0.5)
        )
    theta = fit_thetas(networks)
    predicted = [float(theta @ n.sums) for n in networks]
    assert predicted == pytest.approx([n.ms for n in networks], rel=0.08)
    alone = fit_thetas(networks[:1])
    assert alone @ networks[0].sums == pytest.approx(networks[0].ms), "one network gives one scale"
    assert abs(alone @ networks[-1].sums / networks[-1].ms - 1) > abs(predicted[-1] / networks[-1].ms - 1)


def chain(*widths: int) -> ModelMap:
    """3x3 convolutions c0, c1, ... of these widths (first: inputs); the last one's width is the network's
    output."""
    layers, tensors, coupled = [], [], []
    for n, (i, o) in enumerate(pairwise(widths)):
        last = n == len(widths) - 2
        layers.append(Layer(f"c{n}", "Conv2d", (o, i, 3, 3), 9 * i * o, i, o))
        tensors.append(Tensor(f"c{n}.weight", (o, i, 3, 3), 4, True))
        slices = [Slice(f"c{n}.weight", 0, "out", (Span(0, 0, o),))] + (
            [] if last else [Slice(f"c{n + 1}.weight", 1, "in", (Span(0, 0, o),))]
        )
        coupled.append(Coupled(f"c{n}", o, tuple(slices), protected="it is the output" if last else None))
    return ModelMap(tuple(layers), tuple(tensors), tuple(coupled), sum(layer.macs for layer in layers))


def clock(map: ModelMap) -> LatencyModel:
    works = tuple(Work(f"{a.name}.weight", "convolution", "conv", a.inputs, a.outputs, 1) for a in map.layers)
    surfaces = {("conv", a.inputs, a.outputs): surface(a.inputs, a.outputs) for a in map.layers}
    return LatencyModel("t", works, surfaces, STEPS)


def plan(map: ModelMap, multiple: int, **budget: object) -> Plan:
    recipe = Recipe.model_validate({
        "version": 1, "title": "t", "budget": budget, "targets": {"t": {"kind": "cpu"}},
        "rules": [{"layers": "c*", "group": "filter"}],
    })  # fmt: skip
    names = tuple(c.name for c in map.coupled if c.protected is None)
    return Plan(recipe, map, (Assignment(0, names, names, multiple=multiple),))


def test_a_latency_budget_is_met_as_predicted_and_in_whole_steps() -> None:
    map = chain(16, 64, 96, 64, 16)
    clocks = (clock(map),)
    costs = Costs(map, clocks)
    dense = costs.dense["latency.t"]
    assert dense == pytest.approx(
        staircase(16, 64) + staircase(64, 96) + staircase(96, 64) + staircase(64, 16), rel=1e-3
    )
    scores = {c.name: [float(i % 7 + 1) for i in range(c.width)] for c in map.coupled}
    for asked in (80, 50, 30):
        kept = {
            name: len(units)
            for name, units in choose(
                plan(map, 16, latency={"t": f"{asked}%"}), scores, {}, clocks=clocks
            ).items()
        }
        assert all(width % 16 == 0 for width in kept.values())
        widths = {c.name: range(c.width - kept.get(c.name, c.width)) for c in map.coupled}
        ms = costs.of(widths)["latency.t"]
        assert ms <= asked / 100 * dense
        roomier = [
            costs.of({**widths, name: range(max(0, len(widths[name]) - 16))})["latency.t"] for name in kept
        ]
        assert all(ms < more or len(widths[name]) == 0 for more, name in zip(roomier, kept, strict=True)), (
            "every step gone buys time"
        )


def test_a_step_that_buys_more_time_goes_first_at_equal_scores() -> None:
    map = chain(16, 64, 512, 64, 16)
    found = choose(
        plan(map, 16, latency={"t": "60%"}),
        {c.name: [1.0] * c.width for c in map.coupled},
        {},
        clocks=(clock(map),),
    )
    assert len(found["c0"]) < 64 or len(found["c2"]) < 64, (
        "one step of 16 in front of 512 channels is worth eight of 512"
    )
    assert len(found["c1"]) / 512 > min(len(found["c0"]), len(found["c2"])) / 64


@pytest.mark.parametrize(("multiple", "unit"), [(16, "latency.t"), (4, "macs")])
def test_the_choice_is_near_the_best_of_all_choices(multiple: int, unit: str) -> None:
    """Against every combination of widths of 40 small networks: the importance that is lost beyond what
    must be."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(40):
        most = 6 if multiple == 16 else 5
        map = chain(16, *(multiple * rng.integers(2, most, 3)), 16)
        costs, names = Costs(map, (clock(map),)), [f"c{n}" for n in range(3)]
        scores = {
            n: sorted((rng.choice([0.3, 1.0, 3.0]) * rng.random(map.by_name[n].width) ** 2).tolist())
            for n in names
        }
        asked = f"{rng.integers(40, 75)}%"
        budget = {"latency": {"t": asked}} if unit != "macs" else {"macs": asked}
        allowed = absolute_limits(plan(map, multiple, **budget).recipe.budget, costs.dense)[unit]

        def lost(gone: tuple[int, ...], scores: dict[str, list[float]] = scores) -> float:
            return sum(sum(scores[n][:k]) for n, k in zip(scores, gone, strict=True))

        every = product(*(range(0, map.by_name[n].width, multiple) for n in names))
        best = min(
            lost(gone)
            for gone in every
            if costs.of({n: range(k) for n, k in zip(names, gone, strict=True)})[unit] <= allowed
        )
        found = choose(
            plan(map, multiple, **budget), scores, {}, clocks=(clock(map),) if unit != "macs" else ()
        )
        gaps.append(lost(tuple(map.by_name[n].width - len(found[n]) for n in names)) / best - 1)
    assert min(gaps) > -1e-9 and np.median(gaps) < 1e-9 and np.mean(gaps) < 0.03


def test_budgets_hold_together() -> None:
    map = chain(16, 64, 96, 64, 16)
    clocks = (clock(map),)
    found = choose(
        plan(map, 16, latency={"t": "70%"}, params="30%"),
        {c.name: [1.0] * c.width for c in map.coupled},
        {},
        clocks=clocks,
    )
    costs = Costs(map, clocks)
    now = costs.of({name: range(map.by_name[name].width - len(units)) for name, units in found.items()})
    assert now["params"] <= 0.3 * costs.dense["params"] and now["latency.t"] <= 0.7 * costs.dense["latency.t"]


def test_milliseconds_as_a_limit_and_a_correction() -> None:
    map = chain(16, 64, 64, 16)
    found = clock(map)
    recipe = plan(map, 16, latency={"t": "100us"}).recipe
    assert absolute_limits(recipe.budget, Costs(map, (found,)).dense) == {"latency.t": pytest.approx(0.1)}
    assert absolute_limits(recipe.budget, Costs(map).dense) == {}, "without a clock nothing is said of it"
    shapes = Costs(map).shapes({})
    assert found.with_measurement(shapes, 3.0).ms(shapes) == pytest.approx(3.0)
    assert sum(found.by_layer(shapes).values()) == pytest.approx(found.ms(shapes))
