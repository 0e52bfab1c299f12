"""export --dynamic and --opset: files that take other heights, widths and lengths than the plan's inputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsify
from sparsify.errors import ModelError, RunError, VerificationError
from sparsify.exporters import DynamicAxis
from sparsify.runs.save_load import load_run
from sparsify_cli.app import exit_code

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

NETS = """
import torch
from torch import nn
from torch.nn import functional as F

class UNet(nn.Module):
    '''Halves the image twice, so that its sides must be multiples of 4.'''
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(16, 2, 1)
    def forward(self, images):
        a = torch.relu(self.a(images))
        small = torch.relu(self.b(F.max_pool2d(F.max_pool2d(a, 2), 2)))
        return {"masks": self.c(torch.cat([a, F.interpolate(small, scale_factor=4.0)], 1)), "images": images}

class Classifier(nn.Module):
    '''Only takes 8x8, as a linear layer reads all pixels.'''
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 64, 3)
    def forward(self, x):
        return self.b(torch.relu(self.a(x)).flatten(1))

class Tokens(nn.Module):
    '''Averages the tokens that the mask lets through.'''
    def __init__(self):
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(30, 6), nn.Linear(6, 16), nn.Linear(16, 3)
    def forward(self, ids, attention_mask, scale=1.0):
        h = torch.relu(self.a(self.table(ids))) * attention_mask.unsqueeze(-1)
        return self.b(h.sum(1) / attention_mask.sum(1, keepdim=True)) * scale, h.mean(-1)

class Pair(nn.Module):
    '''Compares two sequences, each of any length.'''
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 16)
    def forward(self, left, right):
        return torch.relu(self.a(left)) @ torch.relu(self.a(right)).transpose(1, 2)

class Frames(nn.Module):
    '''Takes a clip of 2 frames as a batch of 2.'''
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
    def forward(self, x):
        return self.b(torch.relu(self.a(x))).mean((2, 3)).view(1, 4)
"""
MASKED = {
    "ids": {"shape": [2, 9], "dtype": "int64"},
    "attention_mask": {"shape": [2, 9], "dtype": "int64"},
}
INPUTS: dict[str, Any] = {
    "UNet": [{"shape": [2, 1, 16, 16]}],
    "Classifier": [{"shape": [2, 1, 8, 8]}],
    "Tokens": {**MASKED, "scale": {"value": 2.0}},
    "Pair": [{"shape": [2, 9, 6]}, {"shape": [2, 9, 6]}],
    "Frames": [{"shape": [2, 1, 8, 8]}],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name of a network -> its run; each is cut once."""
    where = tmp_path_factory.mktemp("dynamic")
    (where / "dynamic_nets.py").write_text(NETS)
    made: dict[str, Path] = {}

    def cut(name: str) -> Path:
        if name not in made:
            import dynamic_nets

            group = "neuron" if name in ("Tokens", "Pair") else "filter"
            recipe = {
                "version": 1,
                "title": name,
                "model": {"build": f"dynamic_nets.{name}"},
                "inputs": INPUTS[name],
                "rules": [{"layers": "a", "group": group, "sparsity": "50%"}],
            }
            torch.manual_seed(0)
            model = getattr(dynamic_nets, name)().eval()
            plan = sparsify.make_plan(recipe, model)
            made[name] = sparsify.save_run(sparsify.cut(plan, model), where / name, timing=0.01)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(where))
        yield cut


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def open_file(path: Path) -> tuple[Any, dict[str, list[Any]], dict[str, list[Any]]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = [
        {one.name: one.shape for one in given} for given in (session.get_inputs(), session.get_outputs())
    ]
    return session, *shapes


def test_a_segmentation_network_takes_images_of_other_sizes(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--dynamic", "images:2=height,images:3=width", "--opset", "20", "--out", "u.onnx"]
    assert exit_code(["export", str(run("UNet")), "--format", "onnx", *asked]) == 0
    out = capsys.readouterr().out
    assert (
        "Reloaded (onnxruntime) and compared at batch 1 and 5, height 16, 12 and 28, width 16, 4 and 36: "
        "largest difference" in out
    )
    assert out.endswith("height must be a multiple of 4\nwidth must be a multiple of 4\n")
    session, inputs, outputs = open_file(Path("u.onnx"))
    assert inputs == {"images": ["batch", 1, "height", "width"]}
    assert outputs == {
        "masks": ["batch", 2, "height", "width"],
        "images.output": ["batch", 1, "height", "width"],
    }
    assert [entry.version for entry in onnx.load("u.onnx").opset_import if not entry.domain] == [20]
    model = load_run(run("UNet"))
    for count, height, width in ((1, 8, 48), (3, 40, 20)):
        images = torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(9))
        found = session.run(["masks"], {"images": images.numpy()})[0]
        with torch.no_grad():
            np.testing.assert_allclose(found, model(images)["masks"].numpy(), atol=1e-5)


def test_without_the_option_only_the_batch_is_open(run: Any) -> None:
    made = sparsify.export(run("UNet"), "onnx", "u.onnx")
    assert made.dynamic == () and open_file(made.path)[1] == {"images": ["batch", 1, 16, 16]}


def test_axes_that_must_be_equal_become_one_dimension(run: Any) -> None:
    made = sparsify.export(run("Tokens"), "onnx", "t.onnx", dynamic={"ids": [1], "attention_mask": [-1]})
    assert made.dynamic == (DynamicAxis("ids_1", (("ids", 1), ("attention_mask", 1)), 9, 1, (5, 13)),)
    session, inputs, outputs = open_file(made.path)
    assert inputs == {"ids": ["batch", "ids_1"], "attention_mask": ["batch", "ids_1"]}
    assert outputs == {"output.0": ["batch", 3], "output.1": ["batch", "ids_1"]}
    model, ids = (
        load_run(run("Tokens")),
        torch.randint(30, (4, 30), generator=torch.Generator().manual_seed(3)),
    )
    mask = (torch.arange(30) < torch.tensor([[3], [30], [11], [20]])).long()
    found = session.run(None, {"ids": ids.numpy(), "attention_mask": mask.numpy()})
    with torch.no_grad():
        for got, wanted in zip(found, model(ids, mask, 2.0), strict=True):
            np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5)


