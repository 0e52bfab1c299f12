"""export: the cut model of a run in three formats, each reloaded and compared before it gets its name."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import sparsify
from sparsify.cost.measure.onnx_quantize import quantise
from sparsify.data import load_data
from sparsify.errors import ModelError, RunError, VerificationError
from sparsify.exporters import TOLERANCE, compare, formats, writer
from sparsify.pruning import layer_compaction
from sparsify.pruning.cut import cut
from sparsify.pruning.make_plan import make_plan
from sparsify.runs import run_folder
from sparsify.runs.apply import apply
from sparsify.runs.int8 import calibration_batches, export_onnx_bytes
from sparsify.runs.planned_calls import draw_planned_inputs
from sparsify.runs.save_load import load_run, save_run, verify_run
from sparsify.runs.sensitivity import profile_layers
from sparsify_cli.app import exit_code
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.data import Data

NETS = """
import torch
from torch import nn

def mlp():
    first, second, third = nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(32, 10)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.Tanh(), third)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)
    def forward(self, x, mask, scale):
        h = torch.relu(self.a(x)) * mask
        return {"logits": self.b(h) * scale, "more": (h.sum(1), self.b(h).argmax(1))}

class Fixed(Two):
    def forward(self, x):
        return self.b(torch.relu(self.a(x.view(2, 6))))

class Branching(Two):
    def forward(self, x):
        y = self.b(torch.relu(self.a(x)))
        return y if y.detach().sum() > 1e9 else -y
"""
SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
COMMON = {"version": 1, "data": {"source": "digits", "validation": "70%"}}
STAGES = [{"kind": "train", "name": "learn", "epochs": 1, "optimizer": SGD}, {"kind": "cut"}]
CONV = {
    **COMMON,
    "title": "Conv",
    "model": {"build": "sparsify.models.digits_cnn"},
    "budget": {"macs": "40%"},
    "rules": [{"layers": "conv*", "group": "filter"}],
    "stages": STAGES,
}
MLP = {
    **COMMON,
    "title": "Mlp",
    "model": {"build": "export_nets.mlp"},
    "rules": [{"layers": "Linear", "group": "neuron", "sparsity": "50%"}],
    "stages": STAGES,
}
CARVED = {
    **COMMON,
    "title": "Carved",
    "model": {"build": "sparsify.models.digits_cnn"},
    "rules": [
        {"layers": "conv3", "group": "tap", "sparsity": "78%", "penalty": {"kind": "l1", "strength": 1e-4}},
        {"layers": "conv[14]", "group": "shape", "sparsity": "60%"},
        {"layers": "fc", "group": "2:4"},
    ],
    "stages": [*STAGES, {"kind": "train", "name": "finetune", "epochs": 1, "optimizer": SGD}],
}
FORMATS = ("pt2", "onnx", "safetensors")
NAMES = ("conv", "mlp", "carved")
PT2 = """
import json, sys, torch
found = {}
for name, file in zip(sys.argv[1::2], sys.argv[2::2]):
    x, expected = torch.load(name + ".x.pt")
    model = torch.export.load(file).module()
    largest = expected.abs().max()
    apart = [(model(x[:n]) - expected[:n]).abs().max() for n in (1, 2, 7, 33)]
    found[name] = max(float(difference / largest) for difference in apart)
