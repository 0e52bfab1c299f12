"""Data that lie in files, from the file to the report: tables, text, data sets of the library datasets."""

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsify
from sparsify.data import load_data
from sparsify.errors import SparsifyError
from sparsify.runs.apply import apply
from sparsify.runs.save_load import load_dense, verify_run

sys.path.append(str(Path(__file__).parent))
import data_parts

pytestmark = pytest.mark.filterwarnings("ignore:Cannot (locate|pickle)")  # dill, in datasets


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts lie where a user's own module lies: in the current folder."""
    (tmp_path / "data_parts.py").write_text(Path(data_parts.__file__).read_text())
    monkeypatch.chdir(tmp_path)


def recipe(
    data: dict[str, Any], task: Any, build: str, layers: Any, group: str = "neuron", **args: Any
) -> dict[str, Any]:
    adam = {"kind": "adamw", "lr": 0.01}
    return {
        "version": 1,
        "title": "Data",
        "model": {"build": f"data_parts.{build}", "args": args},
        "data": data,
        "task": task,
        "rules": [{"layers": layers, "group": group, "sparsity": "50%"}],
        "stages": [
            {"kind": "train", "name": "learn", "epochs": 4, "batch": 16, "optimizer": adam},
            {"kind": "cut"},
        ],
    }


def run(given: dict[str, Any]) -> Any:
    """The report of a run; that something was learned is checked."""
    report = verify_run(apply(given, from_scratch=True, timing=0.02))
    assert report.verdict.outcome == "equal"
    assert report.history[3].loss < 0.9 * report.history[0].loss, "nothing was learned"
    return report


def complaint(given: dict[str, Any]) -> str:
    with pytest.raises(SparsifyError) as caught:
        apply(given, from_scratch=True, timing=0.02)
    return str(caught.value)


def refused(data: dict[str, Any]) -> str:
    with pytest.raises(SparsifyError) as caught:
        sparsify.load_recipe(recipe(data, "classification", "mlp", "0"))
    return str(caught.value)


def loaded(given: dict[str, Any]) -> Any:
    checked = sparsify.load_recipe(given).recipe
    return load_data(checked.data, checked.seed, checked.task)


# --- tables


def write_table(path: str, rows: Sequence[Sequence[Any]], delimiter: str = ",") -> None:
    with Path(path).open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def flowers(count: int, seed: int) -> list[list[Any]]:
    """Rows of (width, colour, height, kind); the kind follows from the width and the colour."""
    generator = np.random.default_rng(seed)
    rows: list[list[Any]] = []
    for _ in range(count):
        width, height = generator.normal(size=2).round(3)
        colour = ["red", "blue"][generator.integers(2)]
        kind = "rose" if colour == "red" else ("iris" if width > 0 else "aster")
        rows.append([width, colour, height, kind])
    return rows


HEAD = ["width", "colour", "height", "kind"]
FLOWERS = {"source": "flowers.csv", "test": "25%", "target": "kind", "categories": ["colour"]}


def test_a_table_with_names_is_trained_on_and_judged() -> None:
    write_table("flowers.csv", [HEAD, *flowers(200, 0)])
    given = recipe(FLOWERS, "classification", "mlp", "0")
    report = run(given)
    assert report.metric.name == "accuracy"
    data = loaded(given)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (135, 15, 50, 3)
    # The test rows are those of the file, with columns in their order and names in theirs.
    by_size = {(row[0], row[2]): row for row in flowers(200, 0)}
    for x, y in zip(data.test.inputs, data.test.targets, strict=True):
        width, colour, height, kind = by_size[round(float(x[0]), 3), round(float(x[3]), 3)]
        expected = [width, float(colour == "blue"), float(colour == "red"), height]
        assert x.tolist() == pytest.approx(expected)
        assert ["aster", "iris", "rose"][int(y)] == kind
    model = load_dense(Path("runs/data-1")).eval()
    with torch.no_grad():
        right = (model(data.test.inputs).argmax(dim=1) == data.test.targets).float().mean()
    assert report.dense.test_metric == pytest.approx(float(right))
    other = {**given, "seed": 5}
    assert torch.equal(loaded(other).test.inputs, data.test.inputs), "the test set is the same for every seed"
    assert not torch.equal(loaded(other).validation.inputs, data.validation.inputs)


