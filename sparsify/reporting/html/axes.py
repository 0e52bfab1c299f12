"""Round numbers for the ticks of an axis."""

import math
from dataclasses import dataclass

_LARGEST = 1e308
"""an axis ends here: the next round number would be no float"""
SMALLEST = 1e-300
"""what is smaller is drawn as nought: a fraction of it would be no float of full precision"""


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with ticks at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float, start: float, end: float) -> float:
        """Where a value lies between two coordinates; at the nearer end where it is beyond the axis."""
        inside = min(max(value, self.low), self.high)
        # Half of each, as high - low may be larger than any float.
        part = (inside / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return start + part * (end - start)


def axis(values: list[float], *, zero: bool = False, whole: bool = False, most: int = 4) -> Axis:
    """An axis that holds all values, wider by no more than a step; what is not finite has no place on it.

    zero: from nought on. whole: ticks at whole numbers. Numbers below 1e-300 count as nought, those above 1e308 as that.
    """
    drawn = [_limited(value) for value in values if math.isfinite(value)]
    if zero or not drawn:
        drawn.append(0.0)
    low, high = _ends(min(drawn), max(drawn))
    rough = high / most - low / most  # high - low may be larger than any float
    step = _round_step(rough, (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10))
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(min(max(k * step, -_LARGEST), _LARGEST) for k in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def _limited(value: float) -> float:
    if abs(value) < SMALLEST:
        return 0.0
    return min(max(value, -_LARGEST), _LARGEST)


def _ends(low: float, high: float) -> tuple[float, float]:
    """The same, or with room around them where they are one number."""
    if high - low > max(1e-9 * max(abs(high), abs(low)), SMALLEST):
        return low, high
    if low == 0:
        return low, 1.0
    return _limited(low - abs(low) / 20), _limited(high + abs(high) / 20)


def _round_step(rough: float, factors: tuple[float, ...]) -> float:
    """The next of these factors times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next((nice for factor in factors if (nice := factor * power) >= rough * 0.999), 10 * power)
