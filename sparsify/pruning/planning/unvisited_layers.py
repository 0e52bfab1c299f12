"""Layers that no call has shown, while what they read may be narrowed."""

from collections.abc import Iterable, Iterator, Sequence

from sparsify.graph.layer_types import layer_type_of
from sparsify.graph.model_map import Layer, ModelMap
from sparsify.pruning.planning.plan import Assignment
from sparsify_schemas.group import in_one_tensor, removes_branches, removes_experts
from sparsify_schemas.recipe import Recipe

_REACH = "write 'calls' that reach it, protect what it reads, or run without --strict"


_KEEP = "protect what it reads, or run without --strict"


def find_unproven_layers(
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
        if rule.protect or removes_branches(rule.group) or in_one_tensor(rule.group):
            continue
        if removes_experts(rule.group):
            continue  # whole experts leave: nothing that one reads is narrowed
        narrowed = [group for name in assignment.coupled if (group := map.by_name[name]).protected is None]
        reading = {name for group in narrowed for name in group.layers}
        for name in map.unreached:
            alike = dict(_find_twins(by_name[name], reached))
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


def _find_twins(layer: Layer, others: Iterable[Layer]) -> Iterator[tuple[str, str]]:
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
    if layer_type_of(layer.kind).reads_indices:
        return False
    sizes = (layer.inputs,) if layer.inputs else layer.weight
    return any(size % width == 0 for size in sizes)
