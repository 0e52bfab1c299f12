"""What bench times: any two of a run, a .pt2 and an .onnx file; and what it refuses."""

import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

import sparsify
from sparsify.cost.benchmark_result import BenchmarkResult
from sparsify.cost.measure.compare import compare_calls, pin_cores
from sparsify.errors import SparsifyError
from sparsify.models import digits_cnn
from sparsify.recipe import list_presets
from sparsify.reporting.benchmark_table import benchmark_table, describe_result
from sparsify.runs.benchmark import read_candidates, time_pair
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
        a, b = read_candidates([Path(n) for n in names])
        time_pair(a, b, on, list_presets()[on], 0.05)
    return str(caught.value)


@pytest.mark.parametrize("pair", [("run", "cut.onnx"), ("cut.onnx", "cut.pt2"), ("cut.pt2", "run")])
def test_any_two_artefacts_are_timed_against_each_other(pair: tuple[str, str]) -> None:
    a, b = read_candidates([Path(n) for n in pair])
    found = time_pair(a, b, "there", EXPORTED, 0.1)
    assert (found.a, found.b, found.description) == (*pair, "cpu, onnxruntime, 1 thread, batch 1")
    assert found.low <= found.speedup <= found.high
    assert 0.2 < found.speedup < 5  # they are the same model


def test_a_program_runs_in_pytorch() -> None:
    a, b = read_candidates([Path("run"), Path("cut.pt2")])
    assert time_pair(a, b, "cpu", EAGER, 0.1).a_ms > 0


def test_what_cannot_be_timed_says_why(tmp_path: Path) -> None:
    Path("notes.txt").write_text("x")
    Path("broken.onnx").write_bytes(b"\x08\x07no")
    Path("broken.pt2").write_bytes(b"no zip")
    assert complaint("run", "none.onnx") == "none.onnx: no such file or folder"
    assert complaint("run", "notes.txt") == (
        "notes.txt is neither a run folder nor a .pt2 or .onnx file, so it cannot "
        "be timed; 'sparsify export' makes these files from a run"
    )
    assert complaint("run", "broken.onnx").startswith("broken.onnx cannot be read as an ONNX file: ")
    assert (
        complaint("run", "broken.pt2")
        == "broken.pt2 cannot be read as a torch.export program: File is not a zip file"
    )
    assert (
        complaint("cut.onnx") == "cut.onnx is one model; name a second run, .pt2 or .onnx to time it against"
    )
    assert complaint("run", "cut.onnx", on="eager") == (
        "cut.onnx is an ONNX file, but target 'eager' runs models in PyTorch; "
        "choose --on onnxruntime or --on openvino"
    )


def test_artefacts_with_other_inputs_are_not_compared() -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 3), (torch.randn(2, 3, 9, 9),))
    torch.export.save(program, "other.pt2")
    assert (
        complaint("run", "other.pt2")
        == "other.pt2 takes 3x9x9 of float32, and run takes 1x8x8 of float32, so the two cannot be compared"
    )


def test_a_fixed_batch_is_said_to_be_the_trouble() -> None:
    program = torch.export.export(digits_cnn().eval(), (torch.rand(2, 1, 8, 8),))
    torch.export.save(program, "two.pt2")
    assert complaint("run", "two.pt2", on="eager") == (
        "two.pt2 only takes a batch of 2, but target 'eager' asks for 1; export "
        "the model for any batch, or name a target of batch 2 with --on"
    )
    a, b = read_candidates([Path("run"), Path("two.pt2")])
    assert time_pair(a, b, "two", Cpu(kind="cpu", batch=2), 0.05).b_ms > 0


FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
Given = tuple[str, int, list[int | str] | None]


def onnx_file(name: str, *given: Given, op: str = "Identity", domain: str = "") -> None:
    """An ONNX file of one operator for each input: (name, type, sizes)."""
    entries = [helper.make_tensor_value_info(*entry) for entry in given]
    results = [helper.make_tensor_value_info(f"{name}_out", *rest) for name, *rest in given] or [
        helper.make_tensor_value_info("c", FLOAT, [1])
    ]
    nodes = [helper.make_node(op, [name], [f"{name}_out"], domain=domain) for name, *_ in given] or [
        helper.make_node("Constant", [], ["c"], value_floats=[1.0])
    ]
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "g", entries, results), opset_imports=opsets, ir_version=9
        ),
        name,
    )


def timed(*names: str, on: str = "onnxruntime") -> BenchmarkResult:
    a, b = read_candidates([Path(n) for n in names])
    return time_pair(a, b, on, list_presets()[on], 0.05)