def test_two_tables_and_several_numbers_to_predict() -> None:
    def rows(count: int, seed: int) -> list[list[Any]]:
        x = np.random.default_rng(seed).normal(size=(count, 3)).round(4)
        return [[*row, row[0] + row[1], abs(row[2])] for row in x.tolist()]

    head = ["a", "b", "c", "sum", "size"]
    write_table("train.tsv", [head, *rows(150, 0)], "\t")
    write_table("test.tsv", [head, *rows(30, 1)], "\t")
    given = recipe(
        {"source": "train.tsv", "test": "test.tsv", "target": ["sum", "size"], "features": ["c", "a", "b"]},
        "regression",
        "mlp",
        "0",
        inputs=3,
        outputs=2,
    )
    report = run(given)
    x = torch.tensor([[row[2], row[0], row[1]] for row in rows(30, 1)])
    y = torch.tensor([row[3:] for row in rows(30, 1)])
    with torch.no_grad():
        found = load_dense(Path("runs/data-1")).eval()(x)
    assert report.dense.test_metric == pytest.approx(float((found - y).square().mean().sqrt()), rel=1e-4)


def test_the_last_rows_may_be_the_test_set() -> None:
    write_table("series.csv", [["x", "y"], *[[i, i % 2] for i in range(20)]])
    given = recipe(
        {"source": "series.csv", "test": "20%", "split": "last", "validation": "25%"},
        "classification",
        "mlp",
        "0",
    )
    data = loaded(given)
    assert data.test.inputs.flatten().tolist() == [16, 17, 18, 19]
    assert data.validation.inputs.flatten().tolist() == [12, 13, 14, 15]


TABLE_FAULTS: dict[str, tuple[list[list[Any]], dict[str, Any], str]] = {
    "text as a number": (
        [HEAD, [1, "red", 2, "rose"], [2, "blue", 3, "iris"]],
        {"categories": []},
        "t.csv: column 'colour' holds text, such as 'red' in row 2; list it in data.categories, or leave it "
        "out "
        "of data.features",
    ),
    "an empty cell": (
        [HEAD, [1, "red", 2, "rose"], ["", "blue", 3, "iris"]],
        {},
        "t.csv: row 3 has no value in column 'width'",
    ),
    "an empty target": (
        [HEAD, [1, "red", 2, "rose"], [3, "blue", 3, ""]],
        {},
        "t.csv: row 3 has no value in column 'kind'",
    ),
    "no such target": (
        [HEAD, [1, "red", 2, "rose"], [2, "blue", 3, "iris"]],
        {"target": "sort"},
        "t.csv: has no column 'sort'; its columns are width, colour, height, kind",
    ),
    "a target without a name": (
        [HEAD, [1, "red", 2, "rose"], [2, "blue", 3, "iris"]],
        {"target": None},
        "t.csv: has none of the columns labels, label, targets, target, y; say in data.target which of "
        "width, "
        "colour, height, kind holds the targets",
    ),
    "no such category": (
        [HEAD, [1, "red", 2, "rose"], [2, "blue", 3, "iris"]],
        {"categories": ["color"]},
        "data.categories names 'color', which is no input; the inputs are width, colour, height",
    ),
    "a ragged row": (
        [HEAD, [1, "red", 2]],
        {},
        "t.csv: line 2 has 3 cells, and the first line names 4 columns",
    ),
    "a doubled name": ([["a", "a"], [1, 2]], {}, "t.csv: two columns are called 'a'"),
    "no rows": ([HEAD], {}, "t.csv: has no examples"),
    "too few rows": (
        [HEAD, [1, "red", 2, "rose"]],
        {},
        "t.csv: 50% of 1 examples leaves none for the test set",
    ),
}


