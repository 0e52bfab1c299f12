"""Data of a recipe -> Datasets: reads the source, splits off the validation set, sets the preprocessing."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from sparsify.data import arrays, cifar, digits, folder, idx
from sparsify.data.examples import Datasets, Examples
from sparsify.errors import DataError
from sparsify_schemas.data import Data

Pair = tuple[Examples, Examples]


def load_data(spec: Data, seed: int) -> Datasets:
    """Training, validation and test examples of a recipe's `data`.

    The seed draws the validation set when `split` is random. Raises DataError that says what is missing or broken,
    and the command that brings a built-in set when it is not there.
    """
    train, test = _read(spec)
    _check(spec, train, test)
    if spec.normalize is not None:
        train, test = (replace(e, mean=spec.normalize.mean, std=spec.normalize.std) for e in (train, test))
    rest, validation = _split(train, spec, seed)
    return Datasets(rest, validation, test, 1 + int(max(train.targets.max(), test.targets.max())))


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
                    "data.source folder needs data.root: the folder that holds train/<class>/ and test/<class>/"
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
    shown = "x".join(map(str, shape))
    if spec.normalize is not None and len(spec.normalize.mean) != shape[0]:
        raise DataError(
            f"data.normalize has {len(spec.normalize.mean)} means; the examples of '{spec.source}' are {shown} and need {shape[0]}"
        )
    if spec.normalize is not None and not (
        train.inputs.is_floating_point() or train.inputs.dtype == torch.uint8
    ):
        raise DataError(
            f"data.normalize needs pixels or real numbers; the inputs of '{spec.source}' are {str(train.inputs.dtype)[6:]}"
        )
    if (spec.augment.flip or spec.augment.crop) and len(shape) != 3:
        raise DataError(
            f"data.augment changes images (channels, height, width); the examples of '{spec.source}' are {shown}"
        )
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"'{spec.source}': training examples are {shown}, test examples {'x'.join(map(str, test.inputs.shape[1:]))}"
        )


def _split(train: Examples, spec: Data, seed: int) -> Pair:
    """Training examples without the validation share, and that share; both keep the order of the file."""
    count = round(len(train) * spec.validation.fraction)
    if count == len(train):
        raise DataError(
            f"data.validation of {spec.validation} leaves none of the {len(train)} training examples to train on"
        )
    order = torch.arange(len(train))
    if spec.split == "random":
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    kept = len(train) - count
    return train[order[:kept].sort().values], train[order[kept:].sort().values]