def test_weights_beside_an_onnx_file_are_read(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(
        onnx.load("cut.onnx"),
        "beside.onnx",
        save_as_external_data=True,
        location="beside.data",
        size_threshold=0,
    )
    monkeypatch.chdir(tmp_path)  # they lie beside the file, not where one stands
    assert timed(str(made / "cut.onnx"), str(made / "beside.onnx")).b_ms > 0
    (made / "beside.data").unlink()
    assert complaint(str(made / "cut.onnx"), str(made / "beside.onnx")).startswith(
        f"{made / 'beside.onnx'} cannot be read as an ONNX file: "
    )


def test_inputs_meet_by_name_else_by_order() -> None:
    x, y = ("x", FLOAT, ["n", 6]), ("y", FLOAT, ["n", 4])
    onnx_file("xy.onnx", x, y)
    onnx_file("yx.onnx", y, x)
    onnx_file("ab.onnx", ("a", FLOAT, ["n", 6]), ("b", FLOAT, ["n", 4]))
    assert timed("xy.onnx", "yx.onnx").b_ms > 0
    assert timed("xy.onnx", "ab.onnx").b_ms > 0
    assert complaint("yx.onnx", "ab.onnx") == (
        "ab.onnx takes 6 of float32, 4 of float32, and yx.onnx takes 4 of "
        "float32, 6 of float32, so the two cannot be compared"
    )
    assert complaint("run", "xy.onnx") == (
        "xy.onnx takes 6 of float32, 4 of float32, and run takes 1x8x8 of "
        "float32, so the two cannot be compared"
    )


def test_a_program_that_takes_keywords_meets_one_that_does_not() -> None:
    x, batch = torch.rand(2, 1, 8, 8), torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(digits_cnn().eval(), (), {"x": x}, dynamic_shapes={"x": {0: batch}}),
        "keyword.pt2",
    )
    assert timed("cut.pt2", "keyword.pt2", on="eager").b_ms > 0
    assert timed("keyword.pt2", "cut.pt2", on="eager").b_ms > 0


def test_what_one_leaves_open_the_other_says() -> None:
    onnx_file("open.onnx", ("tokens", INT64, ["n", "length"]))
    onnx_file("seven.onnx", ("ids", INT64, ["n", 7]))
    onnx_file("floats.onnx", ("ids", FLOAT, ["n", 7]))
    onnx_file("flat.onnx", ("x", FLOAT, ["n", "m"]))
    assert timed("open.onnx", "seven.onnx").b_ms > 0
    assert timed("open.onnx", "seven.onnx", on="openvino").b_ms > 0
    assert (
        complaint("open.onnx", "open.onnx")
        == "open.onnx and open.onnx leave the sizes of their inputs open; time them against a run or a .pt2"
    )
    assert complaint("open.onnx", "floats.onnx") == (
        "floats.onnx takes 7 of float32, and open.onnx takes length of int64, so the two cannot be compared"
    )
    assert (
        complaint("cut.onnx", "flat.onnx")
        == "flat.onnx takes m of float32, and cut.onnx takes 1x8x8 of float32, so the two cannot be compared"
    )


def test_a_number_without_dimensions_is_no_batch() -> None:
    onnx_file("number.onnx", ("factor", FLOAT, []), ("x", FLOAT, ["n", 3]))
    assert timed("number.onnx", "number.onnx").b_ms > 0
    assert timed("number.onnx", "number.onnx", on="openvino").b_ms > 0


def test_a_fixed_batch_of_an_onnx_file_is_said() -> None:
    onnx_file("four.onnx", ("x", FLOAT, [4, 1, 8, 8]))
    assert complaint("run", "four.onnx") == (
        "four.onnx only takes a batch of 4, but target 'onnxruntime' asks for 1; "
        "export the model for any batch, or name a target of batch 4 with --on"
    )
    a, b = read_candidates([Path("run"), Path("four.onnx")])
    assert time_pair(a, b, "four", EXPORTED.model_copy(update={"batch": 4}), 0.05).b_ms > 0


def test_what_is_in_integers_already_is_timed_as_it_is() -> None:
    sparsify.export("run", "onnx-int8", "cut.int8.onnx")
    found = timed("cut.int8.onnx", "cut.onnx", on="onnxruntime-int8")
    assert 0.2 < found.speedup < 5  # the second is quantised for the target
    assert timed("cut.onnx", "cut.int8.onnx").b_ms > 0


def test_files_that_nothing_can_be_drawn_for() -> None:
    for name, kind in (("text", onnx.TensorProto.STRING), ("bf16", onnx.TensorProto.BFLOAT16)):
        onnx_file(f"{name}.onnx", ("x", kind, ["n", 3]))
        assert complaint("cut.onnx", f"{name}.onnx") == (
            f"{name}.onnx takes 'x', which is not a tensor of a numpy data type, so no "
            "input can be drawn to time it with"
        )
    onnx_file("nothing.onnx")
    assert (
        complaint("cut.onnx", "nothing.onnx") == "nothing.onnx takes no inputs, so there is nothing to time"
    )
    onnx_file("fancy.onnx", ("x", FLOAT, ["n", 1, 8, 8]), op="Fancy", domain="my.own")
    assert complaint("cut.onnx", "fancy.onnx").startswith(
        "fancy.onnx cannot run on target 'onnxruntime' with batch 1: "
    )
    assert "Fancy" in complaint("cut.onnx", "fancy.onnx")


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_cut_short_renamed_and_damaged_files_are_refused(kind: str) -> None:
    whole = Path(f"cut.{kind}").read_bytes()
    middle = len(whole) // 2
    broken = {
        "half": whole[:middle],
        "text": b"hello\nthis is text\n",
        "empty": b"",
        "bits": whole[:200] + bytes(60) + whole[260:],
    }
    what = {"onnx": "an ONNX file", "pt2": "a torch.export program"}[kind]
    for name, content in broken.items():
        Path(f"{name}.{kind}").write_bytes(content)
        said = complaint("cut.onnx", f"{name}.{kind}")
        assert said.startswith(f"{name}.{kind} cannot be read as {what}: ") and "\n" not in said


