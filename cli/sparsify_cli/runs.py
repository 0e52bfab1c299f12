"""`sparsify runs`: list the runs in a folder."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from sparsify.errors import RunError
from sparsify.formatting.numbers import (
    MISSING,
    count_noun,
    format_share,
    format_times,
    list_few,
    metric,
    metric_change,
)
from sparsify.formatting.table import Table, make_columns
from sparsify.reporting.provenance_table import format_minute
from sparsify.runs.listing import RunRow, list_runs
from sparsify.runs.row_filter import choose_rows, sort_rows
from sparsify.runs.seed_statistics import SeedSummary, Spread, summarize_seeds
from sparsify_cli.render import show, show_json


def command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that holds the runs.")] = Path(
        "runs"
    ),
    seeds: Annotated[
        bool,
        typer.Option("--seeds", help="Mean and standard deviation over runs that differ only in the seed."),
    ] = False,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="FIELD",
            help="name, created, macs, params, metric or speed, best first; -FIELD turns it round.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Only runs such as macs<50%, speed>=1.5, accuracy>90% or state=complete; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The list as JSON.")] = False,
) -> None:
    """List the runs in a folder: their state, what is left of each model, accuracy and speed."""
    if not folder.is_dir():
        raise RunError(
            f"{folder}: no such folder; 'sparsify apply' makes runs in ./runs, or name another folder"
        )
    if seeds and (sort or where):
        raise typer.BadParameter("--seeds takes runs together; leave --sort and --where out")
    if seeds:
        _show_seeds(folder, as_json)
        return
    found = list_runs(folder)
    rows = choose_rows(found, where or ())
    rows = rows if sort is None else sort_rows(rows, sort)
    if as_json:
        show_json([asdict(row) for row in rows])
    elif not rows:
        show(
            f"None of the {count_noun(len(found), 'run')} in {folder}." if found else f"No runs in {folder}."
        )
    else:
        show(_make_table(folder, rows))


def _make_table(folder: Path, rows: tuple[RunRow, ...]) -> Table:
    names = {row.judged_by for row in rows if row.judged_by is not None}
    heading = names.pop() if len(names) == 1 else "metric"
    is_mixed = len({row.judged_on for row in rows if row.metric is not None}) > 1
    shown = tuple(
        (
            row.name,
            row.state,
            format_minute(row.created).removesuffix(" UTC") if row.created else MISSING,
            format_share(row.macs),
            format_share(row.params),
            _format_metric(row, heading, is_mixed),
            _format_speed(row),
            row.title or MISSING,
        )
        for row in rows
    )
    heads = make_columns(
        "run", "state", "created (UTC)", ">MACs", ">params", f">{heading}", ">speed", "title"
    )
    return Table("", heads, shown, tuple(_write_notes(folder, rows)))


def _format_metric(row: RunRow, heading: str, is_mixed: bool) -> str:
    """The figure, its name where the column holds several metrics, and its set where not all are of the test
    set."""
    text = metric(row.metric, row.percent)
    if row.metric is not None and is_mixed and row.judged_on == "validation":
        text = f"{text} (validation)"
    return text if row.metric is None or row.judged_by == heading else f"{row.judged_by} {text}"


def _write_notes(folder: Path, rows: tuple[RunRow, ...]) -> Iterator[str]:
    for row in rows:
        if row.problem:
            state = "failed" if row.state == "failed" else "is damaged"
            yield f"{row.name} {state}: {row.problem.rstrip('.')}."
    for row in rows:
        if row.missed:
            yield f"{row.name} missed {', '.join(row.missed)}."
    if (folder / "tune.json").is_file():  # its trials go on with the study that they belong to
        if any(row.state in ("interrupted", "failed") for row in rows):
            yield f"These are trials of a study; continue it: sparsify tune --resume {folder}"
        return
    for row in rows:
        if row.state in ("interrupted", "failed"):
            yield f"Continue {row.name}: sparsify apply --resume {folder / row.name}"


def _show_seeds(folder: Path, as_json: bool) -> None:
    found = summarize_seeds(folder)
    if as_json:
        show_json([asdict(row) for row in found])
    elif not found:
        show(f"No complete runs in {folder}.")
    else:
        show(*_seeds_tables(found), _left_out(found, list_runs(folder)))


def _seeds_tables(found: tuple[SeedSummary, ...]) -> Iterator[Table]:
    """A table for each recipe and given model; each starts with the dense model."""
    starts = [i for i, row in enumerate(found) if row.model == "dense"]
    yield from (_seeds_table(found[start:end]) for start, end in pairwise([*starts, len(found)]))


def _seeds_table(found: tuple[SeedSummary, ...]) -> Table:
    whole = found[0]
    name, percent = whole.judged_by, whole.percent
    figure, change = partial(metric, percent=percent), partial(metric_change, percent=percent)
    shown = tuple(
        (
            row.model if row.runs == whole.runs else f"{row.model} ({count_noun(len(row.runs), 'run')})",
            give_or_take(format_share, row.macs),
            give_or_take(format_share, row.params),
            give_or_take(format_share, row.time),
            give_or_take(figure, row.metric, percent),
            MISSING if row.model == "cut" else give_or_take(change, row.behind, percent),
        )
        for row in found
    )
    heads = make_columns("model", ">MACs", ">params", ">time", f">{name}", ">cut is ahead by")
    seeds = list_few(tuple(map(str, whole.seeds)), 8)
    return Table(
        f"{whole.title}: {count_noun(len(whole.runs), 'run')} ({list_few(whole.runs)}), seed {seeds}",
        heads,
        shown,
    )


def _left_out(found: tuple[SeedSummary, ...], listed: tuple[RunRow, ...]) -> Table:
    """What the columns mean, and which runs are left out."""
    note = (
        "mean ± standard deviation over the runs. time: fraction of the dense model's on the first target. "
        "The metric: on the test set, else on the validation set. "
        "cut is ahead by: how much better that of the cut model is than that of this model, seed by seed."
    )
    used = {name for row in found for name in row.runs}
    left_out = []
    for row in listed:
        if row.name not in used:
            reason = "its seed again" if row.state == "complete" else row.state
            left_out.append(f"{row.name} ({reason})")
    notes = [note]
    if left_out:
        notes.append(f"Left out: {', '.join(left_out)}.")
    return Table("", (), (), tuple(notes))


def give_or_take(shown: Callable[[float | None], str], figure: Spread | None, percent: bool = True) -> str:
    """'91.20 % ± 0.13', '1.887 ± 0.26': the deviation in the unit of the mean."""
    if figure is None:
        return MISSING
    text = shown(figure.mean)
    if figure.deviation is None:
        return text
    return f"{text} ± {100 * figure.deviation:.2f}" if percent else f"{text} ± {figure.deviation:.2g}"


def _format_speed(row: RunRow) -> str:
    """As in the report: an interval that contains 1 is no difference."""
    low, high = row.speedup_low, row.speedup_high
    if low is not None and high is not None and low <= 1 <= high:
        return "no difference"
    return format_times(row.speedup)
