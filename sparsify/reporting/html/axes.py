"""Axes with ticks at round numbers."""

import math
from dataclasses import dataclass

_LARGEST = 1e308
"""Largest end of an axis: the next round number would be no float."""
SMALLEST = 1e-300
"""Smaller values are drawn as zero: a fraction of them would not be a float of full precision."""


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with ticks at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float, start: float, end: float) -> float:
        """The place of a value between two coordinates; the nearer end for a value beyond the axis."""
        inside = min(max(value, self.low), self.high)
        # Half of each, as high - low may be larger than any float.
        part = (inside / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return start + part * (end - start)


def make_axis(values: list[float], *, zero: bool = False, whole: bool = False, most: int = 4) -> Axis:
    """An axis that holds all finite values and is wider by at most one step.

    Args:
        zero: Start at zero.
        whole: Ticks at whole numbers only.
        most: Approximate number of ticks.

    Numbers below 1e-300 count as zero, those above 1e308 as 1e308.
    """
    drawn = [_limit_value(value) for value in values if math.isfinite(value)]
    if zero or not drawn:
        drawn.append(0.0)
    low, high = _choose_ends(min(drawn), max(drawn))
    rough = high / most - low / most  # high - low may be larger than any float
    step = _round_step(rough, (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10))
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(min(max(k * step, -_LARGEST), _LARGEST) for k in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def _limit_value(value: float) -> float:
    if abs(value) < SMALLEST:
        return 0.0
    return min(max(value, -_LARGEST), _LARGEST)


def _choose_ends(low: float, high: float) -> tuple[float, float]:
    """The same two numbers, or numbers around them where they are equal."""
    if high - low > max(1e-9 * max(abs(high), abs(low)), SMALLEST):
        return low, high
    if low == 0:
        return low, 1.0
    return _limit_value(low - abs(low) / 20), _limit_value(high + abs(high) / 20)


def _round_step(rough: float, factors: tuple[float, ...]) -> float:
    """The smallest of these factors times a power of ten that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    candidates = (factor * power for factor in factors)
    return next((step for step in candidates if step >= rough * 0.999), 10 * power)
