"""Tables: named columns of numbers, names or text, and the examples made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.data.arrays import make_examples
from sparsify.data.columns import Column, stack
from sparsify.data.examples import Examples
from sparsify.data.targets import NAMES
from sparsify.data.tokens import divide_texts, tokenize_texts
from sparsify.errors import DataError
from sparsify_schemas.data import Data, Tokens
from sparsify_schemas.task import Task
from sparsify_schemas.units import Share

_SEED = 1797
"""draws the test examples of a single file, the same for every recipe"""


@dataclass(frozen=True)
class Table:
    """Examples by column, as they were read: numbers, text, or lists of numbers."""

    name: str
    """what messages begin with"""
    columns: Mapping[str, Sequence[Any]]
    """all of one length"""
    rows: Sequence[int]
    """number of each row in its file, for messages"""

    def __len__(self) -> int:
        return len(self.rows)


def split_rows(table: Table, test: Share, spec: Data) -> tuple[Table, Table]:
    """(training rows, test rows), both in the order of the file."""
    count = round(len(table) * test.fraction)
    if not 0 < count < len(table):
        which = "test" if count == 0 else "training"
        raise DataError(f"{table.name}: {test} of {len(table)} examples leaves none for the {which} set")
    order = np.arange(len(table))
    if spec.split == "random":
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(_SEED)).numpy()
    kept = len(table) - count
    train, held_out = (
        Table(
            table.name,
            {name: _take_rows(values, places) for name, values in table.columns.items()},
            _take_rows(table.rows, places),
        )
        for places in (np.sort(order[:kept]), np.sort(order[kept:]))
    )
    return train, held_out


def _take_rows(values: Sequence[Any], places: Any) -> Sequence[Any]:
    taken: Sequence[Any] = (
        values[places] if isinstance(values, np.ndarray) else [values[place] for place in places]
    )
    return taken


def make_both_sets(train: Table, test: Table, spec: Data, task: Task) -> tuple[Examples, Examples]:
    """The training and the test examples of two tables with the same columns. Raises DataError."""
    if spec.text is not None:
        return (
            _make_text_examples(train, test, train, spec, spec.text, task),
            _make_text_examples(train, test, test, spec, spec.text, task),
        )
    targets = _find_target_columns(train, spec, task)
    features = spec.features or tuple(name for name in train.columns if name not in targets)
    if not features:
        raise DataError(f"{train.name}: has no column but the target; there is nothing to predict it from")
    _check_categories(spec, features)
    for table in (train, test):
        _check_columns(table, (*features, *targets))
    values = {name: _list_names(train, test, name) for name in spec.categories}

    def examples(table: Table) -> Examples:
        inputs = _make_inputs(table, features, values)
        return make_examples(inputs, _make_targets(train, test, table, targets, task), task, table.name)

    return examples(train), examples(test)


def _check_columns(table: Table, names: Sequence[str]) -> None:
    missing = next((name for name in names if name not in table.columns), None)
    if missing is not None:
        raise DataError(f"{table.name}: has no column '{missing}'; its columns are {_list_columns(table)}")
    if not len(table):
        raise DataError(f"{table.name}: has no examples")


def _list_columns(table: Table) -> str:
    names = list(table.columns)
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _check_categories(spec: Data, features: Sequence[str]) -> None:
    stranger = next((name for name in spec.categories if name not in features), None)
    if stranger is not None:
        raise DataError(f"data.categories names '{stranger}', which is no input")


def _find_target_columns(table: Table, spec: Data, task: Task) -> tuple[str, ...]:
    """The columns of the targets; none where the task takes them from its inputs."""
    if spec.target is not None:
        return (spec.target,) if isinstance(spec.target, str) else spec.target
    usual = next((name for name in NAMES if name in table.columns), None)
    if usual is not None:
        return (usual,)
    if task.kind == "language_model":
        return ()
    raise DataError(
        f"{table.name}: has none of the columns {', '.join(NAMES)}; say in data.target which of "
        f"{_list_columns(table)} holds the targets"
    )


# --- text


def _make_text_examples(
    train: Table, test: Table, table: Table, spec: Data, tokens: Tokens, task: Task
) -> Examples:
    if task.kind == "masked_language_model":
        raise DataError(
            f"{table.name}: text has no masked tokens, which a task of masked_language_model needs; mask "
            "them "
            "in a package.module:callable"
        )
    targets = () if task.kind == "language_model" else _find_target_columns(train, spec, task)
    _check_columns(table, (tokens.column, *targets))
    texts = [
        _check_text(value, table, row, tokens.column) for row, value in _number_rows(table, tokens.column)
    ]
    if task.kind == "language_model":
        return make_examples(divide_texts(texts, tokens, table.name), None, task, table.name)
    inputs = tokenize_texts(texts, tokens, table.name)
    return make_examples(inputs, _make_targets(train, test, table, targets, task), task, table.name)


def _check_text(value: Any, table: Table, row: int, column: str) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{table.name}: row {row} has no text in column '{column}', but {_describe_cell(value)}"
        )
    return value


def _number_rows(table: Table, column: str) -> list[tuple[int, Any]]:
    return list(zip(table.rows, table.columns[column], strict=True))


# --- inputs


def _make_inputs(table: Table, features: Sequence[str], values: Mapping[str, Sequence[str]]) -> Column:
    """One row of numbers for each example; columns of lists and images stay apart, by name."""
    if all(name in values or _is_flat(table, name) for name in features):
        parts = [
            _encode_names(table, name, values[name])
            if name in values
            else _read_numbers(table, name)[:, None]
            for name in features
        ]
        return torch.cat(parts, dim=1)
    apart = next((name for name in features if name in values), None)
    if apart is not None:
        raise DataError(f"{table.name}: column '{apart}' of names stands beside columns of lists or images")
    columns = {name: _stack_column(table, name) for name in features}
    return next(iter(columns.values())) if len(columns) == 1 else columns


def _is_flat(table: Table, name: str) -> bool:
    """Whether a column holds single values."""
    values = table.columns[name]
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return False
    return not isinstance(values[0], list | tuple | np.ndarray | Tensor) or np.ndim(values[0]) == 0


def _stack_column(table: Table, name: str) -> Column:
    try:
        return stack(list(table.columns[name]))
    except ValueError as error:
        raise DataError(f"{table.name}: column '{name}' cannot be stacked ({error})") from error


def _read_numbers(table: Table, name: str) -> Tensor:
    """[N] float32. Raises DataError at the first cell that is no number."""
    found = _try_numbers(table, name)
    if found is not None:
        return torch.from_numpy(found.astype(np.float32))
    for row, value in _number_rows(table, name):
        if value is None or value == "":
            raise DataError(f"{table.name}: row {row} has no value in column '{name}'")
        if _try_number(value) is None:
            raise DataError(
                f"{table.name}: column '{name}' holds text, such as {_describe_cell(value)} in row {row}; "
                "list it in data.categories, or leave it out of data.features"
            )
    raise DataError(f"{table.name}: column '{name}' cannot be read as numbers")


def _try_numbers(table: Table, name: str) -> Any:
    """An array of the numbers of a column, whole ones as int64; None where a cell is none."""
    values = table.columns[name]
    try:
        array = np.asarray(values)
    except ValueError:
        return None
    if array.ndim != 1:
        return None
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind not in "UOT":
        return None
    for kind in (np.int64, np.float64):
        try:
            return np.array([kind(value) for value in values])
        except (TypeError, ValueError, OverflowError):
            continue
    return None


def _try_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _list_names(train: Table, test: Table, name: str) -> tuple[str, ...]:
    """The values of a column of names in both tables, in order."""
    found = {str(value) for table in (train, test) for value in table.columns.get(name, ())}
    return tuple(sorted(found))


def _encode_names(table: Table, name: str, values: Sequence[str]) -> Tensor:
    """[N, values] of 0 and 1."""
    number = {value: place for place, value in enumerate(values)}
    places = torch.tensor([number[str(value)] for value in table.columns[name]])
    return torch.nn.functional.one_hot(places, len(values)).float()


# --- targets


def _make_targets(train: Table, test: Table, table: Table, names: Sequence[str], task: Task) -> Column | None:
    """[N], or [N, columns] where there are several."""
    if not names:
        return None
    columns = [_make_target(train, test, table, name, task) for name in names]
    if len(columns) == 1 and task.kind != "multilabel":
        return columns[0]
    if not all(isinstance(column, Tensor) and column.dim() == 1 for column in columns):
        return columns[0]
    return torch.stack(columns, dim=1)


def _make_target(train: Table, test: Table, table: Table, name: str, task: Task) -> Column:
    if not _is_flat(table, name):
        return _stack_column(table, name)
    found = _try_numbers(table, name)
    if task.kind == "classification":
        is_named = any(_try_numbers(one, name) is None for one in (train, test))
        if is_named:
            return _number_classes(train, test, table, name)
        return torch.from_numpy(found.astype(np.int64) if _is_whole(found) else found)
    if found is None:
        return _read_numbers(table, name)  # which says what is wrong
    return torch.from_numpy(np.array(found))


def _is_whole(array: Any) -> bool:
    return bool(np.all(np.isfinite(array)) and np.all(array == np.floor(array)))


def _number_classes(train: Table, test: Table, table: Table, name: str) -> Tensor:
    """Classes that are text, numbered in the order of their names."""
    empty = next((row for row, value in _number_rows(table, name) if value is None or value == ""), None)
    if empty is not None:
        raise DataError(f"{table.name}: row {empty} has no value in column '{name}'")
    number = {value: place for place, value in enumerate(_list_names(train, test, name))}
    return torch.tensor([number[str(value)] for value in table.columns[name]])


def _describe_cell(value: Any) -> str:
    """A cell in a message, shortened."""
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 40 else text[:40] + "..."
