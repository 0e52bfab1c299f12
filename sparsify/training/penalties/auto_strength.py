"""Strength from a goal: `strength: auto` raises and lowers lambda so that as much dies as the schedule wants.

At every control step, a two-hundredth of the stage apart:
    part     share of the goal that is due: 0 at `start`, 1 at `end`, linear in between
    due      what a cut would remove now, if that part were all that is asked for: it alone may die by now
    coming   what a cut would remove if the part of H steps later were asked for: on it the strength acts
    lambda   gain * z / (sum of lr over H steps), z the largest ||w_g|| / v_g of what is coming
    gain     grows while something due is alive, and falls once all of it is dead
Without gradients a gain of 1 brings groups to zero just in time; how much they resist is what the gain finds
out. All other groups are left alone: a strength that kills some in time would cripple the rest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.graph.group_index import Layout
from sparsify.pruning.criteria.scores import group_scores
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import choose
from sparsify.training.penalties.group_lasso import group_norms
from sparsify.training.penalties.topk import Portions, kth_largest, sum_over_processes
from sparsify_schemas.criterion import Magnitude
from sparsify_schemas.schedule import Auto

CONTROL_STEPS = 200
"""control steps in a stage"""
HORIZON = 0.05
"""of the stage: so long before it is due, the strength begins to act on a group"""
GROWTH = 30.0
"""most that the logarithm of the gain could change over a stage"""
LAG = 0.05
"""it changes by most when so much of what is due is still alive"""
REACTIVATION = 0.1
"""of the mean norm: what the strength can at least bring to zero within the horizon"""
LEAST_FACTOR = 0.5
"""the least factor in one action of what is coming and not due"""


def count_horizon(steps: int, interval: int) -> int:
    """Steps in which the strength is to bring a group to zero."""
    return max(interval, round(HORIZON * steps))


def compute_due(spec: Auto, step: float, steps_per_epoch: int, steps: int) -> float:
    """The part of the goal that should be reached at a step."""
    start, end = (moment.steps(steps_per_epoch, steps) for moment in (spec.start, spec.end))
    return min(1.0, max(0.0, (step - start) / max(end - start, 1.0)))


def count_interval(steps: int, every: int) -> int:
    """Steps between two control steps, a multiple of those between two proximal actions."""
    return max(1, steps // (CONTROL_STEPS * every)) * every


@dataclass(frozen=True)
class TunedPenalty:
    """A penalty whose strength is found: the groups of a lasso, or the single weights of an
    l1 with the share that shall die."""

    spec: Auto
    criterion: Magnitude
    """what goes first"""
    every: int
    """steps between two proximal actions"""
    layout: Layout
    roots: Tensor
    """v_g of every slot, what its norm is weighed by"""
    state: Mapping[str, Tensor]
    share: float | None
    """what a rule's own `sparsity` removes; None where the budget says it"""
    single: bool
    """whether it counts single weights, not groups"""
    among: Portions
    """how the single weights are spread over processes"""


@dataclass(frozen=True)
class ControlStep:
    """A step of a stage, or of what lies between two cuts in it, at which strengths are adjusted."""

    step: int
    steps_per_epoch: int
    steps: int
    """in which the goal is to be reached"""
    whole: int
    """of the stage"""
    interval: int
    """steps between two control steps"""
    lr: float
    """sum over the horizon"""

    @property
    def horizon(self) -> int:
        return count_horizon(self.steps, self.interval)


def adjust_strengths(
    plan: Plan, tuned: Sequence[TunedPenalty], weights: Mapping[str, Tensor], now: ControlStep
) -> None:
    """Set every strength, and how far each group may shrink in one action until the next control step."""
    groups = [s for s in tuned if not s.single]
    scores = {
        name: part.tolist()
        for s in groups
        for name, part in s.layout.split(group_scores(s.criterion, s.layout, weights, None, 0)).items()
    }
    dead = {}
    for name, values in scores.items():
        dead[name] = [value == 0.0 for value in values]
    for s in tuned:
        part, soon, far = (
            compute_due(s.spec, now.step + ahead, now.steps_per_epoch, now.steps)
            for ahead in (0, now.interval, now.horizon)
        )
        if s.single:
            _adjust_by_weights(s, weights, part, far, now)
        else:
            _adjust_by_groups(
                s,
                weights,
                _flag_removed(s.layout, choose(plan, scores, dead, soon)),
                _flag_removed(s.layout, choose(plan, scores, dead, far)),
                now,
            )


