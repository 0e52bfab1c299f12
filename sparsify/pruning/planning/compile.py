"""Compiling: recipe + model map -> plan, or every reason why the recipe does not fit the model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from math import gcd, lcm, prod
from types import MappingProxyType

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.cost.latency_model import LatencyModel
from sparsify.errors import Problem, RecipeError
from sparsify.formatting.numbers import milliseconds
from sparsify.graph.model_map import Layer, ModelMap
from sparsify.pruning.planning.candidates import candidates, with_floors
from sparsify.pruning.planning.cut_targets import own_budgets
from sparsify.pruning.planning.group_types import (
    clashing,
    find_coupled,
    find_groups,
    find_tensors,
    group_type_of,
    width_step,
)
from sparsify.pruning.planning.match_layers import around, matched
from sparsify.pruning.planning.plan import Assignment, Floor, Plan, ranked_together
from sparsify.pruning.planning.selection import least
from sparsify.recipe import NOWHERE, Origin, Positions
from sparsify_schemas.budget import Budget
from sparsify_schemas.group import Block, Group, Pattern, count_inside, facts_of, in_one_tensor, kind_of
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.selector import selects
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
    map = _protected(recipe, positions, map, problems)
    assignments = tuple(
        replace(a, multiple=_multiple(recipe, a.rule, steps))
        for a in _assignments(recipe, positions, map, problems)
    )
    unproven = list(_unproven(recipe, map, assignments))
    notes = (
        *_notes(recipe, map, assignments),
        *(f"rules.{rule}: {text}" for rule, text, _ in unproven),
        *_elsewhere(positions, map),
    )
    plan = Plan(recipe, map, assignments, notes=notes)
    if strict:
        advice = "write 'protect: true' for it, or run without --strict"
        problems += [
            positions.problem(f"rules.{a.rule}.layers", text, advice)
            for a in assignments
            for text in _kept(recipe, map, a)
        ]
        problems += [positions.problem(f"rules.{rule}.layers", text, way) for rule, text, way in unproven]
    problems += [*_uneven(positions, plan), *_strangers(recipe, positions, map)]
    if not problems:
        plan = replace(plan, floors=tuple(_floors(plan, recipe.budget, clocks)))
        problems += [
            *_infeasible(positions, plan, "budget", recipe.budget, plan.floors),
            *_unreachable(positions, plan),
        ]
        for path, budget in own_budgets(recipe):
            problems += _infeasible(positions, plan, f"{path}.budget", budget, _floors(plan, budget))
    if problems:
        raise RecipeError(problems)
    return plan


def _multiple(recipe: Recipe, rule: int, steps: Mapping[str, Steps]) -> int:
    """What kept widths are multiples of. `auto` follows from the targets whose latency is budgeted, else from
    all."""
    asked, group = recipe.rules[rule].keep.multiple_of, recipe.rules[rule].group
    if isinstance(asked, int):
        return asked
    names = list(recipe.budget.latency) or (list(recipe.targets) if asked == "auto" else [])
    found = [steps[name] for name in names if name in steps]
    return max((width_step(group, step) for step in found), default=1)


def _protected(recipe: Recipe, positions: Positions, map: ModelMap, problems: list[Problem]) -> ModelMap:
    """The map with the groups of protected layers marked, and the residual branches that they are in."""
    for index, rule in enumerate(recipe.rules):
        if not rule.protect:
            continue
        for layer in matched(recipe, positions, map, index, problems):
            own = {c.name for c in find_coupled(map, layer, "out")}
            why = f"rules.{index} protects '{layer.name}'"
            coupled = tuple(
                replace(c, protected=c.protected or why) if c.name in own else c for c in map.coupled
            )
            map = replace(_with_branch_kept(map, layer.name, why), coupled=coupled)
        for branch in [b for b in map.branches if selects(rule.layers, b.module, b.classes)]:
            map = _with_branch_kept(map, branch.module, f"rules.{index} protects '{branch.module}'")
    return map


def _with_branch_kept(map: ModelMap, module: str, why: str) -> ModelMap:
    """The map with those residual branches marked to stay that a module is in."""
    held = {b.name for b in map.branches if b.holds(module)}
    return replace(
        map,
        branches=tuple(
            replace(b, group=replace(b.group, protected=b.group.protected or why)) if b.name in held else b
            for b in map.branches
        ),
    )


def _assignments(
    recipe: Recipe, positions: Positions, map: ModelMap, problems: list[Problem]
) -> Iterable[Assignment]:
    rules = recipe.rules
    layers: dict[int, list[Layer]] = {
        i: matched(recipe, positions, map, i, problems) for i, rule in enumerate(rules) if not rule.protect
    }
    claimed: dict[tuple[str, str], int] = {}
    owner: dict[str, tuple[int, str]] = {}
    for index, own in layers.items():
        rule = rules[index]
        for layer in own:
            first = claimed.setdefault((layer.name, str(rule.group)), index)
            if first != index and not rule.override:
                problems.append(
                    _taken(
                        positions,
                        index,
                        f"layer '{layer.name}' already has group '{rule.group}' by rules.{first}",
                    )
                )
                continue
            claimed[layer.name, str(rule.group)] = index
            for group in [g for c in find_groups(rule.group, map, layer) for g in (c, *around(map, c))]:
                before, through = owner.get(group.name, (index, layer.name))
                if group.protected is None and before != index and first == index and not rule.override:
                    text = (
                        f"'{layer.name}' leaves together with '{through}', which rules.{before} already has "
                        f"(coupled group '{group.name}')"
                    )
                    problems.append(_taken(positions, index, text))
                    continue
                owner[group.name] = (index, layer.name)
    problems += [*_conflicts(recipe, positions, layers), *_indivisible(recipe, positions, map, layers)]
    for index, own in layers.items():
        rule = rules[index]
        mine = [layer for layer in own if claimed[layer.name, str(rule.group)] == index]
        names = [
            c.name
            for layer in mine
            for c in find_groups(rule.group, map, layer)
            if owner[c.name][0] == index and c.protected is None
        ]
        tensors = [
            name
            for layer in mine
            for name in find_tensors(rule.group, map, layer)
            if in_one_tensor(rule.group)
            or any(
                c.protected is None and owner[c.name][0] == index for c in find_groups(rule.group, map, layer)
            )
        ]
        yield Assignment(
            index, tuple(layer.name for layer in mine), tuple(dict.fromkeys(names)), tuple(tensors)
        )


def _conflicts(
    recipe: Recipe, positions: Positions, layers: Mapping[int, Sequence[Layer]]
) -> Iterable[Problem]:
    """Rules on groups inside one tensor of which the later would undo what the earlier counts on."""
    rules = recipe.rules
    first: dict[tuple[str, str], int] = {}
    for index, own in layers.items():
        group = rules[index].group
        if group is None:
            continue
        kind = kind_of(group)
        clashes = clashing(kind)
        for layer in own:
            earlier = [first[layer.name, other] for other in clashes if (layer.name, other) in first]
            rival = next(iter(earlier), None)
            first.setdefault((layer.name, kind), index)
            if rival is None or rules[rival].group == group:
                continue
            text = (
                f"layer '{layer.name}' has group '{rules[rival].group}' by rules.{rival}, "
                f"which group '{group}' cannot be laid over"
            )
            yield positions.problem(f"rules.{index}.layers", text, "narrow one of the two selectors")


def _indivisible(
    recipe: Recipe, positions: Positions, map: ModelMap, layers: Mapping[int, Sequence[Layer]]
) -> Iterable[Problem]:
    """Weights that blocks or n:m patterns do not divide, as they are or as another rule may leave them."""
    for index, own in layers.items():
        group = recipe.rules[index].group
        for layer in own:
            for dim, size, of in _laid(group, layer):
                if size % of:
                    what = "outputs" if dim == 0 else _across(group)
                    text = f"group '{group}' does not divide '{layer.name}', which has {size} {what}"
                    yield positions.problem(
                        f"rules.{index}.layers",
                        text,
                        "choose a pattern that divides it, or select other layers",
                    )
                    continue
                yield from _narrowing(recipe, positions, map, layers, index, layer, dim, of)


def _across(group: Group | None) -> str:
    """What lies along the second dimension that a pattern is laid over."""
    return "inputs" if isinstance(group, Pattern) else "columns (inputs x kernel positions)"


def _laid(group: Group | None, layer: Layer) -> Iterable[tuple[int, int, int]]:
    """(dimension, its length, what must divide it) of a weight, for patterns."""
    match group:
        case Pattern():
            yield 1, layer.weight[1], group.of
        case Block():
            yield 0, layer.weight[0], group.rows
            yield 1, prod(layer.weight[1:]), group.columns


def _narrowing(
    recipe: Recipe,
    positions: Positions,
    map: ModelMap,
    layers: Mapping[int, Sequence[Layer]],
    index: int,
    layer: Layer,
    dim: int,
    of: int,
) -> Iterable[Problem]:
    """Rules that may narrow the dimension to a width that the pattern does not divide."""
    rules = recipe.rules
    written = {i: rule.keep.multiple_of for i, rule in enumerate(rules)}
    multiple = {
        i: value if isinstance(value, int) else 1 for i, value in written.items()
    }  # what auto comes to may change with the machine
    kernel = prod(layer.weight[2:]) if isinstance(rules[index].group, Block) and dim == 1 else 1
    for other, own in layers.items():
        covered = {
            c.name: c
            for each in own
            for c in find_groups(rules[other].group, map, each)
            if c.protected is None
        }
        for c in covered.values():
            steps = [
                span.repeat * kernel
                for s in c.slices
                if (s.tensor, s.dim) == (f"{layer.name}.weight", dim)
                for span in s.spans
            ]
            if any(step * multiple[other] % of for step in steps):
                need = lcm(*(of // gcd(of, step) for step in steps))
                text = (
                    f"rules.{other} may narrow '{layer.name}' to a width that group '{rules[index].group}' "
                    "does not divide"
                )
                yield positions.problem(
                    f"rules.{index}.layers", text, f"write 'keep: {{multiple_of: {need}}}' in rules.{other}"
                )
                break


def _taken(positions: Positions, index: int, text: str) -> Problem:
    return positions.problem(
        f"rules.{index}.layers",
        text,
        "narrow one of the two selectors, or say 'override: true' in the later rule",
    )


def _about_zeros(group: Group) -> str:
    """What becomes of zeros inside a tensor."""
    match group_type_of(group).zeros:
        case "stay" | None:
            return "weights are set to zero and stay in the tensors; this brings no speed and no smaller file"
        case "columns":
            return (
                "layers gather their live columns only where that is measured to be faster at the cut; "
                "elsewhere zeros stay in the tensors"
            )
        case "kernel":
            return (
                "kernels shrink to the smallest regular grid that holds their live positions; "
                "zeros between them stay in the tensors"
            )


def _notes(recipe: Recipe, map: ModelMap, assignments: Sequence[Assignment]) -> Iterable[str]:
    """What a reader of the plan must know: layers that a rule names and that keep their width, and why."""
    for assignment in assignments:
        rule = recipe.rules[assignment.rule]
        yield from (f"rules.{assignment.rule}: {text}" for text in _kept(recipe, map, assignment))
        if rule.group is not None and in_one_tensor(rule.group):
            yield f"rules.{assignment.rule}: {_about_zeros(rule.group)}"
        changing = [n for n in assignment.coupled if map.by_name[n].statistics]
        if changing:
            yield (
                f"rules.{assignment.rule}: cutting {', '.join(repr(n) for n in changing)} changes the "
                "statistics of a normalisation; outputs will differ until fine-tuned"
            )


def _kept(recipe: Recipe, map: ModelMap, assignment: Assignment) -> Iterable[str]:
    """Layers of one rule that keep their width, residual branches that stay, and why."""
    by_name, rule = {layer.name: layer for layer in map.layers}, recipe.rules[assignment.rule]
    said: set[str] = set()
    if rule.group == "depth":
        yield from (
            f"'{name}' stays: {why}"
            for name in assignment.layers
            if (why := map.by_name[name].protected) is not None
        )
        return
    for name in assignment.layers:
        groups = find_groups(rule.group, map, by_name[name])
        if not groups and (without := "" if rule.group is None else group_type_of(rule.group).without):
            yield f"'{name}' keeps its width: {without}"
        for group in groups:
            if group.protected is not None and group.name not in said:
                said.add(group.name)
                yield f"'{name}' keeps its width: {group.protected}"


_REACH = "write 'calls' that reach it, protect what it reads, or run without --strict"
_KEEP = "protect what it reads, or run without --strict"


def _unproven(
    recipe: Recipe, map: ModelMap, assignments: Sequence[Assignment]
) -> Iterator[tuple[int, str, str]]:
    """(rule, what is said, way out) of layers that no call has shown,
    while what they read may be narrowed by a rule.

    What a layer reads is only known of those that ran.
    Of one that did not, it is what its like reads (another expert of the mixture) where there is such;
    else anything of a width that its inputs are a multiple of.
    """
    by_name = {layer.name: layer for layer in map.layers}
    reached = [layer for layer in map.layers if layer.name not in map.unreached]
    said: set[str] = set()
    for assignment in assignments:
        rule = recipe.rules[assignment.rule]
        if rule.protect or rule.group == "depth" or in_one_tensor(rule.group):
            continue
        narrowed = [group for name in assignment.coupled if (group := map.by_name[name]).protected is None]
        reading = {name for group in narrowed for name in group.layers}
        for name in map.unreached:
            alike = dict(_alike(by_name[name], reached))
            expert = next((part for other, part in alike.items() if other in reading), None)
            if alike and expert is None:
                continue  # its like reads nothing that is narrowed
            if expert is not None:
                text = f"expert '{expert}' was not visited, and what it reads is narrowed"
            elif any(_may_read(by_name[name], group.width) for group in narrowed):
                text = f"no call reaches '{name}', and what it reads may be narrowed"
            else:
                continue
            if text not in said:
                said.add(text)
                yield assignment.rule, text, _REACH
        for name in map.in_training:
            text = f"'{name}' runs in train mode alone: it is narrowed, and what it computes is not compared"
            if name in reading and text not in said:
                said.add(text)
                yield assignment.rule, text, _KEEP


def _alike(layer: Layer, others: Iterable[Layer]) -> Iterator[tuple[str, str]]:
    """(such a layer at the same place in another entry of a list of modules, entry that this one is in)."""
    parts = layer.name.split(".")
    for other in others:
        theirs = other.name.split(".")
        if (other.type, other.weight, len(theirs)) != (layer.type, layer.weight, len(parts)):
            continue
        differ = [at for at, (a, b) in enumerate(zip(parts, theirs, strict=True)) if a != b]
        if len(differ) == 1 and parts[differ[0]].isdigit() and theirs[differ[0]].isdigit():
            yield other.name, ".".join(parts[: differ[0] + 1])


def _may_read(layer: Layer, width: int) -> bool:
    """Whether a layer that was not seen running may read so many channels, or maps of them made flat."""
    if layer.type in ("Embedding", "EmbeddingBag"):
        return False
    sizes = (layer.inputs,) if layer.inputs else layer.weight
    return any(size % width == 0 for size in sizes)


def _uneven(positions: Positions, plan: Plan) -> Iterable[Problem]:
    """Rules that ask for the same number in groups of different widths."""
    for assignment in plan.assignments:
        widths = {plan.map.by_name[name].width: name for name in reversed(assignment.coupled)}
        if plan.recipe.rules[assignment.rule].keep.uniform and len(widths) > 1:
            shown = ", ".join(f"'{name}' has {width}" for width, name in sorted(widths.items())[:3])
            message = f"the layers of the rule have different numbers of groups: {shown}"
            yield positions.problem(
                f"rules.{assignment.rule}.keep.uniform", message, "give each width a rule of its own"
            )


def _strangers(recipe: Recipe, positions: Positions, map: ModelMap) -> Iterable[Problem]:
    """Limits of layers that the model does not have, or has in other widths."""
    known = [layer.name for layer in map.layers]
    for index, rule in enumerate(recipe.rules):
        origin = next((o for o in positions.origins if o.rule == index), None)
        for name in rule.keep.limits:
            if name not in known:
                near = get_close_matches(name, known, 1) if origin is None else []
                found = (
                    "have the limits found for this model: sparsify sensitivity RECIPE MODEL --limits 1pp"
                    if origin is None
                    else _anew(origin)
                )
                hint = f"did you mean '{near[0]}'?" if near else found
                yield positions.problem(
                    f"rules.{index}.keep.limits", f"the model has no layer '{name}'", hint
                )
    for origin in positions.origins:
        if other := _other_widths(origin, map):
            message = (
                f"{origin.file} has the limits of a network in which "
                f"{other[0]}{f' ({len(other) - 1} more)' if other[1:] else ''}"
            )
            yield positions.problem(f"rules.{origin.rule}.keep.limits", message, _anew(origin))


def _elsewhere(positions: Positions, map: ModelMap) -> Iterable[str]:
    """Limits that were found for a network that only looks like this one."""
    for origin in positions.origins:
        if origin.profile.network not in (None, map.network) and not _other_widths(origin, map):
            yield (
                f"rules.{origin.rule}: {origin.file} has the limits of another network, with layers of the "
                f"same names and widths; {_anew(origin)}"
            )


def _other_widths(origin: Origin, map: ModelMap) -> tuple[str, ...]:
    """How the network that limits were found for differs in width from this one."""
    pairs = [
        (curve, map.by_name[curve.group].width)
        for curve in origin.profile.curves
        if curve.group in map.by_name
    ]
    return tuple(
        f"'{curve.group}' has {curve.width} units, and here it has {width}"
        for curve, width in pairs
        if curve.width != width
    )


def _anew(origin: Origin) -> str:
    return f"delete {origin.file} and have the limits of this network found: {origin.command}"


def _floors(plan: Plan, budget: Budget, clocks: Sequence[LatencyModel] = ()) -> Iterable[Floor]:
    costs = Costs(plan.map, clocks)
    allowed = absolute_limits(budget, costs.dense)
    bottom = costs.of(least(plan, clocks))
    for what, limit in allowed.items():
        yield Floor(what, costs.dense[what], limit, bottom[what])


def _infeasible(
    positions: Positions, plan: Plan, path: str, budget: Budget, floors: Iterable[Floor]
) -> Iterable[Problem]:
    covered = {name for a in plan.assignments for name in a.coupled}
    for floor in floors:
        if floor.least <= floor.limit:
            continue
        protected = [c.name for c in plan.map.coupled if c.protected is not None]
        free = [c.name for c in plan.map.coupled if c.protected is None and c.name not in covered]
        part, target = f"{100 * floor.least / floor.dense:.1f}%", floor.what.removeprefix("latency.")
        if target in budget.latency and floor.what != target:
            message = (
                f"{budget.latency[target]} cannot be reached: with everything removed that the rules allow, "
                f"{part} of {milliseconds(floor.dense)} is predicted to remain"
            )
        else:
            message = (
                f"{getattr(budget, floor.what)} cannot be reached: with everything removed that the rules "
                f"allow, {part} remains"
            )
        hint = (
            f"raise it to {_round_up(100 * floor.least / floor.dense)}%"
            if floor.least <= floor.dense
            else "leave it out"
        )
        kept = [f"'{name} {n}'" for name, n in _keeps(plan) if n > 1]
        kept += ["'limits'"] if any(rule.keep.limits for rule in plan.recipe.rules) else []
        if kept:
            hint += f", or loosen {' and '.join(kept)} of 'keep'"
        fixed = [
            f"rules.{a.rule}"
            for a in plan.assignments
            if plan.recipe.rules[a.rule].sparsity is not None and a.coupled
        ]
        if fixed:
            hint += f", or leave the amount of {' and '.join(fixed)} to the budget in place of its 'sparsity'"
        if free:
            hint += f", or let a rule reach {', '.join(free[:5])}{', ...' if len(free) > 5 else ''}"
        if protected:
            hint += f" (protected: {', '.join(protected[:5])}{', ...' if len(protected) > 5 else ''})"
        yield positions.problem(f"{path}.{floor.what}", message, hint)


def _keeps(plan: Plan) -> tuple[tuple[str, int], tuple[str, int]]:
    """The strictest bounds that rules set."""
    rules = plan.recipe.rules
    at_least = max((rules[a.rule].keep.at_least or 1 for a in plan.assignments), default=1)
    return ("at_least", at_least), ("multiple_of", max((a.multiple for a in plan.assignments), default=1))


def _unreachable(positions: Positions, plan: Plan) -> Iterable[Problem]:
    """Rules that ask for more than they can remove.
    Half a group is rounding, as where the result is judged."""
    open_groups = with_floors(plan, candidates(plan, {}, {}), lambda c: (float(c.rule),))
    shapes = {t.name: t.shape for t in plan.map.tensors}
    for together in ranked_together(plan):
        rule = plan.recipe.rules[together[0].rule]
        if (
            rule.sparsity is None
            or rule.group is None
            or facts_of(rule.group).keep == "nothing"
            or not rule.sparsity.value
        ):
            continue
        path, asked = f"rules.{together[0].rule}.sparsity", f"{rule.sparsity} cannot be reached"
        own = [c for c in open_groups if c.rule in {a.rule for a in together}]
        inside = (
            [count_inside(rule.group, shapes[name]) for a in together for name in a.tensors if name in shapes]
            if in_one_tensor(rule.group)
            else []
        )
        total = sum(len(c.order) for c in own) + sum(inside)
        most = sum(len(c.gone(len(c.order))) for c in own) + sum(
            max(0, n - (rule.keep.at_least or 1)) for n in inside
        )
        why = [text for a in together for text in _kept(plan.recipe, plan.map, a)]
        if not own and not inside and why:
            yield positions.problem(
                path,
                f"{asked}: {why[0]}{', and so on' if why[1:] else ''}",
                "select other layers, or leave 'sparsity' out",
            )
        elif most < rule.sparsity.fraction * total - 0.5:
            floors = [
                f"keep.{name} {n}"
                for name, n in (
                    ("at_least", rule.keep.at_least or 1),
                    ("multiple_of", max(a.multiple for a in together)),
                )
                if n > 1
            ]
            floors += ["keep.limits"] if rule.keep.limits else []
            because = f"with {' and '.join(floors)}" if floors else "as one group stays in every layer,"
            message = f"{asked}: {because} at most {1000 * most // total / 10:g}% of the groups can go"
            yield positions.problem(path, message, "lower it, or loosen 'keep'" if floors else "lower it")


def _round_up(percent: float) -> str:
    return f"{-(-percent * 10 // 1) / 10:.1f}"
