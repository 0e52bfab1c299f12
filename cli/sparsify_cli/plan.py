"""`sparsify plan`: show what a recipe would do to a model, before any training."""

from typing import Annotated, Any

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
    cross_check: Annotated[
        bool,
        typer.Option(
            "--cross-check",
            help="Compare the coupled groups with those of torch-pruning, in a process of at most 600 "
            "seconds and 8 GiB.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
) -> None:
    """Show what a recipe would do to a model.

    It lists what each rule reaches, what is protected and why, and what the budget allows. With
    --cross-check also where torch-pruning couples other channels.
    """
    from sparsify.reporting import plan_tables
    from sparsify.reporting.cross_check_table import list_parts
    from sparsify.runs.apply import preview, preview_beside_peer
    from sparsify_cli.progress import narrate

    found = None
    with narrate(False, "following the model's structure, trying out cuts") as listener:
        # A latency budget may have to time layers first.
        given: dict[str, Any] = {
            "overrides": overrides or (),
            "allow": allow or (),
            "from_scratch": from_scratch,
            "strict": strict,
            "listener": listener,
        }
        if cross_check:
            plan, found = preview_beside_peer(recipe, model, **given)
        else:
            plan = preview(recipe, model, **given)
    if as_json:
        beside = {} if found is None else {"cross_check": found.to_json()}
        show_json(plan.to_json() | beside)
    else:
        compared = () if found is None else list_parts(found)
        show(plan_tables.summarize(plan), *plan_tables.list_tables(plan), *compared)
