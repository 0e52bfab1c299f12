"""Compiling: recipe + model map -> plan, or every reason why the recipe does not fit the model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from math import gcd, lcm, prod
from types import MappingProxyType

from sparsify.choose import candidates, least, with_floors
from sparsify.clock import Clock
from sparsify.costs import Costs, limits
from sparsify.errors import Problem, RecipeError
from sparsify.figures import milliseconds
from sparsify.load import Loaded
from sparsify.plan import Assignment, Branch, Coupled, Floor, Layer, ModelMap, Plan, ranked_together
from sparsify.rounds import own_budgets
from sparsify_schemas.budget import Budget
from sparsify_schemas.group import Block, Group, Kind, Pattern, count_inside, in_one_tensor, kind_of
from sparsify_schemas.recipe import Recipe, Rule
from sparsify_schemas.selector import selects
from sparsify_schemas.table import Steps

_CONVS, _LINEAR = ("Conv1d", "Conv2d", "Conv3d"), ("Linear", "NonDynamicallyQuantizableLinear")
ACTS_ON: dict[Kind, tuple[str, tuple[str, ...]]] = {
    "filter": ("convolutions", ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")),
    "channel": ("convolutions", ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")),
    "neuron": ("Linear layers and embeddings", ("Linear", "Conv1D", "Bilinear", "Embedding", "EmbeddingBag")),
    "head": ("linear projections of an attention", ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear", "MultiheadAttention")),
    "hidden": ("recurrent layers", ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")),
    "depth": ("residual blocks and branches", ()),
    "weight": ("layers with a weight matrix", ()),
    "shape": ("convolutions without groups and Linear layers", _CONVS + _LINEAR),
    "tap": ("convolutions", _CONVS),
    "block": ("convolutions and Linear layers", _CONVS + _LINEAR),
    "n:m": ("convolutions and Linear layers", _CONVS + _LINEAR),
}
NO_STEPS: Mapping[str, Steps] = MappingProxyType({})


def compile_plan(
    loaded: Loaded, map: ModelMap, *, strict: bool = False, clocks: Sequence[Clock] = (), steps: Mapping[str, Steps] = NO_STEPS
) -> Plan:
    """Resolve every rule against a model.

    clocks: of the targets whose latency the budget limits; steps: width steps of the recipe's targets, for `multiple_of: auto`.
    Raises RecipeError with all problems at once: a rule that matches nothing or the wrong kind of layer, two rules on
    one layer or one coupled group, a budget below the floor, a `sparsity` above what a rule can remove; with `strict` also
    every layer that had to be protected.
    """
    recipe = loaded.recipe
    problems: list[Problem] = []
    map = _protected(loaded, map, problems)
    assignments = tuple(replace(a, multiple=_multiple(recipe, a.rule, steps)) for a in _assignments(loaded, map, problems))
    notes = tuple(_notes(recipe, map, assignments))
    plan = Plan(recipe, map, assignments, notes=notes)
    if strict:
        advice = "write 'protect: true' for it, or run without --strict"
        problems += [loaded.problem(f"rules.{a.rule}.layers", text, advice) for a in assignments for text in _kept(recipe, map, a)]
    problems += _uneven(loaded, plan)
    if not problems:
        plan = replace(plan, floors=tuple(_floors(plan, recipe.budget, clocks)))
        problems += [*_infeasible(loaded, plan, "budget", recipe.budget, plan.floors), *_unreachable(loaded, plan)]
        for path, budget in own_budgets(recipe):
            problems += _infeasible(loaded, plan, f"{path}.budget", budget, _floors(plan, budget))
    if problems:
        raise RecipeError(problems)
    return plan


def _multiple(recipe: Recipe, rule: int, steps: Mapping[str, Steps]) -> int:
    """What kept widths are multiples of. `auto` follows from the targets whose latency is budgeted, else from all."""
    asked, group = recipe.rules[rule].keep.multiple_of, recipe.rules[rule].group
    if isinstance(asked, int):
        return asked
    names = list(recipe.budget.latency) or (list(recipe.targets) if asked == "auto" else [])
    found = [steps[name] for name in names if name in steps]
    match group:
        case "filter" | "channel":
            return max((step.convolution for step in found), default=1)
        case "neuron":
            return max((step.linear for step in found), default=1)
        case _:
            return 1


def _matched(loaded: Loaded, map: ModelMap, index: int, problems: list[Problem]) -> list[Layer]:
    """The layers of one rule, of the kind that its group acts on."""
    rule = loaded.recipe.rules[index]
    if rule.group == "depth":
        return _matched_branches(loaded, map, index, problems)
    found: dict[str, Layer] = {}
    for _at, pattern in enumerate(rule.layers):
        hits = [layer for layer in map.layers if selects((pattern,), layer.name, layer.type)]
        if not hits and not (rule.protect and any(selects((pattern,), b.module, b.type) for b in map.branches)):
            problems.append(loaded.problem(f"rules.{index}.layers", f"'{pattern}' matches no layer of the model", _near(pattern, map)))
        fitting = [layer for layer in hits if _acts_on(map, rule, layer)]
        if hits and not fitting and rule.group is not None:
            what = ACTS_ON[kind_of(rule.group)][0]
            shown = ", ".join(f"{layer.name} ({layer.type})" for layer in hits[:3])
            linear = rule.group in ("filter", "channel") and all(layer.type == "Linear" for layer in hits)
            advice = "use group 'neuron'" if linear else "select other layers"
            problems.append(loaded.problem(f"rules.{index}.layers", f"group '{rule.group}' acts on {what}, but '{pattern}' matches only {shown}", advice))
        without = [layer for layer in fitting if rule.group == "head" and not _of_rule(map, rule, layer)]
        if without and len(without) == len(fitting):
            shown = ", ".join(layer.name for layer in without[:3])
            problems.append(loaded.problem(f"rules.{index}.layers", f"there are no heads in {shown}: the rows leave one by one", "use group 'neuron'"))
        found |= {layer.name: layer for layer in fitting}
    return list(found.values())


def _matched_branches(loaded: Loaded, map: ModelMap, index: int, problems: list[Problem]) -> list[Layer]:
    """The residual blocks and branches of one rule; of those inside each other the outermost."""
    hits: list[Branch] = []
    for pattern in loaded.recipe.rules[index].layers:
        own = [b for b in map.branches if selects((pattern,), b.module, b.type)]
        if not own:
            text = f"'{pattern}' matches no residual block or branch of the model"
            problems.append(loaded.problem(f"rules.{index}.layers", text, _known_branches(map)))
        hits += [b for b in own if b not in hits]
    free = [b for b in hits if b.group.protected is None]
    outermost = [b for b in free if not any(o is not b and len(o.tensors) > len(b.tensors) and o.overlaps(b) for o in free)]
    inner = {b.module for b in hits if any(b.module.startswith(f"{o.module}.") or o.module.startswith(f"{b.module}.") for o in outermost)}
    stuck = [b for b in hits if b.group.protected is not None and b.module not in inner]
    return [Layer(b.name, b.type, (), b.macs, 0, 0) for b in map.branches if b in outermost or b in stuck]


def _known_branches(map: ModelMap) -> str:
    names = [b.module for b in map.branches if b.group.protected is None]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"those that can leave are {shown}" if names else "none of its branches can leave; use another group"


def _acts_on(map: ModelMap, rule: Rule, layer: Layer) -> bool:
    if rule.group is None:
        return bool(layer.weight) or bool(_bare(map, layer))
    kind = kind_of(rule.group)
    if kind == "weight":
        return len(layer.weight) > 1
    if kind in ("filter", "neuron") and _bare(map, layer):
        return True
    grouped = len(layer.weight) > 2 and layer.weight[1] != layer.inputs
    return layer.type in ACTS_ON[kind][1] and not (kind == "shape" and grouped)


def _bare(map: ModelMap, layer: Layer) -> list[Coupled]:
    """Groups made by a parameter that a network's own module holds without a layer; they go by the parameter's name."""
    tensors = {t.name for t in map.tensors if t.name.rpartition(".")[0] == layer.name}
    return [c for c in map.coupled if c.name in tensors]


def _near(pattern: str, map: ModelMap) -> str:
    names = [layer.name for layer in map.layers] + sorted({layer.type for layer in map.layers})
    close = [*_near_globs(pattern, map), *get_close_matches(pattern, names, n=1)]
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"the layers are {shown}"


def _near_globs(pattern: str, map: ModelMap) -> Iterable[str]:
    """'covn*' -> 'conv*': the longest literal part of a glob replaced by a part of a name that is like it."""
    if pattern.startswith("re:") or not set(pattern) & set("*?["):
        return
    literal = max(re.split(r"[*?.]|\[[^]]*\]?", pattern), key=len) or pattern
    parts = {part for layer in map.layers for part in layer.name.split(".")}
    for part in get_close_matches(literal, sorted(parts | {part.rstrip("0123456789") for part in parts}), n=3):
        glob = pattern.replace(literal, part)
        if any(selects((glob,), layer.name, layer.type) for layer in map.layers):
            yield glob


def _protected(loaded: Loaded, map: ModelMap, problems: list[Problem]) -> ModelMap:
    """The map with the groups of protected layers marked, and the residual branches that they are in."""
    for index, rule in enumerate(loaded.recipe.rules):
        if not rule.protect:
            continue
        for layer in _matched(loaded, map, index, problems):
            own = {c.name for c in _reached(map, layer, "out")}
            why = f"rules.{index} protects '{layer.name}'"
            coupled = tuple(replace(c, protected=c.protected or why) if c.name in own else c for c in map.coupled)
            map = replace(_with_branch_kept(map, layer.name, why), coupled=coupled)
        for branch in [b for b in map.branches if selects(rule.layers, b.module, b.type)]:
            map = _with_branch_kept(map, branch.module, f"rules.{index} protects '{branch.module}'")
    return map


def _with_branch_kept(map: ModelMap, module: str, why: str) -> ModelMap:
    """The map with those residual branches marked to stay that a module is in."""
    held = {b.name for b in map.branches if b.holds(module)}
    return replace(map, branches=tuple(replace(b, group=replace(b.group, protected=b.group.protected or why)) if b.name in held else b for b in map.branches))


def _reached(map: ModelMap, layer: Layer, role: str) -> list[Coupled]:
    return [c for c in map.coupled if any(s.tensor in _matrices(layer) and s.role == role for s in c.slices) or (role == "out" and (c.name == layer.name or c in _bare(map, layer)))]


def _matrices(layer: Layer) -> set[str]:
    """The weight of a layer, under the names that it may have in torch: an attention has projections, a parametrized
    layer has what its weight is computed from."""
    attention = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return {*layer.weights, *(f"{layer.name}.{name}" for name in attention)}


def _assignments(loaded: Loaded, map: ModelMap, problems: list[Problem]) -> Iterable[Assignment]:
    rules = loaded.recipe.rules
    layers: dict[int, list[Layer]] = {i: _matched(loaded, map, i, problems) for i, rule in enumerate(rules) if not rule.protect}
    claimed: dict[tuple[str, str], int] = {}
    owner: dict[str, tuple[int, str]] = {}
    for index, own in layers.items():
        rule = rules[index]
        for layer in own:
            first = claimed.setdefault((layer.name, str(rule.group)), index)
            if first != index and not rule.override:
                problems.append(_taken(loaded, index, f"layer '{layer.name}' already has group '{rule.group}' by rules.{first}"))
                continue
            claimed[layer.name, str(rule.group)] = index
            for group in [g for c in _of_rule(map, rule, layer) for g in (c, *_around(map, c))]:
                before, through = owner.get(group.name, (index, layer.name))
                if group.protected is None and before != index and first == index and not rule.override:
                    text = f"'{layer.name}' leaves together with '{through}', which rules.{before} already has (coupled group '{group.name}')"
                    problems.append(_taken(loaded, index, text))
                    continue
                owner[group.name] = (index, layer.name)
    problems += [*_conflicts(loaded, layers), *_indivisible(loaded, map, layers)]
    for index, own in layers.items():
        rule = rules[index]
        mine = [layer for layer in own if claimed[layer.name, str(rule.group)] == index]
        names = [c.name for layer in mine for c in _of_rule(map, rule, layer) if owner[c.name][0] == index and c.protected is None]
        tensors = [name for layer in mine for name in _weights(rule, map, layer) if in_one_tensor(rule.group) or any(c.protected is None and owner[c.name][0] == index for c in _of_rule(map, rule, layer))]
        yield Assignment(index, tuple(layer.name for layer in mine), tuple(dict.fromkeys(names)), tuple(tensors))


def _conflicts(loaded: Loaded, layers: Mapping[int, Sequence[Layer]]) -> Iterable[Problem]:
    """Rules on groups inside one tensor of which the later would undo what the earlier counts on."""
    rules = loaded.recipe.rules
    first: dict[tuple[str, str], int] = {}
    for index, own in layers.items():
        group = rules[index].group
        if group is None or kind_of(group) not in _CLASH:
            continue
        kind = kind_of(group)
        for layer in own:
            rival = next((i for other in _CLASH[kind] if (i := first.get((layer.name, other))) is not None), None)
            first.setdefault((layer.name, kind), index)
            if rival is None or rules[rival].group == group:
                continue
            text = f"layer '{layer.name}' has group '{rules[rival].group}' by rules.{rival}, which group '{group}' cannot be laid over"
            yield loaded.problem(f"rules.{index}.layers", text, "narrow one of the two selectors")


_CLASH: dict[Kind, tuple[Kind, ...]] = {
    "n:m": ("n:m", "shape", "tap"),
    "block": ("shape", "tap"),
    "shape": ("n:m", "block"),
    "tap": ("n:m", "block"),
}
"""n:m patterns of other numbers; and what lies in a row is torn apart where columns leave"""


def _indivisible(loaded: Loaded, map: ModelMap, layers: Mapping[int, Sequence[Layer]]) -> Iterable[Problem]:
    """Weights that blocks or n:m patterns do not divide, as they are or as another rule may leave them."""
    for index, own in layers.items():
        group = loaded.recipe.rules[index].group
        for layer in own:
            for dim, size, of in _laid(group, layer):
                what = f"{size} {'outputs' if dim == 0 else 'inputs' if isinstance(group, Pattern) else 'columns (inputs x kernel positions)'}"
                if size % of:
                    text = f"group '{group}' does not divide '{layer.name}', which has {what}"
                    yield loaded.problem(f"rules.{index}.layers", text, "choose a pattern that divides it, or select other layers")
                    continue
                yield from _narrowing(loaded, map, layers, index, layer, dim, of)


def _laid(group: Group | None, layer: Layer) -> Iterable[tuple[int, int, int]]:
    """(dimension, its length, what must divide it) of a weight, for patterns."""
    match group:
        case Pattern():
            yield 1, layer.weight[1], group.of
        case Block():
            yield 0, layer.weight[0], group.rows
            yield 1, prod(layer.weight[1:]), group.columns


def _narrowing(loaded: Loaded, map: ModelMap, layers: Mapping[int, Sequence[Layer]], index: int, layer: Layer, dim: int, of: int) -> Iterable[Problem]:
    """Rules that may narrow the dimension to a width that the pattern does not divide."""
    rules = loaded.recipe.rules
    written = {i: rule.keep.multiple_of for i, rule in enumerate(rules)}
    multiple = {i: value if isinstance(value, int) else 1 for i, value in written.items()}  # what auto comes to may change with the machine
    kernel = prod(layer.weight[2:]) if isinstance(rules[index].group, Block) and dim == 1 else 1
    for other, own in layers.items():
        reached = {c.name: c for each in own for c in _of_rule(map, rules[other], each) if c.protected is None}
        for c in reached.values():
            steps = [span.repeat * kernel for s in c.slices if (s.tensor, s.dim) == (f"{layer.name}.weight", dim) for span in s.spans]
            if any(step * multiple[other] % of for step in steps):
                need = lcm(*(of // gcd(of, step) for step in steps))
                text = f"rules.{other} may narrow '{layer.name}' to a width that group '{rules[index].group}' does not divide"
                yield loaded.problem(f"rules.{index}.layers", text, f"write 'keep: {{multiple_of: {need}}}' in rules.{other}")
                break


def _taken(loaded: Loaded, index: int, text: str) -> Problem:
    return loaded.problem(f"rules.{index}.layers", text, "narrow one of the two selectors, or say 'override: true' in the later rule")


def _of_rule(map: ModelMap, rule: Rule, layer: Layer) -> list[Coupled]:
    match rule.group:
        case "filter" | "neuron":
            return _reached(map, layer, "out")
        case "head":
            return [c for c in _reached(map, layer, "out") if _rows(c, layer) > 1]
        case "hidden":
            return [c for c in map.coupled if any(s.tensor.startswith(f"{layer.name}.weight_hh") for s in c.slices)]
        case "depth":
            return [map.by_name[layer.name]]
        case "channel":
            depthwise = layer.weight[1:2] == (1,) and layer.inputs == layer.outputs > 1
            return _reached(map, layer, "out" if depthwise else "in")
        case _:
            return []


def _around(map: ModelMap, group: Coupled) -> list[Coupled]:
    """The residual branches that contain this one or a part of it."""
    own = next((b for b in map.branches if b.group is group), None)
    return [] if own is None else [b.group for b in map.branches if b is not own and b.overlaps(own)]


def _rows(group: Coupled, layer: Layer) -> int:
    """How many rows of a layer's weight leave with one unit."""
    own = [s for s in group.slices if s.tensor in _matrices(layer) and s.role == "out"]
    return sum(span.units * span.repeat for s in own for span in s.spans) // max(group.width, 1)


