"""The cut model beside the baselines: what simpler choices came to at its cost."""

from collections.abc import Iterator
from math import nan

from sparsify.formatting.numbers import accuracy, divide, few, known, milliseconds, points, share, size, times
from sparsify.formatting.table import Table, columns
from sparsify_schemas.recipe import Baseline as Kind
from sparsify_schemas.report import Baseline, Latency, Report, Side

SLOWER = 1.05
"""times what the cut model takes, from which a baseline is not called equal: two timings differ by some percent"""
_CHOICES: dict[Kind, str] = {
    "uniform_width": "the same share of every layer",
    "random": "random units",
    "magnitude": "the smallest units of all layers",
    "by_macs": "the same criterion going by MACs",
}


def against_baselines(report: Report) -> Table:
    """The dense and the cut model, and what simpler choices at the cut one's cost came to."""
    dense, cut = report.dense, report.cut
    after = report.rounds[0].validation_accuracy if len(report.rounds) == 1 else None
    timed = {
        t.target: [t.dense_ms, t.cut_ms, *(baseline_ms(b, t) for b in report.baselines)]
        for t in report.latency
    }
    models = [
        ("dense", dense, None),
        ("cut", cut, after),
        *((b.kind, b.side, b.cut_accuracy) for b in report.baselines),
    ]
    rows = tuple(
        (
            name,
            share(divide(side.macs, dense.macs)),
            share(divide(side.params, dense.params)),
            *([size(side.peak_memory)] if cut.peak_memory else []),
            *(milliseconds(ms[i]) for ms in timed.values()),
            accuracy(right_after),
            accuracy(side.validation_accuracy),
            accuracy(side.test_accuracy),
            str(side.epochs),
        )
        for i, (name, side, right_after) in enumerate(models)
    )
    heads = columns(
        "model",
        ">MACs left",
        ">parameters left",
        *([">peak memory"] if cut.peak_memory else []),
        *(f">{target}" for target in timed),
        ">right after",
        ">validation",
        ">test",
        ">epochs",
    )
    return (
        Table("Against baselines", heads, rows, tuple(_baseline_notes(report)))
        if report.baselines
        else Table("", (), ())
    )


def baseline_ms(baseline: Baseline, timed: Latency) -> float:
    """Milliseconds of a baseline: each was timed against the dense model, so by its ratio to that of the run's own timing."""
    found = next(
        (divide(timed.dense_ms, own.speedup) for own in baseline.latency if own.target == timed.target), None
    )
    return nan if found is None else found


def _baseline_notes(report: Report) -> Iterator[str]:
    said = "; ".join(f"{b.kind}: {_CHOICES[b.kind]}" for b in report.baselines)
    yield f"{said}; each cut at once to at most the cost of the cut model and trained like that after its cut, without penalties. right after: validation accuracy before that training."
    ahead = [(b.kind, by) for b in report.baselines if (by := _ahead(report.cut, b.side)) is not None]
    if ahead:
        yield f"The cut model against {', '.join(f'{kind} {points(by)}' for kind, by in ahead)}. One run each: a few tenths of a point may be chance."
    fewer = [b.kind for b in report.baselines if b.side.epochs < report.cut.epochs]
    if fewer:
        yield f"The cut model had more epochs of training in this run than {few(tuple(fewer))}: those before its cut."
    yield from _dearer(report)
    yield from (
        f"Warning: {b.kind}: nothing was cut." for b in report.baselines if b.verdict.outcome == "nothing cut"
    )


def _dearer(report: Report) -> Iterator[str]:
    """Baselines that were to come to the cut model's time and did not, as no choice that was timed does."""
    limited = next(
        (
            m.what.removeprefix("budget.latency.")
            for m in report.limits
            if m.what.startswith("budget.latency.")
        ),
        None,
    )
    cut = next((t for t in report.latency if t.target == limited), None)
    for b in report.baselines if cut else ():
        own = next((t for t in b.latency if t.target == limited), None)
        if cut and own and own.high < cut.low and cut.speedup > SLOWER * own.speedup:
            yield f"Warning: {b.kind} takes {times(divide(cut.speedup, own.speedup))} the time of the cut model on {limited}: no choice of its kind that was timed came to the same cost."


def _ahead(cut: Side, other: Side) -> float | None:
    """By test accuracy, or that of validation where there is no test set."""
    reached, theirs = (
        (cut.test_accuracy, other.test_accuracy)
        if known(cut.test_accuracy)
        else (cut.validation_accuracy, other.validation_accuracy)
    )
    return None if reached is None or theirs is None else reached - theirs
