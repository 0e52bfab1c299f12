"""Dense and cut model in floats and in integers: what the four forms say, what they are quantised on, and a kill in between."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsify import folder as files
from sparsify import integers as own
from sparsify.artefact import checked
from sparsify.data import Datasets, Examples
from sparsify.errors import ModelError
from sparsify.measure.quantising import quantised
from sparsify.report import tables, to_markdown
from sparsify.run import apply
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

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-1.0], [1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.fc(x)
        return made


def data(train: Tensor, other: Tensor) -> Datasets:
    def examples(x: Tensor) -> Examples:
        return Examples(x, (x[:, 0] > 0).long())

    return Datasets(examples(train), examples(other), examples(other[:0]), 2)


def test_ranges_are_those_of_training_examples() -> None:
    """What is far outside of their range is clipped to it: the quantised model cannot tell 100 from 1."""
    train, other = torch.linspace(-1, 1, 50)[:, None], torch.linspace(-1, 1, 7)[:, None]
    found, file = own.integers(Doubling(), Doubling(), (train[:2],), data(train, other), {"int8": INT8}, 0.05, 0)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    far, near = (session.run(None, {name: np.array([[x]], np.float32)})[0] for x in (100.0, 1.0))
    assert np.allclose(far, near) and near[0, 1] == pytest.approx(1, abs=0.05)
    assert found.examples == 50
    assert [(form.model, form.dtype) for form in found.forms] == [("dense", "float32"), ("cut", "float32"), ("dense", "int8"), ("cut", "int8")]
    assert [form.validation_accuracy for form in found.forms][:2] == [1.0, 1.0]
    assert {form.test_accuracy for form in found.forms} == {None}
    assert all(form.ms["int8"] > 0 for form in found.forms)


def test_without_data_ranges_are_of_random_inputs() -> None:
    found, _ = own.integers(Doubling(), Doubling(), (torch.randn(4, 1),), None, {"int8": INT8}, 0.05, 0)
    assert found.examples == 0 and found.forms[2].validation_accuracy is None


def test_a_file_that_is_no_onnx_is_refused() -> None:
    with pytest.raises(ModelError, match="ONNX Runtime cannot quantise the model: "):
        quantised(b"", [])


def test_a_table_from_elsewhere_quantises_nothing() -> None:
    assert own.in_int8({"a": INT8, "b": INT8.model_copy(update={"table": "b.json"}), "c": Cpu(kind="cpu")}) == {"a": INT8}


@pytest.mark.slow
def test_a_kill_in_the_middle_of_the_table_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    whole = apply(RECIPE, from_scratch=True, out=tmp_path / "whole", timing=0.05)
    seen: list[own._File] = []

    def killed(file: own._File, examples: Examples) -> float | None:
        seen.append(file)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return accuracy(file, examples)

    accuracy = own._accuracy
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(own, "_accuracy", killed)
        apply(RECIPE, from_scratch=True, out=tmp_path / "halted", timing=0.05)
    halted = tmp_path / "halted" / "digits-1"
    assert not (halted / files.REPORT).exists()
    apply(resume=halted, timing=0.05)
    a, b = checked(whole, files.QUANTISED), checked(halted, files.QUANTISED)
    assert a.integers is not None and b.integers is not None

    def figures(report: Any) -> list[Any]:
        return [form.model_copy(update={"ms": {}}) for form in report.integers.forms]

    assert figures(a) == figures(b)
    assert (whole / files.QUANTISED).read_bytes() == (halted / files.QUANTISED).read_bytes()
    dense, cut, dense_int8, cut_int8 = a.integers.forms
    assert dense.bytes > cut.bytes > cut_int8.bytes and dense_int8.bytes < dense.bytes
    assert dense.test_accuracy == pytest.approx(a.dense.test_accuracy) and cut.test_accuracy == pytest.approx(a.cut.test_accuracy)
    assert cut_int8.test_accuracy == pytest.approx(cut.test_accuracy, abs=0.05)
    assert "Floats and integers" in [t.title for t in tables(a)]
    assert "256 training examples" in to_markdown(a)
    assert json.loads((whole / files.REPORT).read_text())["integers"]["examples"] == 256
