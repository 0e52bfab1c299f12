"""Rounds: what each cut of a recipe is to leave, and how a recipe reads for a
model that earlier cuts have narrowed.

All shares are of the dense model. For a later cut they are written anew:
budgets as plain amounts, a rule's `sparsity` as the share of what is left.
"""

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import assert_never

from pydantic import TypeAdapter

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.graph.expert_numbers import list_kept_widths
from sparsify.graph.model_map import Branch, Layer, Mixture
from sparsify.pruning.planning.plan import Assignment, Plan, count_kept_by_limits, join_ranked
from sparsify.recipe.schedules import value
from sparsify_schemas.budget import Budget
from sparsify_schemas.cuts import Cuts, Zeroed
from sparsify_schemas.group import (
    count_inside,
    in_one_tensor,
    is_unstructured,
    removes_branches,
    removes_experts,
)
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Keep, Rule
from sparsify_schemas.schedule import Schedule
from sparsify_schemas.stage import Cut, Gradual, Repair, Train, goal
from sparsify_schemas.units import Amount, Share, Size, Time

_HAIR = 1e-14
_SCHEDULES: TypeAdapter[Schedule] = TypeAdapter(Schedule)


@dataclass(frozen=True)
class Target:
    """What one cut is to leave of the dense model."""

    way: float = 1.0
    """share of the way from the dense model to the budget and to the rules' own sparsities"""
    budget: Budget | None = None
    """in place of the recipe's"""


def list_cuts(epochs: int, cuts: Gradual) -> tuple[tuple[int, float], ...]:
    """(epochs done, share of the way) of every cut within a train stage; the last one comes at `end`."""
    end = math.ceil(cuts.end.steps(1, epochs))
    window = {
        "kind": cuts.schedule,
        "from": 0.0,
        "to": cuts.way.fraction,
        "start": cuts.start,
        "end": cuts.end,
    }
    shape = _SCHEDULES.validate_python(window)
    ways = [
        (epoch, value(shape, epoch, 1, epochs))
        for epoch in (*range(int(cuts.every.value), end, int(cuts.every.value)), end)
    ]
    return tuple((epoch, way) for epoch, way in ways if way > 0)


def next_target(recipe: Recipe, stage: int, epochs: int) -> Target | None:
    """What the first cut to come is to leave, when so many epochs of the stage
    are done; None after the last cut."""
    for index, spec in enumerate(recipe.stages[stage:]):
        match spec:
            case Cut():
                return Target(spec.way.fraction, spec.budget)
            case Train(cuts=Gradual() as cuts):
                done = epochs if index == 0 else 0
                way = next((way for epoch, way in list_cuts(spec.epochs, cuts) if epoch > done), None)
                if way is not None:
                    return Target(way, cuts.budget)
            case Train() | Repair():
                pass
            case _:
                assert_never(spec)
    return None


def rewrite_recipe(plan: Plan, target: Target | None, cuts: Sequence[Cuts] = ()) -> Recipe:
    """The recipe for what earlier cuts have left, so that a cut of that leaves what the
    target says; rules keep their places.

    plan: of the dense model. Without a target no budget and no demand is left: what they asked for is done,
    and so is what penalties did that work towards them.
    """
    if target is None:
        rules = tuple(map(_drop_goal, plan.recipe.rules))
        return plan.recipe.model_copy(update={"rules": rules, "budget": Budget()})
    demands = list(plan.recipe.rules)
    for assignment in plan.assignments:
        keep = demands[assignment.rule].keep
        if assignment.multiple > 1:  # what `auto` came to for the dense model holds to the end
            keep = keep.model_copy(update={"multiple_of": assignment.multiple})
        keep = (
            keep.model_copy(update={"limits": _rescale_limits(plan, assignment, cuts)})
            if keep.limits
            else keep
        )
        demands[assignment.rule] = demands[assignment.rule].model_copy(update={"keep": keep})
    for together in join_ranked(plan):
        first = plan.recipe.rules[together[0].rule]
        if first.sparsity is None:
            continue
        left = (
            measure_left_inside(plan, together, cuts)
            if in_one_tensor(first.group)
            else _measure_left(plan, together, cuts)
        )
        share = max(target.way * first.sparsity.fraction - (1 - left), 0.0) / left if left else 0.0
        for assignment in together:
            demands[assignment.rule] = demands[assignment.rule].model_copy(
                update={"sparsity": Share(100 * share, "%")}
            )
    return plan.recipe.model_copy(
        update={"rules": tuple(demands), "budget": _compute_budget(plan, target, cuts)}
    )


