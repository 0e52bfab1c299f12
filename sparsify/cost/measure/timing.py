"""Time models side by side on a target of this machine."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import nn

from sparsify.cost.measure.availability import check_target
from sparsify.cost.measure.machine import read_load_average
from sparsify.cost.measure.malloc import keep_heap
from sparsify.cost.measure.runtimes import TimedCall, make_shared_pattern, prepare, use_threads
from sparsify.errors import ModelError, TargetError
from sparsify.forward.call_model import require_values
from sparsify.forward.calls import Call, Inputs, describe_batch, normalize_inputs
from sparsify.forward.trial_calls import eval_mode
from sparsify_schemas.report import Latency
from sparsify_schemas.target import Cpu, Target

Floats = NDArray[np.float64]
ReadClock = Callable[[], float]

_LEAST_ROUNDS = 8
_RESAMPLES = 2000
_DRAWN_AT_ONCE = 1_000_000
"""numbers that are drawn for several resamples together"""
_TARGET: TypeAdapter[Target] = TypeAdapter(Target)


def bench(
    a: nn.Module,
    b: nn.Module,
    inputs: Inputs | Call | Sequence[Call],
    *,
    target: Target | Mapping[str, Any] | None = None,
    seconds: float = 3.0,
    seed: int = 0,
) -> Latency:
    """Time two models side by side, such as a dense and a cut one.

    Args:
        a: The first model.
        b: The second model.
        inputs: What one call takes, as in `make_plan`; repeated or shortened to the target's batch size.
        target: What stands under `targets` in a recipe, such as `{"kind": "cpu", "runtime": "onnxruntime"}`;
        eager
            PyTorch on one thread of the processor, batch 1, when left out.
        seconds: Spent on it, at least 8 pairs of measurements.
        seed: Of the order in which the two are timed.

    Returns:
        `dense_ms` of a and `cut_ms` of b, medians; `speedup` of b, the median over the pairs, with its 95 %
        interval `low` to `high`.

    Raises:
        TargetError: The target is not here.
        ModelError: A model cannot run on it.

    Examples:
        >>> found = sparsify.bench(model, model, (x,), seconds=0.05)
        >>> found.low <= found.speedup <= found.high
        True
    """
    if target is None or isinstance(target, Mapping):
        target = _TARGET.validate_python({"kind": "cpu", **(target or {})})
    for model in (a, b):
        require_values(model)
    return measure_latency(a, b, normalize_inputs(inputs), "target", target, seconds=seconds, seed=seed)


def measure_latency(
    dense: nn.Module,
    cut: nn.Module,
    inputs: Inputs,
    name: str,
    target: Target,
    *,
    seconds: float = 3.0,
    seed: int = 0,
) -> Latency:
    """Time two models side by side on a target for about `seconds`, and at least 8 pairs of measurements.

    One thread of a processor is timed by processor time, everything else by wall-clock time. inputs are
    repeated or shortened to the target's batch size. Threads, modes and the garbage collector are
    restored.

    Returns the median of each, the median of dense / cut over the pairs, and its 95 % bootstrap interval.
    Raises TargetError if the target is not available, ModelError if a model cannot run on it.
    """
    load = read_load_average()
    rng = np.random.default_rng(seed)
    pairs = time_models(
        (dense, cut), inputs, name, target, seconds=seconds, rng=rng, now=choose_clock(target)
    )
    ratios = pairs[:, 0] / pairs[:, 1]
    low, high = bootstrap_interval(ratios, rng)
    return Latency(
        target=name,
        description=describe_target(target, describe_batch(inputs)),
        dense_ms=float(np.median(pairs[:, 0])) * 1e3,
        cut_ms=float(np.median(pairs[:, 1])) * 1e3,
        speedup=float(np.median(ratios)),
        low=low,
        high=high,
        pairs=len(pairs),
        load=load,
    )


def time_models(
    models: Sequence[nn.Module],
    inputs: Inputs,
    name: str,
    target: Target,
    *,
    seconds: float,
    rng: np.random.Generator,
    now: ReadClock = time.perf_counter,
) -> Floats:
    """Seconds per forward call [rounds, models]; see `time_interleaved`. Raises TargetError and
    ModelError."""
    check_target(name, target)
    if target.table is not None:
        raise TargetError(
            f"target '{name}' is a machine described by {target.table}, so nothing can be timed on it here; "
            "leave it out, or choose another target"
        )
    try:
        with use_threads(target), eval_mode(*models), torch.inference_mode():
            like = make_shared_pattern(models[0], inputs, target)
            return time_interleaved(
                [prepare(model, inputs, target, like) for model in models], seconds, rng, now
            )
    except (RuntimeError, ModelError) as error:  # such as no memory for so large a batch
        reason = str(error).splitlines()[0]
        raise ModelError(f"target '{name}' with batch {target.batch} cannot be timed: {reason}") from error


def choose_clock(target: Target) -> ReadClock:
    """The clock that other programs disturb least: processor time for one thread, else wall-clock time."""
    return time.process_time if isinstance(target, Cpu) and target.threads == 1 else time.perf_counter


def time_interleaved(
    calls: Sequence[TimedCall], seconds: float, rng: np.random.Generator, now: ReadClock = time.perf_counter
) -> Floats:
    """Seconds per call [rounds, calls], in about `seconds`, and at least 8 rounds.

    Each round times all calls in a new random order, so that disturbances hit all alike. Each call runs
    once before it is timed, since the others leave their data in the caches. Fast calls are repeated per
    measurement.
    now: reads the clock, in seconds.
    """
    with _pause_garbage_collection(), keep_heap():
        repeats = [_warm_up(call, seconds * 0.1 / len(calls)) for call in calls]
        end = time.perf_counter() + seconds * 0.9
        rows: list[list[float]] = []
        while len(rows) < _LEAST_ROUNDS or time.perf_counter() < end:
            row = [0.0] * len(calls)
            for i in rng.permutation(len(calls)):
                calls[i]()
                row[i] = _time_calls(calls[i], repeats[i], now)
            rows.append(row)
    return np.array(rows)


def describe_target(target: Target, given: str = "") -> str:
    """'cpu, onnxruntime, 1 thread, batch 1', and what is not default; given: replaces the batch size."""
    parts: list[str] = [target.kind, target.runtime]
    if isinstance(target, Cpu):
        parts.append(f"{target.threads} {'thread' if target.threads == 1 else 'threads'}")
    parts.append(given or f"batch {target.batch}")
    parts += [target.dtype] if target.dtype != "float32" else []
    parts += [target.layout] if target.layout != "contiguous" else []
    return ", ".join(parts)


def _warm_up(call: TimedCall, seconds: float) -> int:
    """Call until caches and allocator have settled. Returns how many calls take about two milliseconds."""
    fastest, start = float("inf"), time.perf_counter()
    for done in range(1_000_000):
        fastest = min(fastest, _time_calls(call, 1, time.perf_counter))
        if done >= 2 and time.perf_counter() - start > seconds:
            break
    return max(1, min(1000, round(0.002 / max(fastest, 1e-9))))


def _time_calls(call: TimedCall, repeats: int, now: ReadClock) -> float:
    start = now()
    for _ in range(repeats):
        call()
    passed = max(now() - start, 1e-9)  # a coarse clock may not have ticked; times are divided by each other
    return passed / repeats


def bootstrap_interval(ratios: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile bootstrap of the median of ratios."""
    at_once = max(1, _DRAWN_AT_ONCE // len(ratios))
    medians: list[float] = []
    while len(medians) < _RESAMPLES:
        rows = min(at_once, _RESAMPLES - len(medians))
        medians += np.median(rng.choice(ratios, (rows, len(ratios))), axis=1).tolist()
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


@contextmanager
def _pause_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
