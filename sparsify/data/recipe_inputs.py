"""Draw example inputs for a forward call of the model, or for several calls of its methods."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.data.examples import Datasets
from sparsify.errors import DataError
from sparsify.forward.calls import Call, Inputs, simplify_inputs
from sparsify.forward.free_memory import check_memory
from sparsify.forward.fresh_inputs import Draw, draw_tensor
from sparsify_schemas.model import Call as Called
from sparsify_schemas.model import Input
from sparsify_schemas.recipe import Recipe

Entry = Input | tuple[Input | None, ...] | None


_COPIES = 4
"""of example inputs that are held at once: they are called on, converted to float64, and drawn anew"""


def example_inputs(
    recipe: Recipe, datasets: Datasets | None = None, batch: int | None = 2, seed: int = 0
) -> Inputs:
    """Inputs for `batch` examples.

    As `inputs` or `calls` of the recipe say, else the first training examples.

    Where the recipe names no range, floats are normal, integers are 0 and 1, booleans are mixed.

    Args:
        batch: Length of the dimension that counts examples, in tensors that have one; None keeps every shape.
        seed: Of the random numbers.

    Raises:
        DataError: The recipe has neither inputs nor data, or one input does not fit the data.
    """
    if recipe.inputs is None and recipe.calls is None:
        return _take_examples(datasets, 2 if batch is None else batch)
    calls = _list_calls(recipe)
    if recipe.inputs is not None:
        _check_single([entry for _, entry in _list_entries(calls[0])], datasets)
    generator = torch.Generator().manual_seed(seed)
    return simplify_inputs(tuple(_draw_call(called, batch, generator) for called in calls))


def open_integers(recipe: Recipe) -> tuple[frozenset[str], ...]:
    """For each call, the paths of integers and booleans without `values` and `range` in the recipe."""
    return tuple(
        frozenset(path for path, entry in _list_entries(called) if _is_open(entry))
        for called in _list_calls(recipe)
    )


def _is_open(entry: Input) -> bool:
    return (
        entry.dtype in ("int64", "int32", "bool")
        and entry.range is None
        and entry.values is None
        and not entry.is_plain
    )


def _list_calls(recipe: Recipe) -> tuple[Called, ...]:
    if recipe.calls is not None:
        return recipe.calls
    return () if recipe.inputs is None else (Called(inputs=recipe.inputs),)


def _list_arguments(called: Called) -> dict[str, Entry]:
    """Name or index -> entry."""
    if isinstance(called.inputs, Mapping):
        return dict(called.inputs)
    return {str(index): entry for index, entry in enumerate(called.inputs)}


def _list_entries(called: Called) -> Iterator[tuple[str, Input]]:
    """(path, entry) of everything that is not null."""
    for name, argument in _list_arguments(called).items():
        if isinstance(argument, Input):
            yield name, argument
        for place, entry in enumerate(argument) if isinstance(argument, tuple) else ():
            if entry is not None:
                yield f"{name}.{place}", entry


def _draw_call(called: Called, batch: int | None, generator: torch.Generator) -> Call:
    axes = _find_axes(called)

    def value_of(entry: Input | None, path: str) -> Any:
        if entry is None:
            return None
        return entry.value if entry.is_plain else _draw_tensor(entry, axes[path], batch, generator)

    made: dict[str, Any] = {}
    for name, argument in _list_arguments(called).items():
        if isinstance(argument, tuple):
            made[name] = [value_of(entry, f"{name}.{place}") for place, entry in enumerate(argument)]
        else:
            made[name] = value_of(argument, name)
    inputs = made if isinstance(called.inputs, Mapping) else tuple(made.values())
    return Call(called.method, inputs, batch=axes)


def _find_axes(called: Called) -> dict[str, int | None]:
    """Path of each tensor -> the dimension that counts examples.

    It is the one that the recipe states, else the first dimension if it is as long as that of the first
    tensor.
    """
    found = {path: entry for path, entry in _list_entries(called) if not entry.is_plain}
    size = next(
        (_count_examples(entry) for entry in found.values() if _count_examples(entry) is not None), None
    )
    axes: dict[str, int | None] = {}
    for path, entry in found.items():
        own = entry.dimensions
        if entry.batch is None:
            axes[path] = 0 if own and own[0] == size else None
        else:
            axes[path] = None if entry.batch == "none" else entry.batch
    return axes


def _count_examples(entry: Input) -> int | None:
    """The number of examples in an entry."""
    if entry.batch == "none" or not entry.dimensions:
        return None
    return entry.dimensions[entry.batch or 0]


def _draw_tensor(entry: Input, axis: int | None, batch: int | None, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    if entry.values is not None:
        given = torch.tensor(entry.values).to(dtype)
        if axis is None or batch is None:
            return given
        return given.index_select(axis, torch.arange(batch) % given.shape[axis])
    shape = list(entry.dimensions)
    if axis is not None and batch is not None:
        shape[axis] = batch
    size = _COPIES * math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    what = f"example inputs of {_format_shape(tuple(shape))}, with copies for trial calls,"
    check_memory(size, what, "name a smaller shape", DataError)
    return draw_numbers(entry, tuple(shape), dtype, generator)


def draw_numbers(
    entry: Input, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Random numbers of an entry without `values`."""
    is_whole = not dtype.is_floating_point
    if entry.range is not None:
        low, high = entry.range
        how = Draw("integers", low, high - 1) if is_whole else Draw("uniform", low, high)
    else:
        how = Draw("integers", 0, 1) if is_whole else Draw("normal")
    return draw_tensor(how, shape, dtype, generator)


def _take_examples(datasets: Datasets | None, batch: int) -> Inputs:
    if datasets is None:
        raise DataError(
            "the recipe has neither 'inputs' nor 'data'; "
            "say what a forward call takes, such as inputs: [{shape: [2, 3, 32, 32]}]"
        )
    drawn = datasets.train[torch.arange(batch) % len(datasets.train)].ready()
    if isinstance(drawn, Mapping):
        return dict(drawn)
    return drawn if isinstance(drawn, tuple) else (drawn,)


def _check_single(entries: list[Input], datasets: Datasets | None) -> None:
    """A single input receives the examples, so its rank and channels must be theirs.

    Height and width may differ.
    """
    if datasets is None or len(entries) != 1 or entries[0].is_plain:
        return
    example = datasets.train[:1].loaded().inputs
    if not isinstance(example, Tensor):
        return
    said, real = entries[0].dimensions[1:], tuple(example.shape[1:])
    if len(said) != len(real) or said[:1] != real[:1]:
        raise DataError(
            f"an example in 'inputs' is {_format_shape(said)}, but in the data {_format_shape(real)}; "
            "leave 'inputs' out to take the shape from the data"
        )


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
