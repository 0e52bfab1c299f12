"""Read the data of a recipe: its source, the split into training and validation set, the preprocessing."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.data import arrays, callables, cifar, digits, files, folder, huggingface, idx
from sparsify.data.columns import IGNORED, Column, Varied, leaves
from sparsify.data.examples import Datasets, Examples
from sparsify.data.targets import convert_targets, holds_pixels
from sparsify.data.transforms import try_transforms
from sparsify.errors import DataError
from sparsify_schemas.data import Data
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.task import Task

Pair = tuple[Examples, Examples]
CLASSIFICATION = Task()


def load_data(spec: Data, seed: int, task: Task = CLASSIFICATION, *, reads_test: bool = True) -> Datasets:
    """Read the training, validation and test examples of a recipe's `data`, with targets as its task takes
    them.

    The seed draws the validation set when `split` is random. Without `reads_test` the test set is empty, and
    nothing is read of what a callable returns for it. Raises DataError, which says what is missing or
    damaged, and which command downloads a built-in data set.
    """
    train, test = _read_source(spec, task, reads_test)
    _check_examples(spec, _take_first(train), _take_first(test if reads_test else train))
    train, test = (replace(part, workers=spec.workers, pin=spec.pin) for part in (train, test))
    if spec.normalize is not None:
        mean, std = spec.normalize.mean, spec.normalize.std
        train, test = replace(train, mean=mean, std=std), replace(test, mean=mean, std=std)
    if task.collate is not None:
        collate = callables.read_collate(task.collate)
        train, test = replace(train, collate=collate), replace(test, collate=collate)
    classes = 0
    if task.kind == "classification" and train.read is None and isinstance(train.targets, Tensor):
        classes = 1 + max(int(part.targets.max()) for part in (train, test) if len(part))
    training, validation = _split_examples(train, spec, seed)
    return Datasets(training, validation, test, classes)


def _take_first(examples: Examples) -> Examples:
    """What checks look at: everything in memory, or two examples of those that are read when needed."""
    return examples if examples.read is None else examples[:2].loaded()


def data_for_inputs(recipe: Recipe) -> Datasets | None:
    """Read the data where example inputs are taken from it.

    The recipe has `data` and no `inputs` or `calls`.
    """
    if recipe.data is None or recipe.inputs is not None or recipe.calls is not None:
        return None
    return load_data(recipe.data, recipe.seed, recipe.task)


def _read_source(spec: Data, task: Task, reads_test: bool) -> Pair:
    if ":" in spec.source and not (spec.is_table or spec.is_text):
        return callables.read_callable(spec, task, reads_test)
    train, test = _read_files(spec, task)
    return train, test if reads_test else train[:0]


def _read_files(spec: Data, task: Task) -> Pair:
    if spec.is_table or spec.is_text:
        return files.read_files(spec, task)
    if spec.source == "huggingface":
        return huggingface.read_huggingface(spec, task)
    if spec.source.endswith(".npz"):
        return arrays.read_npz(files.find_path(spec, spec.source), task)
    parts = _read_classes(spec, task)
    is_masked = spec.source == "folder" and task.kind == "segmentation"
    return parts if is_masked else _with_targets_of(task, parts, spec)


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


def _read_classes(spec: Data, task: Task) -> Pair:
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
            return folder.read_folder(Path(spec.root or "").expanduser(), spec.size, spec.channels, task)
        case source:
            raise DataError(f"unknown source '{source}'")


def _find_root(spec: Data) -> Path:
    return Path(spec.root or os.environ.get("SPARSIFY_DATA") or "~/.cache/sparsify").expanduser()


def _check_examples(spec: Data, train: Examples, test: Examples) -> None:
    if isinstance(train.inputs, Tensor):
        _check_images(spec, train.inputs)
    elif _are_images(train.inputs) and not spec.augment.is_used:
        _check_images(spec, train.inputs.items[0][None])
    elif spec.normalize is not None or spec.augment.is_used:
        key = "augment" if spec.normalize is None else "normalize"
        raise DataError(
            f"data.{key} acts on one tensor of images; "
            f"the examples of '{spec.source}' are {describe_column(train.inputs)}; "
            f"{'give all images one size, or ' if _are_images(train.inputs) else ''}leave data.{key} out"
        )
    if spec.augment.crop:
        _check_borders(train)
    if spec.augment.transforms:
        try_transforms(train, spec.augment.transforms)
    if not _have_one_form(train.inputs, test.inputs):
        shapes = describe_column(train.inputs), describe_column(test.inputs)
        if shapes[0] == shapes[1]:
            shapes = describe_column(train.inputs, True), describe_column(test.inputs, True)
        raise DataError(f"'{spec.source}': training examples are {shapes[0]}, test examples are {shapes[1]}")


def _check_borders(train: Examples) -> None:
    """Raises DataError where masks move, and what comes in from outside does not fit their type."""
    for leaf in leaves(train.targets):
        if holds_pixels(leaf, train.inputs.shape[-2:]) and leaf.dtype in (torch.uint8, torch.uint16):
            raise DataError(
                f"data.augment.crop fills masks with {IGNORED}, which {_name_type(leaf)} cannot hold; return "
                "masks as int64"
            )


def _have_one_form(train: Column, test: Column) -> bool:
    """Whether two sets have examples of one form: shape and type, or type where shapes vary."""
    if isinstance(train, Tensor | Varied) or isinstance(test, Tensor | Varied):
        if isinstance(train, Tensor) and isinstance(test, Tensor):
            return (train.shape[1:], train.dtype) == (test.shape[1:], test.dtype)
        return _list_forms(train) == _list_forms(test)
    if isinstance(train, Mapping) and isinstance(test, Mapping):
        return set(train) == set(test) and all(_have_one_form(train[name], test[name]) for name in train)
    if isinstance(train, tuple) and isinstance(test, tuple):
        return len(train) == len(test) and all(map(_have_one_form, train, test))
    return False


def _list_forms(column: Column) -> set[Any]:
    """Type and number of dimensions of the examples in a column."""
    if isinstance(column, Tensor):
        return {(column.dtype, column.dim() - 1)}
    items = column.items if isinstance(column, Varied) else (column,)
    return {(item.dtype, item.dim()) if isinstance(item, Tensor) else type(item) for item in items}


def _are_images(column: Column) -> bool:
    """Whether a column holds images of different sizes with as many channels each."""
    if not isinstance(column, Varied) or not all(isinstance(item, Tensor) for item in column.items):
        return False
    return len({(item.dim(), item.dtype, item.shape[:1]) for item in column.items}) == 1 and (
        column.items[0].dim() == 3
    )


def _check_images(spec: Data, inputs: Tensor) -> None:
    shape, shape_text = tuple(inputs.shape[1:]), describe_column(inputs)
    if spec.normalize is not None and len(spec.normalize.mean) != shape[0]:
        raise DataError(
            f"data.normalize has {len(spec.normalize.mean)} means, "
            f"but the examples of '{spec.source}' are {shape_text} and need {shape[0]}; write a mean and a "
            "std for each"
        )
    if spec.normalize is not None and not (inputs.dtype.is_floating_point or inputs.dtype == torch.uint8):
        raise DataError(
            f"data.normalize needs pixels or real numbers; "
            f"the inputs of '{spec.source}' are {_name_type(inputs)}; leave it out"
        )
    if spec.normalize is not None:
        _check_normalization(spec.normalize.mean, spec.normalize.std)
    if spec.augment.is_used and len(shape) != 3:
        raise DataError(
            "data.augment changes images (channels, height, width); "
            f"the examples of '{spec.source}' are {shape_text}; leave it out"
        )


def _check_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Refuse what float32 cannot hold: a std that becomes 0, a mean that becomes infinite."""
    for value in (0.0, 1.0):
        pixels = (value - torch.tensor(mean, dtype=torch.float32)) / torch.tensor(std, dtype=torch.float32)
        for place, found in enumerate(pixels.tolist()):
            if not abs(found) <= 1e30:
                raise DataError(
                    f"data.normalize makes a pixel of {value:g} {found:.1e} in channel {place} "
                    f"(mean {mean[place]:g}, std {std[place]:g}); mean and std are those of pixels in 0..1"
                )


def describe_column(column: Column, with_type: bool = False) -> str:
    """The shape of one example: '1x28x28', 'input_ids: varying, attention_mask: varying'; its type where
    that is whole numbers, or everywhere if asked for."""
    if isinstance(column, Tensor):
        shape = "x".join(map(str, column.shape[1:])) or "a single number"
        return f"{shape} {_name_type(column)}" if with_type or column.dtype == torch.int64 else shape
    if isinstance(column, Varied):
        types = sorted({_name_type(item) for item in column.items})
        return "of varying shape" + (f" {', '.join(types)}" if with_type else "")
    if isinstance(column, Mapping):
        parts = [f"{name}: {describe_column(part, with_type)}" for name, part in column.items()]
        return ", ".join(parts)
    return ", ".join(describe_column(part, with_type) for part in column)


def _name_type(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__


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
