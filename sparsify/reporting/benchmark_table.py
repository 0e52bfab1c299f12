"""Two models timed side by side: what came out, and whether it is more than noise. Imports no torch."""

from sparsify.cost.benchmark_result import BenchmarkResult
from sparsify.formatting.numbers import MISSING, divide, fixed, known, milliseconds, plain, plural, times
from sparsify.formatting.table import Table, columns


def words(found: BenchmarkResult) -> str:
    """'B is 1.31x faster than A [1.28, 1.35]', or that there is no difference to speak of."""
    figures = (found.speedup, found.low, found.high, found.noise)
    if not all(known(figure) and figure > 0 for figure in figures):
        return "speed not measured"
    if not found.differs:
        return f"no difference larger than the noise: {times(found.speedup)} {_interval(found.low, found.high)}; two copies of {found.a} differ by up to {times(found.noise)}"
    faster = found.speedup > 1
    if faster:
        return f"{found.b} is {times(found.speedup)} faster than {found.a} {_interval(found.low, found.high)}"
    ratio, low, high = divide(1, found.speedup), divide(1, found.high), divide(1, found.low)
    return f"{found.b} is {times(ratio)} slower than {found.a} {_interval(low, high)}"


def table(contests: tuple[BenchmarkResult, ...], cores: int, title: str) -> Table:
    """All targets of one pair, and what they mean in words."""
    a, b = contests[0].a, contests[0].b
    rows = tuple(
        (
            c.target,
            milliseconds(c.a_ms),
            milliseconds(c.b_ms),
            times(c.speedup),
            _interval(c.low, c.high),
            times(c.noise),
            str(c.pairs),
            plain(round(c.load, 1)),
        )
        for c in contests
    )
    notes = [f"{c.target}: {c.description}; {words(c)}." for c in contests]
    notes += [
        f"Warning: {c.target} was timed at a load average of {fixed(c.load, 1)} on {plural(cores, 'core')}; time again on a quiet machine."
        for c in contests
        if c.load > cores
    ]
    return Table(
        title,
        columns("target", f">{a}", f">{b}", ">speed-up", ">95 % interval", ">noise", ">rounds", ">load"),
        rows,
        tuple(notes),
    )


def _interval(low: float | None, high: float | None) -> str:
    if low is None or high is None or not (known(low) and known(high)):
        return MISSING
    return f"[{fixed(low, 2)}, {fixed(high, 2)}]"
