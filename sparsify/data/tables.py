"""Tables: named columns of numbers, names or text, and the examples made of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.data.arrays import make_examples
from sparsify.data.columns import Column, Varied, scale_pixels, stack
from sparsify.data.examples import Examples
from sparsify.data.targets import NAMES
from sparsify.data.tokens import divide_texts, make_tokenizer, tokenize_texts
from sparsify.errors import DataError
from sparsify_schemas.data import Data, Tokens
from sparsify_schemas.task import Task
from sparsify_schemas.units import Share

_SEED = 1797
"""draws the test examples of a single file, the same for every recipe"""


@dataclass(frozen=True)
class LateColumns(Mapping[str, Sequence[Any]]):
    """Columns by name, each read when it is asked for, and once."""

    names: Sequence[str]
    read: Callable[[str], Sequence[Any]]
    found: dict[str, Sequence[Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self.names:
            raise KeyError(name)
        if name not in self.found:
            self.found[name] = self.read(name)
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


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
    return _select_rows(table, np.sort(order[:kept])), _select_rows(table, np.sort(order[kept:]))


def _select_rows(table: Table, places: Any) -> Table:
    columns = LateColumns(tuple(table.columns), lambda name: _take_rows(table.columns[name], places))
    return Table(table.name, columns, _take_rows(table.rows, places))


def _take_rows(values: Sequence[Any], places: Any) -> Sequence[Any]:
    taken: Sequence[Any] = (
        values[places] if isinstance(values, np.ndarray) else [values[place] for place in places]
    )
    return taken


def make_both_sets(train: Table, test: Table, spec: Data, task: Task) -> tuple[Examples, Examples]:
    """The training and the test examples of two tables with the same columns. Raises DataError."""
    if spec.text is not None:
        return _make_text_examples(train, test, spec, spec.text, task)
    targets = _find_target_columns(train, spec, task)
    features = spec.features or tuple(name for name in train.columns if name not in targets)
    if not features:
        raise DataError(f"{train.name}: has no column but the target; there is nothing to predict it from")
    _check_features(spec, features, targets)
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
    return _shorten(tuple(table.columns))


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _check_features(spec: Data, features: Sequence[str], targets: Sequence[str]) -> None:
    doubled = next((name for name in features if name in targets), None)
    if doubled is not None:
        raise DataError(
            f"data.features names '{doubled}', which is the target; leave it out, or name another data.target"
        )
    stranger = next((name for name in spec.categories if name not in features), None)
    if stranger is not None:
        raise DataError(
            f"data.categories names '{stranger}', which is no input; the inputs are {_shorten(features)}"
        )


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
    train: Table, test: Table, spec: Data, tokens: Tokens, task: Task
) -> tuple[Examples, Examples]:
    if task.kind == "masked_language_model":
        raise DataError(
            f"{train.name}: text has no masked tokens, which a task of masked_language_model needs; mask "
            "them in a package.module:callable"
        )
    targets = () if task.kind == "language_model" else _find_target_columns(train, spec, task)
    for table in (train, test):
        _check_columns(table, (tokens.column, *targets))
    tokenize = make_tokenizer(tokens)

    def examples(table: Table) -> Examples:
        texts = [
            _check_text(value, table, row, tokens.column) for row, value in _number_rows(table, tokens.column)
        ]
        if task.kind == "language_model":
            pieces = divide_texts(texts, tokenize, tokens.max_length, table.name)
            return make_examples(pieces, None, task, table.name)
        inputs = tokenize_texts(texts, tokenize, table.name)
        return make_examples(inputs, _make_targets(train, test, table, targets, task), task, table.name)

    return examples(train), examples(test)


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
            else torch.from_numpy(_read_numbers(table, name).astype(np.float32))[:, None]
            for name in features
        ]
        return torch.cat(parts, dim=1)
    apart = next((name for name in features if name in values), None)
    if apart is not None:
        raise DataError(f"{table.name}: column '{apart}' of names stands beside columns of lists or images")
    columns = {name: _read_column(table, name) for name in features}
    return next(iter(columns.values())) if len(columns) == 1 else columns


def _read_column(table: Table, name: str) -> Column:
    if _is_flat(table, name):
        return torch.from_numpy(_read_numbers(table, name))
    return _stack_column(table, name)


def _is_flat(table: Table, name: str) -> bool:
    """Whether a column holds single values."""
    values = table.columns[name]
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return False
    return not isinstance(values[0], list | tuple | np.ndarray | Tensor) or np.ndim(values[0]) == 0


def _stack_column(table: Table, name: str) -> Column:
    """Lists and images. Raises DataError at the first cell that is none."""
    for row, value in _number_rows(table, name):
        if value is None:
            raise _report_empty(table, name, row)
    try:
        column = stack([scale_pixels(value) for value in table.columns[name]])
    except ValueError as error:
        raise DataError(f"{table.name}: column '{name}' cannot be stacked ({error})") from error
    if isinstance(column, Varied) or (isinstance(column, Tensor) and column.dim() == 1):
        _check_lists(table, name)
    return column


def _check_lists(table: Table, name: str) -> None:
    """Raises DataError at the first cell that is no list of numbers, or one of another depth."""
    depth = None
    for row, value in _number_rows(table, name):
        cell = stack([value])
        found = cell.dim() - 1 if isinstance(cell, Tensor) else 0
        if found == 0 or found != (depth or found):
            raise DataError(
                f"{table.name}: row {row} holds {_describe_cell(value)} in column '{name}', where others "
                "have a list of numbers; write the same in every row"
            )
        depth = found


def _report_empty(table: Table, name: str, row: int) -> DataError:
    return DataError(f"{table.name}: row {row} has no value in column '{name}'")


def _check_cells(table: Table, name: str) -> None:
    """Raises DataError at the first empty cell."""
    values = table.columns[name]
    if isinstance(values, np.ndarray) and values.dtype.kind in "biu":
        return
    empty = next((row for row, value in _number_rows(table, name) if _is_empty(value)), None)
    if empty is not None:
        raise _report_empty(table, name, empty)


def _is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, an empty text, or NaN, which files of numbers have in its place."""
    is_nan = isinstance(value, float | np.floating) and bool(np.isnan(value))
    return value is None or is_nan or (isinstance(value, str) and value == "")


