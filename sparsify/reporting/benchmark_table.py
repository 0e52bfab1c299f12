"""Two models timed in turn: the result, and whether it is more than noise. Imports no torch."""

from sparsify.cost.benchmark_result import BenchmarkResult
from sparsify.formatting.numbers import (
    MISSING,
    count_noun,
    divide,
    format_fixed,
    format_milliseconds,
    format_plain,
    format_times,
    is_known,
)
from sparsify.formatting.table import Table, make_columns


def describe_result(result: BenchmarkResult) -> str:
    """'B is 1.31x faster than A [1.28, 1.35]', or that the difference is no larger than the noise."""
    figures = (result.speedup, result.low, result.high, result.noise)
    if not all(is_known(figure) and figure > 0 for figure in figures):
        return "speed not measured"
    interval = _format_interval(result.low, result.high)
    if not result.differs:
        return (
            f"no difference larger than the noise: {format_times(result.speedup)} {interval}; "
            f"two copies of {result.a} differ by up to {format_times(result.noise)}"
        )
    if result.speedup > 1:
        return f"{result.b} is {format_times(result.speedup)} faster than {result.a} {interval}"
    ratio = divide(1, result.speedup)
    interval = _format_interval(divide(1, result.high), divide(1, result.low))
    return f"{result.b} is {format_times(ratio)} slower than {result.a} {interval}"


def benchmark_table(results: tuple[BenchmarkResult, ...], cores: int, title: str) -> Table:
    """A row for each target of one pair of models, with the results in words as notes."""
    rows = tuple(
        (
            result.target,
            format_milliseconds(result.a_ms),
            format_milliseconds(result.b_ms),
            format_times(result.speedup),
            _format_interval(result.low, result.high),
            format_times(result.noise),
            str(result.pairs),
            format_plain(round(result.load, 1)),
        )
        for result in results
    )
    notes = [f"{result.target}: {result.description}; {describe_result(result)}." for result in results]
    for result in results:
        if result.load > cores:
            notes.append(
                f"Warning: {result.target} was timed at a load average of {format_fixed(result.load, 1)} "
                f"on {count_noun(cores, 'core')}; time again on an idle machine."
            )
    a, b = results[0].a, results[0].b
    heads = make_columns(
        "target", f">{a}", f">{b}", ">speed-up", ">95 % interval", ">noise", ">rounds", ">load"
    )
    return Table(title, heads, rows, tuple(notes))


def _format_interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or not (is_known(low) and is_known(high)):
        return MISSING
    return f"[{format_fixed(low, 2)}, {format_fixed(high, 2)}]"
