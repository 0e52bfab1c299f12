"""Two models timed beside each other: the figures. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkResult:
    """A and B on one target, interleaved with a second copy of A, which shows what noise is."""

    target: str
    description: str
    a: str
    b: str
    a_ms: float
    """median milliseconds of a forward call"""
    b_ms: float
    speedup: float
    """median of A / B over the rounds"""
    low: float
    """lower end of its 95 % bootstrap interval"""
    high: float
    noise: float
    """the factor, 1 or more, that the two copies of A may be apart: the further end of their own 95 % interval"""
    pairs: int
    """rounds"""
    load: float
    """load average of the machine when it began"""

    @property
    def differs(self) -> bool:
        """Whether the whole interval is further from 1 than two copies of the same model are."""
        return self.low > self.noise or self.high * self.noise < 1