def _adjust_by_groups(
    s: TunedPenalty, weights: Mapping[str, Tensor], soon: Tensor, coming: Tensor, now: ControlStep
) -> None:
    norms = (group_norms(s.layout, weights) / s.roots)[:-1]
    alive, floor = norms > 0, s.state["floor"]
    was_due = floor[:-1] == 0
    lag = float((was_due & alive).sum()) / float(was_due.sum()) if bool(was_due.any()) else None
    floor.fill_(1.0)
    floor[:-1][coming] = LEAST_FACTOR
    floor[:-1][soon] = 0.0
    # Never nothing: the optimizer's momentum wakes what has died a little, and it has to die again.
    _set_strength(
        s,
        lag,
        max(float(norms[coming].max()), REACTIVATION * float(norms.mean())) if bool(coming.any()) else 0.0,
        now,
    )


def _adjust_by_weights(
    s: TunedPenalty, weights: Mapping[str, Tensor], part: float, far: float, now: ControlStep
) -> None:
    assert s.share is not None
    magnitudes = torch.cat([weights[p.name].abs().flatten().float() for p in s.layout.parts])
    count, zero = _count_zeros(s, magnitudes)
    lag = part - zero / (count * s.share) if part and s.share else None
    gone = min(count, round(far * s.share * count))
    _set_strength(s, lag, float(kth_largest(magnitudes, count - gone + 1, s.among)) if gone else 0.0, now)


def _set_strength(s: TunedPenalty, lag: float | None, norm: float, now: ControlStep) -> None:
    """lambda and gain from how far the dying lag behind (None where none should have died),
    and the norm that has to go within the horizon."""
    if lag is not None:
        s.state["gain"].mul_(
            math.exp(GROWTH * now.interval / now.whole * (max(-1.0, min(1.0, lag / LAG)) if lag else -1.0))
        )
    s.state["strength"].fill_(float(s.state["gain"]) * norm / now.lr if now.lr > 0 else 0.0)


def _flag_removed(layout: Layout, keep: Mapping[str, Sequence[int]]) -> Tensor:
    """For every slot whether its unit is not among those kept."""
    flags = torch.ones(layout.count, dtype=torch.bool)
    for name, own in layout.split(flags).items():
        own[list(keep[name])] = False
    return flags


def measure_progress(
    plan: Plan, tuned: Sequence[TunedPenalty], weights: Mapping[str, Tensor], remaining: Mapping[str, float]
) -> float:
    """The part of the goal that what is dead now comes to; the least where there are several goals."""
    parts = []
    for s in tuned:
        if s.share is None:
            costs = Costs(plan.map).dense
            parts += [
                _fraction_of_goal(1 - remaining[what], 1 - limit / costs[what])
                for what, limit in absolute_limits(plan.recipe.budget, costs).items()
            ]
        elif not s.single:
            parts.append(
                _fraction_of_goal(float((group_norms(s.layout, weights)[:-1] == 0).float().mean()), s.share)
            )
        else:
            count, zero = _count_zeros(s, torch.cat([weights[p.name].flatten() for p in s.layout.parts]))
            parts.append(_fraction_of_goal(zero / count, s.share))
    return min(parts)


def _count_zeros(s: TunedPenalty, weights: Tensor) -> tuple[int, int]:
    """(single weights, how many of them are zero), on all processes together."""
    count, zero = sum_over_processes(
        weights,
        s.among,
        lambda own: torch.stack([torch.tensor(own.numel(), device=own.device), (own == 0).sum()]),
    ).tolist()
    return count, zero


def _fraction_of_goal(now: float, goal: float) -> float:
    return now / goal if goal > 0 else 1.0
