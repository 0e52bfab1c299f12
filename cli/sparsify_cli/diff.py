"""`sparsify diff`: compare recipes or runs, two or several. Never imports torch."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import RunError, SparsifyError
from sparsify.formatting.table import as_markdown as markdown
from sparsify.recipe import load
from sparsify.reporting.diff import Change, diff_recipes, diff_runs, resolve_recipe
from sparsify.reporting.many import join_changes
from sparsify.reporting.report_file import read_report
from sparsify_cli.changes import list_tables, list_tables_of_many
from sparsify_cli.output import write_result
from sparsify_cli.render import show, show_json


def command(
    a: Annotated[Path, typer.Argument(metavar="A", help="A recipe or a run's folder.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one of the same kind.", show_default=False)],
    further: Annotated[
        list[Path] | None,
        typer.Argument(metavar="...", help="Further ones: a column for each.", show_default=False),
    ] = None,
    unchanged: Annotated[bool, typer.Option("--all", help="Show unchanged values too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The changes as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="The changes as Markdown.")] = False,
) -> None:
    """Compare recipes, or runs: recipe, figures, widths. Of two the changes, of several the values.

    A default that is written out is no change.
    """
    if as_json and as_markdown:
        raise typer.BadParameter("--json and --md exclude each other")
    paths = (a, b, *(further or ()))
    runs = [_is_run(path) for path in paths]
    if len(set(runs)) > 1:
        run, recipe = paths[runs.index(True)], paths[runs.index(False)]
        raise SparsifyError(
            f"{run} is a run and {recipe} a recipe; "
            f"compare two runs, or {run / 'recipe.yaml'} with the recipe"
        )
    if further:
        _show_many(paths, runs[0], unchanged, as_json, as_markdown)
        return
    changes = _diff(a, b, runs[0], unchanged)
    if as_json:
        rows = [asdict(c) for c in changes]
        if unchanged:
            rows = [{"changed": not c.same, **row} for c, row in zip(changes, rows, strict=True)]
        show_json(rows)
    elif as_markdown:
        write_result(markdown(list_tables(changes)) or _say_same(runs[0]))
    else:
        show(*(list_tables(changes) or (_say_same(runs[0]),)))


def _diff(a: Path, b: Path, runs: bool, unchanged: bool) -> tuple[Change, ...]:
    if runs:
        return _diff_runs(a, b, unchanged)
    return diff_recipes(_read_recipe(a), _read_recipe(b), unchanged=unchanged)


def _show_many(paths: Sequence[Path], runs: bool, unchanged: bool, as_json: bool, as_markdown: bool) -> None:
    first, *others = paths
    found = join_changes([_diff(first, other, runs, True) for other in others], unchanged=unchanged)
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    tables = list_tables_of_many(names, found)
    same = f"The {len(paths)} runs have the same recipe, figures and widths."
    if not runs:
        same = f"The {len(paths)} recipes mean the same."
    if as_json:
        show_json(
            [
                {"path": row.path, "values": dict(zip(map(str, paths), row.values, strict=True))}
                for row in found
            ]
        )
    elif as_markdown:
        write_result(markdown(tables) or same)
    else:
        show(*(tables or (same,)))


def _is_run(path: Path) -> bool:
    if not path.exists():
        raise SparsifyError(
            f"{path}: no such file or folder; "
            "give two recipes, or two folders of runs ('sparsify runs' lists them)"
        )
    return path.is_dir()


def _read_recipe(path: Path) -> dict[str, object]:
    return resolve_recipe(load(path).recipe)


def _diff_runs(a: Path, b: Path, unchanged: bool) -> tuple[Change, ...]:
    found = read_report(a), read_report(b)
    for run in (a, b):
        if not (run / "recipe.yaml").is_file():
            raise RunError(f"{run / 'recipe.yaml'} is missing; the run is no longer complete")
    return diff_runs(
        *found, _read_recipe(a / "recipe.yaml"), _read_recipe(b / "recipe.yaml"), unchanged=unchanged
    )


def _say_same(runs: bool) -> str:
    if runs:
        return "The two runs have the same recipe, figures and widths."
    return "The two recipes mean the same."
