"""Compiling: recipe + model map -> plan, or every reason why the recipe does not fit the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from sparsify.cost.latency_model import LatencyModel
from sparsify.errors import Problem, RecipeError
from sparsify.graph.model_map import Coupled, ModelMap
from sparsify.pruning.planning.assignments import assign_rules
from sparsify.pruning.planning.cut_targets import list_own_budgets
from sparsify.pruning.planning.feasibility import (
    check_budget,
    check_scales,
    check_sparsities,
    check_uniform_widths,
    find_floors,
)
from sparsify.pruning.planning.group_types import (
    find_coupled,
    width_step,
)
from sparsify.pruning.planning.limit_files import check_limits, note_other_networks
from sparsify.pruning.planning.match_layers import match_layers
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.plan_notes import describe_kept_layers, write_notes
from sparsify.pruning.planning.unvisited_layers import find_unproven_layers
from sparsify.recipe import NOWHERE, Positions
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.table import Steps

NO_STEPS: Mapping[str, Steps] = MappingProxyType({})


def compile_plan(
    recipe: Recipe,
    map: ModelMap,
    *,
    positions: Positions = NOWHERE,
    strict: bool = False,
    clocks: Sequence[LatencyModel] = (),
    steps: Mapping[str, Steps] = NO_STEPS,
) -> Plan:
    """Resolve every rule against a model.

    positions: where the recipe is written, for messages;
    clocks: of the targets whose latency the budget limits;
    steps: width steps of the recipe's targets, for `multiple_of: auto`.
    Raises RecipeError with all problems at once: a rule that matches nothing or the wrong kind of layer,
    two rules on one layer or one coupled group, a budget below the floor, a `sparsity` above what a rule can
    remove; with `strict` also every layer that had to be protected, and every one that no call has shown
    while what it reads may be narrowed.
    """
    problems: list[Problem] = []
    map = _mark_protected(recipe, positions, map, problems)
    assignments = tuple(
        replace(a, multiple=_choose_multiple(recipe, a.rule, steps))
        for a in assign_rules(recipe, positions, map, problems)
    )
    unproven = list(find_unproven_layers(recipe, map, assignments))
    notes = (
        *write_notes(recipe, map, assignments),
        *(f"rules.{rule}: {text}" for rule, text, _ in unproven),
        *note_other_networks(positions, map),
    )
    plan = Plan(recipe, map, assignments, notes=notes)
    if strict:
        advice = "write 'protect: true' for it, or run without --strict"
        problems += [
            positions.problem(f"rules.{a.rule}.layers", text, advice)
            for a in assignments
            for text in describe_kept_layers(recipe, map, a)
        ]
        problems += [positions.problem(f"rules.{rule}.layers", text, way) for rule, text, way in unproven]
    problems += [*check_uniform_widths(positions, plan), *check_limits(recipe, positions, map)]
    if not problems:
        plan = replace(plan, floors=tuple(find_floors(plan, recipe.budget, clocks)))
        problems += [
            *check_budget(positions, plan, "budget", recipe.budget, plan.floors),
            *check_sparsities(positions, plan),
            *check_scales(positions, plan),
        ]
        for path, budget in list_own_budgets(recipe):
            problems += check_budget(positions, plan, f"{path}.budget", budget, find_floors(plan, budget))
    if problems:
        raise RecipeError(problems)
    return plan


def _choose_multiple(recipe: Recipe, rule: int, steps: Mapping[str, Steps]) -> int:
    """What kept widths are multiples of. `auto` follows from the targets whose latency is budgeted, else from
    all."""
    asked, group = recipe.rules[rule].keep.multiple_of, recipe.rules[rule].group
    if isinstance(asked, int):
        return asked
    names = list(recipe.budget.latency) or (list(recipe.targets) if asked == "auto" else [])
    found = [steps[name] for name in names if name in steps]
    return max((width_step(group, step) for step in found), default=1)


def _mark_protected(recipe: Recipe, positions: Positions, map: ModelMap, problems: list[Problem]) -> ModelMap:
    """The map with the groups of protected layers marked, and the residual branches that they are in."""
    for index, rule in enumerate(recipe.rules):
        if not rule.protect:
            continue
        for layer in match_layers(recipe, positions, map, index, problems):
            own = {c.name for c in find_coupled(map, layer, "out")}
            why = f"rules.{index} protects '{layer.name}'"
            coupled = []
            for group in map.coupled:
                coupled.append(_protect_group(group, why) if group.name in own else group)
            map = replace(_mark_branches(map, layer.name, why), coupled=tuple(coupled))
        map = _mark_mixtures(map, index, rule.layers)
        for branch in [b for b in map.branches if b.is_selected(rule.layers)]:
            map = _mark_branches(map, branch.module, f"rules.{index} protects '{branch.module}'")
    return map


def _mark_mixtures(map: ModelMap, index: int, patterns: Sequence[str]) -> ModelMap:
    """The map with the mixtures of experts marked to stay that a rule protects, by their names or by that of
    a layer which would lose whole rows."""
    mixtures = []
    for mixture in map.mixtures:
        own = [layer for layer in map.layers if layer.name in mixture.group.layers]
        named = next((layer.name for layer in own if layer.is_selected(patterns)), mixture.module)
        if mixture.is_selected(patterns) or named != mixture.module:
            group = _protect_group(mixture.group, f"rules.{index} protects '{named}'")
            mixture = replace(mixture, group=group)
        mixtures.append(mixture)
    return replace(map, mixtures=tuple(mixtures))


def _mark_branches(map: ModelMap, module: str, why: str) -> ModelMap:
    """The map with those residual branches marked to stay that a module is in."""
    branches = []
    for branch in map.branches:
        if branch.holds(module):
            branch = replace(branch, group=_protect_group(branch.group, why))
        branches.append(branch)
    return replace(map, branches=tuple(branches))


def _protect_group(group: Coupled, why: str) -> Coupled:
    """The group marked to stay; the first reason remains."""
    return group if group.protected and group.is_reached else replace(group, protected=why)
