"""Closed, full and abandoned streams; names that are too long, loops of links, pipes: none is a bug."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from apart import Apart

from sparsify.models import digits_cnn
from sparsify_cli.app import exit_code

RECIPE = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "10%"},
    "rules": [{"layers": "conv*", "group": "filter"}],
}
SPARSIFY = f"{sys.executable} -m sparsify_cli"
FULL = "cannot write the results to stdout: No space left on device\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSIFY_DEBUG", raising=False)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def ring(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full", 1, FULL),
        (">/dev/full 2>/dev/full", 1, ""),
    ],
)
@pytest.mark.parametrize("command", ["validate recipe.yaml", "explain rules", "schema --help"])
def test_a_closed_stream_is_no_error_and_a_full_one_is_named(
    command: str, streams: str, code: int, said: str
) -> None:
    line = f"{SPARSIFY} {command} {streams}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.endswith("No space left on device\n") if said else done.stderr == ""


def test_a_run_goes_on_when_nobody_reads_its_messages_any_more() -> None:
    Path("printing.py").write_text(
        "import sys, torch\nfrom sparsify.models import digits_cnn\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = digits_cnn()\n"
        "    def forward(self, x):\n        print('x' * 9999)\n        print('y', file=sys.stderr)\n"
        "        return self.net(x)\n"
    )
    stage = {"kind": "train", "name": "learn", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.05}}
    recipe = {**RECIPE, "model": {"build": "printing.Net"}, "stages": [stage]}
    recipe["rules"] = [{"layers": "net.conv*", "group": "filter", "sparsity": "50%"}]
    recipe["stages"] = [stage, {"kind": "cut", "repair": False}]
    recipe["targets"] = {"here": {"kind": "cpu", "runtime": "eager"}}
    recipe["data"] = {"source": "digits", "validation": "90%"}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    with subprocess.Popen(
        [*SPARSIFY.split(), "apply", "recipe.yaml", "--from-scratch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        out = process.stdout.read()
    assert process.returncode == 0
    assert out.startswith(b"Small\n")
    assert Path("runs/small-1/report.json").exists()


LONG = "x" * 5000
COMMANDS = {
    "validate": ["validate", "NAME"],
    "plan, recipe": ["plan", "NAME", "m.pt"],
    "plan, model": ["plan", "recipe.yaml", "NAME"],
    "apply, out": ["apply", "recipe.yaml", "m.pt", "--out", "NAME"],
    "apply, resume": ["apply", "--resume", "NAME"],
    "bench": ["bench", "NAME"],
    "sensitivity, out": ["sensitivity", "recipe.yaml", "m.pt", "--out", "NAME"],
    "sensitivity, plot": ["sensitivity", "recipe.yaml", "m.pt", "--plot", "NAME"],
    "export": ["export", "NAME", "--format", "pt2"],
    "report": ["report", "NAME"],
    "diff": ["diff", "NAME", "recipe.yaml"],
    "runs": ["runs", "NAME"],
    "init": ["init", "NAME"],
    "init, from": ["init", "--from", "NAME"],
    "targets, out": ["targets", "measure", "eager", "--out", "NAME"],
    "data.root": ["plan", "recipe.yaml", "m.pt", "--set", "data={source: mnist, root: NAME}"],
    "data.source": ["plan", "recipe.yaml", "m.pt", "--set", "data={source: NAME.npz}"],
    "limits": ["plan", "recipe.yaml", "m.pt", "--set", "rules.0.keep={limits: NAME}"],
}


@pytest.mark.parametrize("name", ["loop", LONG, "pipe"], ids=["loop", "long", "pipe"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_odd_name_is_one_message(command: str, name: str) -> None:
    torch.save(digits_cnn().state_dict(), "m.pt")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exit_code([part.replace("NAME", name) for part in COMMANDS[command]])
    lines = [line for line in err.getvalue().splitlines() if not line.startswith(("exporting ", "  "))]
    assert (code, len(lines)) == (1, 1), lines
    assert "bug" not in lines[0] and len(lines[0]) <= 2000
    assert Path("loop").is_symlink() and Path("pipe").is_fifo()


def test_a_recipe_from_a_shell_is_read_and_a_pipe_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    assert exit_code(["validate", "pipe"]) == 1
    assert capsys.readouterr().err == (
        "pipe: a pipe or a device, not a recipe file; write the recipe to a file\n"
    )
    line = f"cat recipe.yaml | {SPARSIFY} validate /dev/stdin"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "the environment variable WORLD_SIZE is 'abc', and a launcher"),
        ({"WORLD_SIZE": "2", "RANK": "abc"}, "the environment variable RANK is 'abc', and a launcher"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, "the processes of the run cannot be set up: "),
        ({"LOCAL_RANK": "abc"}, "the processes of the run cannot be set up: "),
        ({"ACCELERATE_USE_CPU": "nonsense"}, "the processes of the run cannot be set up: "),
    ],
)
def test_variables_of_a_launcher(variables: dict[str, str], said: str) -> None:
    """In a process of its own, as accelerate keeps what it read."""
    code = f"import os, sys; os.environ |= {variables}; from sparsify_cli.app import main; main(sys.argv[1:])"
    process = Apart(code, "apply", "recipe.yaml", "--from-scratch", "--quiet")
    out, err = process.communicate()
    assert process.returncode == 1 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith(said)


def test_the_end_of_a_long_message_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["report", LONG]) == 1
    assert capsys.readouterr().err.endswith("x: File name too long\n")
    assert exit_code(["schema", LONG]) == 2
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 2100
