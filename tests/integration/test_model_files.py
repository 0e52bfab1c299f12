"""Model files that people really have: the weights are read, or the message says what to do."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from sparsify import modelfile
from sparsify.errors import ModelError, SparsifyWarning
from sparsify.models import digits_cnn
from sparsify.recipe import load
from sparsify_cli.app import exit_code

RECIPE = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "inputs": [{"shape": [2, 1, 8, 8]}],
    "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%"}],
}
State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))


def make_state() -> State:
    torch.manual_seed(7)
    return digits_cnn().state_dict()


def read(path: str) -> State:
    return modelfile.read_model(Path(path), load(RECIPE).recipe).state_dict()


def is_equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Ran:
    """Leaves a trace where it is executed."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


class Options:
    """A class of a user, which leaves a trace where it is looked up and made."""

    def __setstate__(self, state: Any) -> None:
        Path("made").touch()


def make_options() -> Options:
    options = Options()
    options.rate = 0.1  # type: ignore[attr-defined]
    return options


BESIDE: dict[str, tuple[Any, str]] = {
    "argparse": (argparse.Namespace(lr=0.1, out=Path("x")), "argparse.Namespace, pathlib.PosixPath"),
    "path": (Path("x"), "pathlib.PosixPath"),
    "numpy scalar": (np.float64(0.5), f"{np.float64(0).__reduce__()[0].__module__}.scalar, numpy.dtype"),
    "own class": (make_options(), f"{__name__}.Options"),
}


@pytest.mark.parametrize(("beside", "named"), BESIDE.values(), ids=BESIDE)
def test_what_lies_beside_the_weights_is_skipped(beside: Any, named: str) -> None:
    state = make_state()
    torch.save({"state_dict": state, "args": beside, "epoch": 3}, "checkpoint.pt")
    with pytest.warns(SparsifyWarning) as caught:
        found = read("checkpoint.pt")
    assert is_equal(found, state)
    assert [str(w.message) for w in caught] == [
        f"checkpoint.pt: the weights are read; skipped beside them: {named}"
    ]
    assert not Path("made").exists()


def test_what_runs_commands_is_refused() -> None:
    torch.save({"state_dict": make_state(), "args": Ran()}, "checkpoint.pt")
    with pytest.raises(ModelError, match="nothing in the file was run"):
        read("checkpoint.pt")
    assert not Path("ran").exists()


def test_a_whole_model_with_options_is_not_half_read() -> None:
    """A layer could hold one of the stand-ins."""
    torch.save({"model": digits_cnn(), "args": argparse.Namespace()}, "checkpoint.pt")
    with pytest.raises(ModelError, match=r"argparse\.Namespace  the standard library is never admitted"):
        read("checkpoint.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_module_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    model = digits_cnn().to(dtype)
    torch.save(model, "model.pt")
    name = str(dtype).removeprefix("torch.")
    with pytest.warns(SparsifyWarning) as caught:
        found = read("model.pt")
    assert [str(w.message) for w in caught] == [f"model.pt: its weights are {name}, and are read as float32"]
    assert is_equal(found, model.float().state_dict())


def write_shards(state: State) -> None:
    names = sorted(state)
    parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    Path("shards").mkdir()
    for file, own in parts.items():
        save_file({name: state[name] for name in own}, Path("shards") / file)
    index = {name: file for file, own in parts.items() for name in own}
    Path("shards/model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def write_folder(state: State) -> None:
    Path("folder").mkdir()
    save_file(state, "folder/model.safetensors")


@pytest.mark.parametrize(
    ("write", "path"),
    [
        (write_folder, "folder"),
        (write_shards, "shards"),
        (write_shards, "shards/model.safetensors.index.json"),
    ],
)
def test_folders_and_shards(write: Callable[[State], None], path: str) -> None:
    state = make_state()
    write(state)
    assert is_equal(read(path), state)
    assert exit_code(["apply", "recipe.yaml", path, "--quiet"]) == 0
    assert next(Path("runs").iterdir()).joinpath("report.json").exists()


INDEX = "shards/model.safetensors.index.json"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", f"{INDEX}: not an index of shards (JSONDecodeError); fetch it again"),
        ("[]", f"{INDEX}: not an index of shards (TypeError); fetch it again"),
        ('{"weight_map": {}}', f"{INDEX}: names no shards beside it; fetch it again"),
        ('{"weight_map": {"x": "../a.pt"}}', f"{INDEX}: names no shards beside it; fetch it again"),
        (
            '{"weight_map": {"x": "c.safetensors"}}',
            "shards lacks c.safetensors, which model.safetensors.index.json names; fetch it",
        ),
    ],
)
def test_damaged_indices(text: str, said: str) -> None:
    write_shards(make_state())
    Path(INDEX).write_text(text)
    with pytest.raises(ModelError) as caught:
        read("shards")
    assert str(caught.value) == said


OTHERS = {
    "m.npy": "; an array file, not a model: examples are named under 'data' in the recipe",
    "m.csv": "; a table, not a model: examples are named under 'data' in the recipe",
    "m.onnx": (
        "; save the PyTorch model's weights: torch.save(model.state_dict(), 'weights.pt') where the model "
        "can be loaded, and name its builder under 'model:' in the recipe"
    ),
    "m.yaml": "; a recipe? 'sparsify apply RECIPE MODEL' takes the recipe first",
    "m.txt": "",
}


@pytest.mark.parametrize(("name", "hint"), OTHERS.items())
def test_other_files_as_the_model(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_text("a,b\n1,2\n")
    assert exit_code(["plan", "recipe.yaml", name]) == 1
    assert capsys.readouterr().err == (
        f"{Path(name).resolve()}: not a model file; expected what torch.save or safetensors writes{hint}\n"
    )


def test_a_url_as_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["plan", "recipe.yaml", "https://a.b/m.pt"]) == 1
    assert capsys.readouterr().err == ("https://a.b/m.pt is a URL; download the file, and give its path\n")


def test_a_folder_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert exit_code(["plan", "recipe.yaml", "empty"]) == 1
    assert capsys.readouterr().err == (
        f"{Path('empty').resolve()} is a folder with neither a finished run nor model.safetensors; "
        "give the model file in it (.pt or .safetensors)\n"
    )


def test_files_of_a_run_have_one_mode() -> None:
    """safetensors writes files that their owner alone may read."""
    Path("free").touch()
    usual = Path("free").stat().st_mode
    torch.save(make_state(), "weights.pt")
    assert exit_code(["apply", "recipe.yaml", "weights.pt", "--quiet"]) == 0
    (run,) = Path("runs").iterdir()
    assert {path.name: path.stat().st_mode for path in run.iterdir()} == dict.fromkeys(
        (path.name for path in run.iterdir()), usual
    )
