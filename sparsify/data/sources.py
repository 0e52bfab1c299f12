"""Read the data of a recipe: its source, the split into training and validation set, the preprocessing."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from sparsify.data import arrays, cifar, digits, folder, idx
from sparsify.data.examples import Datasets, Examples
from sparsify.errors import DataError
from sparsify_schemas.data import Data
from sparsify_schemas.recipe import Recipe

Pair = tuple[Examples, Examples]


def load_data(spec: Data, seed: int) -> Datasets:
    """Read the training, validation and test examples of a recipe's `data`.

    The seed draws the validation set when `split` is random. Raises DataError, which says what is missing
    or damaged, and which command downloads a built-in data set.
    """
    train, test = _read(spec)
    _check(spec, train, test)
    if spec.normalize is not None:
        mean, std = spec.normalize.mean, spec.normalize.std
        train, test = replace(train, mean=mean, std=std), replace(test, mean=mean, std=std)
    classes = 1 + int(max(train.targets.max(), test.targets.max()))
    training, validation = _split(train, spec, seed)
    return Datasets(training, validation, test, classes)


def data_for_inputs(recipe: Recipe) -> Datasets | None:
    """Read the data where example inputs are taken from it.

    The recipe has `data` and no `inputs` or `calls`.
    """
    if recipe.data is None or recipe.inputs is not None or recipe.calls is not None:
        return None
    return load_data(recipe.data, recipe.seed)


def _read(spec: Data) -> Pair:
    if spec.root is not None and (spec.source == "digits" or ":" in spec.source):
        raise DataError(f"data.root is not used by source '{spec.source}'; leave it out")
    match spec.source:
        case "digits":
            return digits.read()
        case "mnist":
            return idx.read(_root(spec), "MNIST")
        case "fashion_mnist":
            return idx.read(_root(spec), "FashionMNIST")
        case "cifar10":
            return cifar.read(_root(spec))
        case "folder":
            if spec.root is None:
                raise DataError(
                    "data.source 'folder' needs data.root, "
                    "the folder that holds train/<class>/ and test/<class>/"
                )
            return folder.read(Path(spec.root).expanduser(), spec.size)
        case source if source.endswith(".npz"):
            return arrays.read_npz(Path(spec.root or "").expanduser() / Path(source).expanduser())
        case source:
            return arrays.read_callable(source)


def _root(spec: Data) -> Path:
    return Path(spec.root or os.environ.get("SPARSIFY_DATA") or "~/.cache/sparsify").expanduser()


def _check(spec: Data, train: Examples, test: Examples) -> None:
    shape = tuple(train.inputs.shape[1:])
    shape_text = _describe_shape(shape)
    dtype = train.inputs.dtype
    if spec.normalize is not None and len(spec.normalize.mean) != shape[0]:
        raise DataError(
            f"data.normalize has {len(spec.normalize.mean)} means, "
            f"but the examples of '{spec.source}' are {shape_text} and need {shape[0]}"
        )
    if spec.normalize is not None and not (dtype.is_floating_point or dtype == torch.uint8):
        raise DataError(
            f"data.normalize needs pixels or real numbers; "
            f"the inputs of '{spec.source}' are {str(dtype).removeprefix('torch.')}"
        )
    if (spec.augment.flip or spec.augment.crop) and len(shape) != 3:
        raise DataError(
            "data.augment changes images (channels, height, width); "
            f"the examples of '{spec.source}' are {shape_text}"
        )
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"'{spec.source}': training examples are {shape_text}, "
            f"test examples are {_describe_shape(test.inputs.shape[1:])}"
        )


def _describe_shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _split(train: Examples, spec: Data, seed: int) -> Pair:
    """(training examples, validation examples); both keep the order of the file."""
    count = round(len(train) * spec.validation.fraction)
    if count == len(train):
        raise DataError(
            f"data.validation {spec.validation} leaves none of the {len(train)} examples for training"
        )
    order = torch.arange(len(train))
    if spec.split == "random":
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    kept = len(train) - count
    return train[order[:kept].sort().values], train[order[kept:].sort().values]
