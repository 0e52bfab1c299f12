"""Plots of accuracy against cost: on each target, in int8, and of every cut that a search tried."""

from collections.abc import Callable, Iterable
from functools import partial
from math import nan

from sparsify.formatting.numbers import (
    divide,
    drop_zeros,
    format_count,
    format_milliseconds,
    format_share,
    is_known,
    metric,
)
from sparsify.pruning.planning.depth_search import choose_best
from sparsify.reporting.baseline_table import baseline_ms
from sparsify.reporting.html.figure_text import format_metric, format_percent
from sparsify.reporting.html.markup import NOTHING, Html, join_markup
from sparsify.reporting.html.plots import Mark, draw_scatter
from sparsify.reporting.latency_table import find_headline_latency
from sparsify_schemas.report import Latency, Report, Side

_TARGETS = 3
"""Plots of accuracy against time."""


def draw_trade_offs(report: Report) -> Html:
    """Accuracy against milliseconds on each target, or against MACs where nothing was timed.

    Targets that compute in int8 have a plot of their own, as the accuracies differ.
    """
    first = find_headline_latency(report)
    int8_targets = report.integers.forms[0].ms if report.integers else {}
    timed = [latency for latency in report.latency if latency.target not in int8_targets]
    if not timed:
        return _draw_trade_off(report, None)
    timed.sort(key=lambda latency: latency is not first)
    return join_markup(_draw_trade_off(report, latency) for latency in timed[:_TARGETS])


def _draw_trade_off(report: Report, timed: Latency | None) -> Html:
    show: Callable[[float], str] = format_milliseconds if timed else format_count
    named = [
        ("dense", "dense", report.dense),
        ("cut", "cut", report.cut),
        *((b.kind, "other", b.side) for b in report.baselines),
    ]
    spans = _list_time_spans(report, timed) if timed else {}
    marks = []
    for name, role, side in named:
        reached = _get_metric(report, side)
        cost, low, high = spans[name] if timed else (side.macs, side.macs, side.macs)
        if reached is not None and is_known(reached) and is_known(cost):
            span = (low, high) if is_known(low) and is_known(high) else (cost, cost)
            said = f"{metric(reached, report.metric.percent)} at {show(cost)}"
            marks.append(Mark(name, cost, reached, role, said, span))
    if len(marks) < 2:
        return NOTHING
    across = f"time on {timed.target}" if timed else "MACs"
    ticks = _choose_time_unit(marks) if timed else _format_count
    return draw_scatter(
        f"{_name_metric(report)} against {across}", marks, across, ticks, format_metric(report)
    )


def _get_metric(report: Report, side: Side) -> float | None:
    """On the test set where the cut model was tested, else on the validation set."""
    return side.validation_metric if report.cut.test_metric is None else side.test_metric


def _name_metric(report: Report) -> str:
    which = "Validation" if report.cut.test_metric is None else "Test"
    return f"{which} {report.metric.name}"


def _format_count(value: float) -> str:
    return drop_zeros(format_count(value))


def _choose_time_unit(marks: Iterable[Mark]) -> Callable[[float], str]:
    """The format of an axis in one unit."""
    in_microseconds = max(mark.x for mark in marks) < 0.2
    return lambda x: f"{1000 * x:g} us" if in_microseconds else f"{x:g} ms"


def _list_time_spans(report: Report, timed: Latency) -> dict[str, tuple[float, float, float]]:
    """Model -> (milliseconds, lower end, upper end), by the interval of its speed-up."""

    def ends(own: Latency | None) -> tuple[float, float]:
        if own is None or not own.measured or own.low <= 0:
            return nan, nan
        fastest, slowest = divide(timed.dense_ms, own.high), divide(timed.dense_ms, own.low)
        return (nan, nan) if fastest is None or slowest is None else (fastest, slowest)

    found = {"dense": (timed.dense_ms, nan, nan), "cut": (timed.cut_ms, *ends(timed))}
    for baseline in report.baselines:
        own = next((latency for latency in baseline.latency if latency.target == timed.target), None)
        found[baseline.kind] = (baseline_ms(baseline, timed), *ends(own))
    return found


def draw_int8(report: Report) -> Html:
    """The deciding metric against time of both models in float32 and in int8, on the first int8 target."""
    forms = report.integers.forms if report.integers else ()
    on_test = any(form.test_metric is not None for form in forms)
    targets = [target for form in forms for target in form.ms]
    marks = []
    for form in forms:
        reached = form.test_metric if on_test else form.validation_metric
        ms = form.ms.get(targets[0]) if targets else None
        if reached is None or ms is None or not (is_known(reached) and is_known(ms)):
            continue
        role = form.model if form.dtype == "float32" else "other"
        said = f"{metric(reached, report.metric.percent)} at {format_milliseconds(ms)}"
        marks.append(Mark(f"{form.model}, {form.dtype}", ms, reached, role, said))
    if len(marks) < 2:
        return NOTHING
    across = f"time on {targets[0]}"
    label = f"{'Test' if on_test else 'Validation'} {report.metric.name} against {across}"
    return draw_scatter(label, marks, across, _choose_time_unit(marks), format_metric(report))


def draw_search(report: Report) -> Html:
    """The validated metric of every depth that was tried, by the MACs that it left."""
    if report.search is None or not report.search.trials or not report.dense.macs:
        return NOTHING
    taken = choose_best(report.search)
    show = partial(metric, percent=report.metric.percent)
    marks = [Mark("dense", 1.0, report.search.dense, "dense", show(report.search.dense))]
    for trial in report.search.trials:
        left = divide(trial.macs, report.dense.macs)
        if left is None:
            continue
        said = f"{show(trial.validation_metric)} at {format_share(left)} of the MACs"
        name = "within the limit" if trial.inside else "over the limit"
        role = "other"
        if trial == taken:
            name, role = "taken", "cut"
        marks.append(Mark(name, left, trial.validation_metric, role, said))
    label = f"Validation {report.metric.name} against MACs left"
    return draw_scatter(label, marks, "MACs left", format_percent, format_metric(report))
