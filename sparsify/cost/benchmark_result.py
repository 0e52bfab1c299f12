"""Result of timing two models against each other. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchmarkResult:
    """A and B on one target, interleaved with a second copy of A that shows the noise."""

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
    """factor (1 or more) by which two copies of A may differ: the further end of their 95 % interval"""
    pairs: int
    """rounds"""
    load: float
    """load average of the machine at the start"""

    @property
    def differs(self) -> bool:
        """Whether the whole interval is further from 1 than two copies of the same model are."""
        return self.low > self.noise or self.high * self.noise < 1