_ADVICE = "list it in data.categories, or leave it out of data.features"


def _read_numbers(table: Table, name: str, advice: str = _ADVICE) -> Any:
    """An array of the numbers of a column [N], whole ones as int64. Raises DataError at the first cell that
    is no number, which ends with the advice."""
    _check_cells(table, name)
    values = table.columns[name]
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return values
    for convert in (_convert_whole, _convert_real):
        try:
            return np.array([convert(value) for value in values])
        except (TypeError, ValueError, OverflowError):
            continue
    row, value = next((row, value) for row, value in _number_rows(table, name) if not _is_number(value))
    what = f"text, such as {_describe_cell(value)}" if isinstance(value, str) else _describe_cell(value)
    raise DataError(f"{table.name}: column '{name}' holds {what} in row {row}; {advice}")


def _convert_whole(value: Any) -> np.int64:
    """Raises ValueError at 2.5, as at text that is no whole number."""
    return np.int64(value if isinstance(value, int) else _refuse_underscores(str(value)))


def _convert_real(value: Any) -> float:
    return float(_refuse_underscores(value))


def _refuse_underscores(value: Any) -> Any:
    """Python reads 1_2 as 12; in a table it is a name. Raises ValueError."""
    if isinstance(value, str) and "_" in value:
        raise ValueError(value)
    return value


def _is_number(value: Any) -> bool:
    try:
        _convert_real(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _list_names(train: Table, test: Table, name: str) -> tuple[str, ...]:
    """The values of a column of names in both tables, in order."""
    found = {str(value) for table in (train, test) for value in table.columns.get(name, ())}
    return tuple(sorted(found))


def _encode_names(table: Table, name: str, values: Sequence[str]) -> Tensor:
    """[N, values] of 0 and 1."""
    return torch.nn.functional.one_hot(_number_names(table, name, values), len(values)).float()


def _number_names(table: Table, name: str, values: Sequence[str]) -> Tensor:
    """[N], the place of each name among the values. Raises DataError at an empty cell."""
    _check_cells(table, name)
    number = {value: place for place, value in enumerate(values)}
    return torch.tensor([number[str(value)] for value in table.columns[name]])


# --- targets


def _make_targets(train: Table, test: Table, table: Table, names: Sequence[str], task: Task) -> Column | None:
    """[N], or [N, columns] where there are several."""
    if not names:
        return None
    if len(names) > 1:
        listed = next((name for name in names if not _is_flat(table, name)), None)
        if listed is not None:
            raise DataError(
                f"{table.name}: column '{listed}' of data.target holds lists, which stand in no row of "
                "numbers beside other columns; name it alone"
            )
    columns = [_make_target(train, test, table, name, task) for name in names]
    if len(columns) == 1 and (task.kind != "multilabel" or not _is_flat(table, names[0])):
        return columns[0]
    return torch.stack(columns, dim=1)


def _make_target(train: Table, test: Table, table: Table, name: str, task: Task) -> Column:
    if not (_is_flat(train, name) and _is_flat(test, name)):
        return _stack_column(table, name)
    if task.kind == "classification" and any(_holds_text(one, name) for one in (train, test)):
        return _number_names(table, name, _list_names(train, test, name))
    found = _read_numbers(table, name, f"the target of a task of {task.kind} is a number")
    if task.kind == "classification" and _is_whole(found):
        found = found.astype(np.int64)
    return torch.from_numpy(np.array(found))


def _holds_text(table: Table, name: str) -> bool:
    """Whether a cell is text that is no number."""
    texts = (value for value in table.columns[name] if isinstance(value, str) and value)
    return not all(map(_is_number, texts))


def _is_whole(array: Any) -> bool:
    return bool(np.all(np.isfinite(array)) and np.all(array == np.floor(array)))


def _describe_cell(value: Any) -> str:
    """A cell in a message, shortened."""
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= 40 else text[:40] + "..."
