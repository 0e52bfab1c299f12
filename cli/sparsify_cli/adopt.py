"""`sparsify adopt`: make a run of a model that was cut elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from sparsify.reporting.report_file import read_report
from sparsify_cli.options import Allow, Out, Overrides, Quiet, RecipeFile
from sparsify_cli.render import say, show_json


def command(
    recipe: RecipeFile,
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="CUT_MODEL",
            help="The cut model: weights, a checkpoint or a whole module.",
            show_default=False,
        ),
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            "--dense",
            metavar="FILE",
            help="The dense model's weights, or the whole module.",
            show_default=False,
        ),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            "--history",
            metavar="FILE",
            help="What torch-pruning's pruning_history() returned, as JSON or by torch.save.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    allow: Allow = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a run of a model that was cut elsewhere, by torch-pruning or by any script.

    The recipe names the dense model's builder and data or inputs; it needs no rules. With --dense it is found
    out which units stayed, and their cut is proven; without it only their numbers are known, and the cut is
    proven for the structure.
    The run can be reported, timed, exported and cut further like any other.
    """
    from sparsify.runs.adopt import adopt
    from sparsify_cli.progress import narrate
    from sparsify_cli.report import show_report

    with narrate(quiet) as listener:
        run = adopt(
            recipe,
            model,
            dense=dense,
            history=history,
            out=out or Path("runs"),
            overrides=overrides or (),
            allow=allow or (),
            listener=listener,
        )
    found = read_report(run)
    if as_json:
        show_json(found.model_dump(mode="json"))
    else:
        show_report(found)
    say(f"saved in {run}; with plots: sparsify report {run} --open")