def _drop_goal(rule: Rule) -> Rule:
    """The rule when all that the recipe asks for is cut; a protecting one as it is."""
    if rule.protect:
        return rule
    penalty = None if _has_goal(rule) else rule.penalty
    return rule.model_copy(update={"sparsity": None, "penalty": penalty})


def keep_present_rules(plan: Plan, rules: Sequence[Rule], left: Set[str]) -> dict[int, Rule]:
    """Place -> rule, without what speaks only of layers that left with a residual branch.
    left: names of the layers that have not."""
    found = {}
    for index, rule in enumerate(rules):
        present: list[Layer | Branch | Mixture] = []
        if removes_experts(rule.group):
            present += plan.map.mixtures
        elif not removes_branches(rule.group):
            present += [layer for layer in plan.map.layers if layer.name in left]
        if rule.protect or removes_branches(rule.group):
            for branch in plan.map.branches:
                if any(tensor.rpartition(".")[0] in left for tensor in branch.tensors):
                    present.append(branch)
        kept = tuple(pattern for pattern in rule.layers if _is_any_selected(pattern, present))
        if kept:
            limits = {name: share for name, share in rule.keep.limits.items() if name in left}
            found[index] = rule.model_copy(
                update={"layers": kept, "keep": rule.keep.model_copy(update={"limits": limits})}
            )
    return found


def _is_any_selected(pattern: str, parts: Iterable[Layer | Branch | Mixture]) -> bool:
    return any(part.is_selected((pattern,)) for part in parts)


def make_holding_rule(rule: Rule, penalties: bool) -> Rule:
    """A rule for training between cuts or after them:
    what it has set to zero inside tensors is held there."""
    if not in_one_tensor(rule.group):
        return rule
    asked = (
        rule.sparsity if _has_goal(rule) else None
    )  # no cut is made here, so nothing else asks how much is to go
    if rule.penalty is None or not penalties or is_unstructured(rule.group):  # then only its zeros are held
        penalty = rule.penalty if penalties else None
        return rule.model_copy(
            update={
                "group": "weight",
                "penalty": penalty,
                "keep": Keep(),
                "sparsity": asked or Share(0, "%"),
                "override": True,
            }
        )
    return rule.model_copy(update={"sparsity": asked, "override": True})


def _has_goal(rule: Rule) -> bool:
    """Whether a rule's penalty works towards its `sparsity` or the budget."""
    return rule.penalty is not None and rule.penalty.facts().goal is not None


def find_last_zeroed(cuts: Sequence[Cuts]) -> dict[int, Zeroed]:
    """Rule -> what it last set to zero inside weight tensors."""
    return {done.rule: done for each in cuts for done in each.zeroed}


def measure_left_inside(plan: Plan, together: Sequence[Assignment], cuts: Sequence[Cuts]) -> float:
    """Share of the groups inside these rules' tensors that earlier cuts have left,
    of those in layers that have not left as a
    whole: columns that are gathered or cropped away are gone, and units that died of zeros,
    which no rule of their own took."""
    there = kept = 0.0
    narrowed = _shrink_shapes(plan, cuts)
    branches = {w.group for done in cuts for w in done.widths if not w.keep}
    away = {name for b in plan.map.branches if b.name in branches for name in b.tensors}
    shapes = {t.name: t.shape for t in plan.map.tensors if t.name not in away}
    for assignment in together:
        group = plan.recipe.rules[assignment.rule].group
        assert group is not None
        for name in assignment.tensors:
            count = count_inside(group, shapes[name]) if name in shapes else 0
            module = name.rpartition(".")[0]
            there += count
            executions = [e for done in cuts for e in done.executions if e.module == module]
            live = prod(execution.live / execution.columns for execution in executions)
            kept += count_inside(group, narrowed[name]) * live if count else 0
    return kept / there if there else 1.0