def _weights(rule: Rule, map: ModelMap, layer: Layer) -> list[str]:
    """The tensors of a layer that a penalty of single weights or of the layer's own slices covers."""
    if rule.group == "depth":
        own = {s.tensor for s in map.by_name[layer.name].slices}
        return [t.name for t in map.tensors if t.name in own and t.parameter and t.shape]
    if rule.group == "hidden":
        return [t.name for t in map.tensors if t.name.startswith(f"{layer.name}.weight_")]
    return [t.name for t in map.tensors if t.name in _matrices(layer)] or [f"{layer.name}.weight"]


_STAYS = "weights are set to zero and stay in the tensors; this brings no speed and no smaller file"
_IN_ONE_TENSOR: dict[Kind, str] = {
    "weight": _STAYS,
    "block": _STAYS,
    "n:m": _STAYS,
    "shape": "layers gather their live columns only where that is measured to be faster at the cut; elsewhere zeros stay in the tensors",
    "tap": "kernels shrink to the smallest regular grid that holds their live positions; zeros between them stay in the tensors",
}


def _notes(recipe: Recipe, map: ModelMap, assignments: Sequence[Assignment]) -> Iterable[str]:
    """What a reader of the plan must know: layers that a rule names and that keep their width, and why."""
    for assignment in assignments:
        rule = recipe.rules[assignment.rule]
        yield from (f"rules.{assignment.rule}: {text}" for text in _kept(recipe, map, assignment))
        if in_one_tensor(rule.group):
            yield f"rules.{assignment.rule}: {_IN_ONE_TENSOR[kind_of(rule.group)] if rule.group else ''}"
        changing = [n for n in assignment.coupled if map.by_name[n].statistics]
        if changing:
            yield f"rules.{assignment.rule}: cutting {', '.join(repr(n) for n in changing)} changes the statistics of a normalisation; outputs will differ until fine-tuned"


