"""Columns: one part of all examples, such as their inputs, as tensors, mappings and tuples of these, or
lists.

A column of N examples is

    Tensor [N, ...]          examples of one shape
    Varied                   N values that do not stack: sequences of different lengths, boxes, text
    Mapping or tuple         of columns, each of N
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORED = -100
"""the target of pixels and tokens that no loss and no metric counts"""


@dataclass(frozen=True, eq=False)
class Varied:
    """N values, a tensor each where they are numbers, of different shapes."""

    items: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.items)


Column = Any
"""Tensor | Varied | Mapping[str, Column] | tuple[Column, ...]"""


def count_examples(column: Any) -> int:
    """N of a column, or of a batch: the length of its first tensor or list. 0 where it has no parts."""
    if isinstance(column, Tensor | Varied | list):
        return len(column)
    parts = _parts(column)
    return count_examples(parts[0]) if parts else 0


def select(column: Column, index: Tensor | slice) -> Column:
    """The examples at some places."""
    if isinstance(column, Tensor):
        return column[index]
    if isinstance(column, Varied):
        places = index.tolist() if isinstance(index, Tensor) else range(len(column))[index]
        return Varied(tuple(column.items[place] for place in places))
    return map_parts(column, lambda part: select(part, index))


def map_parts(column: Column, change: Callable[[Column], Any]) -> Any:
    """A mapping or tuple with `change(part)` in place of each part."""
    if isinstance(column, Mapping):
        return {name: change(part) for name, part in column.items()}
    return tuple(change(part) for part in column)


def map_leaves(column: Column, change: Callable[[Tensor | Varied], Any]) -> Any:
    """A column with `change(leaf)` in place of each tensor and list."""
    if isinstance(column, Tensor | Varied):
        return change(column)
    return map_parts(column, lambda part: map_leaves(part, change))


def leaves(column: Column) -> list[Tensor | Varied]:
    """Every tensor or list of a column, in order."""
    if isinstance(column, Tensor | Varied):
        return [column]
    return [leaf for part in _parts(column) for leaf in leaves(part)]


def stack(values: Sequence[Any]) -> Column:
    """The column of N values: mappings and tuples part by part, numbers and tensors stacked where they fit.

    Raises ValueError where values differ in kind, such as a mapping without a key that others have.
    """
    first = values[0]
    if isinstance(first, Mapping):
        for value in values:
            if not isinstance(value, Mapping) or set(value) != set(first):
                raise ValueError(f"{_keys(value)} where the first example has {_keys(first)}")
        return {str(name): stack([value[name] for value in values]) for name in first}
    if isinstance(first, tuple):
        for value in values:
            if not isinstance(value, tuple) or len(value) != len(first):
                raise ValueError(f"{_keys(value)} where the first example has {_keys(first)}")
        return tuple(stack([value[place] for value in values]) for place in range(len(first)))
    tensors = [_tensor(value) for value in values]
    if any(tensor is None for tensor in tensors):
        return Varied(tuple(values))
    found = [tensor for tensor in tensors if tensor is not None]
    same = all(tensor.shape == found[0].shape and tensor.dtype == found[0].dtype for tensor in found)
    return torch.stack(found) if same else Varied(tuple(found))


def _keys(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"keys {', '.join(map(str, value))}"
    return f"{len(value)} parts" if isinstance(value, tuple) else f"a {type(value).__name__}"


def _tensor(value: Any) -> Tensor | None:
    """A tensor of a number, an array or a list of numbers; None of anything else."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return None
    if array.dtype.kind not in "biuf":
        return None
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch computes little in these
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))


def scale_pixels(value: Any) -> Any:
    """One example with images of 16 bits as float32 in 0..1, since others of them would become whole
    numbers."""
    if isinstance(value, Mapping | tuple):
        return map_parts(value, scale_pixels)
    is_image = isinstance(value, Tensor | np.ndarray) and value.ndim >= 2
    if is_image and str(value.dtype).removeprefix("torch.") == "uint16":
        return divide_by_65535(torch.as_tensor(value))
    return value


def divide_by_65535(pixels: Tensor) -> Tensor:
    """Pixels of 16 bits as float32 in 0..1."""
    return pixels.float().div_(65535)


def pad(column: Column, filler: float) -> Column:
    """The column with lists of tensors padded at their ends to the longest, in every dimension.

    Lists of something else, and of tensors with different numbers of dimensions, stay lists.
    """
    if isinstance(column, Tensor):
        return column
    if not isinstance(column, Varied):
        return map_parts(column, lambda part: pad(part, filler))
    tensors = [item for item in column.items if isinstance(item, Tensor)]
    if len(tensors) < len(column) or len({tensor.dim() for tensor in tensors}) != 1:
        return column
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    dtype = tensors[0].dtype
    padded = torch.full((len(tensors), *shape), filler, dtype=dtype)
    for place, tensor in enumerate(tensors):
        corner = tuple(slice(size) for size in tensor.shape)
        padded[place][corner] = tensor.to(dtype)
    return padded


def add_masks(inputs: Column) -> Column:
    """Mappings with `input_ids` of different lengths get the `attention_mask` that they lack: 1 at tokens."""
    if not isinstance(inputs, Mapping) or "attention_mask" in inputs:
        return inputs
    tokens = inputs.get("input_ids")
    if not isinstance(tokens, Varied):
        return inputs
    masks = tuple(torch.ones_like(item) for item in tokens.items)
    return {**inputs, "attention_mask": Varied(masks)}


def as_values(column: Column) -> Any:
    """What a batch hands on: a list in place of each `Varied`."""
    if isinstance(column, Tensor):
        return column
    return list(column.items) if isinstance(column, Varied) else map_parts(column, as_values)


def split_values(value: Any, count: int) -> list[Any]:
    """A batch in at most `count` parts, as `torch.chunk` makes them: tensors, lists, mappings and tuples
    alike."""
    if isinstance(value, Tensor):
        return list(value.chunk(count))
    if isinstance(value, list):
        size = -(-len(value) // count)
        return [value[start : start + size] for start in range(0, len(value), size)]
    if isinstance(value, Mapping):
        parts = {name: split_values(part, count) for name, part in value.items()}
        return [dict(zip(parts, chosen, strict=True)) for chosen in zip(*parts.values(), strict=True)]
    return list(zip(*(split_values(part, count) for part in value), strict=True))


def first_of(value: Any) -> Any:
    """The first example of a batch, without the dimension that counts them."""
    return value[0] if isinstance(value, Tensor | list) else map_parts(value, first_of)


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else list(value)
