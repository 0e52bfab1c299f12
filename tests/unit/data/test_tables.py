"""Tables: cells are taken as they are written, or refused by row and column."""

import csv
import datetime
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsify.data import Datasets, load_data
from sparsify.errors import DataError
from sparsify_schemas.data import Data
from sparsify_schemas.task import Task


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(task: Any = "classification", **spec: Any) -> Datasets:
    kind = {"kind": task} if isinstance(task, str) else task
    given = {"validation": "0%", "test": "50%", "split": "last", **spec}
    return load_data(Data.model_validate(given), 0, Task.model_validate(kind))


def complaint(task: Any = "classification", **spec: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(task, **spec)
    return str(caught.value)


def write_lines(name: str, rows: Sequence[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def write_csv(name: str, rows: Sequence[Sequence[Any]]) -> str:
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return name


def save(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows as the library datasets saves them, and what `data` says of it."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(list(rows)).save_to_disk("set")
    return {"source": "huggingface", "root": "set"}


# --- numbers


def test_real_numbers_beside_text_keep_their_fractions() -> None:
    rows = [{"text": "a", "y": y} for y in (2.5, "3", 0.25, "1e-1")]
    data = load("regression", source=write_lines("t.jsonl", rows), text={})
    assert data.train.targets.tolist() == [2.5, 3]
    assert data.test.targets.tolist() == pytest.approx([0.25, 0.1])


def test_decimals_keep_their_fractions() -> None:
    rows = [{"x": Decimal(x), "y": Decimal(y)} for x, y in (("1.5", "0.5"), ("2.5", "1.25"), ("3", "7"))]
    data = load("regression", **save([*rows, rows[0]]))
    assert data.train.inputs.tolist() == [[1.5], [2.5]]
    assert torch.cat([data.train.targets, data.test.targets]).tolist() == [0.5, 1.25, 7, 0.5]


def test_numbers_of_a_set_of_datasets_have_all_their_digits() -> None:
    large = 2**53 + 1
    rows = [{"x": 1.0, "y": large}, {"x": 2.0, "y": 1}, {"x": 3.0, "y": 16777217.0}, {"x": 4.0, "y": 2}]
    own = {"kind": "own", "loss": "some:loss"}
    assert load(own, **save(rows[:2])).train.targets.tolist() == [large]
    reals = [{"x": 1.0, "y": 16777217.25}, {"x": 2.0, "y": 0.1}]
    assert load(own, **save(reals)).train.targets.tolist() == [16777217.25]


def test_names_with_underscores_are_names() -> None:
    rows = [["x", "y"], [1, "1_2"], [2, "1_3"], [3, "1_2"], [4, "1_3"]]
    data = load(source=write_csv("t.csv", rows))
    assert data.classes == 2 and data.train.targets.tolist() == [0, 1]
    rows = [["x", "y"], ["1_2", 0], [2, 1]]
    assert complaint(source=write_csv("t.csv", rows)) == (
        "t.csv: column 'x' holds text, such as '1_2' in row 2; list it in data.categories, or leave it out "
        "of data.features"
    )


def test_classes_are_names_where_one_cell_is_text_and_numbers_elsewhere() -> None:
    named = [{"x": i, "y": y} for i, y in enumerate(["b", 2, "b", 2])]
    assert load(**save_texts(named)).train.targets.tolist() == [1, 0]
    numbered = [{"x": i, "y": y} for i, y in enumerate([3, 1.0, "2", 0])]
    assert load(**save_texts(numbered)).train.targets.tolist() == [3, 1]


def save_texts(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows whose target has cells of several types, beside a text."""
    return {"source": write_lines("t.jsonl", [{**row, "text": "ab"} for row in rows]), "text": {}}


# --- empty cells

GOOD = {"x": 1.5, "n": 1, "kind": "red", "ids": [1, 2], "y": 1}


@pytest.mark.parametrize("column", ["x", "n", "kind", "ids", "y"])
def test_a_null_names_its_row_and_column(column: str) -> None:
    of = {"kind": {"features": ["kind"], "categories": ["kind"]}, "y": {"features": ["x"]}}
    rows = [GOOD, GOOD, {**GOOD, column: None}, GOOD]
    spec = {"target": "y", **of.get(column, {"features": [column]})}
    for task in ("classification", "regression", {"kind": "own", "loss": "some:loss"}):
        assert complaint(task, **save(rows), **spec) == f"set: row 3 has no value in column '{column}'"


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_target_of_text(value: Any) -> None:
    rows = [{"text": "good", "y": 1}, {"text": "dull", "y": value}]
    for task in ("classification", "regression", {"kind": "own", "loss": "some:loss"}):
        assert complaint(task, source=write_lines("t.jsonl", rows), text={}) == (
            "t.jsonl: row 2 has no value in column 'y'"
        )


def test_an_empty_name_is_no_name() -> None:
    rows = [["kind", "y"], ["red", 0], ["", 1]]
    assert complaint(source=write_csv("t.csv", rows), categories=["kind"]) == (
        "t.csv: row 3 has no value in column 'kind'"
    )


def test_a_cell_that_is_neither_a_number_nor_text() -> None:
    rows = [{"day": datetime.date(2020, 1, 2), "x": 1.0, "y": i} for i in range(2)]
    assert complaint(**save(rows)) == (
        "set: column 'day' holds datetime.date(2020, 1, 2) in row 1; list it in data.categories, or leave it "
        "out of data.features"
    )


def test_text_is_no_number_to_predict() -> None:
    write_csv("t.csv", [["x", "y"], [1, 2], [2, "low"], [3, 3], [4, 4]])
    assert complaint("regression", source="t.csv") == (
        "t.csv: column 'y' holds text, such as 'low' in row 3; the target of a task of regression is a number"
    )


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (
            [[1, 2], 3, [1, 2], [3, 4]],
            "row 2 holds 3 in column 'y', where others have a list of numbers; write the same in every row",
        ),
        (
            [[1, 2], [3, 4], 5, 6],
            "row 3 holds 5 in column 'y', where others have a list of numbers; write the same in every row",
        ),
        (
            [[1, 2], ["a"], [1, 2], [3, 4]],
            "row 2 holds ['a'] in column 'y', where others have a list of numbers; write the same in every "
            "row",
        ),
        ([1, [3, 4], 5, 6], "column 'y' holds [3, 4] in row 2; the target of a task of own is a number"),
    ],
)
def test_numbers_beside_lists(cells: list[Any], message: str) -> None:
    task = {"kind": "own", "loss": "some:loss"}
    source = write_lines("t.jsonl", [{"text": "ab", "y": cell} for cell in cells])
    assert complaint(task, source=source, text={}) == f"t.jsonl: {message}"


# --- targets


def test_a_list_stands_alone_among_targets() -> None:
    rows = [{"x": 1.0, "a": 1.0, "b": [1.0, 2.0]}] * 4
    assert complaint("regression", **save(rows), target=["a", "b"]) == (
        "set: column 'b' of data.target holds lists, which stand in no row of numbers beside other columns; "
        "name it alone"
    )
    assert load("regression", **save(rows), features=["x"], target="b").test.targets.tolist() == [[1, 2]] * 2


@pytest.mark.parametrize("text", [{}, {"text": {"column": "x"}}])
def test_a_test_table_without_the_target(text: dict[str, Any]) -> None:
    write_csv("train.csv", [["x", "y"], [1, 0], [2, 1]])
    write_csv("test.csv", [["x", "z"], [1, 0], [2, 1]])
    assert complaint(source="train.csv", test="test.csv", **text) == (
        "test.csv: has no column 'y'; its columns are x, z"
    )


def test_the_target_is_no_input() -> None:
    write_csv("t.csv", [["a", "y"], [1, 0], [2, 1]])
    assert complaint(source="t.csv", features=["a", "y"]) == (
        "data.features names 'y', which is the target; leave it out, or name another data.target"
    )


# --- text in files


def test_separators_of_unicode_end_no_line() -> None:
    texts = ["one\u2028two", "three\x85four\x1cfive", "six\x0bseven", "eight\u2029"]
    rows = [["text", "y"], *[[text, i % 2] for i, text in enumerate(texts)]]
    of_lines = [{"text": text, "y": i % 2} for i, text in enumerate(texts)]
    Path("t.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in of_lines),
        encoding="utf-8",
        newline="",
    )
    for source in (write_csv("t.csv", rows), "t.jsonl"):
        data = load(source=source, text={})
        found = [bytes(x.tolist()).decode() for part in (data.train, data.test) for x in part.inputs.items]
        assert found == texts


def test_text_keeps_its_blanks_and_ends_of_lines() -> None:
    texts = ["  i\r\n more ", "\ttab\rback\n\n"]
    write_csv("t.csv", [["text", "y"], [texts[0], " no "], [texts[1], "yes"]])
    data = load(source="t.csv", text={})
    found = [bytes(part.inputs[0].tolist()).decode() for part in (data.train, data.test)]
    assert found == texts
    assert [part.targets.tolist() for part in (data.train, data.test)] == [[0], [1]]


def test_a_doubled_key_of_json_is_refused() -> None:
    Path("t.jsonl").write_text('{"text": "ab", "y": 1}\n{"text": "ab", "y": 1, "y": 0}\n')
    assert complaint(source="t.jsonl", text={}) == ("t.jsonl: line 2 is no JSON (two keys are called 'y')")


def test_no_such_test_set() -> None:
    write_csv("t.csv", [["a", "y"], [1, 0], [2, 1]])
    Path("t.txt").write_text("some text")
    for source, task in (("t.csv", "classification"), ("t.txt", "language_model")):
        assert complaint(task, source=source, test="train") == (
            "data.test: train: no such file; write the path of the test set, or a share of the one file such "
            "as 20%"
        )