def test_a_damaged_weight_of_a_program_is_seen() -> None:
    """torch.export.load does not look at the checksums."""
    with zipfile.ZipFile("cut.pt2") as archive:
        entry = next(e for e in archive.infolist() if "data/weights/weight_" in e.filename)
        content = bytearray(Path("cut.pt2").read_bytes())
        at = content.index(archive.read(entry))
    content[at] ^= 1
    Path("weight.pt2").write_bytes(content)
    assert (
        complaint("cut.onnx", "weight.pt2")
        == f"weight.pt2 cannot be read as a torch.export program: Bad CRC-32 for file '{entry.filename}'"
    )


def test_an_archive_without_a_model_is_no_program() -> None:
    torch.save({"a": torch.zeros(3)}, "state.pt2")
    assert (
        complaint("cut.onnx", "state.pt2")
        == "state.pt2 holds no model, so it is not a torch.export program; torch.export.save makes one"
    )


def test_more_threads_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsify.cost.measure.availability.count_cores", lambda: 2)
    a, b = read_candidates([Path("run"), Path("cut.onnx")])
    with pytest.raises(SparsifyError) as caught:
        time_pair(a, b, "big", EXPORTED.model_copy(update={"threads": 64}), 0.05)
    assert str(caught.value) == (
        "target 'big' asks for 64 threads, but this machine has 2 cores; lower "
        "'threads', or give a 'table' that was measured on the target machine"
    )


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_program_is_executed() -> None:
    """torch.export.load unpickles its example inputs, and weights that say so, without asking."""
    bad = io.BytesIO()
    torch.save(Evil(), bad)
    with (
        zipfile.ZipFile("cut.pt2") as source,
        zipfile.ZipFile("inputs.pt2", "w") as inputs,
        zipfile.ZipFile("extra.pt2", "w") as extra,
        zipfile.ZipFile("weights.pt2", "w") as weights,
    ):
        for name in source.namelist():
            data = source.read(name)
            inputs.writestr(name, bad.getvalue() if "sample_inputs" in name else data)
            extra.writestr(name, data)
            weights.writestr(name, data.replace(b'"use_pickle": false', b'"use_pickle": true', 1))
        extra.writestr(f"{name.partition('/')[0]}/data/constants/opaque_obj_0", bad.getvalue())
    assert complaint("run", "inputs.pt2").startswith("inputs.pt2 cannot be read as a torch.export program: ")
    assert complaint("run", "extra.pt2") == (
        "extra.pt2 holds data/constants/opaque_obj_0, which could execute code "
        "when it is read; export the model again without it"
    )
    assert complaint("run", "weights.pt2").endswith(
        "as a pickle, which could execute code when it is read; export the model again"
    )
    assert not Path("executed").exists()


def contest(
    speedup: float, low: float, high: float, noise: float = 1.03, load: float = 0.1
) -> BenchmarkResult:
    return BenchmarkResult(
        "cpu",
        "cpu, eager, 1 thread, batch 1",
        "A",
        "B",
        2.0,
        2.0 / speedup,
        speedup,
        low,
        high,
        noise,
        40,
        load,
    )


def test_a_difference_is_claimed_only_beyond_what_two_copies_differ_by() -> None:
    assert (
        describe_result(contest(1.01, 0.98, 1.03))
        == "no difference larger than the noise: 1.01x [0.98, 1.03]; two copies of A differ by up to 1.03x"
    )
    assert describe_result(contest(1.02, 1.01, 1.03)).startswith(
        "no difference"
    )  # its interval leaves 1 out, and is within the noise
    assert describe_result(contest(1.31, 1.28, 1.35)) == "B is 1.31x faster than A [1.28, 1.35]"
    assert describe_result(contest(0.5, 0.4, 0.8)) == "B is 2.00x slower than A [1.25, 2.50]"
    assert (
        "time again on an idle machine"
        in benchmark_table((contest(1.3, 1.2, 1.4, load=3.0),), 2, "Latency").notes[-1]
    )


def test_noise_is_what_two_copies_of_the_first_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    rounds = np.array([[1.0, 0.5, 0.25]] * 20)
    monkeypatch.setattr("sparsify.cost.measure.compare.time_interleaved", lambda *_: rounds)
    found = compare_calls(("A", "B"), [], "cpu", EAGER, 1.0)
    assert (found.speedup, found.noise, found.a_ms, found.b_ms, found.pairs) == (4.0, 2.0, 1000.0, 250.0, 20)


@pytest.mark.skipif(sys.platform != "linux", reason="no pinning")
def test_pinning_is_taken_back() -> None:
    before = os.sched_getaffinity(0)
    with pin_cores(EAGER):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
