"""Shell completion: the script is shown or installed; commands, options and names of recipes complete."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsify_cli.app import COMMANDS

RECIPES = Path(__file__).parents[3] / "recipes"
SPARSIFY = [sys.executable, "-m", "sparsify_cli"]


def complete(line: str) -> tuple[list[str], set[str]]:
    """What bash is offered at the end of a line, and the modules that were imported for it."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_SPARSIFY_COMPLETE": "complete_bash"}
    code = (
        "import sys\nfrom sparsify_cli.app import exit_code\ncode = exit_code()\n"
        "print(*sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | words, check=True
    )
    return done.stdout.split(), set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sparsify re", ["recipes", "report"]),
        ("sparsify --show", ["--show-completion"]),
        ("sparsify init --fr", ["--from"]),
        ("sparsify init --from digits", ["digits-cnn"]),
        ("sparsify init --from nothing", []),
    ],
)
def test_commands_options_and_recipes_complete(line: str, offered: list[str]) -> None:
    found, modules = complete(line)
    assert found == offered
    assert "torch" not in modules


def test_all_commands_are_offered_without_importing_them() -> None:
    commands, modules = complete("sparsify ")
    assert commands == list(COMMANDS)
    assert not modules & {module for module, _ in COMMANDS.values()}


def test_all_recipes_are_offered() -> None:
    recipes, _ = complete("sparsify init --from ")
    assert recipes == sorted(file.stem for file in RECIPES.glob("*.yaml"))


def in_bash(option: str, home: Path) -> str:
    """Output of `sparsify OPTION`, called from bash, whose home is elsewhere."""
    code = "from sparsify_cli.app import main; main()"
    script = f"\"$1\" -c '{code}' {option}; exit $?"  # with a second command, bash stays the parent
    environment = os.environ | {"HOME": str(home)}
    command = ["bash", "-c", script, "bash", sys.executable]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout


def test_the_script_is_shown(tmp_path: Path) -> None:
    shown = in_bash("--show-completion", tmp_path)
    assert shown.splitlines()[-1] == "complete -o default -F _sparsify_completion sparsify"
    assert list(tmp_path.iterdir()) == []


def test_the_script_is_installed_and_bash_asks_it(tmp_path: Path) -> None:
    said = in_bash("--install-completion", tmp_path)
    script = tmp_path / ".bash_completions" / "sparsify.sh"
    assert str(script) in said and str(script) in (tmp_path / ".bashrc").read_text(encoding="utf-8")
    command = tmp_path / "sparsify"
    command.write_text(f'#!/bin/sh\nexec {" ".join(SPARSIFY)} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    asked = (
        f"source {tmp_path}/.bashrc; COMP_WORDS=({command} init --from digits); COMP_CWORD=3; "
        f"_sparsify_completion {command}; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "digits-cnn\n"
