"""Read examples from an .npz file, or from what a user's callable returns."""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsify.data.examples import Examples
from sparsify.errors import DataError
from sparsify.recipe.import_path import resolve

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> tuple[Examples, Examples]:
    """Read training and test examples from x_train, y_train, x_test, y_test. Pickled arrays are refused."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected an .npz with {', '.join(_NAMES)}")
    try:
        # Opened here, because numpy leaves a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [n for n in _NAMES if n not in archive.files]
            if missing:
                held = ", ".join(archive.files[:8]) or "nothing"
                raise DataError(f"{path}: has no {', '.join(missing)} (it holds {held})")
            x_train, y_train, x_test, y_test = (archive[n] for n in _NAMES)
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        KeyError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"{path}: cannot be read as an .npz of plain arrays ({error})") from error
    return _make_examples(x_train, y_train, f"{path}: x_train"), _make_examples(
        x_test, y_test, f"{path}: x_test"
    )


def read_callable(source: str) -> tuple[Examples, Examples]:
    """Call `package.module:callable`, which returns (train, test).

    Each is a pair (x, y) of arrays or a Dataset of such pairs.
    """
    try:
        function = resolve(source)
    except ImportError as error:
        raise DataError(f"data.source '{source}': {error}") from error
    if not callable(function):
        raise DataError(f"data.source '{source}' is {_kind(function)}, which cannot be called")
    try:
        returned = function()
    except Exception as error:
        raise DataError(f"data.source '{source}' failed: {type(error).__name__}: {error}") from error
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise DataError(f"data.source '{source}' returned {_kind(returned)}; expected (train, test)")
    return _part(returned[0], f"{source}: train"), _part(returned[1], f"{source}: test")


def _part(part: Any, name: str) -> Examples:
    if isinstance(part, Dataset):
        return _stack(_pairs(part, name), name)
    if isinstance(part, tuple | list) and len(part) == 2:
        return _make_examples(part[0], part[1], name)
    raise DataError(f"{name}: expected a pair (inputs, targets) or a torch Dataset, not {_kind(part)}")


def _stack(pairs: list[Any], name: str) -> Examples:
    strange = next((x for x, _ in pairs if not isinstance(x, Tensor | np.ndarray)), None)
    if strange is not None:
        raise DataError(f"{name}: an input of the Dataset is {_kind(strange)}; expected a tensor or an array")
    try:
        inputs, targets = (torch.stack([torch.as_tensor(p[i]) for p in pairs]) for i in (0, 1))
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{name}: the examples cannot be stacked ({error})") from error
    return _make_examples(inputs, targets, name)


def _pairs(dataset: Dataset[Any], name: str) -> list[Any]:
    items: Iterable[Any] = dataset if isinstance(dataset, Iterable) else ()
    if not isinstance(dataset, Iterable):
        items = (dataset[i] for i in range(_length(dataset, name)))
    try:
        pairs = list(items)
    except Exception as error:
        raise DataError(f"{name}: reading the Dataset failed: {type(error).__name__}: {error}") from error
    if not pairs:
        raise DataError(f"{name}: has no examples")
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise DataError(f"{name}: the Dataset returns something else than pairs (x, y)")
    return pairs


def _length(dataset: Any, name: str) -> int:
    try:
        return len(dataset)
    except TypeError:
        raise DataError(f"{name}: the Dataset has no length") from None


def _make_examples(x: Any, y: Any, name: str) -> Examples:
    inputs, targets = _tensor(x, name), _tensor(y, f"{name} (targets)")
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    is_whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if targets.ndim != 1 or not is_whole:
        raise DataError(
            f"{name}: targets must be whole numbers, one per example; they are {_describe(targets)}"
        )
    if inputs.ndim < 2:
        raise DataError(
            f"{name}: one example is a single number; "
            f"expected inputs of (examples, ...), they are {_describe(inputs)}"
        )
    if len(inputs) != len(targets):
        raise DataError(f"{name}: {len(inputs)} inputs and {len(targets)} targets")
    if not len(targets):
        raise DataError(f"{name}: has no examples")
    if int(targets.min()) < 0:
        raise DataError(f"{name}: target {int(targets.min())} is out of range; classes count from 0")
    return Examples(_convert(inputs, name), targets.long())


def _convert(x: Tensor, name: str) -> Tensor:
    """Pixels as bytes, real numbers as float32, other whole numbers as int64; gray images get a channel."""
    if x.dtype == torch.uint8:
        if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
            raise DataError(
                f"{name}: images of {_describe(x)} have their channels last; "
                "transpose them to (examples, channels, height, width)"
            )
        return x[:, None] if x.ndim == 3 else x
    if x.is_complex():
        raise DataError(f"{name}: inputs are complex numbers")
    if not x.is_floating_point():
        return x.long()
    x = x.float()
    if not bool(x.isfinite().all()):
        raise DataError(f"{name}: {int((~x.isfinite()).sum())} inputs are NaN or infinite")
    return x


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: cannot be converted to a tensor ({error})") from error


def _describe(x: Tensor) -> str:
    return f"{'x'.join(map(str, x.shape)) or 'a single number'} {str(x.dtype)[6:]}"


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