def test_axes_that_need_not_be_equal_stay_apart(run: Any) -> None:
    made = sparsify.export(run("Pair"), "pt2", "p.pt2", dynamic={"left": [1], "right": [1]})
    assert [axis.inputs for axis in made.dynamic] == [(("left", 1),), (("right", 1),)]
    program = torch.export.load("p.pt2").module()
    left, right = torch.randn(3, 21, 6), torch.randn(3, 4, 6)
    assert torch.allclose(program(left, right), load_run(run("Pair"))(left, right), atol=1e-6)
    named = {"left": {1: "length"}, "right": {1: "length"}}
    (axis,) = sparsify.export(run("Pair"), "pt2", "p.pt2", force=True, dynamic=named).dynamic
    assert (axis.name, axis.inputs) == ("length", (("left", 1), ("right", 1)))


def test_the_batch_may_be_fixed_while_another_axis_is_open(run: Any) -> None:
    made = sparsify.export(run("Frames"), "onnx", "f.onnx", dynamic={"x": {3: "width"}})
    assert made.fixed and made.batches == (2,)
    assert open_file(made.path)[1] == {"x": [2, 1, 8, "width"]}


@pytest.mark.nightly
def test_integers_take_other_sizes_too(run: Any) -> None:
    made = sparsify.export(run("UNet"), "onnx-int8", "u.onnx", dynamic={"images": {2: "height"}})
    assert open_file(made.path)[1] == {"images": ["batch", 1, "height", 16]}
    assert made.difference is not None and made.difference < 1


