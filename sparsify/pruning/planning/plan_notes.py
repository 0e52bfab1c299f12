"""What a reader of the plan must know: layers that keep their width, and what becomes of zeros."""

from collections.abc import Iterable, Sequence

from sparsify.graph.model_map import ModelMap
from sparsify.pruning.planning.group_types import (
    find_groups,
    group_type_of,
)
from sparsify.pruning.planning.plan import Assignment
from sparsify_schemas.group import Group, in_one_tensor, removes_branches, removes_experts
from sparsify_schemas.recipe import Recipe


def _describe_zeros(group: Group) -> str:
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


def write_notes(recipe: Recipe, map: ModelMap, assignments: Sequence[Assignment]) -> Iterable[str]:
    """What a reader of the plan must know: layers that a rule names and that keep their width, and why."""
    for assignment in assignments:
        rule = recipe.rules[assignment.rule]
        yield from (
            f"rules.{assignment.rule}: {text}" for text in describe_kept_layers(recipe, map, assignment)
        )
        if rule.group is not None and in_one_tensor(rule.group):
            yield f"rules.{assignment.rule}: {_describe_zeros(rule.group)}"
        changing = [n for n in assignment.coupled if map.by_name[n].statistics]
        if changing:
            yield (
                f"rules.{assignment.rule}: cutting {', '.join(repr(n) for n in changing)} changes the "
                "statistics of a normalisation; outputs will differ until fine-tuned"
            )


def describe_kept_layers(recipe: Recipe, map: ModelMap, assignment: Assignment) -> Iterable[str]:
    """Layers of one rule that keep their width, residual branches and mixtures that stay, and why."""
    by_name, rule = {layer.name: layer for layer in map.layers}, recipe.rules[assignment.rule]
    said: set[str] = set()
    if removes_branches(rule.group) or removes_experts(rule.group):
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
