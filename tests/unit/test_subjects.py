"""What bench times: any two of a run, a .pt2 and an .onnx file; and what it refuses."""

import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.contest import Contest, table, words
from sparsify.errors import SparsifyError
from sparsify.load import presets
from sparsify.measure.contesting import contested, pinned
from sparsify.models import digits_cnn
from sparsify.subjects import subjects, versus
from sparsify_schemas.target import Cpu

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "inputs": [{"shape": [2, 1, 8, 8]}],
    "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%"}],
}
EAGER, EXPORTED = Cpu(kind="cpu"), Cpu(kind="cpu", runtime="onnxruntime")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its model as .pt2 and .onnx."""
    folder = tmp_path_factory.mktemp("made")
    model = digits_cnn().eval()
    plan = sparsify.make_plan(RECIPE, model, (torch.rand(2, 1, 8, 8),))
    sparsify.save_run(sparsify.cut(plan, model), folder / "run", timing=0.05)
    for kind in ("pt2", "onnx"):
        sparsify.export(folder / "run", kind, folder / f"cut.{kind}")  # type: ignore[arg-type]
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


def complaint(*names: str, on: str = "onnxruntime") -> str:
    with pytest.raises(SparsifyError) as caught:
        a, b = subjects([Path(n) for n in names])
        versus(a, b, on, presets()[on], 0.05)
    return str(caught.value)


@pytest.mark.parametrize("pair", [("run", "cut.onnx"), ("cut.onnx", "cut.pt2"), ("cut.pt2", "run")])
def test_any_two_artefacts_are_timed_against_each_other(pair: tuple[str, str]) -> None:
    a, b = subjects([Path(n) for n in pair])
    found = versus(a, b, "there", EXPORTED, 0.1)
    assert (found.a, found.b, found.description) == (*pair, "cpu, onnxruntime, 1 thread, batch 1")
    assert found.low <= found.speedup <= found.high
    assert 0.2 < found.speedup < 5  # they are the same model


def test_a_program_runs_in_pytorch() -> None:
    a, b = subjects([Path("run"), Path("cut.pt2")])
    assert versus(a, b, "cpu", EAGER, 0.1).a_ms > 0


def test_what_cannot_be_timed_says_why(tmp_path: Path) -> None:
    Path("notes.txt").write_text("x")
    Path("broken.onnx").write_bytes(b"\x08\x07no")
    Path("broken.pt2").write_bytes(b"no zip")
    assert complaint("run", "none.onnx") == "none.onnx: no such file or folder"
    assert complaint("run", "notes.txt") == "notes.txt is no run folder, no .pt2 and no .onnx file, so it cannot be timed; 'sparsify export' makes them of a run"
    assert complaint("run", "broken.onnx").startswith("broken.onnx cannot be read as an ONNX file: ")
    assert complaint("run", "broken.pt2") == "broken.pt2 cannot be read as a torch.export program: File is not a zip file"
    assert complaint("cut.onnx") == "cut.onnx is one model; name a second run, .pt2 or .onnx to time it against"
    assert complaint("run", "cut.onnx", on="eager") == (
        "cut.onnx is an ONNX file, which PyTorch does not run, as target 'eager' asks; choose --on onnxruntime or --on openvino"
    )


def test_artefacts_with_other_inputs_are_not_compared() -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 3), (torch.randn(2, 3, 9, 9),))
    torch.export.save(program, "other.pt2")
    assert complaint("run", "other.pt2") == "other.pt2 takes 3x9x9 of float32, and run takes 1x8x8 of float32, so the two cannot be compared"


def test_a_fixed_batch_is_said_to_be_the_trouble() -> None:
    program = torch.export.export(digits_cnn().eval(), (torch.rand(2, 1, 8, 8),))
    torch.export.save(program, "two.pt2")
    assert complaint("run", "two.pt2", on="eager").startswith("two.pt2 cannot be run on target 'eager' with batch 1: ")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_program_is_executed() -> None:
    """torch.export.load unpickles its example inputs, and weights that say so, without asking."""
    bad = io.BytesIO()
    torch.save(Evil(), bad)
    with zipfile.ZipFile("cut.pt2") as source, zipfile.ZipFile("inputs.pt2", "w") as inputs, zipfile.ZipFile("extra.pt2", "w") as extra, zipfile.ZipFile("weights.pt2", "w") as weights:
        for name in source.namelist():
            data = source.read(name)
            inputs.writestr(name, bad.getvalue() if "sample_inputs" in name else data)
            extra.writestr(name, data)
            weights.writestr(name, data.replace(b'"use_pickle": false', b'"use_pickle": true', 1))
        extra.writestr(f"{name.partition('/')[0]}/data/constants/opaque_obj_0", bad.getvalue())
    assert complaint("run", "inputs.pt2").startswith("inputs.pt2 cannot be read as a torch.export program: ")
    assert complaint("run", "extra.pt2") == "extra.pt2 holds data/constants/opaque_obj_0, which could execute code when it is read; export the model anew, without it"
    assert complaint("run", "weights.pt2").endswith("as a pickle, which could execute code when it is read; export the model anew")
    assert not Path("executed").exists()


def contest(speedup: float, low: float, high: float, noise: float = 1.03, load: float = 0.1) -> Contest:
    return Contest("cpu", "cpu, eager, 1 thread, batch 1", "A", "B", 2.0, 2.0 / speedup, speedup, low, high, noise, 40, load)


def test_a_difference_is_claimed_only_beyond_what_two_copies_differ_by() -> None:
    assert words(contest(1.01, 0.98, 1.03)) == "no difference larger than the noise: 1.01x [0.98, 1.03]; two copies of A differ by up to 1.03x"
    assert words(contest(1.02, 1.01, 1.03)).startswith("no difference")  # its interval leaves 1 out, and is within the noise
    assert words(contest(1.31, 1.28, 1.35)) == "B is 1.31x faster than A [1.28, 1.35]"
    assert words(contest(0.5, 0.4, 0.8)) == "B is 2.00x slower than A [1.25, 2.50]"
    assert "time again on a quiet machine" in table((contest(1.3, 1.2, 1.4, load=3.0),), 2, "Latency").notes[-1]


def test_noise_is_what_two_copies_of_the_first_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    rounds = np.array([[1.0, 0.5, 0.25]] * 20)
    monkeypatch.setattr("sparsify.measure.contesting.interleaved", lambda *_: rounds)
    found = contested(("A", "B"), [], "cpu", EAGER, 1.0)
    assert (found.speedup, found.noise, found.a_ms, found.b_ms, found.pairs) == (4.0, 2.0, 1000.0, 250.0, 20)


@pytest.mark.skipif(sys.platform != "linux", reason="no pinning")
def test_pinning_is_taken_back() -> None:
    before = os.sched_getaffinity(0)
    with pinned(EAGER):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
