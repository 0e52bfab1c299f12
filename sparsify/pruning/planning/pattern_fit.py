"""Whether blocks and n:m patterns divide the weights that they are laid over."""

from collections.abc import Iterable, Mapping, Sequence
from math import gcd, lcm, prod

from sparsify.errors import Problem
from sparsify.graph.model_map import Layer, ModelMap
from sparsify.pruning.planning.group_types import (
    find_groups,
)
from sparsify.recipe import Positions
from sparsify_schemas.group import Block, Group, Pattern
from sparsify_schemas.recipe import Recipe


def check_patterns(
    recipe: Recipe, positions: Positions, map: ModelMap, layers: Mapping[int, Sequence[Layer]]
) -> Iterable[Problem]:
    """Weights that blocks or n:m patterns do not divide, as they are or as another rule may leave them."""
    for index, own in layers.items():
        group = recipe.rules[index].group
        for layer in own:
            for dim, size, of in _list_pattern_dims(group, layer):
                if size % of:
                    what = "outputs" if dim == 0 else _describe_columns(group)
                    text = f"group '{group}' does not divide '{layer.name}', which has {size} {what}"
                    yield positions.problem(
                        f"rules.{index}.layers",
                        text,
                        "choose a pattern that divides it, or select other layers",
                    )
                    continue
                yield from _check_narrowing(recipe, positions, map, layers, index, layer, dim, of)


def _describe_columns(group: Group | None) -> str:
    """What lies along the second dimension that a pattern is laid over."""
    return "inputs" if isinstance(group, Pattern) else "columns (inputs x kernel positions)"


def _list_pattern_dims(group: Group | None, layer: Layer) -> Iterable[tuple[int, int, int]]:
    """(dimension, its length, what must divide it) of a weight, for patterns."""
    match group:
        case Pattern():
            yield 1, layer.weight[1], group.of
        case Block():
            yield 0, layer.weight[0], group.rows
            yield 1, prod(layer.weight[1:]), group.columns


def _check_narrowing(
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
    multiple = []
    for rule in rules:
        written = rule.keep.multiple_of
        # What auto comes to may change with the machine.
        multiple.append(written if isinstance(written, int) else 1)
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
