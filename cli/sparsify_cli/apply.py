"""`sparsify apply`: carry out a recipe on a model, write a run folder and show its report."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import SparsifyError
from sparsify.events import Event, Listener, RunStarted
from sparsify.reporting.headline import list_missed
from sparsify.reporting.report_file import read_report
from sparsify_cli.options import Allow, OptionalModelFile, Out, Overrides, Quiet, Strict
from sparsify_cli.render import say, show_json
from sparsify_cli.stopping import describe_stop, raise_on_sigterm


def command(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe.", show_default=False)
    ] = None,
    model: OptionalModelFile = None,
    overrides: Overrides = None,
    out: Out = None,
    allow: Allow = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train from random weights instead of reading a model.")
    ] = False,
    strict: Strict = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Continue an interrupted run.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train, cut, verify, measure. Exits with 3 when a limit of the recipe was missed.

    PyTorch chooses the number of threads for training; OMP_NUM_THREADS=2 sets it, for example. Timing uses
    the threads of the recipe's targets.
    """
    if recipe is None and resume is None:
        raise typer.BadParameter("give a recipe (and a model), or --resume RUN")
    if resume is not None and out is not None:
        raise typer.BadParameter(
            f"--resume goes on in {resume}, and --out names another folder; leave it out"
        )
    if resume is not None:
        options = {"--from-scratch": from_scratch, "--strict": strict, "--allow": allow}
        ignored = [option for option, given in options.items() if given]
        if ignored:
            raise typer.BadParameter(
                f"--resume goes on as {resume} was started, and would ignore {ignored[0]}; leave it out"
            )
    folder = [resume] if resume is not None else []
    try:
        with raise_on_sigterm():  # here too: an error after the signal must say how to resume
            from sparsify.runs.apply import apply
            from sparsify_cli.progress import narrate

            with narrate(_read_rank() > 0 or quiet) as listener:
                run = apply(
                    recipe,
                    model,
                    out=out or Path("runs"),
                    overrides=overrides or (),
                    allow=allow or (),
                    from_scratch=from_scratch,
                    strict=strict,
                    resume=resume,
                    listener=_report_folder(folder.append, listener),
                )
    except KeyboardInterrupt as stop:
        is_distributed = _read_number("WORLD_SIZE", 1) > 1
        raise describe_stop(stop, folder[-1] if folder else None, is_distributed) from None
    _show_report(run, as_json)


def _report_folder(remember: Callable[[Path], None], listener: Listener) -> Listener:
    """A listener that also passes the run's folder on when the run starts."""

    def tell(event: Event) -> None:
        if isinstance(event, RunStarted):
            remember(Path(event.folder))
        listener(event)

    return tell


def _read_rank() -> int:
    """The rank of this process among those that torchrun or `accelerate launch` started.

    A RANK that is left over where there is one process says nothing.
    """
    return _read_number("RANK", 0) if _read_number("WORLD_SIZE", 1) > 1 else 0


def _read_number(variable: str, default: int) -> int:
    """What a launcher writes into the environment. Raises SparsifyError."""
    text = os.environ.get(variable) or str(default)
    try:
        return int(text)
    except ValueError:
        raise SparsifyError(
            f"the environment variable {variable} is {text!r}, and a launcher such as torchrun makes it a "
            "number; unset it"
        ) from None


def _show_report(run: Path, as_json: bool) -> None:
    from sparsify_cli.report import show_report

    found = read_report(run)
    if _read_rank():
        return  # only the first process prints
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        show_report(found)
    say(f"saved in {run}; with plots: sparsify report {run} --open")
    missed = list_missed(found)
    if missed:
        say(f"missed: {'; '.join(missed)}")
        raise typer.Exit(3)
