"""Compare the cut model with the baselines: what simpler methods reach at the same cost."""

from collections.abc import Iterator
from math import nan

from sparsify.formatting.numbers import (
    divide,
    format_milliseconds,
    format_share,
    format_size,
    format_times,
    is_known,
    list_few,
    metric,
    metric_change,
)
from sparsify.formatting.table import Table, make_columns
from sparsify.formatting.verdict_text import verdict_words
from sparsify.reporting import table_titles
from sparsify_schemas.baseline import Baseline as Kind
from sparsify_schemas.report import Baseline, Latency, Report, Side
from sparsify_schemas.task import Facts

SLOWER = 1.05
"""A baseline whose time is this many times that of the cut model is called slower.

Less may be noise of the timings.
"""
_METHODS: dict[Kind, str] = {
    "uniform_width": "the same fraction of every layer",
    "random": "random units",
    "magnitude": "the units of lowest magnitude over all layers",
    "by_macs": "the recipe's criterion per MAC",
    "torch_pruning": "what its own pruner chooses and cuts",
}
_CHECKS = {
    "equal": "exact",
    "statistics change": "statistics",
    "wrong": "wrong",
    "nothing cut": "nothing cut",
}
"""outcome of the check -> word in the table"""


def baseline_table(report: Report) -> Table:
    """A row for the dense model, the cut model and each baseline.

    It has no rows where there are no baselines.
    """
    if not report.baselines and not report.failed:
        return Table(table_titles.BASELINES, (), ())
    has_peak = bool(report.cut.peak_memory)
    has_peers = bool(report.failed) or "torch_pruning" in [made.kind for made in report.baselines]
    heads = make_columns(
        "model",
        ">MACs left",
        ">parameters left",
        *([">peak memory"] if has_peak else []),
        *(f">{timed.target}" for timed in report.latency),
        ">right after",
        ">validation",
        ">test",
        ">epochs",
        *(["its cut"] if has_peers else []),
    )
    after_cut = report.rounds[0].validation_metric if len(report.rounds) == 1 else None
    dense_times = [timed.dense_ms for timed in report.latency]
    cut_times = [timed.cut_ms for timed in report.latency]
    rows = [
        _model_row(report, "dense", report.dense, dense_times, None),
        _model_row(report, "cut", report.cut, cut_times, after_cut),
    ]
    for baseline in report.baselines:
        ms = [baseline_ms(baseline, timed) for timed in report.latency]
        rows.append(_model_row(report, baseline.kind, baseline.side, ms, baseline.cut_metric))
    if has_peers:
        rows = _add_checks(report, rows)
    return Table(table_titles.BASELINES, heads, tuple(rows), tuple(_baseline_notes(report)))