assert not [m for m in sys.modules if m.startswith(("sparsify", "export_nets"))]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by name, in a folder from which the builder of the MLP can be imported."""
    where = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        Path("export_nets.py").write_text(NETS)
        made = {r["title"].lower(): where / apply(r, from_scratch=True, timing=0.05) for r in (CONV, MLP)}
        patch.setattr(layer_compaction, "GAIN", 0.0)
        patch.setattr(layer_compaction, "SURE", 0.0)
        made["carved"] = where / apply(CARVED, from_scratch=True, timing=0.05)
    assert all(verify_run(run).cut.params < verify_run(run).dense.params for run in made.values())
    return made


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    """(run, format) -> the folder that it was exported into, and what was said of it; each is written
    once."""
    made = {}

    def export(name, format):
        if (name, format) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{format}")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                made[name, format] = (folder, sparsify.export(runs[name], format))
        return made[name, format]

    return export


@pytest.fixture(scope="module")
def read_afresh(runs, written, tmp_path_factory):
    """Name -> how far a .pt2 file is off in a fresh process without any code of ours."""
    where, arguments = tmp_path_factory.mktemp("fresh"), []
    for name in NAMES:
        folder, made = written(name, "pt2")
        x = images(33)
        with torch.no_grad():
            torch.save((x, load_run(runs[name])(x)), where / f"{name}.x.pt")
        arguments += [name, str(folder / made.path)]
    command = [sys.executable, "-I", "-W", "error", "-c", PT2, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=where)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _here(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.syspath_prepend(str(runs["conv"].parents[1]))


@pytest.fixture
def call(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = exit_code([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def built(name: str, shapes: list, **more: object) -> Path:
    """A run of one of the other networks, cut by half."""
    recipe = {
        "version": 1,
        "title": name,
        "model": {"build": f"export_nets.{name}"},
        "inputs": shapes,
        "rules": [{"layers": "a", "group": "neuron", "sparsity": "50%"}],
        **more,
    }
    import export_nets

    model = getattr(export_nets, name)().eval()
    return save_run(cut(make_plan(recipe, model), model), name, timing=0.01)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_what_was_written_computes_what_the_run_does(runs, written, name, format, monkeypatch):
    folder, made = written(name, format)
    monkeypatch.chdir(folder)
    assert made.path == Path(f"{name}-1.{format}")
    assert made.bytes == made.path.stat().st_size
    assert made.difference <= TOLERANCE
    assert made.batches == (1, 5)
    if format != "onnx":
        assert made.difference == 0
    assert [p.name for p in Path.cwd().iterdir()] == [made.path.name]
    assert str(runs[name].parent).encode() not in made.path.read_bytes()
    assert b"site-packages" not in made.path.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_pt2_runs_in_a_fresh_process_without_any_code_of_ours(read_afresh, name):
    assert read_afresh[name] < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_onnx_takes_any_batch(runs, written, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, made = written(name, "onnx")
    assert made.checked_by == "onnxruntime"
    session = onnxruntime.InferenceSession(str(folder / made.path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.shape == ["batch", 1, 8, 8]
    model = load_run(runs[name])
    for count in (1, 3, 32):
        (found,) = session.run(None, {entry.name: images(count).numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(images(count)).numpy(), atol=1e-5)


def test_what_is_exported_has_cropped_and_gathered_layers(runs):
    forms = {e.module: e.form for e in verify_run(runs["carved"]).executions}
    assert forms["conv4"] == "gathered" and "cropped" in forms["conv3"]
    model = load_run(runs["carved"])
    assert {name.rpartition(".")[2] for name, _ in model.named_parameters()} == {"weight", "bias"}
    runs_of_four = model.fc.weight.detach().view(10, -1, 4)
    assert bool(((runs_of_four != 0).sum(-1) <= 2).all()), "held while it was fine-tuned"


FRESH = """
import sys, torch, sparsify
x, expected = torch.load(sys.argv[2])
print(float((sparsify.load_run(sys.argv[1])(x) - expected).abs().max()))
"""


@pytest.mark.nightly
def test_a_carved_run_reloads_in_a_fresh_process(runs):
    x = images(9)
    with torch.no_grad():
        torch.save((x, load_run(runs["carved"])(x)), "x.pt")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(runs["carved"]), "x.pt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 0


def test_safetensors_carry_what_rebuilds_the_model(runs):
    sparsify.export(runs["conv"], "safetensors")
    with safe_open("conv-1.safetensors", framework="pt") as stored:
        metadata = stored.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["model"]) == {"build": "sparsify.models.digits_cnn", "args": {}}
    (cuts,) = (Cuts.model_validate(c) for c in json.loads(metadata["cuts"]))
    assert cuts == Cuts.model_validate_json((runs["conv"] / run_folder.CUTS).read_bytes())
    model, weights = load_run(runs["conv"]), load_file("conv-1.safetensors")
    model.load_state_dict({name: torch.zeros_like(t) for name, t in weights.items()})
    model.load_state_dict(weights)
    assert torch.equal(model(images(3)), load_run(runs["conv"])(images(3)))


def test_a_run_on_a_run_carries_both_cut_logs(runs):
    recipe = {k: v for k, v in CONV.items() if k not in ("data", "stages")} | {
        "title": "Again",
        "inputs": [{"shape": [2, 1, 8, 8]}],
        "budget": {"macs": "60%"},
    }
    again = apply(recipe, runs["conv"], timing=0.05)
    assert sparsify.export(again, "safetensors").difference == 0
    with safe_open("again-1.safetensors", framework="pt") as stored:
        assert len(json.loads(stored.metadata()["cuts"])) == 2


@pytest.mark.parametrize("format", FORMATS)
def test_named_inputs_nested_outputs_and_an_input_without_batch(format):
    run = built("Two", {"x": {"shape": [4, 6]}, "mask": {"shape": [4, 1]}, "scale": {"shape": [3]}})
    assert [tuple(v.shape) for v in draw_planned_inputs(run, 7).values()] == [(7, 6), (7, 1), (3,)]
    made = sparsify.export(run, format, "two")
    assert made.difference <= TOLERANCE


def test_a_run_of_batch_one_has_a_dynamic_batch_all_the_same():
    run = built(
        "mlp", [{"shape": [1, 1, 8, 8]}], rules=[{"layers": "1", "group": "neuron", "sparsity": "50%"}]
    )
    assert sparsify.export(run, "pt2").difference == 0


# refusals


@pytest.mark.parametrize("format", ["pt2", "onnx", "onnx-int8"])
def test_a_model_tied_to_its_batch_is_exported_for_that(format):
    run = built("Fixed", [{"shape": [2, 6]}], targets={"two": {"kind": "cpu", "batch": 2}})
    made = sparsify.export(run, format)
    assert made.fixed and made.batches == (2,)


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_model_that_torch_export_cannot_follow_is_refused(format, call):
    run = built("Branching", [{"shape": [2, 6]}])
    with pytest.raises(
        ModelError, match=r"torch\.export cannot follow the model with a batch of any size: GuardOnDataDep"
    ):
        sparsify.export(run, format, "b")
    code, out, err = call("export", run, "--format", format)
    assert (code, out, len(err.splitlines())) == (1, "", 2)
    assert {p.name for p in Path.cwd().iterdir()} == {"Branching"}


def test_a_run_without_a_builder_says_so_and_takes_one():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    torch.save(model, "module.pt")
    recipe = {k: v for k, v in CONV.items() if k not in ("model", "budget")} | {
        "rules": [{"layers": "0", "group": "filter", "sparsity": "50%"}],
        "stages": [{"kind": "cut"}],
    }
    run = apply(recipe, "module.pt", timing=0.05)
    with pytest.raises(RunError, match=r"the run does not say how its model is built.*build=callable"):
        sparsify.export(run, "pt2")
    for format in FORMATS:
        made = sparsify.export(run, format, build=lambda: torch.load("module.pt", weights_only=False))
        assert made.difference <= TOLERANCE


def test_an_existing_file_is_replaced_only_by_force(runs, call):
    Path("m.pt2").write_text("mine")
    code, out, err = call("export", runs["mlp"], "--format", "pt2", "--out", "m.pt2")
    assert (code, out) == (1, "")
    assert err.endswith("m.pt2 exists already; choose another place with --out, or replace it with --force\n")
    assert Path("m.pt2").read_text() == "mine"
    assert call("export", runs["mlp"], "--format", "pt2", "--out", "m.pt2", "--force")[0] == 0
    assert Path("m.pt2").stat().st_size > 1000


def test_the_files_of_the_run_are_never_replaced(runs):
    with pytest.raises(RunError, match="is a file of the run itself"):
        sparsify.export(runs["conv"], "safetensors", runs["conv"] / run_folder.WEIGHTS, force=True)
    verify_run(runs["conv"], run_folder.WEIGHTS)


OWN_NAMES = (
    *("checkpoint.pt", "before.pt", "best.pt", "Best.pt", "uncut.safetensors", "state.json", "lock"),
    *("log.jsonl", "base.json", "int8", "baselines/uniform"),
)


@pytest.mark.parametrize("name", OWN_NAMES)
def test_names_that_a_run_uses_are_taken_by_no_other_file(runs, call, name):
    """Going on with a run removes and replaces them."""
    target = runs["conv"] / name
    was_there = target.exists()
    target.parent.mkdir(exist_ok=True)
    try:
        code, _, err = call("export", runs["conv"], "--format", "safetensors", "--out", target, "--force")
        assert (code, was_there) == (1, target.exists())
        assert err.endswith(f"{target} is a file of the run itself; choose another place with --out\n")
        with pytest.raises(RunError, match="is a file of the run itself; choose another place with --out"):
            profile_layers(runs["conv"] / "recipe.yaml", runs["conv"] / "dense.safetensors", out=target)
    finally:
        if "/" in name:
            target.parent.rmdir()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("no/m.pt2", "cannot write no/m.pt2: there is no folder no"),
        (".", "it is a folder; name a file in it"),
    ],
)
def test_places_that_cannot_be_written_are_named_before_the_work(runs, where, said):
    with pytest.raises(RunError, match=said):
        sparsify.export(runs["conv"], "pt2", where)


def test_an_unknown_format_and_a_missing_run(runs, call):
    with pytest.raises(
        RunError, match="there is no format 'tflite'; known: pt2, onnx, onnx-int8, safetensors"
    ):
        sparsify.export(runs["conv"], "tflite")
    code, _, err = call("export", runs["conv"], "--format", "tflite")
    assert code == 2 and "tflite" in err
    assert call("export", runs["conv"])[0] == 2
    code, _, err = call("export", "nowhere", "--format", "pt2")
    assert (code, err.splitlines()[-1]) == (
        1,
        "nowhere: no such run; 'sparsify runs' lists them, 'sparsify apply' makes one",
    )


def without(*names: str):
    return lambda name: None if name in names else find_spec(name)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_the_extra_its_name_is_said(runs, call, monkeypatch, missing):
    monkeypatch.setattr(writer, "find_spec", without(missing))
    code, out, err = call("export", runs["conv"], "--format", "onnx")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "export to ONNX needs onnx and onnxscript, which are not installed: "
        "pip install 'sparsify-recipes[onnx]'"
    )


def test_without_onnxruntime_the_checker_reads_the_file_and_that_is_said(runs, call, monkeypatch):
    monkeypatch.setattr(formats, "find_spec", without("onnxruntime"))
    code, out, _ = call("export", runs["mlp"], "--format", "onnx")
    assert code == 0
    assert "Checked by onnx.checker only, as onnxruntime is not installed" in out
    made = json.loads(call("export", runs["mlp"], "--format", "onnx", "--json", "--force")[1])
    assert (made["checked_by"], made["difference"], made["batches"]) == ("onnx.checker", None, [])


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_integers_need_onnxruntime_as_well(runs, call, monkeypatch, missing):
    monkeypatch.setattr(writer, "find_spec", without(missing))
    code, out, err = call("export", runs["conv"], "--format", "onnx-int8")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "export to ONNX in int8 needs onnx, onnxscript and onnxruntime, "
        "which are not all installed: pip install 'sparsify-recipes[onnx]'"
    )


# integers


def test_integers_are_those_of_the_table_and_agree_with_the_model(runs, call):
    pytest.importorskip("onnxruntime")
    code, out, err = call("export", runs["conv"], "--format", "onnx-int8")
    assert (code, err) == (0, f"exporting {runs['conv']} as onnx-int8\n")
    said = re.fullmatch(
        r"conv-1\.int8\.onnx: [\d.]+ KiB Calibrated on 256 training examples\. Reloaded "
        r"\(onnxruntime\): it predicts the same class "
        r"as the float32 model on ([\d.]+) % of (\d+) validation examples\.",
        " ".join(out.split()),
    )
    examples = load_data(Data(**COMMON["data"]), 0)
    model, file = load_run(runs["conv"]), Path("conv-1.int8.onnx").read_bytes()
    found = predicted(file, examples.validation.ready())
    same = (model(examples.validation.ready()).argmax(1) == found).float().mean()
    assert 90 < float(said[1]) == pytest.approx(100 * float(same), abs=0.005) and int(said[2]) == len(
        examples.validation
    )
    inputs = (examples.train[:2].ready(),)
    assert (
        file
        == quantise(export_onnx_bytes(model, inputs), calibration_batches(inputs, examples, 0))
        != quantise(export_onnx_bytes(model, inputs), calibration_batches(inputs, None, 0))
    )


def predicted(file: bytes, x: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]).argmax(1)


@pytest.mark.nightly
def test_integers_without_data_are_compared_on_random_inputs(call):
    pytest.importorskip("onnxruntime")
    run = built(
        "mlp", [{"shape": [2, 1, 8, 8]}], rules=[{"layers": "1", "group": "neuron", "sparsity": "50%"}]
    )
    code, out, _ = call("export", run, "--format", "onnx-int8", "--out", "m.onnx")
    assert code == 0
    assert re.fullmatch(
        r"m\.onnx: [\d.]+ KiB Calibrated on random inputs, as the recipe has no data: "
        r"use the file for timing only\. "
        r"Reloaded \(onnxruntime\) and compared at batch 1 and 5: "
        r"largest difference \S+ of the largest output\.",
        " ".join(out.split()),
    )
    made = json.loads(call("export", run, "--format", "onnx-int8", "--out", "m.onnx", "--force", "--json")[1])
    assert made["quantised"] == {"examples": 0, "agreement": None, "judged": 0, "judged_on": None}
    assert 0 < made["difference"] < 1
    assert made["bytes"] < sparsify.export(run, "onnx", "f.onnx").bytes


@pytest.mark.nightly
def test_integers_are_judged_on_training_examples_where_none_are_kept_for_validation(runs, tmp_path):
    pytest.importorskip("onnxruntime")
    recipe = {
        **CONV,
        "title": "None kept",
        "data": {"source": "digits", "validation": "0%"},
        "stages": [{"kind": "cut"}],
    }
    made = sparsify.export(apply(recipe, from_scratch=True, timing=0.02), "onnx-int8").quantised
    assert made is not None and (made.examples, made.judged, made.judged_on) == (256, 256, "training")


# what a difference, a crash and a damaged file leave behind


@pytest.mark.parametrize("format", FORMATS)
def test_a_difference_is_exit_three_and_leaves_what_was_there(runs, call, monkeypatch, format):
    kept = Path("m")
    kept.write_text("old")
    exact = writer.run_in_memory
    monkeypatch.setattr(
        writer, "run_in_memory", lambda model, inputs: [1.0001 * t for t in exact(model, inputs)]
    )
    code, out, err = call("export", runs["conv"], "--format", format, "--out", kept, "--force")
    assert (code, out) == (3, "")
    assert "m was not written: at batch 1, reloaded by " in err
    assert "differs from the run's model by 1e-4 of the largest output; at most 1e-5 is allowed" in err
    assert [(p.name, p.read_text()) for p in Path.cwd().iterdir()] == [("m", "old")]


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_cannot_be_read_back_is_not_kept(runs, monkeypatch, format):
    good = writer.write

    def torn(*given):
        notes = good(*given)
        given[-1].write_bytes(given[-1].read_bytes()[:300])
        return notes

    monkeypatch.setattr(writer, "write", torn)
    with pytest.raises(VerificationError, match=r"m was not written: .* cannot run what was made: "):
        sparsify.export(runs["conv"], format, "m")
    assert list(Path.cwd().iterdir()) == []


def test_an_interruption_leaves_nothing(runs, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "compare_outputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sparsify.export(runs["conv"], "pt2")
    assert list(Path.cwd().iterdir()) == []


def test_weights_that_changed_on_disk_are_not_exported(runs, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in runs["mlp"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / run_folder.WEIGHTS).write_bytes((copy / run_folder.WEIGHTS).read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RunError, match="was changed after the run"):
        sparsify.export(copy, "pt2")


def test_the_difference_is_relative_and_knows_infinities():
    t = torch.tensor
    assert compare.relative_difference(t([100.0, 0.0]), t([100.0, 1.0])) == pytest.approx(0.01)
    assert compare.relative_difference(t([float("inf"), float("nan")]), t([float("inf"), float("nan")])) == 0
    assert compare.relative_difference(t([0.0]), t([1e-9])) == float("inf")
    assert not compare.relative_difference(t([1.0]), t([float("nan")])) <= TOLERANCE
    assert not compare.relative_difference(t([1.0, 2.0]), t([1.0, float("inf")])) <= TOLERANCE
    assert compare.relative_difference(t([1, 2]), t([1, 3])) == 0.5


# the command


def test_the_command_tells_file_and_difference(runs, call):
    code, out, err = call("export", runs["conv"], "--format", "pt2")
    assert (code, err) == (0, f"exporting {runs['conv']} as pt2\n")
    first, second = out.splitlines()
    assert first.startswith("conv-1.pt2: ") and first.endswith(" KiB")
    assert second == (
        "Reloaded (torch.export) and compared at batch 1 and 5: largest difference 0 of the largest output."
    )
    made = json.loads(call("export", runs["conv"], "--format", "onnx", "--json")[1])
    assert made.keys() == {
        "path",
        "format",
        "bytes",
        "checked_by",
        "difference",
        "batches",
        "quantised",
        "fixed",
        "dynamic",
        "notes",
    }
    assert (made["path"], made["format"], made["batches"]) == ("conv-1.onnx", "onnx", [1, 5])


def test_help_without_torch():
    code = (
        "import sys\n"
        "from sparsify_cli.app import exit_code\n"
        "c = exit_code(['export', '--help'])\n"
        "sys.exit(c or 9 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(
        word in done.stdout
        for word in ("--format", "--out", "--force", "--json", "pt2|onnx|onnx-int8|safetensors")
    )