def _kept(recipe: Recipe, map: ModelMap, assignment: Assignment) -> Iterable[str]:
    """Layers of one rule that keep their width, residual branches that stay, and why."""
    by_name, rule = {layer.name: layer for layer in map.layers}, recipe.rules[assignment.rule]
    said: set[str] = set()
    if rule.group == "depth":
        yield from (f"'{name}' stays: {why}" for name in assignment.layers if (why := map.by_name[name].protected) is not None)
        return
    for name in assignment.layers:
        groups = _of_rule(map, rule, by_name[name])
        if rule.group == "channel" and not groups:
            yield f"'{name}' keeps its width: nothing that could be narrowed feeds it"
        for group in groups:
            if group.protected is not None and group.name not in said:
                said.add(group.name)
                yield f"'{name}' keeps its width: {group.protected}"


def _uneven(loaded: Loaded, plan: Plan) -> Iterable[Problem]:
    """Rules that ask for the same number in groups of different widths."""
    for assignment in plan.assignments:
        widths = {plan.map.by_name[name].width: name for name in reversed(assignment.coupled)}
        if plan.recipe.rules[assignment.rule].keep.uniform and len(widths) > 1:
            shown = ", ".join(f"'{name}' has {width}" for width, name in sorted(widths.items())[:3])
            message = f"the layers of the rule have different numbers of groups: {shown}"
            yield loaded.problem(f"rules.{assignment.rule}.keep.uniform", message, "give each width a rule of its own")