@pytest.mark.parametrize("fault", TABLE_FAULTS)
def test_faults_of_a_table(fault: str) -> None:
    rows, changed, message = TABLE_FAULTS[fault]
    write_table("t.csv", rows)
    data = {**FLOWERS, "source": "t.csv", "test": "50%", **changed}
    given = {key: value for key, value in data.items() if value is not None}
    assert complaint(recipe(given, "classification", "mlp", "0")) == message


def test_faults_of_the_files() -> None:
    given = recipe(FLOWERS, "classification", "mlp", "0")
    assert complaint(given) == "flowers.csv: no such file"
    write_table("flowers.csv", [HEAD, *flowers(20, 0)])
    given["data"] = {**FLOWERS, "test": "other.csv"}
    assert complaint(given) == (
        "data.test: other.csv: no such file; write the path of the test set, or a share of the one file such "
        "as 20%"
    )
    write_table("other.csv", [["width", "height", "kind"], [1, 2, "rose"]])
    assert complaint(given) == "other.csv: has no column 'colour'; its columns are width, height, kind"
    Path("flowers.csv").write_bytes(b"\xff\xfe\x00")
    assert complaint(given) == (
        "flowers.csv: cannot be read as text in UTF-8 ('utf-8' codec can't decode byte 0xff in position 0: "
        "invalid start byte)"
    )


def test_recipes_say_what_does_not_act() -> None:
    at = "<recipe>: data."
    assert refused({"source": "a.csv"}) == (
        f"{at}test: 'a.csv' is one file; write the path of another with the test set, or a share of this one "
        "such as 20%"
    )
    assert refused({"source": "a.csv", "test": "100%"}) == (
        f"{at}test: a test set of 100% leaves nothing to train on or nothing to test"
    )
    assert refused({"source": "a.csv", "test": "200%"}) == (
        f"{at}test: expected a share such as 20% or a path, found '200%'"
    )
    assert refused({"source": "digits", "test": "20%"}) == (
        f"{at}test: source 'digits' has a test set of its own; leave 'test' out"
    )
    assert refused({"source": "digits", "features": ["a"]}) == (
        f"{at}features: 'features' acts on .csv, .tsv and huggingface only"
    )
    assert refused({"source": "digits", "text": {}}) == (
        f"{at}text: 'text' acts on .csv, .tsv, .txt, .jsonl and huggingface only"
    )
    assert refused({"source": "a.csv", "test": "20%", "text": {}, "features": ["a"]}) == (
        f"{at}text: 'text' is the input; leave 'features' and 'categories' out"
    )
    assert refused({"source": "a.txt", "test": "20%", "target": "y"}) == (
        f"{at}target: a .txt holds text alone; leave 'target' out"
    )
    assert refused({"source": "some:data", "target": ["a", "b"]}) == (
        f"{at}target: several columns are of .csv, .tsv and huggingface only"
    )


# --- text

SENTENCE = "the cat sat on the mat and the dog sat on the rug. "


def test_a_language_model_of_a_text() -> None:
    Path("book.txt").write_text(SENTENCE * 60)
    data = {"source": "book.txt", "test": "10%", "text": {"max_length": 32}}
    given = recipe(data, "language_model", "Letters", "up")
    report = run(given)
    assert report.metric.name == "perplexity"
    text = SENTENCE * 60
    held_out = text[len(text) - round(0.1 * len(text)) :].encode()
    model = load_dense(Path("runs/data-1")).eval()
    total, count = 0.0, 0
    for start in range(0, len(held_out), 32):
        tokens = torch.tensor([list(held_out[start : start + 32])])
        if tokens.shape[1] < 2:
            continue
        with torch.no_grad():
            log = model(tokens).log_softmax(dim=2)
        total -= float(log[0, :-1].gather(1, tokens[0, 1:, None]).sum())
        count += tokens.shape[1] - 1
    assert report.dense.test_metric == pytest.approx(float(np.exp(total / count)), rel=1e-3)


