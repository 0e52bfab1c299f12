"""`sparsify plan`: show what a recipe would do to a model, before any training."""

from pathlib import Path
from typing import Annotated

import typer

from sparsify_cli.render import show, show_json


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe.", show_default=False)],
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
        bool,
        typer.Option("--from-scratch", help="Build the model with random weights instead of reading one."),
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Make it an error where a layer must be protected, or where a layer that no call runs "
            "would have to be narrowed.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
) -> None:
    """Show what a recipe would do to a model.

    It lists what each rule reaches, what is protected and why, and what the budget allows.
    """
    from sparsify.reporting import plan_tables
    from sparsify.runs.apply import preview
    from sparsify_cli.progress import narrate

    with narrate(False) as listener:  # a latency budget may have to time layers first
        plan = preview(
            recipe,
            model,
            overrides=overrides or (),
            allow=allow or (),
            from_scratch=from_scratch,
            strict=strict,
            listener=listener,
        )
    if as_json:
        show_json(plan.to_json())
    else:
        show(plan_tables.summarize(plan), *plan_tables.list_tables(plan))
