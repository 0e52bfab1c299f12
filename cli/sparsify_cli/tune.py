"""`sparsify tune`: find the best recipe by many trials, and show what they came to."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsify.reporting.study_tables import list_study_tables, write_study_headline
from sparsify_cli.options import Allow, OptionalModelFile, Overrides, Quiet, Strict
from sparsify_cli.render import say, show, show_json
from sparsify_cli.stopping import StoppedError, raise_on_sigterm
from sparsify_schemas.study import Study

if TYPE_CHECKING:
    from sparsify.tuning.tune_events import TuneEvent, TuneListener

_MOST_ROWS = 60
"""Trials up to which all of them are listed; report.html has every one."""


def command(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE", help="The recipe, with a 'search'.", show_default=False),
    ] = None,
    model: OptionalModelFile = None,
    overrides: Overrides = None,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            metavar="N",
            help="How many trials, in place of the recipe's number; with --resume more of them.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where the study's folder is made; ./runs when left out.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Where trials are kept, for workers on several machines: postgresql://USER@HOST/DATABASE, "
            "any other URL of Optuna, or the file of a journal such as journal.log. A database in the "
            "study's folder when left out.",
            show_default=False,
        ),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(
            "--join",
            metavar="STUDY",
            help="Take part in a study as another worker: its folder; with --storage its name there, from a "
            "machine that does not see the folder.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="STUDY", help="Go on with an interrupted study.", show_default=False
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Processes of this machine that run trials.", min=1)
    ] = 1,
    allow: Allow = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Every trial trains from random weights.")
    ] = False,
    strict: Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="The record of the study as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Try the values of a recipe's search in many runs, and write the best recipe.

    Each trial is a run in the study's folder: 'sparsify runs STUDY' lists them, and 'report' and 'diff' take
    them. Trials are judged on the validation set; the test set is read once, at the end, for the chosen ones.
    A study that was interrupted or killed goes on with --resume, and a lost trial with its own values.
    """
    if recipe is None and resume is None and join is None:
        raise typer.BadParameter("give a recipe (and a model), --resume STUDY or --join STUDY")
    if resume is not None and out is not None:
        raise typer.BadParameter(
            f"--resume goes on in {resume}, and --out names another folder; leave it out"
        )
    folder: list[Path] = []
    try:
        with raise_on_sigterm():
            from sparsify.tuning.tune import tune
            from sparsify_cli.study_progress import narrate_study

            with narrate_study(quiet) as listener:
                result = tune(
                    recipe,
                    model,
                    out=out or Path("runs"),
                    overrides=overrides or (),
                    allow=allow or (),
                    from_scratch=from_scratch,
                    strict=strict,
                    trials=trials,
                    storage=storage,
                    join=join,
                    resume=resume,
                    workers=workers,
                    listener=_report_folder(folder.append, listener),
                )
    except KeyboardInterrupt as stop:
        raise describe_stop(stop, folder[-1] if folder else None) from None
    _show_study(result.folder, result.study, as_json)


def describe_stop(stop: KeyboardInterrupt, folder: Path | None) -> StoppedError:
    """What a study that was stopped says. folder: None before it was made."""
    if folder is None:
        return StoppedError(stop, " before the study began; nothing was written")
    return StoppedError(stop, f"; continue with: sparsify tune --resume {folder}")


def _report_folder(remember: Callable[[Path], None], listener: "TuneListener") -> "TuneListener":
    """A listener that also passes the study's folder on when it is opened."""
    from sparsify.tuning.tune_events import StudyOpened

    def tell(event: "TuneEvent") -> None:
        if isinstance(event, StudyOpened):
            remember(Path(event.folder))
        listener(event)

    return tell


def _show_study(folder: Path, study: Study, as_json: bool) -> None:
    if as_json:
        show_json({"folder": str(folder), **study.model_dump(mode="json")})
    else:
        has_few = len(study.trials) <= _MOST_ROWS
        show(write_study_headline(study), *list_study_tables(study, every_trial=has_few))
    say(f"saved in {folder}; with plots: {folder / 'report.html'}")
    recipes = [str(folder / name) for name in study.recipes.values()]
    if len(recipes) == 1:
        say(f"the best recipe: {recipes[0]}")
    elif recipes:
        say(f"the recipes of the front: {', '.join(recipes)}")
