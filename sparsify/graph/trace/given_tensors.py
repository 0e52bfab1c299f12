"""Tensors that a module is given for its heads, and that no layer makes: it can select those of its own.

The slopes of ALiBi times the positions are made once for all layers, from the number of heads. What a module
is given may lose heads where these meet heads of its own layers.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from sparsify.graph.surgery.width_names import is_head_count
from sparsify.graph.trace.axis_labels import AxisLabels, SharedLength
from sparsify.graph.trace.rule_api import Follower


def list_own_numbers(module: nn.Module) -> frozenset[int]:
    """The integers of a module, also those in tuples and lists."""
    found: set[int] = set()
    for value in vars(module).values():
        numbers = value if isinstance(value, tuple | list) else (value,)
        found.update(number for number in numbers if type(number) is int)
    return frozenset(found)


def count_heads(module: nn.Module) -> frozenset[int]:
    """The integers of a module that count several heads, as their names say."""
    held = vars(module).items()
    return frozenset(n for key, n in held if type(n) is int and n > 1 and is_head_count(key))


def offer_given(
    w: Follower, module: str, counts: Collection[int], args: Any, kwargs: Any
) -> list[tuple[Tensor, AxisLabels]]:
    """Let the heads of tensors without labels that a module is given follow what they meet in it.

    counts: its numbers of heads; along dimension 0 they may come again for each example. The innermost module
    that is given a tensor selects. Returns the tensors, with their labels before.
    """
    before = []
    for argument, value in (*enumerate(args), *kwargs.items()) if counts else ():
        if not isinstance(value, Tensor) or value.dim() < 3 or not value.is_floating_point():
            continue
        own = w.labels_unread(value)
        if own.aspects or any(cell.argument is None for _, cell in own.flexible):
            continue
        dims = {dim for dim in (0, 1) for count in counts if _has_heads(value, dim, count)}
        cells = frozenset((dim, SharedLength(None, module, argument, dim)) for dim in dims)
        if cells:
            before.append((value, own))
            w.set_labels(value, AxisLabels(own.shape, flexible=cells))
    return before


def _has_heads(given: Tensor, dim: int, count: int) -> bool:
    return given.shape[dim] == count or (dim == 0 and given.shape[0] % count == 0)
