"""Compare what each budget and each rule of a recipe asked for with what was achieved. Imports no torch."""

import math
from collections.abc import Iterable, Sequence

from sparsify.formatting.numbers import divide
from sparsify.graph.expert_numbers import list_kept_widths
from sparsify.pruning.planning.cut_targets import find_last_zeroed, measure_left_inside
from sparsify.pruning.planning.plan import Assignment, Plan, join_ranked
from sparsify_schemas.budget import allowed_drop
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Latency, Limit, Side
from sparsify_schemas.task import deciding_metric
from sparsify_schemas.units import Share


def check_limits(
    plan: Plan,
    cuts: Sequence[Cuts],
    sides: tuple[Side, Side],
    stored: tuple[int, int],
    timings: Iterable[Latency],
) -> Iterable[Limit]:
    """Yield a row for every limit of the recipe.

    Args:
        sides: Measurements of the dense and the cut model.
        stored: Bytes of the tensors of the dense and the cut model.
        timings: A latency per target.
    """
    yield from _check_budgets(plan.recipe, sides, stored)
    yield from _check_latencies(plan.recipe, timings)
    yield from _check_accuracy_drop(plan.recipe, sides)
    yield from _check_rules(plan, cuts)


def _check_budgets(recipe: Recipe, sides: tuple[Side, Side], stored: tuple[int, int]) -> Iterable[Limit]:
    """MACs, parameters, bytes and memory.

    Bytes are those of the tensors: a file's header is no part of the model.
    """
    dense, cut = sides
    counted = {"macs": (dense.macs, cut.macs), "params": (dense.params, cut.params), "bytes": stored}
    if dense.peak_memory and cut.peak_memory:
        counted["peak_memory"] = (dense.peak_memory, cut.peak_memory)
    for what, (before, after) in counted.items():
        asked = getattr(recipe.budget, what)
        if asked is None:
            continue
        if isinstance(asked, Share):  # of the dense model
            limit, achieved = asked.fraction, after / before if before else 0.0
        else:
            limit, achieved = asked.count, float(after)
        yield Limit(
            what=f"budget.{what}",
            asked=str(asked),
            limit=limit,
            achieved=achieved,
            met=achieved <= limit * (1 + 1e-12),
        )


def _check_latencies(recipe: Recipe, timings: Iterable[Latency]) -> Iterable[Limit]:
    for timing in timings:
        asked = recipe.budget.latency.get(timing.target)
        if asked is None:
            continue
        if isinstance(asked, Share):  # of the dense model, which was timed in turn with the cut one
            ratio = divide(1, timing.speedup)
            limit, achieved = asked.fraction, math.inf if ratio is None else ratio
        else:
            limit, achieved = asked.milliseconds, timing.cut_ms
        yield Limit(
            what=f"budget.latency.{timing.target}",
            asked=str(asked),
            limit=limit,
            achieved=achieved,
            met=achieved <= limit,
        )


def _check_accuracy_drop(recipe: Recipe, sides: tuple[Side, Side]) -> Iterable[Limit]:
    """How much of the deciding metric was lost on the validation set, where both models were validated."""
    asked = recipe.budget.accuracy_drop
    before, after = (side.validation_metric for side in sides)
    if asked is None or before is None or after is None:
        return
    limit = allowed_drop(asked.at_most, before)
    achieved = deciding_metric(recipe.task).worse_by(before, after)
    yield Limit(
        what="budget.accuracy_drop",
        asked=str(asked.at_most),
        limit=limit,
        achieved=achieved,
        met=achieved <= limit + 1e-9,
    )


def _check_rules(plan: Plan, cuts: Sequence[Cuts]) -> Iterable[Limit]:
    """Each rule's own `sparsity`: the fraction of its groups that was removed or set to zero."""
    zeroed = find_last_zeroed(cuts)
    for assignments in join_ranked(plan):
        index = assignments[0].rule
        asked = plan.recipe.rules[index].sparsity
        if asked is None:
            continue
        if index in zeroed:
            total, removed = _count_zeroed(plan, assignments, cuts)
        else:
            total, removed = _count_removed(plan, assignments, cuts)
        limit = asked.fraction
        yield Limit(
            what=f"rules.{index}.sparsity",
            asked=str(asked),
            limit=limit,
            achieved=removed / total if total else 0.0,
            met=removed >= limit * total - 0.5,  # half a unit is rounding
        )


def _count_zeroed(plan: Plan, assignments: Sequence[Assignment], cuts: Sequence[Cuts]) -> tuple[float, float]:
    """(groups of the dense model, groups set to zero or removed), of groups inside tensors."""
    done = find_last_zeroed(cuts)[assignments[0].rule]
    # When the last cut counted its zeros, only residual branches were removed. Units that the zeros leave
    # dead, and kernels that shrink, come after.
    branches_removed = tuple(width for width in cuts[-1].widths if not width.keep)
    last = cuts[-1].model_copy(update={"executions": (), "widths": branches_removed})
    remaining = measure_left_inside(plan, assignments, (*cuts[:-1], last))
    total = done.groups / remaining
    return total, total * (1 - remaining) + done.gone


def _count_removed(plan: Plan, assignments: Sequence[Assignment], cuts: Sequence[Cuts]) -> tuple[int, int]:
    """(units of the dense model, units removed), of coupled groups."""
    kept = list_kept_widths(cuts)
    groups = [plan.map.by_name[name] for assignment in assignments for name in assignment.coupled]
    total = sum(group.width for group in groups)
    return total, total - sum(kept.get(group.name, group.width) for group in groups)
