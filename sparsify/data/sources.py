"""Read the data of a recipe: its source, the split into training and validation set, the preprocessing."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sparsify.data import arrays, cifar, digits, folder, idx
from sparsify.data.columns import Column, Varied
from sparsify.data.examples import Datasets, Examples
from sparsify.data.targets import convert_targets
from sparsify.errors import DataError
from sparsify_schemas.data import Data
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.task import Task

Pair = tuple[Examples, Examples]
CLASSIFICATION = Task()


def load_data(spec: Data, seed: int, task: Task = CLASSIFICATION) -> Datasets:
    """Read the training, validation and test examples of a recipe's `data`, with targets as its task takes
    them.

    The seed draws the validation set when `split` is random. Raises DataError, which says what is missing
    or damaged, and which command downloads a built-in data set.
    """
    train, test = _read_source(spec, task)
    _check_examples(spec, train, test)
    if spec.normalize is not None:
        mean, std = spec.normalize.mean, spec.normalize.std
        train, test = replace(train, mean=mean, std=std), replace(test, mean=mean, std=std)
    if task.collate is not None:
        collate = arrays.read_collate(task.collate)
        train, test = replace(train, collate=collate), replace(test, collate=collate)
    classes = 0
    if task.kind == "classification" and isinstance(train.targets, Tensor):
        classes = 1 + int(max(train.targets.max(), test.targets.max()))
    training, validation = _split_examples(train, spec, seed)
    return Datasets(training, validation, test, classes)


def data_for_inputs(recipe: Recipe) -> Datasets | None:
    """Read the data where example inputs are taken from it.

    The recipe has `data` and no `inputs` or `calls`.
    """
    if recipe.data is None or recipe.inputs is not None or recipe.calls is not None:
        return None
    return load_data(recipe.data, recipe.seed, recipe.task)


def _read_source(spec: Data, task: Task) -> Pair:
    if ":" not in spec.source and not spec.source.endswith(".npz"):
        return _with_targets_of(task, _read_classes(spec), spec)
    if spec.source.endswith(".npz"):
        path = Path(spec.root or "").expanduser() / Path(spec.source).expanduser()
        return arrays.read_npz(path, task)
    _refuse_root(spec)
    return arrays.read_callable(spec, task)


def _with_targets_of(task: Task, parts: Pair, spec: Data) -> Pair:
    """Built-in sets hold classes; where the task is regression their inputs are the targets (an
    autoencoder)."""
    if task.kind == "classification" or task.kind == "own":
        return parts
    if task.kind != "regression":
        raise DataError(f"data.source '{spec.source}' holds classes, which a task of {task.kind} cannot use")
    train, test = (
        replace(part, targets=convert_targets(None, part.inputs, task, spec.source)) for part in parts
    )
    return train, test


def _refuse_root(spec: Data) -> None:
    if spec.root is not None:
        raise DataError(f"data.root is not used by source '{spec.source}'; leave it out")


def _read_classes(spec: Data) -> Pair:
    if spec.source == "digits":
        _refuse_root(spec)
    match spec.source:
        case "digits":
            return digits.read_digits()
        case "mnist":
            return idx.read_idx(_find_root(spec), "MNIST")
        case "fashion_mnist":
            return idx.read_idx(_find_root(spec), "FashionMNIST")
        case "cifar10":
            return cifar.read_cifar(_find_root(spec))
        case "folder":
            if spec.root is None:
                raise DataError(
                    "data.source 'folder' needs data.root, "
                    "the folder that holds train/<class>/ and test/<class>/"
                )
            return folder.read_folder(Path(spec.root).expanduser(), spec.size)
        case source:
            raise DataError(f"unknown source '{source}'")


def _find_root(spec: Data) -> Path:
    return Path(spec.root or os.environ.get("SPARSIFY_DATA") or "~/.cache/sparsify").expanduser()


def _check_examples(spec: Data, train: Examples, test: Examples) -> None:
    if isinstance(train.inputs, Tensor):
        _check_images(spec, train.inputs)
    elif spec.normalize is not None or spec.augment.flip or spec.augment.crop:
        key = "augment" if spec.normalize is None else "normalize"
        raise DataError(
            f"data.{key} acts on one tensor of images; "
            f"the examples of '{spec.source}' are {describe_column(train.inputs)}"
        )
    if describe_column(train.inputs) != describe_column(test.inputs):
        raise DataError(
            f"'{spec.source}': training examples are {describe_column(train.inputs)}, "
            f"test examples are {describe_column(test.inputs)}"
        )


def _check_images(spec: Data, inputs: Tensor) -> None:
    shape, shape_text = tuple(inputs.shape[1:]), describe_column(inputs)
    if spec.normalize is not None and len(spec.normalize.mean) != shape[0]:
        raise DataError(
            f"data.normalize has {len(spec.normalize.mean)} means, "
            f"but the examples of '{spec.source}' are {shape_text} and need {shape[0]}"
        )
    if spec.normalize is not None and not (inputs.dtype.is_floating_point or inputs.dtype == torch.uint8):
        raise DataError(
            f"data.normalize needs pixels or real numbers; "
            f"the inputs of '{spec.source}' are {str(inputs.dtype).removeprefix('torch.')}"
        )
    if (spec.augment.flip or spec.augment.crop) and len(shape) != 3:
        raise DataError(
            "data.augment changes images (channels, height, width); "
            f"the examples of '{spec.source}' are {shape_text}"
        )


def describe_column(column: Column) -> str:
    """The shape of one example: '1x28x28', 'input_ids: varying, attention_mask: varying'; its type where
    that is whole numbers."""
    if isinstance(column, Tensor):
        shape = "x".join(map(str, column.shape[1:])) or "a single number"
        return f"{shape} int64" if column.dtype == torch.int64 else shape
    if isinstance(column, Varied):
        return "of varying shape"
    if isinstance(column, Mapping):
        return ", ".join(f"{name}: {describe_column(part)}" for name, part in column.items())
    return ", ".join(map(describe_column, column))


def _split_examples(train: Examples, spec: Data, seed: int) -> Pair:
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
