"""Which layers of a rule keep equal widths: all of them by `keep.uniform`, else those of a transformer's
blocks."""

import re
from collections.abc import Mapping

from sparsify.graph.model_map import ModelMap
from sparsify.graph.name_kinds import name_kind
from sparsify.pruning.planning.plan import Assignment, Plan
from sparsify_schemas.group import removes_branches

_LAST_NUMBER = re.compile(r"(?:.*\.)?\d+(?=\.|$)")
"""the beginning of a name up to its last number: `encoder.layer.3` of `encoder.layer.3.attention`"""


def find_equal_layers(plan: Plan, assignment: Assignment) -> dict[str, str]:
    """Coupled group -> name of the set that keeps equal widths with it; groups of no set are left out."""
    rule = plan.recipe.rules[assignment.rule]
    if removes_branches(rule.group) or rule.keep.uniform is False:
        return {}
    if rule.keep.uniform:
        return dict.fromkeys(assignment.coupled, f"rules.{assignment.rule}")
    if rule.penalty is not None:
        return {}
    places = _find_places(plan.map, assignment.coupled)
    sizes: dict[str, int] = {}
    for place in places.values():
        sizes[place] = sizes.get(place, 0) + 1
    return {name: f"rules.{assignment.rule} {place}" for name, place in places.items() if sizes[place] > 1}


def _find_places(map: ModelMap, names: tuple[str, ...]) -> Mapping[str, str]:
    """Coupled group within a transformer's block -> its place there and its width."""
    blocks = _list_blocks(map)
    found = {}
    for name in names:
        block = max((b for b in blocks if name.startswith(f"{b}.")), key=len, default=None)
        if block is not None:
            anywhere = name_kind(block)
            found[name] = f"{anywhere}{name.removeprefix(block)} of {map.by_name[name].width}"
    return found


def _list_blocks(map: ModelMap) -> set[str]:
    """Numbered modules in which queries meet keys."""
    blocks = set()
    for group in map.coupled:
        if group.paired:
            match = _LAST_NUMBER.match(_find_common_parent(group.layers))
            if match is not None:
                blocks.add(match.group())
    return blocks


def _find_common_parent(names: tuple[str, ...]) -> str:
    """The innermost module that holds all of the layers, or is the only one."""
    parts = [name.split(".") for name in names]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)
