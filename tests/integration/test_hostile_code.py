"""User code cannot end a command as if all were well, change the process for others, or spoil its output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sparsify_cli.app import exit_code

HERE = Path(__file__).parent
PARTS = "hostile_parts"
OPTIMIZER = {"kind": "sgd", "lr": 0.05}
RECIPE = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": f"{PARTS}:signed", "validation": "20%"},
    "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%"}],
    "stages": [{"kind": "train", "name": "learn", "epochs": 1, "optimizer": OPTIMIZER}, {"kind": "cut"}],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe in an empty folder, from which the callables can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))


def run(command: str, *overrides: str) -> int:
    sets = [part for text in overrides for part in ("--set", text)]
    return exit_code([command, "recipe.yaml", "--from-scratch", "--json", *sets])


CASES = {
    f"data.source={PARTS}:exit_at_once": f"data.source '{PARTS}:exit_at_once' failed: it called sys.exit(0)",
    f"data.source={PARTS}:raise_without_text": (
        f"data.source '{PARTS}:raise_without_text' failed: WithoutText"
    ),
    f"data.source={PARTS}:raise_no_exception": (
        f"data.source '{PARTS}:raise_no_exception' failed: NoException: odd"
    ),
    f"data.source={PARTS}:negative_length": (
        f"{PARTS}:negative_length: train: the Dataset's length cannot be read: "
        "ValueError: __len__() should return >= 0"
    ),
    f"data.source={PARTS}:exit_in_an_example": (
        f"{PARTS}:exit_in_an_example: train: reading the Dataset failed: it called sys.exit(0)"
    ),
    f"data.source={PARTS}:exit_in_an_array": (
        f"{PARTS}:exit_in_an_array: train: cannot be converted to a tensor (it called sys.exit(0))"
    ),
    f"data.source={PARTS}:on_meta": (
        f"{PARTS}:on_meta: train: a tensor on the meta device has no numbers; make it on the cpu"
    ),
    f"data.source={PARTS}:sparse": (
        f"{PARTS}:sparse: train: a tensor is sparse (sparse_coo); call .to_dense() on it"
    ),
    f"data.source={PARTS}:nested": f"{PARTS}:nested: train: a tensor is nested; return a list of tensors",
    f"data.source={PARTS}:quantized": (
        f"{PARTS}:quantized: train: a tensor is quantized; call .dequantize() on it"
    ),
    "data.source=parses_arguments:load": (
        "data.source 'parses_arguments:load': importing 'parses_arguments' failed: it called sys.exit(2); "
        "keep what belongs to a script below `if __name__ == '__main__':`"
    ),
    f"model.build={PARTS}.build_and_exit": (
        f"model.build '{PARTS}.build_and_exit' failed with no arguments: it called sys.exit(0)"
    ),
    f"model.build={PARTS}.ExitingNet": (
        "the model does not take a batch of shape (2, 1, 8, 8): it called sys.exit(0)"
    ),
    f"model.build={PARTS}.WithoutTextNet": (
        "the model does not take a batch of shape (2, 1, 8, 8): WithoutText"
    ),
    f"task.loss={PARTS}:exiting_loss": f"loss '{PARTS}:exiting_loss' failed: it called sys.exit(0)",
    f"task.collate={PARTS}:exiting_collate": (
        f"task.collate '{PARTS}:exiting_collate' failed: it called sys.exit(0)"
    ),
}


@pytest.mark.parametrize("override", CASES)
def test_it_is_one_sentence_that_names_the_callable(
    override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "import argparse\nargparse.ArgumentParser(prog='mine').parse_args(['--nope'])\n"
    Path("parses_arguments.py").write_text(arguments)
    assert run("plan", override) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == CASES[override]
    assert json.loads(out)["message"] == CASES[override]
    assert "bug" not in err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            f"task.metrics=[{PARTS}:exiting_metric]",
            "metric 'exiting_metric' failed: it called sys.exit(0)",
        ),
        (
            f"stages.0.optimizer={{kind: other, use: '{PARTS}:exiting_optimizer'}}",
            f"optimizer '{PARTS}:exiting_optimizer': it called sys.exit(0)",
        ),
    ],
)
def test_so_it_is_in_the_middle_of_a_run(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("apply", override) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == message
    assert json.loads(out)["message"] == message


def test_in_a_worker_too(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = f"data.source={PARTS}:exit_in_an_example", "data.lazy=true", "data.workers=1"
    assert run("apply", *overrides) == 1
    message = f"{PARTS}:exit_in_an_example: train: reading example 0 failed: it called sys.exit(0)"
    assert capsys.readouterr().err.splitlines()[-1] == message


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_unsigned_labels_are_labels(bits: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("apply", f"data.source={PARTS}:unsigned{bits}") == 0
    unsigned = json.loads(capsys.readouterr().out)
    assert run("apply") == 0
    signed = json.loads(capsys.readouterr().out)
    assert [epoch["loss"] for epoch in unsigned["history"]] == [epoch["loss"] for epoch in signed["history"]]


def test_output_is_json_alone_whatever_user_code_prints() -> None:
    before = torch.get_rng_state()
    arguments = ["plan", "recipe.yaml", "--from-scratch", "--json", "--set", f"data.source={PARTS}:noisy"]
    arguments += ["--set", f"model.build={PARTS}.PrintingNet", "--set", "rules.0.layers=net.conv*"]
    done = subprocess.run(
        [sys.executable, "-m", "sparsify_cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"]["title"] == "Small"
    lines = done.stderr.splitlines()
    assert {"printed", "written", "by a child", "in forward"} <= set(lines)
    assert (
        f"warning: data.source '{PARTS}:noisy' switched gradients off, "
        "changed torch's default type to float64; that was put back"
    ) in lines
    assert torch.equal(before, torch.get_rng_state())
