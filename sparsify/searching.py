"""How deep to cut where the budget limits the drop of accuracy: bisection between what the other budgets ask for and all there is.

    limit(depth) = limit - depth * (limit - least)      of each budget named, of the MACs where none is; 0 <= depth <= 1
"""

from sparsify.plan import Floor, Plan
from sparsify_schemas.budget import AccuracyDrop, Budget
from sparsify_schemas.report import Search, Trial
from sparsify_schemas.units import Share


def deepened(plan: Plan, depth: float) -> Budget:
    """The budget of one trial, in shares of the dense model."""
    left = {floor.what: _share(floor, depth) for floor in plan.floors}
    latency = {what.removeprefix("latency."): share for what, share in left.items() if what.startswith("latency.")}
    return Budget.model_validate({**{what: share for what, share in left.items() if "." not in what}, "latency": latency})


def _share(floor: Floor, depth: float) -> Share:
    limit = min(floor.limit, floor.dense)
    return Share(100 * max(limit - depth * (limit - floor.least), floor.least) / floor.dense, "%")


def next_depth(search: Search, asked: AccuracyDrop, other: bool) -> float | None:
    """Where to cut next; None when the search is over. other: whether other budgets are named, which depth 0 must meet as well.

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


def best(search: Search) -> Trial:
    """The deepest trial inside; where none is, the shallowest."""
    inside = [t for t in search.trials if t.inside]
    return max(inside, key=lambda t: t.depth) if inside else min(search.trials, key=lambda t: t.depth)