def test_the_file_is_compared_at_the_other_sizes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is wrong there alone is not kept."""
    from sparsify.exporters import writer

    exact = writer.run_in_memory

    def bent(model: Any, inputs: Any) -> list[torch.Tensor]:
        made = exact(model, inputs)
        return [1.001 * value for value in made] if made[0].shape[-1] == 12 else made

    monkeypatch.setattr(writer, "run_in_memory", bent)
    with pytest.raises(VerificationError, match=r"at batch 1, width 12, reloaded by onnxruntime, it"):
        sparsify.export(run("UNet"), "onnx", "u.onnx", dynamic={"images": {3: "width"}})
    assert list(Path.cwd().iterdir()) == []


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "Classifier",
        {"x": [2]},
        "axis 2 of 'x' cannot be left open: the model takes 8 and no other size. With 5: RuntimeError: "
        "mat1 and mat2 shapes cannot be multiplied (2x160 and 256x3)",
    ),
    (
        "Tokens",
        {"ids": [1]},
        "axis 1 of 'ids' cannot be left open: the model takes 9 and no other size. With 5: RuntimeError: "
        "The size of tensor a (5) must match the size of tensor b (9) at non-singleton dimension 1",
    ),
]


@pytest.mark.parametrize(("name", "dynamic", "message"), REFUSED)
def test_an_axis_that_the_model_fixes_is_named(run: Any, name: str, dynamic: Any, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        sparsify.export(run(name), "onnx", "m.onnx", dynamic=dynamic)
    assert str(caught.value) == message
    assert list(Path.cwd().iterdir()) == []


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"z": [2]}, "there is no input 'z' to leave an axis of open; the model takes: left, right"),
    ({"left": [3]}, "'left' has no axis 3: its shape is 2x9x6"),
    ({"left": [0]}, "axis 0 of 'left' counts the examples, of which the file takes any number already"),
    ({"left": {1: "batch"}}, "'batch' is the name of the axis that counts the examples; choose another name"),
    ({"left": {1: "n", -2: "n"}}, "axis 1 of 'left' is named twice"),
    (
        {"left": {1: "n", 2: "n"}},
        "'n' is 9 long in axis 1 of 'left' and 6 in axis 2 of 'left'; axes of one name have one size",
    ),
]


@pytest.mark.parametrize(("dynamic", "message"), MISTAKES)
def test_mistakes_in_the_request_are_named(run: Any, dynamic: Any, message: str) -> None:
    with pytest.raises(RunError) as caught:
        sparsify.export(run("Pair"), "onnx", "m.onnx", dynamic=dynamic)
    assert str(caught.value) == message


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    (
        "safetensors",
        {"dynamic": {"x": [2]}},
        "--dynamic is for pt2, onnx, onnx-int8; safetensors takes every size that the model takes",
    ),
    (
        "onnx",
        {"dynamic": {"x": [2]}, "fixed": True},
        "--fixed keeps every size and --dynamic leaves some open; leave one of them out",
    ),
    ("pt2", {"opset": 18}, "--opset is for onnx and onnx-int8; pt2 has no opset"),
]


@pytest.mark.parametrize(("format", "options", "message"), OPTIONS)
def test_options_that_do_not_go_together_are_refused(
    run: Any, format: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError) as caught:
        sparsify.export(run("Pair"), format, "m", **options)
    assert str(caught.value) == message


def test_an_opset_that_cannot_be_made_is_refused(run: Any) -> None:
    with pytest.raises(ModelError) as caught:
        sparsify.export(run("UNet"), "onnx", "m.onnx", opset=11)
    assert str(caught.value) == (
        "the model cannot be written in opset 11 of ONNX: the exporter stays at 18; "
        "choose another --opset, or leave it out"
    )
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "'x' is not NAME:AXIS or NAME:AXIS=DIMENSION, such as x:2 or x:2=height"),
        ("x:two", "'x:two' is not NAME:AXIS or NAME:AXIS=DIMENSION, such as x:2 or x:2=height"),
        ("x:²", "'x:²' is not NAME:AXIS or NAME:AXIS=DIMENSION, such as x:2 or x:2=height"),
        ("x:1,x:1", "'x:1' is given twice"),
    ],
)
def test_text_that_names_no_axis_is_a_usage_error(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["export", "nowhere", "--format", "onnx", "--dynamic", text]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_json_names_the_axes(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--format", "pt2", "--dynamic", "left:1=n", "--dynamic", "right:1=n", "--json"]
    assert exit_code(["export", str(run("Pair")), *asked]) == 0
    (axis,) = json.loads(capsys.readouterr().out)["dynamic"]
    assert axis == {
        "name": "n",
        "inputs": [["left", 1], ["right", 1]],
        "planned": 9,
        "multiple_of": 1,
        "sizes": [5, 13],
    }