def _add_checks(report: Report, rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """A last column that says whether each cut computes what it should, and rows of what came to nothing."""
    checks = ["", _CHECKS[report.verdict.outcome]]
    for baseline in report.baselines:
        checks.append(_CHECKS[baseline.verdict.outcome])
    found = [(*row, check) for row, check in zip(rows, checks, strict=True)]
    for failed in report.failed:
        blank = ("-",) * (len(rows[0]) - 1)
        found.append((failed.kind, *blank, failed.outcome))
    return found


def _model_row(
    report: Report, name: str, side: Side, ms: list[float], after_cut: float | None
) -> tuple[str, ...]:
    peak = [format_size(side.peak_memory)] if report.cut.peak_memory else []
    percent = report.metric.percent
    return (
        name,
        format_share(divide(side.macs, report.dense.macs)),
        format_share(divide(side.params, report.dense.params)),
        *peak,
        *map(format_milliseconds, ms),
        metric(after_cut, percent),
        metric(side.validation_metric, percent),
        metric(side.test_metric, percent),
        str(side.epochs),
    )


def baseline_ms(baseline: Baseline, timed: Latency) -> float:
    """Milliseconds of a baseline on a target; nan where it was not timed there.

    The baseline was timed against the dense model, so its ratio is applied to the dense model's own time.
    """
    for own in baseline.latency:
        if own.target == timed.target:
            ms = divide(timed.dense_ms, own.speedup)
            return nan if ms is None else ms
    return nan


def _baseline_notes(report: Report) -> Iterator[str]:
    kinds = [made.kind for made in report.baselines]
    kinds += [failed.kind for failed in report.failed]
    methods = "; ".join(f"{kind}: {_METHODS[kind]}" for kind in kinds)
    yield (
        f"What each removes: {methods}. Each is cut once, to at most the cost of the cut model, "
        "and then trained as the cut model was after its cut, without penalties."
    )
    yield f"right after: validation {report.metric.name} after the cut, before that training."
    yield from _describe_peers(report)
    leads = []
    for baseline in report.baselines:
        lead = _metric_lead(report, baseline.side)
        if lead is not None:
            leads.append(_describe_lead(lead, report.metric, baseline.kind))
    if leads:
        chance = "a few tenths of a point" if report.metric.percent else "a small difference"
        yield (
            f"{report.metric.name.capitalize()} of the cut model: {', '.join(leads)}. "
            f"One run each: {chance} may be chance."
        )
    fewer = [baseline.kind for baseline in report.baselines if baseline.side.epochs < report.cut.epochs]
    if fewer:
        yield (
            f"The cut model was trained for more epochs in this run than {list_few(tuple(fewer))}: "
            "those before its cut."
        )
    yield from _warn_of_slower(report)
    for baseline in report.baselines:
        if baseline.verdict.outcome == "nothing cut":
            yield f"Warning: {baseline.kind}: nothing was cut."


def _describe_peers(report: Report) -> Iterator[str]:
    """What another package did, and whether its cut computes what it should."""
    repaired = any(stage.kind == "repair" for stage in report.stages)
    for baseline in report.baselines:
        if baseline.kind == "torch_pruning":
            without = "; not repaired, as a repair goes by coupled groups" if repaired else ""
            yield f"torch_pruning: {baseline.verdict.note}{without}."
        if baseline.verdict.outcome == "wrong":
            words = verdict_words(baseline.verdict)
            yield f"Warning: {baseline.kind}: {words}. What it was trained to is shown all the same."


def _warn_of_slower(report: Report) -> Iterator[str]:
    """Baselines that could not reach the cut model's time, with any cut of theirs that was timed."""
    prefix = "budget.latency."
    limited = [limit.what.removeprefix(prefix) for limit in report.limits if limit.what.startswith(prefix)]
    if not limited:
        return
    target = limited[0]
    cut = next((timed for timed in report.latency if timed.target == target), None)
    if cut is None:
        return
    for baseline in report.baselines:
        own = next((timed for timed in baseline.latency if timed.target == target), None)
        if own and own.high < cut.low and cut.speedup > SLOWER * own.speedup:
            ratio = format_times(divide(cut.speedup, own.speedup))
            yield (
                f"Warning: {baseline.kind} takes {ratio} the time of the cut model on {target}: "
                "none of its cuts that were timed came to the same cost."
            )


def _describe_lead(lead: float, judged_by: Facts, kind: str) -> str:
    """'+1.25 pp over random'; of a metric that is better when lower, 'lower by 0.125 than random'."""
    if judged_by.better == "higher":
        return f"{metric_change(lead, judged_by.percent)} over {kind}"
    change = metric_change(abs(lead), judged_by.percent).removeprefix("+")
    return f"{'lower' if lead >= 0 else 'higher'} by {change} than {kind}"


def _metric_lead(report: Report, other: Side) -> float | None:
    """How much better the cut model is on the test set, or on the validation set where there is no test
    set."""
    cut = report.cut
    if is_known(cut.test_metric):
        own, others = cut.test_metric, other.test_metric
    else:
        own, others = cut.validation_metric, other.validation_metric
    return None if own is None or others is None else report.metric.worse_by(own, others)