def _shrink_shapes(plan: Plan, cuts: Sequence[Cuts]) -> dict[str, list[int]]:
    """Shapes of the dense model's tensors without the units that left unasked."""
    shapes = {t.name: list(t.shape) for t in plan.map.tensors}
    asked = {name for assignment in plan.assignments for name in assignment.coupled}
    for name, kept in list_kept_widths(cuts).items():
        group = plan.map.by_name.get(name)
        for part in group.slices if group is not None and name not in asked else ():
            if part.role != "size" and group is not None:
                shapes[part.tensor][part.dim] -= (
                    sum(span.units * span.repeat for span in part.spans) * (group.width - kept) // group.width
                )
    return shapes


def _measure_left(plan: Plan, together: Sequence[Assignment], cuts: Sequence[Cuts]) -> float:
    """Share of these rules' coupled groups that earlier cuts have left."""
    widths = list_kept_widths(cuts)
    names = [name for assignment in together for name in assignment.coupled]
    before = sum(plan.map.by_name[name].width for name in names)
    now = sum(widths.get(name, plan.map.by_name[name].width) for name in names)
    return now / before if before else 1.0


def _rescale_limits(plan: Plan, assignment: Assignment, cuts: Sequence[Cuts]) -> dict[str, Share]:
    """A rule's limits as shares of the widths that earlier cuts have left."""
    keep, now = (
        plan.recipe.rules[assignment.rule].keep,
        list_kept_widths(cuts),
    )
    found = {}
    for group in map(plan.map.by_name.__getitem__, assignment.coupled):
        width, least = now.get(group.name, group.width), count_kept_by_limits(keep, group)
        if width and least:
            found[group.name] = Share(100 * max(width - least, 0) / width, "%")
    return found


def list_own_budgets(recipe: Recipe) -> tuple[tuple[str, Budget], ...]:
    """(path in the recipe, budget) of every cut that has a budget of its own."""
    paths = []
    for index, stage in enumerate(recipe.stages):
        path = f"stages.{index}" if isinstance(stage, Cut) else f"stages.{index}.cuts"
        paths.append((path, goal(stage)))
    return tuple(
        (path, found.budget) for path, found in paths if found is not None and found.budget is not None
    )


def _compute_budget(plan: Plan, target: Target, cuts: Sequence[Cuts]) -> Budget:
    """The budget part of the way, as amounts; a hair above, as no budget may be missed for a rounding.

    What is held as measured stays a share as long as the dense model is at hand,
    as both are then measured side by side.
    """
    asked = plan.recipe.budget if target.budget is None else target.budget
    dense = Costs(plan.map).dense | {
        floor.what: floor.dense for floor in plan.floors if floor.what.startswith("latency.")
    }
    left = {
        what: (dense[what] - target.way * (dense[what] - limit)) * (1 + _HAIR)
        for what, limit in absolute_limits(asked, dense).items()
    }
    written: dict[str, object] = {}
    for what, amount in left.items():
        if what in ("macs", "params", "bytes"):
            written[what] = Size(amount, "B") if what == "bytes" else Amount(amount / 1e3, "k")
    if "peak_memory" in left:
        assert plan.map.lifetimes is not None
        measured = float(plan.map.lifetimes.measured)
        most = measured - target.way * (
            measured - absolute_limits(asked, {"peak_memory": measured})["peak_memory"]
        )
        written["peak_memory"] = (
            Size(most, "B") if cuts or isinstance(asked.peak_memory, Size) else _make_share(most, measured)
        )
    latency = {}
    for name, wish in asked.latency.items():
        ms, before = left[f"latency.{name}"], dense[f"latency.{name}"]
        latency[name] = _make_share(ms, before) if isinstance(wish, Share) and not cuts else Time(ms, "ms")
    return Budget.model_validate({**written, "latency": latency})


def _make_share(value: float, whole: float) -> Share:
    return Share(min(100 * value / whole, 100), "%")
