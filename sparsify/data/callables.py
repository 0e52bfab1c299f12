"""Read examples from what a user's callable returns: arrays, mappings of them, or Datasets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from sparsify.data.arrays import describe_kind, make_examples, read_array, read_arrays
from sparsify.data.chance import keep_random_states, seed_example
from sparsify.data.columns import Varied, leaves, scale_pixels, stack
from sparsify.data.examples import Collate, Examples
from sparsify.data.targets import describe, split_target
from sparsify.errors import DataError
from sparsify.recipe.import_path import resolve_callable
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas.data import Data
from sparsify_schemas.task import Task

MOST = 1_000_000
"""Examples that are taken from a Dataset which does not say how many it has; it may never end."""


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
        raise DataError(f"data.source '{source}' returned {describe_kind(returned)}; expected (train, test)")
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
                f"task.collate '{path}' returned {describe_kind(made)}; expected a batch (inputs, targets)"
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
            f"{name}: data.lazy reads the examples of a Dataset, and this is {describe_kind(part)}; leave "
            "it out"
        )
    if isinstance(part, tuple | list) and len(part) == 2:
        _refuse_key(spec, name, "a pair (inputs, targets)")
        return make_examples(read_arrays(part[0], name), part[1], task, name)
    if isinstance(part, Mapping):
        inputs, targets = split_target(part, _find_target_key(spec), f"{name}:")
        return make_examples(read_arrays(inputs, name), targets, task, name)
    if isinstance(part, Tensor | np.ndarray):
        _refuse_key(spec, name, "an array without targets")
        return make_examples(read_array(part, name), None, task, name)
    raise DataError(
        f"{name}: expected a pair (inputs, targets) or a torch Dataset, not {describe_kind(part)}"
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
            f"{name}: an input of the Dataset is {describe_kind(strange)}; expected a tensor or an array"
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
