"""What a recipe without targets is timed on: ONNX Runtime where it is installed, eager PyTorch beside it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.cost.measure import availability
from sparsify.errors import ModelError
from sparsify.reporting.headline import write_headline
from sparsify.reporting.report_file import read_report
from sparsify.runs import timed_targets
from sparsify.runs.apply import apply
from sparsify.runs.timed_targets import default_targets

pytest.importorskip("onnxruntime")
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "t",
    "rules": [{"layers": "0", "group": "filter", "sparsity": "50%"}],
}


class Looking(nn.Module):
    """What torch.export cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().abs().sum()) >= 0 else x + 1


def run(model: nn.Module, folder: Path) -> Any:
    x = torch.rand(2, 3, 8, 8)
    plan = sparsify.make_plan(RECIPE, model.eval(), (x,))
    sparsify.save_run(sparsify.cut(plan, model), folder, inputs=(x,), timing=0.05)
    return read_report(folder)


def test_a_model_in_bfloat16_is_timed_in_eager_pytorch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy, through which models and inputs go into ONNX Runtime, has no such type."""
    monkeypatch.setattr(timed_targets, "default_targets", default_targets)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval().bfloat16()
    x = torch.rand(2, 3, 8, 8).bfloat16()
    result = sparsify.cut(sparsify.make_plan(RECIPE, model, (x,)), model)
    folder = sparsify.save_run(result, tmp_path / "run", inputs=(x,), timing=0.05)
    report = read_report(folder)
    assert [t.description for t in report.latency] == ["cpu, eager, 1 thread, batch 1"]
    assert any(
        note.endswith(
            "only in eager PyTorch: target 'onnxruntime' with batch 1 cannot be timed: numbers in bfloat16 "
            "cannot be exchanged with it; convert the model by model.float()"
        )
        for note in report.notes
    )
    again = sparsify.load_run(folder, build=lambda: model)
    assert torch.equal(again(x), result.model.eval()(x))


def test_eager_alone_where_onnx_runtime_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(default_targets()) == ["onnxruntime", "eager"]
    monkeypatch.setattr(availability, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert list(default_targets()) == ["eager"]


def test_both_are_timed_and_the_headline_begins_with_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_targets, "default_targets", default_targets)
    report = run(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)), tmp_path / "run")
    assert [t.description for t in report.latency] == [
        "cpu, onnxruntime, 1 thread, batch 1",
        "cpu, eager, 1 thread, batch 1",
    ]
    assert write_headline(report).index("on onnxruntime") < write_headline(report).index("on eager")
    note = (
        "the recipe names no target, so both models were timed on this machine's "
        "CPU: ONNX Runtime and eager PyTorch, 1 thread, batch 1"
    )
    assert note in report.notes


def test_a_model_that_cannot_be_exported_is_timed_in_eager_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_targets, "default_targets", default_targets)
    report = run(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), Looking(), nn.Conv2d(16, 4, 1)), tmp_path / "run"
    )
    assert [t.target for t in report.latency] == ["eager"]
    assert any(
        n.startswith(
            "the models could not be timed in ONNX Runtime, only in eager PyTorch: "
            "target 'onnxruntime' with batch 1 cannot be timed: torch.export cannot "
            "follow"
        )
        for n in report.notes
    )
    assert "this machine's CPU: eager PyTorch, 1 thread, batch 1" in " ".join(report.notes)


@pytest.mark.parametrize("preset", ["onnxruntime", "onnxruntime-int8", "openvino"])
def test_a_target_that_cannot_run_the_model_is_refused_before_the_first_epoch(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when all is trained, where nothing that the user could change would bring the run to its end."""
    pytest.importorskip(preset.removesuffix("-int8"))
    (tmp_path / "looking_at_numbers.py").write_text(
        "from torch import nn\nfrom sparsify.models import digits_cnn\n\n\nclass "
        "Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.body = digits_cnn()\n\n    def forward(self, x):\n        "
        "return self.body(x if float(x.sum()) < 1e9 else x + 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    stages = [{"kind": "train", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.05}}, {"kind": "cut"}]
    recipe = {
        **RECIPE,
        "model": {"build": "looking_at_numbers.Net"},
        "data": {"source": "digits"},
        "targets": {"server": preset},
        "stages": stages,
    }
    recipe["rules"] = [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}]
    with pytest.raises(ModelError) as caught:
        apply(recipe, from_scratch=True)
    assert str(caught.value).startswith(
        "target 'server' cannot run the model: torch.export cannot follow the model with "
    )
    assert str(caught.value).endswith("; set its runtime to 'eager' or 'compile', or remove the target")
    assert not Path("runs").exists()


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform != "linux", reason="the stack for signals is Linux's")
def test_a_model_of_openvino_that_another_thread_frees_leaves_signals_alone() -> None:
    code = """
import faulthandler, signal, threading, torch
from sparsify.cost.measure.runtimes import prepare
from sparsify_schemas.target import Cpu

faulthandler.enable()
target = Cpu(kind="cpu", runtime="openvino")
prepared = [prepare(torch.nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8),), target)]
prepared[0]()
thread = threading.Thread(target=prepared.clear)
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("it goes on"))
signal.raise_signal(signal.SIGUSR1)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "it goes on")
