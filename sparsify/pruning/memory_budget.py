"""A budget of peak memory: what lives when, how much of it goes with each unit, and a cut that holds as
measured."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import nn

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.cost.measure import copy_model
from sparsify.cost.measure.memory import compute_peak, count_input_bytes, measure_peak, trace_lifetimes
from sparsify.events import Listener, Note, silence
from sparsify.formatting.numbers import format_share
from sparsify.forward.calls import Inputs
from sparsify.graph.model_map import Coupled, Life, Lifetimes, ModelMap
from sparsify.graph.surgery import operations
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.units import Size

ROUNDS = 6
"""choices that are measured at most"""
Keep = dict[str, list[int]]
Lives = tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]


def add_lifetimes(model: nn.Module, map: ModelMap, inputs: Inputs) -> ModelMap:
    """The map with the life of every tensor that one inference makes, and what of its bytes goes with each
    unit.

    Each open group is narrowed on trial by a unit; where that changes which operators run, its share of these
    tensors is unknown and counted as none, so that the prediction is never below the truth there.
    """
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    measured = compute_peak(model, inputs) if is_meta else measure_peak(model, inputs)
    model, inputs = _copy_to_meta(model, inputs)
    operators, dense = trace_lifetimes(model, inputs)
    slopes: list[list[tuple[str, float]]] = [[] for _ in dense]
    for group in map.coupled:
        for place, per_unit in _list_narrowed(model, map, group, inputs, (operators, dense)):
            slopes[place].append((group.name, per_unit))
    lives = tuple(
        Life(born, dies, size, tuple(own)) for (born, dies, size), own in zip(dense, slopes, strict=True)
    )
    return replace(map, lifetimes=Lifetimes(count_input_bytes(inputs), measured, lives))


def _copy_to_meta(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy on the meta device, where that can run, as only sizes matter; else as it is."""
    bare = copy_model(model).eval()
    try:
        bare = bare.to("meta")
        trace_lifetimes(bare, inputs)
    except Exception:  # whatever a model of somebody else's does that needs numbers
        return copy_model(model).eval(), inputs
    return bare, inputs


def _list_narrowed(
    model: nn.Module, map: ModelMap, group: Coupled, inputs: Inputs, dense: Lives
) -> Iterator[tuple[int, float]]:
    """(place among the lives, bytes that go with a unit of this group)."""
    if group.protected is not None or group.width < 2:
        return
    try:
        thin = operations.cut_on_trial(model, map, {group.name: list(range(group.width - 1))})
        operators, lives = trace_lifetimes(thin, inputs)
    except Exception:  # a trial on the meta device that cannot run
        return
    if operators != dense[0] or len(lives) != len(dense[1]):
        return
    for place, (before, after) in enumerate(zip(dense[1], lives, strict=True)):
        if before[2] != after[2]:
            yield place, float(before[2] - after[2])


def choose_by_memory(
    plan: Plan, model: nn.Module, inputs: Inputs, choose: Callable[[Plan], Keep], listener: Listener = silence
) -> Keep:
    """Coupled group -> units that stay, such that a budget of peak memory holds as measured; the least of six
    choices where none does.

    choose: the choice for a plan, whose budget of memory is lowered by what the last choice took too much.
    """
    asked = plan.recipe.budget.peak_memory
    if asked is None or any(p.is_meta for p in model.parameters()):
        return choose(plan)
    dense = measure_peak(model, inputs)
    limit = absolute_limits(plan.recipe.budget, {"peak_memory": float(dense)})["peak_memory"]
    aim, tries = plan, list[tuple[float, Keep]]()
    wish = absolute_limits(plan.recipe.budget, Costs(plan.map).dense)["peak_memory"]
    for _ in range(ROUNDS):
        keep = choose(aim)
        used = measure_peak(operations.cut(model, plan.map, keep, plan.digest)[0], inputs) / limit
        listener(Note(f"measured {format_share(used)} of the peak memory that the budget allows"))
        if used <= 1:
            return keep
        wish *= 0.95 if tries and keep == tries[-1][1] else 0.995 / used
        tries.append((used, keep))
        budget = plan.recipe.budget.model_copy(update={"peak_memory": Size(wish, "B")})
        aim = replace(plan, recipe=plan.recipe.model_copy(update={"budget": budget}))
    return min(tries, key=lambda t: t[0])[1]
