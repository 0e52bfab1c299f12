"""Help pages and usage errors speak of values, and not of the types of Python; plans say a thing once."""

import re
import sys
from io import StringIO
from pathlib import Path

import pytest
import yaml

from sparsify_cli.app import COMMANDS, exit_code

OF_PYTHON = re.compile(
    r"Value error,|<[a-z_]+\[|\[Path\]|typing\.|pydantic|Annotated|NoneType|PosixPath|Sentinel"
)
ASKED = [[name] for name in COMMANDS]
WRONG = {
    "a choice": ["export", "run", "--format", "nonsense"],
    "another choice": ["sensitivity", "r.yaml", "m.pt", "--by", "nonsense"],
    "a number": ["bench", "run", "--seconds", "many"],
    "a number that is too small": ["bench", "run", "--seconds", "0"],
    "a whole number": ["sensitivity", "r.yaml", "m.pt", "--examples", "1.5"],
    "an opset": ["export", "run", "--format", "onnx", "--opset", "new"],
    "an axis": ["export", "run", "--format", "onnx", "--dynamic", "x"],
    "a tolerance": ["sensitivity", "r.yaml", "m.pt", "--limits", "some"],
    "a missing value": ["validate", "r.yaml", "--set"],
    "a missing recipe": ["validate"],
    "a missing run": ["bench"],
    "one argument too many": ["runs", "a", "b"],
    "an option that there is not": ["validate", "r.yaml", "--nonsense"],
    "a schema": ["schema", "nonsense"],
    "targets": ["targets", "nonsense"],
    "a command": ["nonsense"],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: sparsify {name}") and not OF_PYTHON.findall(page)


@pytest.mark.parametrize("name", WRONG)
def test_a_usage_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(WRONG[name]) == 2
    said = capsys.readouterr().err
    assert said and not OF_PYTHON.findall(said)


def test_a_choice_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Found by tests/benchmarks/fuzz_commands.py."""
    assert exit_code(WRONG["a choice"]) == 2
    assert capsys.readouterr().err.endswith(
        "Invalid value for '--format': 'nonsense' is not one of "
        "'pt2', 'onnx', 'onnx-int8', 'safetensors', 'huggingface', "
        "'torch-pruning'.\n"
    )


RECIPE = {
    "version": 1,
    "title": "Small",
    "model": {"build": "sparsify.models.digits_cnn"},
    "inputs": [{"shape": [2, 1, 8, 8]}],
    "rules": [{"layers": "*", "group": "filter", "sparsity": "50%"}],
}


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_plan_on_a_terminal_shows_what_it_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is wiped in the end; in a pipe it is not there."""
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert exit_code(["plan", "recipe.yaml", "--from-scratch"]) == 0
    assert capsys.readouterr().err == ""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert exit_code(["plan", "recipe.yaml", "--from-scratch"]) == 0
    assert "following the model's structure" in stream.getvalue()


def test_a_protection_is_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert exit_code(["plan", "recipe.yaml", "--from-scratch"]) == 0
    out = capsys.readouterr().out
    assert out.count("it feeds the network's output") == 1