def _floors(plan: Plan, budget: Budget, clocks: Sequence[Clock] = ()) -> Iterable[Floor]:
    costs = Costs(plan.map, clocks)
    allowed = limits(budget, costs.dense)
    bottom = costs.of(least(plan, clocks))
    for what, limit in allowed.items():
        yield Floor(what, costs.dense[what], limit, bottom[what])


def _infeasible(loaded: Loaded, plan: Plan, path: str, budget: Budget, floors: Iterable[Floor]) -> Iterable[Problem]:
    reached = {name for a in plan.assignments for name in a.coupled}
    for floor in floors:
        if floor.least <= floor.limit:
            continue
        protected = [c.name for c in plan.map.coupled if c.protected is not None]
        free = [c.name for c in plan.map.coupled if c.protected is None and c.name not in reached]
        part, target = f"{100 * floor.least / floor.dense:.1f}%", floor.what.removeprefix("latency.")
        if target in budget.latency and floor.what != target:
            message = f"{budget.latency[target]} cannot be reached: with everything removed that the rules allow, {part} of {milliseconds(floor.dense)} is predicted to remain"
        else:
            message = f"{getattr(budget, floor.what)} cannot be reached: with everything removed that the rules allow, {part} remains"
        hint = f"raise it to {_round_up(100 * floor.least / floor.dense)}%"
        kept = [f"'{name} {n}'" for name, n in _keeps(plan) if n > 1]
        if kept and target != floor.what:
            hint += f", or loosen {' and '.join(kept)} of 'keep'"
        if free:
            hint += f", or let a rule reach {', '.join(free[:5])}{', ...' if len(free) > 5 else ''}"
        if protected:
            hint += f" (protected: {', '.join(protected[:5])}{', ...' if len(protected) > 5 else ''})"
        yield loaded.problem(f"{path}.{floor.what}", message, hint)