def reviews(count: int, seed: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    good, bad = ["good", "fine", "fun"], ["bad", "dull", "poor"]
    rows = []
    for _ in range(count):
        label = int(generator.integers(2))
        words = generator.choice([bad, good][label], size=int(generator.integers(1, 5)))
        rows.append({"review": " ".join(words), "label": ["no", "yes"][label]})
    return rows


def write_lines(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


REVIEWS = {"source": "train.jsonl", "test": "test.jsonl", "text": {"column": "review", "max_length": 12}}


def test_text_is_classified() -> None:
    write_lines("train.jsonl", reviews(120, 0))
    write_lines("test.jsonl", reviews(30, 1))
    given = recipe(REVIEWS, "classification", "Reader", "up")
    run(given)
    data = loaded(given)
    for row, tokens, target in zip(
        reviews(30, 1), data.test.inputs.items, data.test.targets.tolist(), strict=True
    ):
        assert bytes(tokens.tolist()).decode() == row["review"][:12]
        assert ["no", "yes"][target] == row["label"]


def write_tokenizer(folder: str) -> None:
    """One token a word."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "good", "fine", "fun", "bad", "dull", "poor"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", model_input_names=INPUTS
    )
    made.save_pretrained(folder)


INPUTS = ["input_ids", "attention_mask"]


def test_a_tokenizer_of_transformers() -> None:
    write_tokenizer("words")
    write_table("reviews.csv", [["review", "label"], *[list(row.values()) for row in reviews(150, 0)]])
    data = {
        "source": "reviews.csv",
        "test": "20%",
        "text": {"column": "review", "tokenizer": "words", "max_length": 3},
    }
    given = recipe(data, "classification", "Reader", "up", tokens=8)
    run(given)
    inputs = loaded(given).test.inputs
    assert list(inputs) == INPUTS
    assert max(len(tokens) for tokens in inputs["input_ids"].items) == 3
    x, _ = loaded(given).test[:4].batch()
    assert torch.equal(x["attention_mask"], (x["input_ids"] > 0).long())


TEXT_FAULTS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "classes of a .txt": (
        {"source": "book.txt", "test": "20%"},
        "classification",
        "book.txt: a .txt holds text without targets, which a task of classification cannot use; write a "
        ".jsonl "
        "or .csv with a column of targets",
    ),
    "masked tokens": (
        {"source": "book.txt", "test": "20%"},
        "masked_language_model",
        "book.txt: text has no masked tokens, which a task of masked_language_model needs; mask them in a "
        "package.module:callable",
    ),
    "no such column": (
        {**REVIEWS, "text": {}},
        "classification",
        "train.jsonl: has no column 'text'; its columns are review, label",
    ),
    "no text": (
        {**REVIEWS, "source": "numbers.jsonl"},
        "classification",
        "numbers.jsonl: row 2 has no text in column 'review', but 5",
    ),
    "an empty text": (
        {**REVIEWS, "source": "empty.jsonl"},
        "classification",
        "empty.jsonl: text 2 is empty",
    ),
    "no JSON": (
        {**REVIEWS, "source": "broken.jsonl"},
        "classification",
        "broken.jsonl: line 2 is no JSON (Expecting value: line 1 column 1 (char 0))",
    ),
    "a list": (
        {**REVIEWS, "source": "list.jsonl"},
        "classification",
        'list.jsonl: line 1 is no JSON object, such as {"text": "..."}',
    ),
    "no such tokenizer": (
        {**REVIEWS, "text": {"column": "review", "tokenizer": "nowhere"}},
        "classification",
        "data.text.tokenizer: there is no folder nowhere; expected one that save_pretrained of a tokenizer "
        "wrote, "
        "or 'bytes'",
    ),
    "too short": (
        {"source": "short.txt", "test": "50%"},
        "language_model",
        "short.txt: has no text of two tokens or more",
    ),
}


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_faults_of_text(fault: str) -> None:
    Path("book.txt").write_text(SENTENCE)
    Path("short.txt").write_text("ab")
    for name in ("train.jsonl", "test.jsonl"):
        write_lines(name, reviews(6, 0))
    row = {"review": "good", "label": "yes"}
    write_lines("numbers.jsonl", [row, {**row, "review": 5}])
    write_lines("empty.jsonl", [row, {**row, "review": ""}])
    Path("broken.jsonl").write_text(json.dumps(row) + "\nnone\n")
    Path("list.jsonl").write_text("[1]\n")
    data, task, message = TEXT_FAULTS[fault]
    build = "Letters" if task == "language_model" else "Reader"
    assert complaint(recipe(data, task, build, "up")) == message


def test_a_tokenizer_without_transformers_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        write_lines(name, reviews(6, 0))
    monkeypatch.setitem(sys.modules, "transformers", None)
    data = {**REVIEWS, "text": {"column": "review", "tokenizer": "."}}
    assert complaint(recipe(data, "classification", "Reader", "up")) == (
        "data.text.tokenizer needs transformers, which is not installed: "
        "pip install 'sparsify-recipes[transformers]'"
    )


# --- the library datasets


def hugging_face(kind: str) -> dict[str, Any]:
    """The same reviews in a form that the library reads; what `data` says of it."""
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_list(reviews(*size)) for name, size in SIZES.items()}
    match kind:
        case "save_to_disk":
            datasets.DatasetDict(parts).save_to_disk("set")
            return {"root": "set"}
        case "one set":
            parts["train"].save_to_disk("set")
            return {"root": "set", "test": "20%"}
        case "one file":
            for name, part in parts.items():
                part.to_json(f"{name}.json")
            return {"root": "train.json", "test": "test.json"}
        case _:
            Path("set").mkdir()
            for name, part in parts.items():
                getattr(part, f"to_{kind}")(f"set/{name}.{kind}")
            return {"root": "set"}


SIZES = {"train": (120, 0), "test": (30, 1)}


@pytest.mark.parametrize("kind", ["save_to_disk", "one set", "one file", "parquet", "csv", "json"])
def test_a_set_of_the_library_datasets(kind: str) -> None:
    data = {"source": "huggingface", **hugging_face(kind), "text": {"column": "review"}}
    given = recipe(data, "classification", "Reader", "up")
    if kind == "parquet":
        run(given)
    found = loaded(given)
    texts = [bytes(tokens.tolist()).decode() for tokens in found.test.inputs.items]
    expected = [row["review"] for row in reviews(30, 1)]
    if kind == "one set":
        assert len(found.test) == 24 and set(texts) <= {row["review"] for row in reviews(120, 0)}
    else:
        assert texts == expected
        assert found.test.targets.tolist() == [int(row["label"] == "yes") for row in reviews(30, 1)]


def test_columns_of_numbers_and_of_lists() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"a": i, "b": 0.5 * i, "ids": [i, i + 1], "image": [[i, 1], [2, 3]], "y": i % 3} for i in range(10)
    ]
    datasets.Dataset.from_list(rows).save_to_disk("set")
    data = {"source": "huggingface", "root": "set", "test": "20%", "split": "last", "validation": "0%"}

    def inputs(*features: str) -> Any:
        given = recipe({**data, "features": list(features)}, "classification", "mlp", "0")
        return loaded(given).test.inputs

    assert inputs("b", "a").tolist() == [[4, 8], [4.5, 9]]
    assert inputs("ids").tolist() == [[8, 9], [9, 10]]
    assert inputs("image").shape == (2, 2, 2)
    mixed = inputs("a", "ids")
    assert mixed["a"].tolist() == [8, 9] and mixed["ids"].tolist() == [[8, 9], [9, 10]]


def test_faults_of_a_set_of_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def fault(**data: Any) -> str:
        given = {"source": "huggingface", **data, "text": {"column": "review"}}
        return complaint(recipe(given, "classification", "Reader", "up"))

    assert fault() == (
        "<recipe>: data.root: source 'huggingface' needs 'root': the folder that save_to_disk wrote, a "
        "folder of train.parquet and test.parquet (or .csv, .json, .jsonl), or one such file"
    )
    assert fault(root="set") == "set: no such file or folder"
    Path("empty").mkdir()
    assert fault(root="empty") == (
        "empty: holds neither what save_to_disk writes nor files such as train.parquet and test.parquet"
    )
    Path("a.zip").write_text("")
    assert fault(root="a.zip") == "a.zip: expected a .parquet, .csv, .json or .jsonl, or a folder"
    datasets.Dataset.from_list(reviews(10, 0)).save_to_disk("set")
    assert fault(root="set") == (
        "set: has no split 'test' (it holds train); say in data.test which split, or which share such as "
        "20%, "
        "is the test set"
    )
    Path("bad.parquet").write_text("none")
    assert fault(root="bad.parquet", test="20%").startswith("bad.parquet: cannot be read by datasets (")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert fault(root="set") == (
        "data source huggingface needs datasets, which is not installed: pip install 'sparsify-recipes[data]'"
    )


# --- training and test examples of one form


def images(count: int, dtype: Any, channels: int = 1) -> Any:
    pixels = np.random.default_rng(0).integers(0, 255, size=(count, channels, 8, 8))
    return pixels.astype(dtype)


FORMS = {
    "types": (
        images(9, np.uint8),
        images(3, np.float64),
        "'mixed.npz': training examples are 1x8x8 uint8, test examples are 1x8x8 float32",
    ),
    "whole numbers": (
        images(9, np.int32),
        images(3, np.float32),
        "'mixed.npz': training examples are 1x8x8 int64, test examples are 1x8x8",
    ),
    "shapes": (
        images(9, np.uint8),
        images(3, np.uint8, 3),
        "'mixed.npz': training examples are 1x8x8, test examples are 3x8x8",
    ),
}


@pytest.mark.parametrize("kind", FORMS)
def test_training_and_test_examples_of_different_forms_are_refused(kind: str) -> None:
    train, test, message = FORMS[kind]
    np.savez("mixed.npz", x_train=train, y_train=np.arange(9) % 2, x_test=test, y_test=np.arange(3) % 2)
    assert complaint(recipe({"source": "mixed.npz"}, "classification", "conv_net", "0", "filter")) == message


def test_sequences_of_one_length_in_one_set_alone_are_no_other_form() -> None:
    write_lines("train.jsonl", reviews(60, 0))
    write_lines("test.jsonl", [{"review": "good", "label": "yes"}, {"review": "dull", "label": "no"}])
    run(recipe(REVIEWS, "classification", "Reader", "up"))


LATE_FILES = {
    "late_net": "def build():\n    from late_parts import make\n    return make()\n",
    "late_data": "def load():\n    from late_parts import rows\n    return rows(60), rows(20)\n",
    "late_parts": """
import torch
from torch import nn
from torch.utils.data import Dataset
def make(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
class Rows(Dataset):
    def __init__(self, length): self.length = length
    def __len__(self): return self.length
    def __getitem__(self, number):
        from late_example import draw
        return draw(number)
def rows(length): return Rows(length)
""",
    "late_example": """
import torch
def draw(number):
    x = torch.randn(4, generator=torch.Generator().manual_seed(number))
    return x, int(x[:3].argmax())
""",
}


@pytest.mark.parametrize("workers", [0, 1])
def test_files_of_the_folder_that_are_imported_when_code_runs_are_found(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in LATE_FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    recipe = {
        "version": 1,
        "title": "late",
        "model": {"build": "late_net:build"},
        "data": {"source": "late_data:load", "validation": "20%", "workers": workers},
        "rules": [{"layers": "0", "group": "neuron", "sparsity": "25%"}],
        "stages": [
            {"kind": "train", "name": "learn", "epochs": 1, "optimizer": {"kind": "adam"}},
            {"kind": "cut"},
        ],
    }
    assert (sparsify.apply(recipe, from_scratch=True, timing=0.02) / "report.html").exists()
    assert sys.path == before
