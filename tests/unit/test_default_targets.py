"""What a recipe without targets is timed on: ONNX Runtime where it is installed, eager PyTorch beside it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify import assess
from sparsify.assess import default_targets
from sparsify.measure import installed
from sparsify.report import headline, read

pytest.importorskip("onnxruntime")
RECIPE: dict[str, Any] = {"version": 1, "title": "t", "rules": [{"layers": "0", "group": "filter", "sparsity": "50%"}]}


class Looking(nn.Module):
    """What torch.export cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().abs().sum()) >= 0 else x + 1


def run(model: nn.Module, folder: Path) -> Any:
    x = torch.rand(2, 3, 8, 8)
    plan = sparsify.make_plan(RECIPE, model.eval(), (x,))
    sparsify.save_run(sparsify.cut(plan, model), folder, inputs=(x,), timing=0.05)
    return read(folder)


def test_eager_alone_where_onnx_runtime_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(default_targets()) == ["onnxruntime", "eager"]
    monkeypatch.setattr(installed, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert list(default_targets()) == ["eager"]


def test_both_are_timed_and_the_headline_begins_with_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assess, "default_targets", default_targets)
    report = run(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)), tmp_path / "run")
    assert [t.description for t in report.latency] == ["cpu, onnxruntime, 1 thread, batch 1", "cpu, eager, 1 thread, batch 1"]
    assert headline(report).index("on onnxruntime") < headline(report).index("on eager")
    note = "the recipe names no target, so both models were timed on this machine's CPU: ONNX Runtime, and eager PyTorch beside it, 1 thread, batch 1"
    assert note in report.notes


def test_a_model_that_cannot_be_exported_is_timed_in_eager_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assess, "default_targets", default_targets)
    report = run(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), Looking(), nn.Conv2d(16, 4, 1)), tmp_path / "run")
    assert [t.target for t in report.latency] == ["eager"]
    assert any(n.startswith("the models could not be timed in ONNX Runtime, so in eager PyTorch alone: target 'onnxruntime' with batch 1 cannot be timed: torch.export cannot follow") for n in report.notes)
    assert "this machine's CPU: eager PyTorch, 1 thread, batch 1" in " ".join(report.notes)
