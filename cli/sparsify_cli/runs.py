"""`sparsify runs`: list the runs in a folder."""

from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import RunError
from sparsify.figures import MISSING, accuracy, few, plural, points, share, times
from sparsify.listing import RunRow, list_runs
from sparsify.report import utc_minute
from sparsify.seeds import Spread, Together, together
from sparsify.table import Table, columns
from sparsify_cli.render import show, show_json


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that holds the runs.")] = Path("runs"),
    seeds: Annotated[bool, typer.Option("--seeds", help="Runs that differ in the seed alone as one: mean and standard deviation.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The list as JSON.")] = False,
) -> None:
    """List the runs in a folder: their state, what is left of each model, accuracy and speed."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder; 'sparsify apply' makes runs in ./runs, or name another folder")
    if seeds:
        _show_together(folder, as_json)
        return
    rows = list_runs(folder)
    if as_json:
        show_json([asdict(row) for row in rows])
    elif not rows:
        show(f"No runs in {folder}.")
    else:
        show(_table(folder, rows))


def _table(folder: Path, rows: tuple[RunRow, ...]) -> Table:
    shown = tuple(
        (
            row.name,
            row.state,
            utc_minute(row.created).removesuffix(" UTC") if row.created else MISSING,
            share(row.macs),
            share(row.params),
            accuracy(row.accuracy),
            _speed(row),
            row.title or MISSING,
        )
        for row in rows
    )
    notes = [f"{row.name} {'failed' if row.state == 'failed' else 'is damaged'}: {row.problem.rstrip('.')}." for row in rows if row.problem]
    notes += [f"{row.name} missed {', '.join(row.missed)}." for row in rows if row.missed]
    notes += [f"Go on with {row.name}: sparsify apply --resume {folder / row.name}" for row in rows if row.state in ("interrupted", "failed")]
    return Table("", columns("run", "state", "created (UTC)", ">MACs", ">params", ">accuracy", ">speed", "title"), shown, tuple(notes))


def _show_together(folder: Path, as_json: bool) -> None:
    found = together(folder)
    if as_json:
        show_json([asdict(row) for row in found])
    elif not found:
        show(f"No complete runs in {folder}.")
    else:
        show(*(_seeds_table(list(rows)) for _, rows in groupby(found, key=lambda row: (row.title, row.recipe, row.seeds))))


def _seeds_table(found: list[Together]) -> Table:
    """The models of one recipe."""
    shown = tuple(
        (
            row.model,
            give_or_take(share, row.macs),
            give_or_take(share, row.params),
            give_or_take(share, row.time),
            give_or_take(accuracy, row.accuracy),
            give_or_take(points, row.behind) if row.model != "cut" else MISSING,
        )
        for row in found
    )
    note = "mean ± standard deviation over the runs. time: share of the dense model's on the first target; ahead: the cut model's accuracy less this one's, seed by seed."
    heads = columns("model", ">MACs", ">params", ">time", ">accuracy", ">cut is ahead by")
    return Table(f"{found[0].title}: {plural(len(found[0].seeds), 'run')}, seed {few(tuple(map(str, found[0].seeds)), 8)}", heads, shown, (note,))


def give_or_take(shown: Callable[[float | None], str], figure: Spread | None) -> str:
    """'91.20 % ± 0.13': the deviation in the unit of the mean."""
    if figure is None:
        return MISSING
    text = shown(figure.mean)
    return text if figure.deviation is None else f"{text} ± {100 * figure.deviation:.2f}"


def _speed(row: RunRow) -> str:
    """As in the report: an interval that holds 1 is no difference."""
    low, high = row.speedup_low, row.speedup_high
    return "no difference" if low is not None and high is not None and low <= 1 <= high else times(row.speedup)
