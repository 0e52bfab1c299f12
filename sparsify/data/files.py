"""Read tables (.csv, .tsv) and text (.txt, .jsonl) from files."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsify.data.examples import Examples
from sparsify.data.tables import Table, make_both_sets, split_rows
from sparsify.errors import DataError, find_refusal
from sparsify_schemas.data import Data, Tokens
from sparsify_schemas.task import Task
from sparsify_schemas.units import Share


def read_files(spec: Data, task: Task) -> tuple[Examples, Examples]:
    """The training and test examples of one file, or of two. Raises DataError."""
    if spec.is_text and spec.text is None:
        spec = spec.model_copy(update={"text": Tokens()})
    path = find_path(spec, spec.source)
    exact = spec.text.column if spec.text is not None else None
    if path.suffix == ".txt":
        return _read_text(path, spec, task)
    whole = read_table(path, exact)
    if isinstance(spec.test, Share):
        train, test = split_rows(whole, spec.test, spec)
    else:
        _check_test(spec)
        train, test = whole, read_table(find_path(spec, str(spec.test)), exact)
    return make_both_sets(train, test, spec, task)


def find_path(spec: Data, name: str) -> Path:
    """A file that the recipe names, in the folder `root` where it says one."""
    return Path(spec.root or "").expanduser() / Path(name).expanduser()


def _check_test(spec: Data) -> None:
    other = find_path(spec, str(spec.test))
    if not other.is_file():
        raise DataError(
            f"data.test: {other}: no such file; write the path of the test set, or a share of the one file "
            "such as 20%"
        )


def _read_text(path: Path, spec: Data, task: Task) -> tuple[Examples, Examples]:
    """A file is one text; a share for testing is its end."""
    if task.kind not in ("language_model", "masked_language_model"):
        raise DataError(
            f"{path}: a .txt holds text without targets, which a task of {task.kind} cannot use; write a "
            ".jsonl or .csv with a column of targets"
        )
    text = _read_content(path)
    if isinstance(spec.test, Share):
        end = len(text) - round(len(text) * spec.test.fraction)
        train, test = text[:end], text[end:]
        name = str(path)
    else:
        _check_test(spec)
        other = find_path(spec, str(spec.test))
        train, test, name = text, _read_content(other), str(other)
    column = spec.text.column if spec.text is not None else "text"
    both = Table(str(path), {column: [train]}, [1]), Table(name, {column: [test]}, [1])
    return make_both_sets(*both, spec, task)


def read_table(path: Path, exact: str | None = None) -> Table:
    """The columns of a .csv, .tsv or .jsonl, as text or as JSON has them. Raises DataError.

    exact: column whose cells keep the blanks around them.
    """
    if path.suffix == ".jsonl":
        return _make_table(path, list(_read_json_rows(path, _read_content(path))))
    if path.suffix in (".csv", ".tsv"):
        return _make_table(path, list(_read_csv_rows(path, _read_content(path, newline=""), exact)))
    raise DataError(f"{path}: expected a .csv, .tsv or .jsonl")


def _read_content(path: Path, newline: str | None = None) -> str:
    """newline: as `open` takes it; "" keeps the ends of lines inside quoted cells."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = find_refusal(error) or f"cannot be read as text in UTF-8 ({error})"
        raise DataError(f"{path}: {why}") from error


Row = tuple[int, Mapping[str, Any]]
"""number of its line, and its values by column"""


def _read_csv_rows(path: Path, text: str, exact: str | None) -> Iterator[Row]:
    # Not splitlines, which ends lines at U+2028 and others in the middle of a cell.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        names = [name.strip() for name in next(lines, [])]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise DataError(f"{path}: two columns are called '{doubled}'")
        for row in lines:
            if not row:
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{path}: line {lines.line_num} has {len(row)} cells, and the first line names "
                    f"{len(names)} columns"
                )
            cells = zip(names, row, strict=True)
            yield lines.line_num, {name: cell if name == exact else cell.strip() for name, cell in cells}
    except csv.Error as error:
        raise DataError(f"{path}: line {lines.line_num} cannot be read ({error})") from error


def _read_json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_refuse_doubled_keys)
        except ValueError as error:
            raise DataError(f"{path}: line {number} is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f'{path}: line {number} is no JSON object, such as {{"text": "..."}}')
        yield number, row


def _refuse_doubled_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json keeps the last of two keys in silence. Raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"two keys are called '{next(name for name in names if names.count(name) > 1)}'")
    return found


def _make_table(path: Path, rows: list[Row]) -> Table:
    if not rows:
        raise DataError(f"{path}: has no examples")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    columns = {name: [row.get(name) for _, row in rows] for name in names}
    return Table(str(path), columns, [number for number, _ in rows])
