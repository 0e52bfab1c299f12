"""Dense and cut model in floats and in integers: what the four forms say, what they are quantised on, and
kills in between."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsify.cost.measure.onnx_quantize import quantise
from sparsify.data import Datasets, Examples
from sparsify.errors import ModelError
from sparsify.objective.objective import CLASSIFICATION
from sparsify.reporting.report_tables import list_tables, to_markdown
from sparsify.runs import int8, run_folder
from sparsify.runs.apply import apply
from sparsify.runs.measurement_cache import MeasurementCache
from sparsify.runs.save_load import verify_run
from sparsify_schemas.report import Integers
from sparsify_schemas.target import Cpu

ort = pytest.importorskip("onnxruntime")
INT8 = Cpu(kind="cpu", runtime="onnxruntime", dtype="int8")
SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "10%"},
    "targets": {"int8": {"kind": "cpu", "runtime": "onnxruntime", "dtype": "int8"}},
    "budget": {"macs": "60%"},
    "rules": [{"layers": "conv*", "group": "filter"}],
    "stages": [{"kind": "train", "name": "learn", "epochs": 2, "optimizer": SGD}, {"kind": "cut"}],
}


class Doubling(nn.Module):
    """Class 1 for what is above zero."""

    def __init__(self, by: float = 1.0) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-by], [by]]))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(x)
        return made


def data(train: Tensor, other: Tensor) -> Datasets:
    def examples(x: Tensor) -> Examples:
        return Examples(x, (x[:, 0] > 0).long())

    return Datasets(examples(train), examples(other), examples(other[:0]), 2)


@pytest.fixture
def parts(tmp_path: Path) -> MeasurementCache:
    return MeasurementCache(tmp_path / "int8", "these models")


def test_ranges_are_those_of_training_examples(parts: MeasurementCache) -> None:
    """What is far outside of their range is clipped to it: the quantised model cannot tell 100 from 1."""
    train, other = torch.linspace(-1, 1, 50)[:, None], torch.linspace(-1, 1, 7)[:, None]
    found, file = int8.compare_int8(
        Doubling(),
        Doubling(),
        (train[:2],),
        data(train, other),
        CLASSIFICATION,
        {"int8": INT8},
        0.05,
        0,
        parts,
    )
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    far, near = (session.run(None, {name: np.array([[x]], np.float32)})[0] for x in (100.0, 1.0))
    assert np.allclose(far, near) and near[0, 1] == pytest.approx(1, abs=0.05)
    assert found.examples == 50
    assert [(form.model, form.dtype) for form in found.forms] == [
        ("dense", "float32"),
        ("cut", "float32"),
        ("dense", "int8"),
        ("cut", "int8"),
    ]
    assert [form.validation_metric for form in found.forms][:2] == [1.0, 1.0]
    assert {form.test_metric for form in found.forms} == {None}
    assert all(form.ms["int8"] > 0 for form in found.forms)


def test_without_data_ranges_are_of_random_inputs(parts: MeasurementCache) -> None:
    found, _ = int8.compare_int8(
        Doubling(), Doubling(), (torch.randn(4, 1),), None, CLASSIFICATION, {"int8": INT8}, 0.05, 0, parts
    )
    assert found.examples == 0 and found.forms[2].validation_metric is None


def test_what_is_in_integers_stays_as_it_is(parts: MeasurementCache) -> None:
    _, file = int8.compare_int8(
        Doubling(), Doubling(), (torch.randn(4, 1),), None, CLASSIFICATION, {}, 0.05, 0, parts
    )
    assert quantise(file, []) == file


def test_a_file_that_is_no_onnx_is_refused() -> None:
    with pytest.raises(ModelError, match="ONNX Runtime cannot quantise the model: "):
        quantise(b"", [])


def test_examples_of_sizes_that_the_file_does_not_take_are_named() -> None:
    file = int8.export_onnx_bytes(Doubling(), (torch.randn(4, 1),))
    with pytest.raises(ModelError) as raised:
        quantise(file, [[np.zeros((4, 2), dtype=np.float32)]])
    assert str(raised.value) == (
        "int8: axis 1 of 'x' is 2 in the training examples, and the ONNX file takes 1 alone; leave that axis "
        "open (--dynamic x:1=size), or give examples of one size"
    )


def test_a_table_from_elsewhere_quantises_nothing() -> None:
    assert int8.select_int8(
        {"a": INT8, "b": INT8.model_copy(update={"table": "b.json"}), "c": Cpu(kind="cpu")}
    ) == {"a": INT8}


def counted(monkeypatch: pytest.MonkeyPatch, halt: str = "", after: int = 0) -> list[str]:
    """What is made from now on, in order; raising after so many parts of one kind."""
    made: list[str] = []

    def watch(name: str) -> None:
        original = getattr(int8, name)

        def call(*given: Any) -> Any:
            if name == halt and made.count(name) == after:
                raise KeyboardInterrupt
            made.append(name)
            return original(*given)

        monkeypatch.setattr(int8, name, call)

    for name in ("export_onnx_bytes", "quantise", "_time_interleaved", "_judge_on"):
        watch(name)
    return made


@pytest.mark.parametrize(
    ("halt", "after", "rest"),
    [
        ("quantise", 1, {"quantise": 1, "_time_interleaved": 2, "_judge_on": 8}),
        ("_time_interleaved", 1, {"_time_interleaved": 1, "_judge_on": 8}),
        ("_judge_on", 5, {"_judge_on": 4}),
    ],
)
def test_what_is_there_is_not_made_again(
    parts: MeasurementCache, monkeypatch: pytest.MonkeyPatch, halt: str, after: int, rest: dict[str, int]
) -> None:
    """Parts: two files in floats, two in integers, times on each of two targets, accuracies on both sets
    of each of four forms."""
    x = torch.linspace(-1, 1, 50)[:, None]
    targets = {"int8": INT8, "four": INT8.model_copy(update={"batch": 4})}

    def table() -> tuple[Integers, bytes]:
        return int8.compare_int8(
            Doubling(), Doubling(2.0), (x[:2],), data(x, x), CLASSIFICATION, targets, 0.05, 0, parts
        )

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, halt, after)
        table()
    with monkeypatch.context() as patch:
        made = counted(patch)
        found = table()
        assert Counter(made) == rest
        assert table() == found and Counter(made) == rest
    assert all(
        form.validation_metric is not None and form.ms.keys() == targets.keys() for form in found[0].forms
    )


def test_parts_of_other_models_do_not_count(parts: MeasurementCache, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-1, 1, 50)[:, None]
    int8.compare_int8(
        Doubling(), Doubling(2.0), (x[:2],), data(x, x), CLASSIFICATION, {"int8": INT8}, 0.05, 0, parts
    )
    made = counted(monkeypatch)
    int8.compare_int8(
        Doubling(3.0),
        Doubling(4.0),
        (x[:2],),
        data(x, x),
        CLASSIFICATION,
        {"int8": INT8},
        0.05,
        0,
        MeasurementCache(parts.folder, "those"),
    )
    assert Counter(made) == {
        "export_onnx_bytes": 2,
        "quantise": 2,
        "_time_interleaved": 1,
        "_judge_on": 8,
    }


@pytest.mark.nightly
@pytest.mark.slow
def test_a_kill_in_the_middle_of_the_table_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    whole = apply(RECIPE, from_scratch=True, out=tmp_path / "whole", timing=0.05)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        counted(patch, "_judge_on", 4)
        apply(RECIPE, from_scratch=True, out=tmp_path / "halted", timing=0.05)
    halted = tmp_path / "halted" / "digits-1"
    assert not (halted / run_folder.REPORT).exists()
    assert {p.name for p in (halted / run_folder.PARTS).iterdir()} == {
        "dense.float32.onnx",
        "cut.float32.onnx",
        "dense.int8.onnx",
        "cut.int8.onnx",
        "parts.json",
    }
    with monkeypatch.context() as patch:
        rest = counted(patch)
        apply(resume=halted, timing=0.05)
    assert rest == ["_judge_on"] * 4
    assert not (halted / run_folder.PARTS).exists() and not (whole / run_folder.PARTS).exists()
    a, b = verify_run(whole, run_folder.QUANTISED), verify_run(halted, run_folder.QUANTISED)
    assert a.integers is not None and b.integers is not None

    def figures(report: Any) -> list[Any]:
        return [form.model_copy(update={"ms": {}}) for form in report.integers.forms]

    assert figures(a) == figures(b)
    assert (whole / run_folder.QUANTISED).read_bytes() == (halted / run_folder.QUANTISED).read_bytes()
    dense, cut, dense_int8, cut_int8 = a.integers.forms
    assert dense.bytes > cut.bytes > cut_int8.bytes and dense_int8.bytes < dense.bytes
    assert dense.test_metric == pytest.approx(a.dense.test_metric) and cut.test_metric == pytest.approx(
        a.cut.test_metric
    )
    assert cut_int8.test_metric == pytest.approx(cut.test_metric, abs=0.05)
    assert "float32 and int8" in [t.title for t in list_tables(a)]
    assert "256 training examples" in to_markdown(a)
    assert json.loads((whole / run_folder.REPORT).read_text())["integers"]["examples"] == 256
