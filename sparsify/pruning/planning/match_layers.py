"""Reaching: which layers a rule names, and which coupled groups,
residual branches and tensors it speaks of there."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from sparsify.errors import Problem
from sparsify.graph.model_map import Branch, Coupled, Layer, Mixture, ModelMap
from sparsify.pruning.planning.group_types import find_bare_groups, find_groups, group_type_of
from sparsify.recipe import Positions
from sparsify.recipe.odd_characters import name_odd_character
from sparsify_schemas.group import in_one_tensor, removes_branches, removes_experts
from sparsify_schemas.penalty import GroupLasso
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Rule

_MANY = 8
"""names that a message lists at most"""


def match_layers(
    recipe: Recipe, positions: Positions, map: ModelMap, index: int, problems: list[Problem]
) -> list[Layer]:
    """The layers of one rule, of the kind that its group acts on."""
    rule = recipe.rules[index]
    if removes_branches(rule.group):
        return _match_branches(recipe, positions, map, index, problems)
    if removes_experts(rule.group):
        return _match_mixtures(recipe, positions, map, index, problems)
    found: dict[str, Layer] = {}
    for _at, pattern in enumerate(rule.layers):
        hits = [layer for layer in map.layers if layer.is_selected((pattern,))]
        parts: tuple[Branch | Mixture, ...] = (*map.branches, *map.mixtures)
        if not hits and not (rule.protect and any(part.is_selected((pattern,)) for part in parts)):
            problems.append(
                positions.problem(
                    f"rules.{index}.layers",
                    f"'{pattern}' matches no layer of the model",
                    _suggest_names(pattern, map),
                )
            )
        fitting = [layer for layer in hits if _acts_on(map, rule, layer)]
        if hits and not fitting and rule.group is not None:
            row = group_type_of(rule.group)
            shown = ", ".join(f"{layer.name} ({layer.type})" for layer in hits[:3])
            linear = bool(row.instead) and all(layer.kind == "Linear" for layer in hits)
            advice = f"use group '{row.instead}'" if linear else "select other layers"
            problems.append(
                positions.problem(
                    f"rules.{index}.layers",
                    f"group '{rule.group}' acts on {row.acts_on}, but '{pattern}' matches only {shown}",
                    advice,
                )
            )
        refused = None if rule.group is None else group_type_of(rule.group).refused
        if refused and fitting and not any(find_groups(rule.group, map, layer) for layer in fitting):
            message, advice = refused
            shown = ", ".join(layer.name for layer in fitting[:3])
            problems.append(positions.problem(f"rules.{index}.layers", message.format(layers=shown), advice))
        found |= {layer.name: layer for layer in fitting}
    return list(found.values())


def find_reached_groups(recipe: Recipe, map: ModelMap) -> frozenset[str]:
    """Names of the coupled groups in which some rule may choose units.

    They are all groups where a rule sets groups inside tensors to zero, as units of any group that die of it
    leave; and where residual branches leave, as whole groups leave with them.
    """
    choosing = [rule for rule in recipe.rules if not rule.protect and rule.group is not None]
    choosing = [rule for rule in choosing if not removes_experts(rule.group)]  # they are found by themselves
    if any(in_one_tensor(rule.group) or removes_branches(rule.group) for rule in choosing):
        return frozenset(group.name for group in map.coupled)
    found: set[str] = set()
    for rule in choosing:
        for layer in map.layers:
            if layer.is_selected(rule.layers):
                found.update(group.name for group in find_groups(rule.group, map, layer))
    return frozenset(found)


def _match_branches(
    recipe: Recipe, positions: Positions, map: ModelMap, index: int, problems: list[Problem]
) -> list[Layer]:
    """The residual blocks and branches of one rule; of those inside each other the outermost."""
    hits: list[Branch] = []
    for pattern in recipe.rules[index].layers:
        own = [b for b in map.branches if b.is_selected((pattern,))]
        if not own:
            text = f"'{pattern}' matches no residual block or branch of the model"
            problems.append(positions.problem(f"rules.{index}.layers", text, _describe_branches(map)))
        hits += [b for b in own if b not in hits]
    free = [b for b in hits if b.group.protected is None]
    outermost = [branch for branch in free if not _is_covered(branch, free)]
    inner = {branch.module for branch in hits if _is_nested(branch, outermost)}
    stuck = [b for b in hits if b.group.protected is not None and b.module not in inner]
    return [
        Layer(b.name, b.type, (), b.macs, 0, 0, b.ancestors)
        for b in map.branches
        if b in outermost or b in stuck
    ]


def _match_mixtures(
    recipe: Recipe, positions: Positions, map: ModelMap, index: int, problems: list[Problem]
) -> list[Layer]:
    """The mixtures of experts of one rule."""
    for pattern in recipe.rules[index].layers:
        if not any(mixture.is_selected((pattern,)) for mixture in map.mixtures):
            text = f"'{pattern}' matches no mixture of experts of the model"
            problems.append(positions.problem(f"rules.{index}.layers", text, _describe_mixtures(map)))
    hits = [mixture for mixture in map.mixtures if mixture.is_selected(recipe.rules[index].layers)]
    return [Layer(m.name, m.type, (), 0, 0, 0, m.ancestors) for m in hits]


def _describe_mixtures(map: ModelMap) -> str:
    if not map.mixtures:
        return "none was found: a list of modules that are built alike, or stacked weights, and a router"
    names = _join_names([m.plain or m.module or m.name for m in map.mixtures])
    classes = _join_names(sorted({name for m in map.mixtures for name in m.classes}))
    return f"the mixtures are {names}; their classes are {classes}"


def _is_covered(branch: Branch, others: Iterable[Branch]) -> bool:
    """Whether a larger one overlaps it."""
    larger = [other for other in others if len(other.tensors) > len(branch.tensors)]
    return any(other.overlaps(branch) for other in larger)


def _is_nested(branch: Branch, others: Iterable[Branch]) -> bool:
    """Whether it lies inside another one, or another one inside it."""
    for other in others:
        if branch.module.startswith(f"{other.module}.") or other.module.startswith(f"{branch.module}."):
            return True
    return False


def _describe_branches(map: ModelMap) -> str:
    free = [b for b in map.branches if b.group.protected is None]
    if not free:
        return "none of its branches can leave; use another group"
    names = _join_names([b.plain or b.module for b in free])
    classes = _join_names(_list_class_names(free))
    return f"those that can leave are {names}; their classes are {classes}"


def _acts_on(map: ModelMap, rule: Rule, layer: Layer) -> bool:
    if rule.group is None:
        return bool(layer.weight) or bool(find_bare_groups(map, layer))
    return group_type_of(rule.group).fits(map, layer)


def _suggest_writing(pattern: str) -> str:
    """For what other languages write: lists in one text, braces, a class with its package."""
    odd = name_odd_character(pattern)
    if odd:
        return odd
    if pattern.startswith("re:"):
        return ""
    inside = pattern[1:-1] if pattern.startswith("{") and pattern.endswith("}") else pattern
    names = [name.strip() for name in inside.split(",")]
    if len(names) > 1 and all(names) and not set(inside) & set("{}"):
        return f"write several layers as a list: [{', '.join(names)}]"
    if pattern.startswith("torch.nn.") or pattern.startswith("nn."):
        return f"write the class without its package: {pattern.rpartition('.')[2]}"
    return ""


def _suggest_names(pattern: str, map: ModelMap) -> str:
    written = _suggest_writing(pattern)
    if written:
        return written
    names = [layer.plain or layer.name for layer in map.layers if not layer.adapter]
    classes = _list_class_names([layer for layer in map.layers if not layer.adapter])
    close = [*_suggest_globs(pattern, map), *get_close_matches(pattern, [*names, *classes], n=1)]
    if close:
        return f"did you mean '{close[0]}'?"
    return f"the layers are {_join_names(names)}; their classes are {_join_names(classes)}"


def _list_class_names(parts: Iterable[Layer | Branch]) -> list[str]:
    """Every class name by which a rule reaches one of them, in alphabetical order."""
    return sorted({name for part in parts for name in part.classes})


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(names[:_MANY]) + (", ..." if len(names) > _MANY else "")


def _suggest_globs(pattern: str, map: ModelMap) -> Iterable[str]:
    """'covn*' -> 'conv*': the longest literal part of a glob replaced by a part of a name that is like it."""
    if pattern.startswith("re:") or not set(pattern) & set("*?["):
        return
    literal = max(re.split(r"[*?.]|\[[^]]*\]?", pattern), key=len) or pattern
    parts = {part for layer in map.layers for part in (layer.plain or layer.name).split(".")}
    for part in get_close_matches(
        literal, sorted(parts | {part.rstrip("0123456789") for part in parts}), n=3
    ):
        glob = pattern.replace(literal, part)
        if any(layer.is_selected((glob,)) for layer in map.layers):
            yield glob


def find_overlapping_branches(map: ModelMap, group: Coupled) -> list[Coupled]:
    """The residual branches that contain this one or a part of it."""
    own = next((b for b in map.branches if b.group is group), None)
    if own is None:
        return []
    return [branch.group for branch in map.branches if branch is not own and branch.overlaps(own)]


def find_overlapping_mixtures(map: ModelMap, group: Coupled) -> list[Coupled]:
    """The mixtures whose experts leave with units of a group, as those of a router whose rows are free to
    leave do; of a mixture, such groups."""
    shared = [(mixture.group, _list_shared_places(mixture)) for mixture in map.mixtures]
    for own, places in shared:
        if own is group:
            return [other for other in map.coupled if not places.isdisjoint(_list_places(other))]
    reached = _list_places(group)
    return [own for own, places in shared if not places.isdisjoint(reached)]


def _list_places(group: Coupled) -> set[tuple[str, int]]:
    return {(part.tensor, part.dim) for part in group.slices if part.role != "size"}


def _list_shared_places(mixture: Mixture) -> set[tuple[str, int]]:
    """(tensor, dimension) along which all experts lie: what an expert has to itself is narrowed by other
    groups as well."""
    places = set()
    for part in mixture.group.slices:
        if part.role != "size" and part.spans == mixture.experts:
            places.add((part.tensor, part.dim))
    return places


def find_target(spec: GroupLasso, recipe: Recipe) -> str:
    """The target by whose latency a penalty weighs."""
    return spec.target or next(iter(recipe.targets))


def list_weighing_targets(recipe: Recipe) -> list[str]:
    """The targets by whose latency any penalty weighs."""
    asking = [
        r.penalty for r in recipe.rules if isinstance(r.penalty, GroupLasso) and r.penalty.weight == "latency"
    ]
    return list(dict.fromkeys(find_target(spec, recipe) for spec in asking))
