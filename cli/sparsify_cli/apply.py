"""`sparsify apply`: carry out a recipe on a model; leaves a run folder and shows its report."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sparsify.events import Event, Listener, RunStarted
from sparsify.reporting.headline import format_limit, limit_name
from sparsify.reporting.report_file import read_report
from sparsify_cli.render import say, show_json
from sparsify_cli.stopping import stoppable, stopped


def command(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL",
            help="Weights, a whole model, or an earlier run (its cut model).",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE",
            help="Replace a value of the recipe; may be repeated.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the run's folder is made.")
    ] = Path("runs"),
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="PACKAGE",
            help="Trust classes of this package in a whole pickled model; may be repeated.",
            show_default=False,
        ),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train from random weights instead of reading a model.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="A layer that would have to be protected, or that no call reaches while what it reads is narrowed, is an error.",
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train, cut, verify, measure. Exits with 3 when a limit of the recipe was missed.

    Training takes as many threads as PyTorch chooses; set OMP_NUM_THREADS to choose yourself, such as OMP_NUM_THREADS=2.
    Timing takes those of the recipe's targets.
    """
    if recipe is None and resume is None:
        raise typer.BadParameter("give a recipe (and a model), or --resume RUN")
    folder = [resume] if resume is not None else []
    try:
        from sparsify.runs.apply import apply
        from sparsify_cli.progress import narration

        with stoppable(), narration(quiet or _rank() > 0) as listener:
            run = apply(
                recipe,
                model,
                out=out,
                overrides=overrides or (),
                allow=allow or (),
                from_scratch=from_scratch,
                strict=strict,
                resume=resume,
                listener=_remembering(folder.append, listener),
            )
    except KeyboardInterrupt as stop:
        said, code = stopped(stop, folder[-1] if folder else None, int(os.environ.get("WORLD_SIZE", "1")) > 1)
        say(said)
        raise typer.Exit(code) from None
    _finish(run, as_json)


def _remembering(remember: Callable[[Path], None], listener: Listener) -> Listener:
    """The listener, after noting where the run lies."""

    def tell(event: Event) -> None:
        if isinstance(event, RunStarted):
            remember(Path(event.folder))
        listener(event)

    return tell


def _rank() -> int:
    """This process among those that torchrun or `accelerate launch` started."""
    return int(os.environ.get("RANK", "0"))


def _finish(run: Path, as_json: bool) -> None:
    from sparsify_cli.report import show_report

    found = read_report(run)
    if _rank():
        return  # the first process speaks for all
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        show_report(found)
    say(f"saved in {run}; with plots: sparsify report {run} --open")
    missed = [
        f"{limit_name(m)} {format_limit(m, m.achieved)}, asked {m.asked}" for m in found.limits if not m.met
    ]
    if missed:
        say(f"missed: {'; '.join(missed)}")
        raise typer.Exit(3)