def _keeps(plan: Plan) -> tuple[tuple[str, int], tuple[str, int]]:
    """The strictest bounds that rules set."""
    rules = plan.recipe.rules
    at_least = max((rules[a.rule].keep.at_least or 1 for a in plan.assignments), default=1)
    return ("at_least", at_least), ("multiple_of", max((a.multiple for a in plan.assignments), default=1))


def _unreachable(loaded: Loaded, plan: Plan) -> Iterable[Problem]:
    """Rules that ask for more than they can remove. Half a group is rounding, as where the result is judged."""
    open_groups = with_floors(plan, candidates(plan, {}, {}), lambda c: (float(c.rule),))
    shapes = {t.name: t.shape for t in plan.map.tensors}
    for together in ranked_together(plan):
        rule = plan.recipe.rules[together[0].rule]
        if rule.sparsity is None or rule.group is None or rule.group == "weight" or isinstance(rule.group, Block) or not rule.sparsity.value:
            continue
        path, asked = f"rules.{together[0].rule}.sparsity", f"{rule.sparsity} cannot be reached"
        own = [c for c in open_groups if c.rule in {a.rule for a in together}]
        inside = [count_inside(rule.group, shapes[name]) for a in together for name in a.tensors if name in shapes] if in_one_tensor(rule.group) else []
        total = sum(len(c.order) for c in own) + sum(inside)
        most = sum(len(c.gone(len(c.order))) for c in own) + sum(max(0, n - (rule.keep.at_least or 1)) for n in inside)
        why = [text for a in together for text in _kept(plan.recipe, plan.map, a)]
        if not own and not inside and why:
            yield loaded.problem(path, f"{asked}: {why[0]}{', and so on' if why[1:] else ''}", "select other layers, or leave 'sparsity' out")
        elif most < rule.sparsity.fraction * total - 0.5:
            floors = [f"keep.{name} {n}" for name, n in (("at_least", rule.keep.at_least or 1), ("multiple_of", max(a.multiple for a in together))) if n > 1]
            because = f"with {' and '.join(floors)}" if floors else "as one group stays in every layer,"
            message = f"{asked}: {because} at most {1000 * most // total / 10:g}% of the groups can go"
            yield loaded.problem(path, message, "lower it, or loosen 'keep'" if floors else "lower it")


def _round_up(percent: float) -> str:
    return f"{-(-percent * 10 // 1) / 10:.1f}"
