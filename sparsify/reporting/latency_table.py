"""How fast two models are, in words and as a table, with what was predicted and when not to trust it."""

from sparsify.formatting.numbers import (
    MISSING,
    divide,
    fixed,
    known,
    milliseconds,
    plain,
    plural,
    share,
    signed,
    times,
)
from sparsify.formatting.table import Table, columns
from sparsify_schemas.report import Latency


def timing_words(latency: Latency, cores: int) -> str:
    """'1.90x faster (1.85 to 1.95) on laptop', or 'no measurable difference' when the interval holds 1."""
    words = f"{speed_words(latency)} on {latency.target}"
    return f"{words} (timed under load)" if overloaded(latency, cores) else words


def speed_words(latency: Latency) -> str:
    """The speed-up and its interval in words."""
    low, high = latency.low, latency.high
    slower = divide(1, latency.speedup)
    if slower is None or slower <= 0:
        return "speed not measured" if latency.measured else "speed not predicted"
    if not latency.measured:
        faster = latency.speedup >= 1
        return f"{times(latency.speedup if faster else slower)} {'faster' if faster else 'slower'} as predicted, not measured"
    if not (known(low) and known(high)):
        return "speed not measured"
    if low <= 1 <= high:
        return f"no measurable difference in speed ({_interval(low, high)})"
    if low > 1:
        return f"{times(latency.speedup)} faster ({_interval(low, high)})"
    return f"{times(slower)} slower ({_interval(divide(1, high), divide(1, low))})"


def overloaded(latency: Latency, cores: int) -> bool:
    """Whether more processes wanted to run than there are cores."""
    return latency.load > cores


def latency_table(
    latency: tuple[Latency, ...],
    cores: int,
    names: tuple[str, str] = ("dense", "cut"),
    title: str = "Latency",
) -> Table:
    """Timings side by side; the notes say what they mean in words."""
    rows = tuple(
        (
            t.target,
            milliseconds(t.dense_ms),
            milliseconds(t.cut_ms),
            times(t.speedup),
            _interval(t.low, t.high) if t.measured else MISSING,
            str(t.pairs),
            plain(round(t.load, 1)),
        )
        for t in latency
    )
    what = "" if names == ("dense", "cut") else f"{names[1]} against {names[0]}: "
    notes = [f"{t.target}: {t.description}; {what}{speed_words(t)}." for t in latency]
    notes += [
        _prediction(t)
        for t in latency
        if t.predicted_dense_ms is not None and t.predicted_cut_ms is not None and t.measured
    ]
    notes += [
        f"Warning: {t.target} was timed at a load average of {fixed(t.load, 1)} on {plural(cores, 'core')}; do not trust it, time again on a quiet machine."
        for t in latency
        if overloaded(t, cores)
    ]
    return Table(
        title,
        columns("target", *(f">{n}" for n in names), ">speed-up", ">95 % interval", ">pairs", ">load"),
        rows,
        tuple(notes),
    )


def _prediction(t: Latency) -> str:
    """Predicted against measured, in milliseconds and as what is left of the dense model."""
    assert t.predicted_cut_ms is not None and t.predicted_dense_ms is not None
    left, foretold = divide(1, t.speedup), divide(t.predicted_cut_ms, t.predicted_dense_ms)
    ratio = None if left is None or foretold is None else divide(foretold, left)
    off = "" if ratio is None else f"; the share is off by {signed(share(ratio - 1))}"
    return (
        f"{t.target}: predicted {milliseconds(t.predicted_cut_ms)} ({share(foretold)} of dense), "
        f"measured {milliseconds(t.cut_ms)} ({share(left)}){off}."
    )


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or not (known(low) and known(high)):
        return MISSING
    decimals = 3 if min(abs(low - 1), abs(high - 1)) < 0.005 else 2  # which side of 1 must show
    return f"{fixed(low, decimals)} to {fixed(high, decimals)}"
