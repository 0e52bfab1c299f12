"""Example inputs: what one forward call of the model takes."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sparsify.data.examples import Datasets
from sparsify.errors import DataError
from sparsify_schemas.model import Input
from sparsify_schemas.recipe import Recipe

Inputs = tuple[Tensor, ...] | dict[str, Tensor]


def example_inputs(recipe: Recipe, datasets: Datasets | None = None, batch: int = 2, seed: int = 0) -> Inputs:
    """Inputs for `batch` examples: random ones as `inputs` of the recipe says, else the first training examples.

    Random inputs are normal, or 0 and 1 where the type is an integer or bool. Their first dimension becomes `batch`
    wherever it equals that of the first input: a tensor without a batch dimension keeps its shape.
    Raises DataError when the recipe has neither inputs nor data, or when one input does not fit the data.
    """
    if recipe.inputs is None:
        return _real(datasets, batch)
    named = recipe.inputs if isinstance(recipe.inputs, dict) else dict(enumerate(recipe.inputs))
    _check(list(named.values()), datasets)
    generator = torch.Generator().manual_seed(seed)
    written = next(iter(named.values())).shape[0]
    drawn = {
        str(name): draw((batch if entry.shape[0] == written else entry.shape[0], *entry.shape[1:]), entry.dtype, generator)
        for name, entry in named.items()
    }
    return drawn if isinstance(recipe.inputs, dict) else tuple(drawn.values())


def inputs_like(recorded: Iterable[tuple[str | None, tuple[int, ...], str]], seed: int = 0) -> Inputs:
    """Random inputs such as were recorded: (keyword or None, shape, element type) of each, as in `ModelMap.inputs`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [(name, draw(tuple(shape), dtype, generator)) for name, shape, dtype in recorded]
    by_name = {name: value for name, value in drawn if name is not None}
    return by_name or tuple(value for _, value in drawn)


def _real(datasets: Datasets | None, batch: int) -> Inputs:
    if datasets is None:
        raise DataError(
            "the recipe has neither 'inputs' nor 'data'; say what a forward call takes, such as inputs: [{shape: [2, 3, 32, 32]}]"
        )
    return (datasets.train[torch.arange(batch) % len(datasets.train)].ready(),)


def draw(shape: tuple[int, ...], dtype: str, generator: torch.Generator) -> Tensor:
    """Normal numbers, or 0 and 1 where the type (named as in torch) is an integer or bool."""
    kind: torch.dtype = getattr(torch, dtype)
    if kind.is_floating_point or kind.is_complex:
        return torch.randn(shape, generator=generator).to(kind)
    return torch.randint(2, shape, generator=generator).to(kind)


def _check(entries: list[Input], datasets: Datasets | None) -> None:
    """One input is fed with the examples, so its rank and channels must be theirs; height and width may differ."""
    if datasets is None or len(entries) != 1:
        return
    said, real = entries[0].shape[1:], tuple(datasets.train.inputs.shape[1:])
    if len(said) != len(real) or said[:1] != real[:1]:
        raise DataError(
            f"inputs say that one example is {_shape(said)}, the data are {_shape(real)}; leave 'inputs' out to take the shape from the data"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"
