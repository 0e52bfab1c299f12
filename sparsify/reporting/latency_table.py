"""The latency of two models, in words and as a table, with predictions and warnings."""

from sparsify.formatting.numbers import (
    MISSING,
    add_sign,
    count_noun,
    divide,
    format_fixed,
    format_milliseconds,
    format_plain,
    format_share,
    format_times,
    is_known,
)
from sparsify.formatting.table import Table, make_columns
from sparsify.reporting import table_titles
from sparsify_schemas.report import Latency, Report


def timing_words(latency: Latency, cores: int) -> str:
    """'1.90x faster (1.85 to 1.95) on laptop', or 'no measurable difference' when the interval holds 1."""
    words = f"{speed_words(latency)} on {latency.target}"
    return f"{words} (timed under load)" if is_overloaded(latency, cores) else words


def speed_words(latency: Latency) -> str:
    """The speed-up and its interval in words."""
    low, high = latency.low, latency.high
    slower = divide(1, latency.speedup)
    if slower is None or slower <= 0:
        return "speed not measured" if latency.measured else "speed not predicted"
    if not latency.measured:
        ratio = (
            f"{format_times(latency.speedup)} faster"
            if latency.speedup >= 1
            else f"{format_times(slower)} slower"
        )
        return f"{ratio} (predicted, not measured)"
    if not (is_known(low) and is_known(high)):
        return "speed not measured"
    if low <= 1 <= high:
        return f"no measurable difference in speed ({_format_interval(low, high)})"
    if low > 1:
        return f"{format_times(latency.speedup)} faster ({_format_interval(low, high)})"
    return f"{format_times(slower)} slower ({_format_interval(divide(1, high), divide(1, low))})"


def is_overloaded(latency: Latency, cores: int) -> bool:
    """Whether more processes were waiting to run than there are cores."""
    return latency.load > cores


def latency_table(
    latency: tuple[Latency, ...],
    cores: int,
    names: tuple[str, str] = ("dense", "cut"),
    title: str = table_titles.LATENCY,
) -> Table:
    """A row for each target; the notes give the results in words."""
    rows = tuple(
        (
            t.target,
            format_milliseconds(t.dense_ms),
            format_milliseconds(t.cut_ms),
            format_times(t.speedup),
            _format_interval(t.low, t.high) if t.measured else MISSING,
            str(t.pairs),
            format_plain(round(t.load, 1)),
        )
        for t in latency
    )
    what = "" if names == ("dense", "cut") else f"{names[1]} compared with {names[0]}: "
    notes = [f"{t.target}: {t.description}; {what}{speed_words(t)}." for t in latency]
    notes += filter(None, map(_describe_prediction, latency))
    for t in latency:
        if is_overloaded(t, cores):
            notes.append(
                f"Warning: {t.target} was timed at a load average of {format_fixed(t.load, 1)} "
                f"on {count_noun(cores, 'core')}; do not trust it, time again on an idle machine."
            )
    heads = make_columns(
        "target", *(f">{n}" for n in names), ">speed-up", ">95 % interval", ">pairs", ">load"
    )
    return Table(title, heads, rows, tuple(notes))


def _describe_prediction(t: Latency) -> str:
    """The predicted against the measured time, in milliseconds and as a fraction of the dense model's."""
    if t.predicted_dense_ms is None or t.predicted_cut_ms is None or not t.measured:
        return ""
    measured, predicted = divide(1, t.speedup), divide(t.predicted_cut_ms, t.predicted_dense_ms)
    ratio = None if measured is None or predicted is None else divide(predicted, measured)
    error = "" if ratio is None else f"; the fraction is off by {add_sign(format_share(ratio - 1))}"
    predicted_ms, measured_ms = format_milliseconds(t.predicted_cut_ms), format_milliseconds(t.cut_ms)
    return (
        f"{t.target}: predicted {predicted_ms} ({format_share(predicted)} of dense), "
        f"measured {measured_ms} ({format_share(measured)}){error}."
    )


def _format_interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or not (is_known(low) and is_known(high)):
        return MISSING
    is_near_one = min(abs(low - 1), abs(high - 1)) < 0.005
    decimals = 3 if is_near_one else 2  # the side of 1 on which an end lies must show
    return f"{format_fixed(low, decimals)} to {format_fixed(high, decimals)}"


def find_headline_latency(report: Report) -> Latency | None:
    """The latency on the target that a budget limits, else on the first target."""
    limited = {limit.what.removeprefix("budget.latency.") for limit in report.limits}
    first_choice = [timed for timed in report.latency if timed.target in limited]
    return next(iter([*first_choice, *report.latency]), None)
