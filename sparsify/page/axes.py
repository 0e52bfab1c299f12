"""Round numbers for the ticks of an axis."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with ticks at round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float, start: float, end: float) -> float:
        """Where a value lies between two coordinates."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)


def axis(values: list[float], *, zero: bool = False, whole: bool = False, most: int = 4) -> Axis:
    """An axis that holds all values, wider by no more than a step. zero: from nought on. whole: ticks at whole numbers."""
    low, high = min([*values, *([0.0] if zero else [])]), max([*values, *([0.0] if zero else [])])
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        low, high = (low, 1.0) if low == 0 else (low - abs(low) / 20, high + abs(high) / 20)
    step = _round_step((high - low) / most, (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10))
    step = max(1.0, step) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return Axis(first * step, last * step, tuple(k * step for k in range(first, last + 1)))


def _round_step(rough: float, round: tuple[float, ...]) -> float:
    """The next of these times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next((nice for m in round if (nice := m * power) >= rough * 0.999), 10 * power)
