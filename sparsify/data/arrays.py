"""Read examples from an .npz file, or from what a user's callable returns."""

import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from sparsify.data.chance import keep_random_states, seed_example
from sparsify.data.columns import (
    Column,
    Varied,
    count_examples,
    divide_by_65535,
    leaves,
    map_leaves,
    map_parts,
    scale_pixels,
    stack,
)
from sparsify.data.examples import Collate, Examples
from sparsify.data.targets import convert_targets, describe, split_target
from sparsify.errors import DataError, find_refusal
from sparsify.forward.free_memory import check_memory
from sparsify.recipe.import_path import resolve_callable
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas.data import Data
from sparsify_schemas.task import Task

MOST = 1_000_000
"""Examples that are taken from a Dataset which does not say how many it has; it may never end."""
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
        make_examples(_array(x_train, f"{path}: x_train"), y_train, task, f"{path}: x_train"),
        make_examples(_array(x_test, f"{path}: x_test"), y_test, task, f"{path}: x_test"),
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


def read_callable(spec: Data, task: Task, reads_test: bool = True) -> tuple[Examples, Examples]:
    """Call `package.module:callable`, which returns (train, test).

    Each is a pair (x, y) of arrays, a mapping with the targets among its arrays, a tensor whose targets
    follow from it, or a Dataset of such examples. Without `reads_test` nothing is read of the second.
    """
    source = spec.source
    function = resolve_callable("data.source", source)
    where = f"data.source '{source}'"
    with run_user_code(where, lambda why: DataError(f"{where} failed: {why}"), keep_chance=True):
        returned = function()
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise DataError(f"data.source '{source}' returned {_describe_kind(returned)}; expected (train, test)")
    train = _read_part(returned[0], spec, task, f"{source}: train")
    if not reads_test:
        return train, train[:0]
    return train, _read_part(returned[1], spec, task, f"{source}: test")


