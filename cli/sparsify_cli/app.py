"""`sparsify`: the table of commands, which are imported when they are called, and the only error boundary.

Each command is a module with a function `command`, annotated for typer. It raises SparsifyError for an
error that the user can correct, and `typer.Exit(3)` when a budget was missed.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from copy import copy
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sparsify.errors import SparsifyError, VerificationError, describe_error
from sparsify_cli.failures import (
    UserCodeError,
    find_user_code,
    print_error,
    print_object,
    print_unexpected,
    shorten,
    show_warnings,
)
from sparsify_cli.output import forget_results, separate_output, show_usage
from sparsify_cli.stopping import StoppedError, raise_on_sigterm

_ClickError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
"""What wrong usage raises: of click, or of the copy of it that newer versions of typer have."""
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("sparsify_cli.init", "Write a commented recipe to start from, or copy one."),
    "recipes": ("sparsify_cli.recipes", "List the recipes that ship with the package."),
    "validate": ("sparsify_cli.validate", "Check recipes, without a model."),
    "plan": ("sparsify_cli.plan", "Show what a recipe would do to a model."),
    "apply": ("sparsify_cli.apply", "Train, cut, verify and measure; leaves a run folder."),
    "adopt": (
        "sparsify_cli.adopt",
        "Make a run of a model that was cut elsewhere, with a proof of its cut.",
    ),
    "tune": ("sparsify_cli.tune", "Try values of a recipe in many runs; write the best recipe."),
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
    "diff": ("sparsify_cli.diff", "Compare recipes or runs, two or several."),
    "targets": (
        "sparsify_cli.targets",
        "List what can be timed here; measure which widths are fast on a target.",
    ),
    "runs": ("sparsify_cli.runs", "List the runs in a folder."),
    "explain": ("sparsify_cli.explain", "Explain a word of the recipe language."),
    "schema": ("sparsify_cli.schema", "Print the JSON Schema of recipe, report, study and other files."),
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
        single.command(name=cmd_name)(_keep_output(import_module(module).command))
        made: TyperCommand = typer.main.get_command(single)  # type: ignore[assignment]
        for parameter in made.params:
            _name_type(parameter)
        return made

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _name_type(parameter: Any) -> None:
    """Newer versions of typer show a list of paths as <list[Path]>; here it says what one entry is."""
    describe = getattr(parameter, "display_type", None)
    if describe is not None:
        parameter.display_type = lambda ctx: (
            describe(ctx).replace("list[Path]", "path").replace("list[str]", "text")
        )


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
    shorten_waits()
    sys.exit(exit_code(arguments))


def shorten_waits() -> None:
    """Let the threads that compute sleep soon where they wait for each other, unless the user has said how.

    By default GNU's OpenMP has them turn 300,000 times first. On a processor that other programs use they
    then take the very time that the late thread needs: an epoch of the digits took 22 s in place of 6. It is
    read when torch is loaded, so it comes first.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def exit_code(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, print errors on stderr, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name that is not UTF-8 must not break the message about it.
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if arguments is None else list(arguments)
    forget_results()
    try:
        with show_warnings():
            return _run_command(given)
    except VerificationError as error:
        print_error(error, given)
        return 3
    except StoppedError as stopped:
        print_error(stopped, given)
        return stopped.exit_code
    except SparsifyError as error:
        print_error(error, given)
        return 1
    except BrokenPipeError:
        return 1  # a reader such as `| head` is done
    except KeyboardInterrupt as interrupt:
        raised = StoppedError(interrupt)
        print_error(raised, given)
        return raised.exit_code
    except BaseException as error:
        print_unexpected(error, given)
        return 1


def _run_command(arguments: Sequence[str]) -> int:
    try:
        code = _load_commands()(args=arguments, prog_name="sparsify", standalone_mode=False)
    except _ClickError as error:
        error.message = shorten(error.message.replace("Value error, ", ""))  # what pydantic puts before it
        print_object("UsageError", error.format_message(), arguments)
        show_usage(error.show)
        code = error.exit_code
    except typer.Abort:
        return 1
    except SystemExit as stop:  # of shell completion, and of a reader that is done
        return stop.code if isinstance(stop.code, int) else 0
    return code if isinstance(code, int) else 0


def _keep_output(command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose output alone goes to stdout, and which no sys.exit of the user's code ends."""

    @wraps(command)
    def run(*given: Any, **named: Any) -> None:
        try:
            with separate_output(), raise_on_sigterm():
                command(*given, **named)
        except KeyboardInterrupt as stop:  # typer would end with 130 and without a word
            raise StoppedError(stop) from None
        except SystemExit as stop:
            place = find_user_code(stop) or "code that the recipe names"
            raise UserCodeError(f"{place} failed: {describe_error(stop)}") from stop

    return run
