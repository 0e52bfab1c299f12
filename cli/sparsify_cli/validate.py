"""`sparsify validate`: check a recipe, without a model and without torch."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import RecipeError
from sparsify.recipe import load
from sparsify_cli.render import show_json
from sparsify_schemas.recipe import Recipe, Rule
from sparsify_schemas.stage import Stage, Train
from sparsify_schemas.written import written

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace a value of the recipe, such as stages.0.epochs=3; may be repeated.",
        show_default=False,
    ),
]


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)],
    overrides: Set = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The resolved recipe, or the problems, as JSON.")
    ] = False,
) -> None:
    """Check a recipe, without a model: every problem at once, each with line and column."""
    try:
        loaded = load(recipe, overrides or ())
    except RecipeError as error:
        if as_json:
            show_json(
                {
                    "file": str(recipe),
                    "valid": False,
                    "problems": [asdict(problem) for problem in error.problems],
                    "recipe": None,
                }
            )
        raise
    if as_json:
        show_json({"file": str(recipe), "valid": True, "problems": [], "recipe": written(loaded.recipe)})
    else:
        typer.echo("\n".join([f"{recipe}: valid", *_summary(loaded.recipe)]))


def _summary(recipe: Recipe) -> list[str]:
    rows = [("title", recipe.title)]
    if recipe.model is not None:
        rows.append(("model", recipe.model.build))
    if recipe.data is not None:
        rows.append(("data", f"{recipe.data.source}, {recipe.data.validation} for validation"))
    rows += [
        (
            "target",
            f"{name}: {target.kind}, {target.runtime}, batch {target.batch}{'' if target.dtype == 'float32' else f', {target.dtype}'}",
        )
        for name, target in recipe.targets.items()
    ]
    limits = [
        f"{name} {limit}"
        for name, limit in written(recipe.budget).items()
        if name not in ("latency", "accuracy_drop")
    ]
    limits += [
        f"{limit} of the time on {name}" if str(limit).endswith("%") else f"{limit} on {name}"
        for name, limit in recipe.budget.latency.items()
    ]
    limits += [f"accuracy_drop {recipe.budget.accuracy_drop.at_most}"] if recipe.budget.accuracy_drop else []
    rows.append(("budget", ", ".join(limits) or "none: only groups that are zero are cut"))
    rows += [(f"rule {number}", _rule(rule)) for number, rule in enumerate(recipe.rules)]
    rows.append(("stages", ", ".join(map(_stage, recipe.stages))))
    if recipe.baselines:
        rows.append(("baselines", ", ".join(recipe.baselines)))
    wide = max(8, *(len(label) for label, _ in rows))
    return [f"  {label:<{wide}} {text}" for label, text in rows]


def _rule(rule: Rule) -> str:
    layers = ", ".join(rule.layers)
    if rule.protect:
        return f"{layers}: protected"
    driven = f", driven by {rule.penalty.kind}" if rule.penalty else ""
    removed = f", {rule.sparsity} removed" if rule.sparsity else ""
    return f"{layers}: {rule.group}{driven}{removed}, chosen by {rule.criterion.kind}"


def _stage(stage: Stage) -> str:
    if not isinstance(stage, Train):
        return stage.name
    cutting = ", cutting" if stage.cuts else ""
    return f"{stage.name} ({stage.epochs} epoch{'s' if stage.epochs > 1 else ''}{cutting})"
