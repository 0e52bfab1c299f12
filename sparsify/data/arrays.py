"""Read examples from arrays, also those of an .npz file."""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.data.columns import (
    Column,
    Varied,
    count_examples,
    divide_by_65535,
    leaves,
    map_leaves,
    map_parts,
    stack,
)
from sparsify.data.examples import Examples
from sparsify.data.targets import convert_targets, describe
from sparsify.errors import DataError, find_refusal
from sparsify.forward.free_memory import check_memory
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas.task import Task

_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_NAMES = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path, task: Task) -> tuple[Examples, Examples]:
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
            _check_claims(path)
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
        why = find_refusal(error) or f"cannot be read as an .npz of plain arrays ({error})"
        raise DataError(f"{path}: {why}") from error
    return (
        make_examples(read_array(x_train, f"{path}: x_train"), y_train, task, f"{path}: x_train"),
        make_examples(read_array(x_test, f"{path}: x_test"), y_test, task, f"{path}: x_test"),
    )


def _check_claims(path: Path) -> None:
    """Refuse arrays that hold less than their headers say, or more than fits, before anything is read.

    Raises DataError, ValueError.
    """
    with zipfile.ZipFile(path) as archive:
        for name in _NAMES:
            entry = archive.getinfo(f"{name}.npy")
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                header = np.lib.format.read_array_header_1_0
                if version >= (2, 0):
                    header = np.lib.format.read_array_header_2_0
                shape, _, dtype = header(stream)
                claimed = math.prod(shape) * dtype.itemsize
                held = entry.file_size - stream.tell()
            what = f"{path}: {name} of {'x'.join(map(str, shape))} {dtype}"
            if claimed > held and not dtype.hasobject:
                raise DataError(f"{what} would take {claimed:,} bytes, and the file holds {held:,} of it")
            check_memory(claimed, what, "use a part of it", DataError)


def make_examples(inputs: Column, y: Any, task: Task, name: str) -> Examples:
    """The examples of a column of inputs and what holds their targets, as the task takes them.

    y: None where the task takes its targets from the inputs. Raises DataError, which begins with `name`.
    """
    targets = None if y is None else _targets(y, f"{name} (targets)")
    if targets is not None and task.collate is None:
        _check_lengths(inputs, targets, name)
    targets = convert_targets(targets, inputs, task, name)
    if isinstance(inputs, Tensor) and inputs.ndim < 2:
        raise DataError(
            f"{name}: one example is a single number; "
            f"expected inputs of (examples, ...), they are {describe(inputs)}"
        )
    _check_lengths(inputs, targets, name)
    return Examples(_convert_all(inputs, name), targets, pads_targets=task.kind != "own")


def _check_lengths(inputs: Column, targets: Column, name: str) -> None:
    counts = {len(leaf) for leaf in leaves(inputs)}
    if len(counts) > 1:
        raise DataError(f"{name}: the inputs have different lengths: {', '.join(map(str, sorted(counts)))}")
    if count_examples(inputs) != count_examples(targets):
        raise DataError(f"{name}: {count_examples(inputs)} inputs and {count_examples(targets)} targets")
    if not count_examples(targets):
        raise DataError(f"{name}: has no examples")


def _targets(y: Any, name: str) -> Column:
    return _make_signed(y if isinstance(y, Varied) else read_arrays(y, name))


def _make_signed(column: Column) -> Column:
    """Numbers of numpy's unsigned types as int64: torch cannot compare, sort or index by them."""
    if isinstance(column, Tensor):
        return column.long() if column.dtype in _UNSIGNED else column
    if isinstance(column, Varied):
        items = (_make_signed(item) if isinstance(item, Tensor) else item for item in column.items)
        return Varied(tuple(items))
    return map_parts(column, _make_signed)


def read_arrays(value: Any, name: str) -> Column:
    """Arrays, mappings and tuples of arrays as a column; a list of arrays of different shapes as a list."""
    if isinstance(value, Varied):
        return value
    if isinstance(value, Mapping):
        return {str(key): read_arrays(part, f"{name}: {key}") for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(read_arrays(part, name) for part in value)
    if isinstance(value, list) and value and isinstance(value[0], Tensor | np.ndarray | Mapping):
        try:
            return stack(value)
        except ValueError as error:
            raise DataError(f"{name}: the examples cannot be stacked ({error})") from error
    return read_array(value, name)


def _convert_all(column: Column, name: str) -> Column:
    return map_leaves(column, lambda leaf: _convert_leaf(leaf, name))


def _convert_leaf(leaf: Tensor | Varied, name: str) -> Column:
    if isinstance(leaf, Tensor):
        return _convert(leaf, name)
    return Varied(tuple(_convert_item(item, name) for item in leaf.items))


def _convert_item(item: Any, name: str) -> Any:
    return _convert(item[None], name)[0] if isinstance(item, Tensor) else item


def _convert(x: Tensor, name: str) -> Tensor:
    """Pixels as bytes, those of 16 bits as float32 in 0..1, real numbers as float32, other whole numbers as
    int64; gray images get a channel."""
    if x.dtype == torch.uint8:
        if x.ndim == 4 and _is_last(tuple(x.shape[1:])):
            raise DataError(
                f"{name}: images of {describe(x)} have their channels last; "
                "transpose them to (examples, channels, height, width)"
            )
        return x[:, None] if x.ndim == 3 else x
    if x.dtype == torch.uint16 and x.ndim >= 3:
        pixels = divide_by_65535(x)
        return pixels[:, None] if x.ndim == 3 else pixels
    if x.is_complex():
        raise DataError(f"{name}: inputs are complex numbers")
    if not x.is_floating_point():
        return x.long()
    x = x.float()
    if not bool(x.isfinite().all()):
        raise DataError(f"{name}: {int((~x.isfinite()).sum())} inputs are NaN or infinite")
    return x


def _is_last(shape: tuple[int, ...]) -> bool:
    """Whether bytes of this shape are images with the channels in the last place."""
    first, second, last = shape
    return (last in (1, 3) and first not in (1, 3)) or (last == 4 and min(first, second) > 4)


def read_array(value: Any, name: str) -> Tensor:
    """What a user gives as one array, on the cpu. Raises DataError, which begins with `name`."""
    if isinstance(value, Tensor):
        _check_plain(value, name)
        return value.detach().cpu()
    if isinstance(value, list | tuple):
        for part in value:
            if isinstance(part, Tensor):
                _check_plain(part, name)

    def failed(why: str) -> DataError:
        return DataError(f"{name}: cannot be converted to a tensor ({why})")

    with run_user_code(name, failed):  # of an object's own __array__
        array = np.array(value)
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise failed(str(error)) from error


def _check_plain(value: Tensor, name: str) -> None:
    """Refuse tensors whose numbers cannot be read one by one. Raises DataError."""
    if value.is_meta:
        raise DataError(f"{name}: a tensor on the meta device has no numbers; make it on the cpu")
    if value.is_nested:
        raise DataError(f"{name}: a tensor is nested; return a list of tensors")
    if value.layout != torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        raise DataError(f"{name}: a tensor is sparse ({layout}); call .to_dense() on it")
    if value.is_quantized:
        raise DataError(f"{name}: a tensor is quantized; call .dequantize() on it")


def describe_kind(value: Any) -> str:
    """What a value is, for messages."""
    return f"a {type(value).__name__}" if value is not None else "None"