def read_collate(path: str) -> Collate:
    """The callable that makes batches, whose result is checked each time. Raises DataError."""
    function = resolve_callable("task.collate", path)
    where = f"task.collate '{path}'"

    def collate(examples: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        with run_user_code(where, lambda why: DataError(f"{where} failed: {why}")):
            made = function(examples)
        if isinstance(made, Mapping):
            made = split_target(made, None)
        if not isinstance(made, tuple | list) or len(made) != 2 or made[1] is None:
            raise DataError(
                f"task.collate '{path}' returned {_describe_kind(made)}; expected a batch (inputs, targets)"
            )
        return made[0], made[1]

    return collate


def _read_part(part: Any, spec: Data, task: Task, name: str) -> Examples:
    if _is_dataset(part):
        if spec.lazy:
            return _read_later(part, spec, task, name)
        return _from_items(_items(part, name), spec, task, name)
    if spec.lazy:
        raise DataError(
            f"{name}: data.lazy reads the examples of a Dataset, and this is {_describe_kind(part)}; leave "
            "it out"
        )
    if isinstance(part, tuple | list) and len(part) == 2:
        _refuse_key(spec, name, "a pair (inputs, targets)")
        return make_examples(_arrays(part[0], name), part[1], task, name)
    if isinstance(part, Mapping):
        inputs, targets = split_target(part, _find_target_key(spec), f"{name}:")
        return make_examples(_arrays(inputs, name), targets, task, name)
    if isinstance(part, Tensor | np.ndarray):
        _refuse_key(spec, name, "an array without targets")
        return make_examples(_array(part, name), None, task, name)
    raise DataError(
        f"{name}: expected a pair (inputs, targets) or a torch Dataset, not {_describe_kind(part)}"
    )


def _is_dataset(part: Any) -> bool:
    """A torch Dataset, or one of another library with a length and examples by number."""
    if isinstance(part, Dataset):
        return True
    is_plain = isinstance(part, tuple | list | Mapping | Tensor | np.ndarray | str)
    return (
        not is_plain
        and callable(getattr(part, "__len__", None))
        and callable(getattr(part, "__getitem__", None))
    )


def _read_later(dataset: Any, spec: Data, task: Task, name: str) -> Examples:
    """Examples whose numbers alone are in memory."""
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"{name}: data.lazy reads examples by their numbers, and an iterable Dataset has none; leave it "
            "out"
        )
    count = _count_items(dataset, name)
    if not count:
        raise DataError(f"{name}: has no examples")
    numbers = torch.arange(count)
    return Examples(numbers, numbers, read=_Reader(dataset, spec, task, name))


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads examples of a Dataset by their numbers."""

    dataset: Any
    spec: Data
    task: Task
    name: str

    def __call__(self, numbers: Tensor, seed: int) -> Examples:
        with keep_random_states():
            items = [self._read_item(number, seed) for number in numbers.tolist()]
        return _from_items(items, self.spec, self.task, self.name)

    def _read_item(self, number: int, seed: int) -> Any:
        seed_example(seed, number)

        def failed(why: str) -> DataError:
            return DataError(f"{self.name}: reading example {number} failed: {why}")

        with run_user_code(self.name, failed):
            return self.dataset[number]


def _from_items(items: list[Any], spec: Data, task: Task, name: str) -> Examples:
    pairs = [_pair(item, spec, name) for item in items]
    is_changed = spec.augment.is_used or spec.normalize is not None
    if task.collate is not None and not is_changed:  # it is handed the examples as they are
        return Examples(Varied(tuple(x for x, _ in pairs)), Varied(tuple(y for _, y in pairs)))
    with_targets = pairs[0][1] is not None
    try:
        inputs = stack([scale_pixels(x) for x, _ in pairs])
        targets = stack([y for _, y in pairs]) if with_targets else None
    except ValueError as error:
        raise DataError(f"{name}: the examples cannot be stacked ({error})") from error
    if task.collate is not None:
        return Examples(inputs, targets)
    for leaf in leaves(inputs):
        strange = _find_stranger(leaf)
        if strange is None:
            continue
        raise DataError(
            f"{name}: an input of the Dataset is {_describe_kind(strange)}; expected a tensor or an array"
        )
    if isinstance(inputs, Varied) and not _may_be_padded(inputs, task):
        shapes = ", ".join(sorted({describe(item) for item in inputs.items})[:3])
        raise DataError(
            f"{name}: the examples cannot be stacked (they are {shapes}); pad them, or write task.collate"
        )
    return make_examples(inputs, targets, task, name)


def _may_be_padded(inputs: Varied, task: Task) -> bool:
    """Whether zeros at the end are harmless: of token numbers, and where a task ignores what they stand for.

    A model that takes real numbers alone could not tell them from padding.
    """
    ignores = ("segmentation", "language_model", "masked_language_model", "own")
    are_whole = all(isinstance(item, Tensor) and not item.is_floating_point() for item in inputs.items)
    return task.kind in ignores or are_whole


def _find_target_key(spec: Data) -> str | None:
    return spec.target if isinstance(spec.target, str) else None


def _refuse_key(spec: Data, name: str, what: str) -> None:
    if spec.target is not None:
        raise DataError(f"{name}: data.target is a key of mappings, and this is {what}; leave it out")


def _find_stranger(leaf: Tensor | Varied) -> Any:
    """The first value of a list that is no tensor; None where all are."""
    values = leaf.items if isinstance(leaf, Varied) else ()
    return next((value for value in values if not isinstance(value, Tensor)), None)


def _pair(item: Any, spec: Data, name: str) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:
        _refuse_key(spec, name, "a Dataset of pairs (inputs, targets)")
        return item[0], item[1]
    if isinstance(item, Mapping):
        return split_target(item, _find_target_key(spec), f"{name}: an example")
    if isinstance(item, Tensor | np.ndarray):
        _refuse_key(spec, name, "a Dataset of arrays without targets")
        return item, None
    raise DataError(f"{name}: the Dataset returns something else than pairs (x, y)")


def _items(dataset: Any, name: str) -> list[Any]:
    count = None
    items: Iterable[Any]
    if isinstance(dataset, Iterable):
        count, items = _read_length(dataset, name), dataset
    else:
        items = (dataset[i] for i in range(_count_items(dataset, name)))

    def failed(why: str) -> DataError:
        return DataError(f"{name}: reading the Dataset failed: {why}")

    with run_user_code(name, failed, keep_chance=True):
        found = list(islice(items, MOST + 1 if count is None else count))
    if count is None and len(found) > MOST:
        raise DataError(
            f"{name}: the Dataset has no length and more than {MOST:,} examples; write its `__len__`"
        )
    if not found:
        raise DataError(f"{name}: has no examples")
    if count is not None and len(found) < count:
        raise DataError(f"{name}: the Dataset says that it has {count} examples and gave {len(found)}")
    return found


def _read_length(dataset: Any, name: str) -> int | None:
    """How many examples an iterable set says that it has, at which reading stops; None where it says
    nothing."""
    with run_user_code(name, lambda why: DataError(f"{name}: the Dataset's length cannot be read: {why}")):
        try:
            return len(dataset)
        except (TypeError, NotImplementedError):
            return None


def _count_items(dataset: Any, name: str) -> int:
    count = _read_length(dataset, name)
    if count is None:
        raise DataError(f"{name}: the Dataset has no length")
    return count


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
    return _make_signed(y if isinstance(y, Varied) else _arrays(y, name))


def _make_signed(column: Column) -> Column:
    """Numbers of numpy's unsigned types as int64: torch cannot compare, sort or index by them."""
    if isinstance(column, Tensor):
        return column.long() if column.dtype in _UNSIGNED else column
    if isinstance(column, Varied):
        items = (_make_signed(item) if isinstance(item, Tensor) else item for item in column.items)
        return Varied(tuple(items))
    return map_parts(column, _make_signed)


def _arrays(value: Any, name: str) -> Column:
    """Arrays, mappings and tuples of arrays as a column; a list of arrays of different shapes as a list."""
    if isinstance(value, Varied):
        return value
    if isinstance(value, Mapping):
        return {str(key): _arrays(part, f"{name}: {key}") for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_arrays(part, name) for part in value)
    if isinstance(value, list) and value and isinstance(value[0], Tensor | np.ndarray | Mapping):
        try:
            return stack(value)
        except ValueError as error:
            raise DataError(f"{name}: the examples cannot be stacked ({error})") from error
    return _array(value, name)


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


def _array(value: Any, name: str) -> Tensor:
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


def _describe_kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
