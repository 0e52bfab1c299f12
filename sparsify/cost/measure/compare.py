"""Time two models against each other, with a second copy of the first to show the noise."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from sparsify.cost.benchmark_result import BenchmarkResult
from sparsify.cost.measure.machine import read_load_average
from sparsify.cost.measure.runtimes import TimedCall
from sparsify.cost.measure.timing import bootstrap_interval, choose_clock, describe_target, time_interleaved
from sparsify_schemas.target import Cpu, Target


def compare_calls(
    names: tuple[str, str],
    calls: Sequence[TimedCall],
    target: str,
    spec: Target,
    seconds: float,
    seed: int = 0,
) -> BenchmarkResult:
    """Time (A, a second A, B) interleaved for about `seconds`, after warming up. Ratios are taken within
    each round."""
    load, rng = read_load_average(), np.random.default_rng(seed)
    rounds = time_interleaved(calls, seconds, rng, choose_clock(spec))
    low, high = bootstrap_interval(rounds[:, 0] / rounds[:, 2], rng)
    apart = bootstrap_interval(rounds[:, 0] / rounds[:, 1], rng)
    a_ms, _, b_ms = (float(ms) * 1e3 for ms in np.median(rounds, axis=0))
    return BenchmarkResult(
        target=target,
        description=describe_target(spec),
        a=names[0],
        b=names[1],
        a_ms=a_ms,
        b_ms=b_ms,
        speedup=float(np.median(rounds[:, 0] / rounds[:, 2])),
        low=low,
        high=high,
        noise=max(1.0, apart[1], 1 / apart[0]),
        pairs=len(rounds),
        load=load,
    )


@contextmanager
def pin_cores(target: Target) -> Iterator[None]:
    """Pin to as many cores as the target has threads, if the system allows it, so that threads do not
    migrate."""
    if sys.platform != "linux" or not isinstance(target, Cpu):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, sorted(before)[-target.threads :])
        yield
    finally:
        os.sched_setaffinity(0, before)
