"""How deep to cut where the budget limits the drop of accuracy: bisection between what the other budgets ask
for and all there is.

    limit(depth) = limit - depth * (limit - least),   0 <= depth <= 1,   of each budget named, else of the
    MACs
"""

from sparsify.pruning.planning.plan import Floor, Plan
from sparsify_schemas.budget import AccuracyDrop, Budget
from sparsify_schemas.report import Search, Trial
from sparsify_schemas.units import Share, Size, Time


def deepen_budget(plan: Plan, depth: float) -> Budget:
    """The budget of one trial: in shares of the dense model,
    or as bytes and milliseconds where they are what was asked."""
    asked, found = plan.recipe.budget, dict[str, Share | Size]()
    latency: dict[str, Share | Time] = {}
    for floor in plan.floors:
        left, name = _compute_left(floor, depth), floor.what.removeprefix("latency.")
        if name != floor.what:
            latency[name] = (
                Time(left, "ms") if isinstance(asked.latency[name], Time) else _make_share(left, floor)
            )
        else:
            found[name] = (
                Size(left, "B")
                if name == "peak_memory" and isinstance(asked.peak_memory, Size)
                else _make_share(left, floor)
            )
    return Budget.model_validate({**found, "latency": latency})


def _compute_left(floor: Floor, depth: float) -> float:
    limit = min(floor.limit, floor.dense)
    return max(limit - depth * (limit - floor.least), floor.least)


def _make_share(left: float, floor: Floor) -> Share:
    return Share(100 * left / floor.dense, "%")


def choose_next_depth(search: Search, asked: AccuracyDrop, other: bool) -> float | None:
    """Where to cut next; None when the search is over.
    other: whether other budgets are named, which depth 0 must meet as well.

    Without other budgets depth 0 cuts nothing, and is tried only when nothing deeper was inside.
    """
    if other and not search.trials:
        return 0.0
    if other and not search.trials[0].inside:
        return None  # nothing shallower meets the other budgets
    inside = max((t.depth for t in search.trials if t.inside), default=0.0)
    outside = min((t.depth for t in search.trials if not t.inside and t.depth > inside), default=1.0)
    left, near = asked.trials - len(search.trials), outside - inside <= asked.within.fraction + 1e-9
    if any(t.inside for t in search.trials) or other:
        return None if left <= 0 or near else (inside + outside) / 2
    if any(t.depth == 0 for t in search.trials):
        return None
    return 0.0 if left <= 1 or near else (inside + outside) / 2


def choose_best(search: Search) -> Trial:
    """The deepest trial inside; where none is, the shallowest."""
    inside = [t for t in search.trials if t.inside]
    return max(inside, key=lambda t: t.depth) if inside else min(search.trials, key=lambda t: t.depth)
