"""What each budget and each demand of a recipe asked for, and what was achieved. Imports no torch."""

import math
from collections.abc import Iterable, Sequence

from sparsify.formatting.numbers import divide
from sparsify.pruning.planning.cut_targets import last_zeroed, left_inside
from sparsify.pruning.planning.plan import Plan, ranked_together
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Latency, Limit, Side
from sparsify_schemas.units import Share


def limits(
    plan: Plan,
    cuts: Sequence[Cuts],
    sides: tuple[Side, Side],
    stored: tuple[int, int],
    timings: Iterable[Latency],
) -> Iterable[Limit]:
    """Everything that was asked for. sides, stored: of the dense and the cut model, the latter the bytes of their tensors."""
    yield from _budgets(plan.recipe, sides, stored)
    yield from _latencies(plan.recipe, timings)
    yield from _drop(plan.recipe, sides)
    yield from _demands(plan, cuts)


def _budgets(recipe: Recipe, sides: tuple[Side, Side], stored: tuple[int, int]) -> Iterable[Limit]:
    """Shares are of the dense model; bytes are those of the tensors, as the file's header is no part of the model."""
    dense, cut = sides
    counted = {"macs": (dense.macs, cut.macs), "params": (dense.params, cut.params), "bytes": stored}
    counted |= (
        {"peak_memory": (dense.peak_memory, cut.peak_memory)} if dense.peak_memory and cut.peak_memory else {}
    )
    for what, (before, after) in counted.items():
        asked = getattr(recipe.budget, what)
        if asked is None:
            continue
        limit, achieved = (
            (asked.fraction, after / before if before else 0.0)
            if isinstance(asked, Share)
            else (asked.count, float(after))
        )
        yield Limit(
            what=f"budget.{what}",
            asked=str(asked),
            limit=limit,
            achieved=achieved,
            met=achieved <= limit * (1 + 1e-12),
        )


def _latencies(recipe: Recipe, timings: Iterable[Latency]) -> Iterable[Limit]:
    """Shares are of the dense model, timed interleaved."""
    for timing in timings:
        asked = recipe.budget.latency.get(timing.target)
        if asked is not None:
            left = divide(1, timing.speedup)
            share_left = math.inf if left is None else left
            limit, achieved = (
                (asked.fraction, share_left)
                if isinstance(asked, Share)
                else (asked.milliseconds, timing.cut_ms)
            )
            yield Limit(
                what=f"budget.latency.{timing.target}",
                asked=str(asked),
                limit=limit,
                achieved=achieved,
                met=achieved <= limit,
            )


def _drop(recipe: Recipe, sides: tuple[Side, Side]) -> Iterable[Limit]:
    """Points of validated accuracy lost, where both models were validated."""
    asked = recipe.budget.accuracy_drop
    before, after = (side.validation_accuracy for side in sides)
    if asked is not None and before is not None and after is not None:
        limit, achieved = asked.at_most.fraction, before - after
        yield Limit(
            what="budget.accuracy_drop",
            asked=str(asked.at_most),
            limit=limit,
            achieved=achieved,
            met=achieved <= limit + 1e-9,
        )


def _demands(plan: Plan, cuts: Sequence[Cuts]) -> Iterable[Limit]:
    """Each rule's own `sparsity`: units removed of coupled groups, or groups inside tensors set to zero. Half a unit is rounding."""
    kept = {w.group: w.kept for done in cuts for w in done.widths}  # the last cut has the last word
    zeroed = last_zeroed(cuts)
    for together in ranked_together(plan):
        assignment, rule = together[0], plan.recipe.rules[together[0].rule]
        if rule.sparsity is None:
            continue
        if assignment.rule in zeroed:
            # Before its zeros were counted nothing had left but branches: units that die of them and shrinking kernels came after.
            last = cuts[-1].model_copy(
                update={"executions": (), "widths": tuple(w for w in cuts[-1].widths if not w.keep)}
            )
            before = left_inside(plan, together, (*cuts[:-1], last))
            total = zeroed[assignment.rule].groups / before
            count = total * (1 - before) + zeroed[assignment.rule].gone
        else:
            groups = [plan.map.by_name[name] for a in together for name in a.coupled]
            total = sum(g.width for g in groups)
            count = total - sum(kept.get(g.name, g.width) for g in groups)
        limit = rule.sparsity.fraction
        achieved = count / total if total else 0.0
        yield Limit(
            what=f"rules.{assignment.rule}.sparsity",
            asked=str(rule.sparsity),
            limit=limit,
            achieved=achieved,
            met=count >= limit * total - 0.5,
        )
