"""`sparsify plan`: show what a recipe would do to a model, before any training."""

from typing import Annotated

import typer

from sparsify_cli.options import Allow, OptionalModelFile, Overrides, RecipeFile, Strict
from sparsify_cli.render import show, show_json


def command(
    recipe: RecipeFile,
    model: OptionalModelFile = None,
    overrides: Overrides = None,
    allow: Allow = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Build the model with random weights instead of reading one."),
    ] = False,
    strict: Strict = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
) -> None:
    """Show what a recipe would do to a model.

    It lists what each rule reaches, what is protected and why, and what the budget allows.
    """
    from sparsify.reporting import plan_tables
    from sparsify.runs.apply import preview
    from sparsify_cli.progress import narrate

    with narrate(False, "following the model's structure, trying out cuts") as listener:
        # A latency budget may have to time layers first.
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
