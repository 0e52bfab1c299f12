"""The result of a run in one or two sentences."""

from sparsify.formatting.numbers import (
    add_sign,
    count_noun,
    divide,
    drop_zeros,
    format_count,
    format_milliseconds,
    format_points,
    format_share,
    format_size,
    is_known,
    metric,
    metric_change,
    space_unit,
)
from sparsify.formatting.verdict_text import verdict_words
from sparsify.reporting.latency_table import timing_words
from sparsify_schemas.report import Limit, Report
from sparsify_schemas.task import Facts

_LABELS = {
    "budget.macs": "MACs",
    "budget.params": "parameters",
    "budget.bytes": "bytes",
    "budget.peak_memory": "peak memory",
}


def write_headline(report: Report) -> str:
    """What remains of the model, its speed and deciding metric, the verdict, and the missed limits."""
    dense, cut = report.dense, report.cut
    parts = [
        f"{format_share(divide(cut.macs, dense.macs))} of the MACs",
        f"{format_share(divide(cut.params, dense.params))} of the parameters",
    ]
    nonzero = divide(cut.nonzero, cut.params)
    zeros = 0.0 if nonzero is None else 1 - nonzero
    if zeros >= 0.005:
        parts.append(f"{format_share(zeros)} of what remains is zero but stored")
    parts += [timing_words(timing, report.environment.cores) for timing in report.latency]
    parts.append(_describe_metric(report))
    text = f"{', '.join(parts)}; {verdict_words(report.verdict)}."
    missed = list_missed(report)
    return f"{text} Missed: {', '.join(missed)}." if missed else text


def list_missed(report: Report) -> list[str]:
    """'MACs 26.1 % (limit 25 %)' for each limit that does not hold."""
    missed = []
    for limit in report.limits:
        if not limit.met:
            achieved = format_limit(limit, limit.achieved)
            missed.append(f"{limit_name(limit, report.metric)} {achieved} (limit {space_unit(limit.asked)})")
    return missed


def limit_name(limit: Limit, judged_by: Facts) -> str:
    """'MACs' for budget.macs, 'time on laptop' for budget.latency.laptop, 'drop of validation accuracy' or
    'rise of validation rmse' for budget.accuracy_drop; other limits keep their path."""
    if limit.what == "budget.accuracy_drop":
        change = "drop" if judged_by.better == "higher" else "rise"
        return f"{change} of validation {judged_by.name}"
    target = limit.what.removeprefix("budget.latency.")
    if target != limit.what:
        return f"time on {target}"
    return _LABELS.get(limit.what, limit.what)


def format_limit(limit: Limit, value: float) -> str:
    """A value in the unit in which the recipe gives the limit: a percentage, a count, a size or a time."""
    if limit.what == "budget.accuracy_drop":
        return format_points(value) if limit.asked.endswith("pp") else _format_share_of_dense(limit, value)
    if limit.asked.endswith("%"):
        return format_share(value)
    if limit.what.startswith("budget.latency."):
        return format_milliseconds(value)
    if limit.what in ("budget.bytes", "budget.peak_memory"):
        return format_size(value, limit.asked)
    return format_count(value)


def _format_share_of_dense(limit: Limit, value: float) -> str:
    """A change of the deciding metric as a share of the dense model's, '+3.2 %', where the limit is one."""
    if not limit.asked.endswith("%") or not limit.limit:
        return add_sign(metric(value, percent=False))
    asked = float(limit.asked.removesuffix("%")) / 100
    return add_sign(format_share(asked * value / limit.limit))


def _describe_metric(report: Report) -> str:
    dense, cut, judged_by = report.dense, report.cut, report.metric
    more = cut.epochs - dense.epochs
    for name, before, after in (
        ("test", dense.test_metric, cut.test_metric),
        ("validation", dense.validation_metric, cut.validation_metric),
    ):
        if after is None or not is_known(after):
            continue
        text = f"{name} {judged_by.name} {drop_zeros(metric(after, judged_by.percent))}"
        if before is None or not is_known(before):
            return text
        trained = f" after {count_noun(more, 'more epoch')} of training" if more else ""
        change = drop_zeros(metric_change(after - before, judged_by.percent))
        return f"{text}{trained} (dense {drop_zeros(metric(before, judged_by.percent))}, {change})"
    return f"{judged_by.name} not measured"
