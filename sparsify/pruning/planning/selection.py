"""Choosing what goes: plan + scores -> units that stay. Pure; knows no tensors.

Dead units go first, then each rule's own `sparsity`, lowest scores first over all layers of the rule;
where the budgets could not hold that way, as many units in an order that weighs their price more.
What a budget still needs is taken from the rules that leave their amount open, in the order of score per
share of the budget, by bisection on how many go; at the end units that fit back under the budget return.
Where a budget is a latency, units are priced by the step that their target rewards, and priced again where
the first choice ended: their price is the mean of both.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.cost.latency_model import LatencyModel
from sparsify.pruning.planning.candidates import (
    Candidate,
    keep_best_branches,
    keep_least_share,
    list_candidates,
)
from sparsify.pruning.planning.plan import Plan, join_ranked
from sparsify.pruning.planning.uniform_widths import make_uniform, search_uniform
from sparsify.pruning.planning.unit_prices import average_prices, price_units
from sparsify_schemas.budget import Budget
from sparsify_schemas.units import Share

RETURNS = 64
"""how many tries to improve on a choice at the end may fail"""
EVENLY = 4096
"""steps in which a share common to all groups is sought"""
EVEN_STEPS = 128
"""the same, where a rough share is enough"""

BY_MACS = 512
"""steps in which the MACs are lowered to the least: widths that happen to be fast make it no falling line"""

BY_PRICE = float("inf")
POWERS = (0.0, 0.25, 0.5, 1.0, 2.0, BY_PRICE)
"""what demands go by, in turn until the budgets can hold: score / price^power, at last the dearest units"""


class Chooser(Protocol):
    """What decides which units stay: `choose`, `choose_evenly` or `choose_by_macs`."""

    def __call__(
        self,
        plan: Plan,
        scores: Mapping[str, Sequence[float]],
        dead: Mapping[str, Sequence[bool]],
        part: float = 1.0,
        *,
        clocks: Sequence[LatencyModel] = (),
        aim: float = 1.0,
    ) -> dict[str, list[int]]: ...


def choose(
    plan: Plan,
    scores: Mapping[str, Sequence[float]],
    dead: Mapping[str, Sequence[bool]],
    part: float = 1.0,
    *,
    clocks: Sequence[LatencyModel] = (),
    aim: float = 1.0,
) -> dict[str, list[int]]:
    """Coupled group -> units that stay, ascending; none of a group that is wholly in residual branches that
    go. The result never exceeds a budget that can be met at all.

    scores and dead: one number and one flag per unit of each coupled group.
    part: how much of the way is to be gone, as a share of each rule's own `sparsity` and of what each budget
    takes away from the dense model. clocks: of the targets whose latency the budget limits;
    what they predict stays below `aim` of the limit.
    """
    costs = Costs(plan.map, clocks)
    allowed = _compute_limits(plan, costs, part, aim)
    open_groups = list_candidates(plan, scores, dead)
    prices = price_units(open_groups, costs, allowed)
    even = _find_even_share(plan, open_groups, costs, allowed, part)
    bounded = [keep_least_share(plan, open_groups, part, even), keep_least_share(plan, open_groups, part)]
    distinct = [groups for groups in bounded if groups != open_groups]
    for groups in (*distinct, open_groups):
        cheapest = keep_best_branches(plan, groups, lambda c: (-c.dead, c.scores[0]))
        chosen, fit = _choose_units(plan, cheapest, prices, costs, allowed, part)
        if fit:
            break
        # With other residual branches kept, the budgets may hold.
        dearest = keep_best_branches(plan, groups, lambda c: (-prices[c.name],))
        chosen, fit = _choose_units(plan, dearest, prices, costs, allowed, part)
        if fit:
            break
    gone = {tensor for b in plan.map.branches if not chosen.get(b.name, [0]) for tensor in b.tensors}
    members = plan.map.list_members(chosen)
    for name in chosen:
        reached = plan.map.by_name[name].reached
        if all(tensor in gone or tensor.startswith(members) for tensor in reached):
            chosen[name] = []
    return chosen


def _find_even_share(
    plan: Plan, groups: Sequence[Candidate], costs: Costs, allowed: Mapping[str, float], part: float
) -> float:
    """The largest share of its living units that every group may keep, where all lose the same share, so that
    the budgets hold: groups with a `sparsity` of their own lose that. 0 where they cannot hold that way."""
    rules = plan.recipe.rules

    def keep_share(share: float) -> dict[str, tuple[int, ...]]:
        gone = {}
        for candidate in groups:
            own = rules[candidate.rule].sparsity
            kept = share if own is None else 1 - part * own.fraction
            living = len(candidate.order) - candidate.dead
            gone[candidate.name] = candidate.gone(candidate.dead + round((1 - kept) * living))
        return gone

    def fits(step: int) -> bool:
        now = costs.of(keep_share(1 - step / EVEN_STEPS))
        return all(now[what] <= limit for what, limit in allowed.items())

    return 1 - bisect_left(range(EVEN_STEPS), True, key=fits) / EVEN_STEPS


def choose_evenly(
    plan: Plan,
    scores: Mapping[str, Sequence[float]],
    dead: Mapping[str, Sequence[bool]],
    part: float = 1.0,
    *,
    clocks: Sequence[LatencyModel] = (),
    aim: float = 1.0,
) -> dict[str, list[int]]:
    """As `choose`, with the same share of every group's units gone:
    the smallest with which every budget holds."""
    costs, groups = Costs(plan.map, clocks), list_candidates(plan, scores, dead)
    allowed = _compute_limits(plan, costs, part, aim)

    def gone(finest: int) -> dict[str, tuple[int, ...]]:
        return {c.name: c.gone(round(finest / EVENLY * len(c.order))) for c in groups}

    def fits(finest: int) -> bool:
        now = costs.of(gone(finest))
        return all(now[what] <= limit for what, limit in allowed.items())

    least = gone(bisect_left(range(EVENLY), True, key=fits))
    return {c.name: sorted(set(c.order) - set(least[c.name])) for c in groups}


def choose_by_macs(
    plan: Plan,
    scores: Mapping[str, Sequence[float]],
    dead: Mapping[str, Sequence[bool]],
    part: float = 1.0,
    *,
    clocks: Sequence[LatencyModel] = (),
    aim: float = 1.0,
) -> dict[str, list[int]]:
    """As `choose` under a budget of MACs alone, lowered step by step until every budget of the recipe holds.

    It is lowered towards what is left of the MACs with all gone that may go:
    layers that stay may take most of them.
    """
    costs = Costs(plan.map, clocks)
    allowed = _compute_limits(plan, costs, part, aim)
    widths = {name: group.width for name, group in plan.map.by_name.items()}

    def within(macs: float) -> Plan:
        return replace(
            plan, recipe=plan.recipe.model_copy(update={"budget": Budget(macs=Share(100 * macs, "%"))})
        )

    most = 1 - Costs(plan.map).of(find_least(within(0.5)))["macs"] / max(costs.dense["macs"], 1.0)

    def chosen(removed: int) -> dict[str, list[int]]:
        return choose(within(1 - most * removed / BY_MACS), scores, dead)

    def fits(removed: int) -> bool:
        now = costs.of({name: range(widths[name] - len(kept)) for name, kept in chosen(removed).items()})
        return all(now[what] <= limit for what, limit in allowed.items())

    last, few = BY_MACS - 1, BY_MACS // 64
    first = next((removed for removed in range(0, last, few) if fits(removed)), last)
    return chosen(
        next((removed for removed in range(max(0, first - few + 1), first) if fits(removed)), first)
    )


def _compute_limits(plan: Plan, costs: Costs, part: float, aim: float) -> dict[str, float]:
    """What each budgeted quantity may come to, that part of the way."""
    asked = dict(absolute_limits(plan.recipe.budget, costs.dense))
    for what in asked:
        if what.startswith("latency."):
            asked[what] *= aim
    return {what: costs.dense[what] - part * (costs.dense[what] - limit) for what, limit in asked.items()}


def _choose_units(
    plan: Plan,
    open_groups: Sequence[Candidate],
    prices: Mapping[str, float],
    costs: Costs,
    allowed: Mapping[str, float],
    part: float,
) -> tuple[dict[str, list[int]], bool]:
    """The units that stay, and whether the budgets hold."""

    def fits(amounts: Mapping[str, int]) -> bool:
        now = costs.of({c.name: range(c.count_gone(amounts[c.name])) for c in open_groups})
        return all(now[what] <= limit for what, limit in allowed.items())

    free = [c for c in open_groups if plan.recipe.rules[c.rule].sparsity is None]
    wanted: dict[str, int] = {}
    for power in POWERS:
        wanted = _list_demands(plan, open_groups, prices, power, part)
        if fits({**wanted, **{c.name: len(c.order) for c in free}}):
            break
    if allowed and free and not fits(wanted):
        demanded = wanted
        wanted = _remove_to_budget(free, demanded, prices, fits)
        if costs.step > 1 or "peak_memory" in allowed:
            again = _remove_to_budget(
                free, demanded, average_prices(prices, price_units(free, costs, allowed, wanted)), fits
            )
            wanted = min(wanted, again, key=lambda w: _sum_scores(free, w))
    wanted = search_uniform(free, wanted, fits)
    return {
        c.name: sorted(set(range(len(c.order))) - set(c.gone(wanted[c.name]))) for c in open_groups
    }, fits(wanted)


def find_least(plan: Plan, clocks: Sequence[LatencyModel] = ()) -> dict[str, tuple[int, ...]]:
    """Coupled group -> units that go when a budget asks for everything:
    all that open rules allow, the dearest of demands."""
    costs = Costs(plan.map, clocks)
    open_groups = list_candidates(plan, {}, {})
    prices = price_units(open_groups, costs, absolute_limits(plan.recipe.budget, costs.dense))
    open_groups = keep_best_branches(plan, open_groups, lambda c: (-prices[c.name],))
    wanted = _list_demands(plan, open_groups, prices, BY_PRICE)
    gone = {}
    for candidate in open_groups:
        has_own_amount = plan.recipe.rules[candidate.rule].sparsity is not None
        count = wanted[candidate.name] if has_own_amount else len(candidate.order)
        gone[candidate.name] = candidate.gone(count)
    return gone


def _list_demands(
    plan: Plan, open_groups: Sequence[Candidate], prices: Mapping[str, float], power: float, part: float = 1.0
) -> dict[str, int]:
    """Coupled group -> units that should go for (that part of) every rule's own
    `sparsity`, besides the dead ones."""
    wanted = {c.name: c.dead for c in open_groups}
    for together in join_ranked(plan):
        sparsity = plan.recipe.rules[together[0].rule].sparsity
        members = {assignment.rule for assignment in together}
        own = [candidate for candidate in open_groups if candidate.rule in members]
        if sparsity is not None and own:
            _raise_demand(own, part * sparsity.fraction, wanted, prices, power)
    return make_uniform([c for c in open_groups if plan.recipe.rules[c.rule].sparsity is not None], wanted)


def _raise_demand(
    own: Sequence[Candidate], share: float, wanted: dict[str, int], prices: Mapping[str, float], power: float
) -> None:
    """Raise `wanted` until the share of all units of these groups goes, as far as bounds allow."""
    target = round(share * sum(len(c.order) for c in own))

    def key(score: float, price: float) -> float:
        return -price if power == BY_PRICE else score / max(price, 1e-30) ** power

    ranked: list[tuple[float, int, int]] = []
    for i, candidate in enumerate(own):
        price = prices[candidate.name]
        last = range(candidate.dead, len(candidate.order))
        ranked += [(key(candidate.scores[candidate.order[at]], price), i, at) for at in last]
    ranked.sort()
    gone = [candidate.count_gone(wanted[candidate.name]) for candidate in own]
    going = sum(gone)
    for _, i, at in ranked:
        if going >= target:
            return
        candidate = own[i]
        wanted[candidate.name] = max(wanted[candidate.name], at + 1)
        before, gone[i] = gone[i], candidate.count_gone(wanted[candidate.name])
        going += gone[i] - before


def _sum_scores(free: Sequence[Candidate], wanted: Mapping[str, int]) -> float:
    """The importance that goes: the sum of its scores."""
    return sum(c.scores[unit] for c in free for unit in c.gone(wanted[c.name]))


def _remove_to_budget(
    free: Sequence[Candidate],
    wanted: Mapping[str, int],
    prices: Mapping[str, float],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """The fewest units, cheapest score per price first, after which every budget holds."""
    ranked = sorted(
        (
            (c.key(at) / max(prices[c.name], 1e-30), i, at)
            for i, c in enumerate(free)
            for at in range(len(c.order))
            if at >= wanted[c.name]
        )
    )

    def after(count: int) -> dict[str, int]:
        amounts = dict(wanted)
        for _, i, at in ranked[:count]:
            amounts[free[i].name] = max(amounts[free[i].name], at + 1)
        return amounts

    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high) // 2
        if fits(after(middle)):
            high = middle
        else:
            low = middle + 1
    found = _complete_choice(free, after(low - 1), after(low), fits) if low else after(0)
    return _return_units(free, wanted, found, ranked[:low], fits)


def _complete_choice(
    free: Sequence[Candidate],
    before: dict[str, int],
    after: dict[str, int],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """The least loss with which what almost holds does: by the unit that was next in order,
    or by a lesser one of another group."""

    def one_more(c: Candidate) -> dict[str, int]:
        return {**before, c.name: c.count_gone(before[c.name]) + c.multiple}

    lost = _sum_scores(free, after)
    lesser = sorted(
        ((loss, i) for i, c in enumerate(free) if (loss := _sum_scores(free, one_more(c))) < lost)
    )
    return next((amounts for _, i in lesser[:RETURNS] if fits(amounts := one_more(free[i]))), after)


def _return_units(
    free: Sequence[Candidate],
    least: Mapping[str, int],
    amounts: dict[str, int],
    taken: Sequence[tuple[float, int, int]],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int]:
    """Give units back, dearest first and as many as a width step has,
    where every budget still holds without them."""
    closed: set[int] = set()
    for _, i, at in reversed(taken):
        c = free[i]
        if i in closed or at < least[c.name]:
            continue
        before = c.count_gone(at)
        if before == c.count_gone(at + 1) or before >= c.count_gone(amounts[c.name]):
            continue
        fewer = {**amounts, c.name: at}
        if fits(fewer):
            amounts = fewer
        else:
            closed.add(i)
        if len(closed) == min(RETURNS, len(free)):
            break
    return amounts


def count_share(total: int, share: float) -> int:
    """How many of so many groups inside tensors a rule sets to zero: the share, rounded."""
    return int(np.floor(total * share + 0.5))
