"""`sparsify`: the table of commands, which are imported when they are called, and the only error boundary.

Each command is a module with a function `command`, annotated for typer. It raises SparsifyError for an
error that the user can correct, and `typer.Exit(3)` when a budget was missed.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence
from copy import copy
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sparsify.errors import SparsifyError, VerificationError
from sparsify.formatting.table import escape_character

LONGEST = 2000
"""Characters in a line of an error message."""
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("sparsify_cli.init", "Write a commented recipe to start from, or copy one."),
    "recipes": ("sparsify_cli.recipes", "List the recipes that ship with the package."),
    "validate": ("sparsify_cli.validate", "Check recipes, without a model."),
    "plan": ("sparsify_cli.plan", "Show what a recipe would do to a model."),
    "apply": ("sparsify_cli.apply", "Train, cut, verify and measure; leaves a run folder."),
    "bench": ("sparsify_cli.bench", "Time the dense and the cut model of a run again, or any two artefacts."),
    "sensitivity": (
        "sparsify_cli.sensitivity",
        "Show how much each layer can lose; set limits for a recipe.",
    ),
    "export": (
        "sparsify_cli.export",
        "Write the cut model of a run as .pt2, ONNX, safetensors or a Hugging Face folder.",
    ),
    "report": ("sparsify_cli.report", "Show what a run did and measured."),
    "diff": ("sparsify_cli.diff", "Compare two recipes or two runs."),
    "targets": (
        "sparsify_cli.targets",
        "List what can be timed here; measure which widths are fast on a target.",
    ),
    "runs": ("sparsify_cli.runs", "List the runs in a folder."),
    "explain": ("sparsify_cli.explain", "Explain a word of the recipe language."),
    "schema": ("sparsify_cli.schema", "Print the JSON Schema of recipe, cuts, report or table."),
}
"""Name -> (module with a function `command`, line in the help)."""


class CommandNames(TyperGroup):
    """The commands of the table by name and line alone, for shell completion: no module of a command is
    imported."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand:  # noqa: ARG002
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])


class Commands(CommandNames):
    """The commands of the table; a module is imported when its command is called."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        names_only = copy(ctx)
        names_only.command = CommandNames(name=self.name)
        return super().shell_complete(names_only, incomplete)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand:
        if cmd_name not in COMMANDS:
            near = get_close_matches(cmd_name, COMMANDS, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(COMMANDS)}"
            ctx.fail(f"no command '{cmd_name}'; {hint}")
        module, _ = COMMANDS[cmd_name]
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(name=cmd_name)(import_module(module).command)
        made: TyperCommand = typer.main.get_command(single)  # type: ignore[assignment]
        return made

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sparsify {version('sparsify-recipes')}")
        raise typer.Exit


def print_version(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Recipes for structured sparsity: train, cut, verify and measure smaller PyTorch models."""


def _load_commands() -> Any:
    app = typer.Typer(
        name="sparsify",
        cls=Commands,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(print_version)
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit.

    0: done. 1: bad recipe, model or data. 2: wrong usage. 3: budget missed or verification failed. 130:
    interrupted.
    143: stopped by SIGTERM.
    """
    sys.exit(exit_code(arguments))


def exit_code(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, print errors on stderr, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name that is not UTF-8 must not break the message about it.
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run_command(arguments)
    except VerificationError as error:
        return _print_error(error, 3)
    except SparsifyError as error:
        return _print_error(error, 1)
    except BrokenPipeError:
        # A reader such as `| head` is done; without this Python complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return _print_bug(error)


def _run_command(arguments: Sequence[str] | None) -> int:
    try:
        _load_commands()(args=arguments, prog_name="sparsify")
    except SystemExit as stop:
        sys.stdout.flush()
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _print_error(error: SparsifyError, code: int) -> int:
    typer.echo("\n".join(_escape(line) for line in str(error).splitlines()), err=True)
    return code


def _escape(line: str) -> str:
    """Escape control characters, which a name in a damaged file may hold, and cut off long lines."""
    if len(line) > LONGEST:
        line = f"{line[:LONGEST]}..."
    return "".join(map(escape_character, line))


def _print_bug(error: Exception) -> int:
    typer.echo(f"sparsify: {type(error).__name__}: {error}; this is a bug", err=True)
    if os.environ.get("SPARSIFY_DEBUG"):
        typer.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    else:
        typer.echo(
            "run it again with SPARSIFY_DEBUG=1 to see where, and please report that with the recipe",
            err=True,
        )
    return 1
