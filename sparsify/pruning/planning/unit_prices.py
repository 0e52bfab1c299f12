"""What a unit costs: the share of the budgeted quantities that leaves with it."""

from collections.abc import Mapping, Sequence

from sparsify.cost.cost_model import Costs, latency_key
from sparsify.cost.latency_model import LatencyModel
from sparsify.pruning.planning.candidates import Candidate, list_candidates
from sparsify.pruning.planning.plan import Plan


def price_units(
    groups: Sequence[Candidate],
    costs: Costs,
    allowed: Mapping[str, float],
    wanted: Mapping[str, int] | None = None,
) -> dict[str, float]:
    """Share of the budgeted quantities that one unit of each group frees, summed over the budgets:
    in the dense model, or where as many as wanted are gone already. Milliseconds come in steps,
    so there it is the mean over a step."""
    gone = {c.name: c.gone(wanted[c.name]) for c in groups} if wanted else {}
    now = costs.of(gone, smooth=True)
    prices = {}
    for candidate in groups:
        before = gone.get(candidate.name, ())
        count = _count_next(candidate, len(before), costs.step)
        if count == len(before):
            prices[candidate.name] = 0.0
            continue
        after = costs.of({**gone, candidate.name: candidate.order[:count]}, smooth=True)
        freed = sum((now[what] - after[what]) / costs.dense[what] for what in allowed if costs.dense[what])
        prices[candidate.name] = max(freed / (count - len(before)), 0.0)
    return prices


def _count_next(candidate: Candidate, gone: int, step: int) -> int:
    """How many units of a group are gone a step further than now, or a step back where none is left to go."""
    most = len(candidate.order) - 1
    further = min(gone + max(candidate.multiple, step), most) if step > 1 else gone + 1
    return further if further > gone else max(0, gone - step)


def price_groups(plan: Plan, clock: LatencyModel) -> dict[str, float]:
    """Coupled group -> share of a target's milliseconds that goes with one of its units,
    mean over a step of the dense width."""
    return price_units(
        list_candidates(plan, {}, {}), Costs(plan.map, (clock,)), {latency_key(clock.target): 0.0}
    )


def average_prices(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Mean of both; a group that b lacks counts there as free."""
    return {name: (price + b.get(name, price)) / 2 for name, price in a.items()}
