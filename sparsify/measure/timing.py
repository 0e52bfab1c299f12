"""Timing: dense and cut model side by side on this machine's processor."""

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.measure.calling import Inputs, call, first, in_eval
from sparsify.measure.machine import load_average
from sparsify_schemas.report import Latency
from sparsify_schemas.target import Target

Floats = NDArray[np.float64]
Clock = Callable[[], float]
"""seconds since some moment"""

_LEAST_PAIRS = 8
_RESAMPLES = 2000


def latency(
    dense: nn.Module,
    cut: nn.Module,
    inputs: Inputs,
    name: str,
    target: Target,
    *,
    seconds: float = 3.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Latency:
    """Time two models side by side on a CPU target for about `seconds`, never fewer than 8 pairs of measurements.

    Each pair times both, in an order drawn anew, so that what the machine does besides hits both alike. The result is
    the median of each, the median of dense / cut over the pairs, and its 95 % bootstrap interval over pairs. A fast
    model is called several times per measurement. inputs are repeated or cut to the target's batch. Threads, modes and
    the garbage collector are left as they were; models on another device are timed as copies on the CPU.
    clock: time.thread_time counts what one thread spent, whatever else the machine does.
    """
    load = load_average()
    rng = np.random.default_rng(seed)
    models = _on_cpu(dense), _on_cpu(cut)
    try:
        fed = with_batch(inputs, target.batch)
        with _threads(target.threads), in_eval(*models), torch.inference_mode(), _no_collection():
            calls = [_warm(model, fed, seconds * 0.05, clock) for model in models]
            pairs = _pairs(models, fed, calls, seconds * 0.9, rng, clock)
    except RuntimeError as error:  # such as no memory for so large a batch
        reason = str(error).splitlines()[0]
        raise ModelError(f"target '{name}' with batch {target.batch} cannot be timed: {reason}") from error
    ratios = pairs[:, 0] / pairs[:, 1]
    low, high = _interval(ratios, rng)
    return Latency(
        target=name,
        description=f"{target.kind}, {target.runtime}, {target.threads} {'thread' if target.threads == 1 else 'threads'}, batch {target.batch}",
        dense_ms=float(np.median(pairs[:, 0])) * 1e3,
        cut_ms=float(np.median(pairs[:, 1])) * 1e3,
        speedup=float(np.median(ratios)),
        low=low,
        high=high,
        pairs=len(pairs),
        load=load,
    )


def _warm(model: nn.Module, inputs: Inputs, seconds: float, clock: Clock) -> int:
    """Call until caches and allocator have settled; gives how many calls take about two milliseconds."""
    fastest, start = float("inf"), clock()
    for done in range(1_000_000):
        fastest = min(fastest, _timed(model, inputs, 1, clock))
        if done >= 2 and clock() - start > seconds:
            break
    return max(1, min(1000, round(0.002 / max(fastest, 1e-9))))


def _pairs(
    models: tuple[nn.Module, nn.Module], inputs: Inputs, calls: list[int], seconds: float, rng: np.random.Generator, clock: Clock
) -> Floats:
    """(pairs, 2) seconds per call."""
    end = clock() + seconds
    rows: list[tuple[float, float]] = []
    while len(rows) < _LEAST_PAIRS or clock() < end:
        row = [0.0, 0.0]
        for i in rng.permutation(2):
            row[i] = _timed(models[i], inputs, calls[i], clock)
        rows.append((row[0], row[1]))
    return np.array(rows)


def _timed(model: nn.Module, inputs: Inputs, calls: int, clock: Clock) -> float:
    start = clock()
    for _ in range(calls):
        call(model, inputs)
    return (clock() - start) / calls


def _interval(ratios: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile bootstrap of the median."""
    medians = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        medians[i] = np.median(rng.choice(ratios, len(ratios)))
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def with_batch(inputs: Inputs, batch: int) -> Inputs:
    """Tensors that share the first one's leading dimension get `batch` examples, in turn; the others are no batches."""
    size = first(inputs).shape[0]

    def fit(x: Tensor) -> Tensor:
        return x.cpu()[torch.arange(batch) % size] if x.ndim and x.shape[0] == size else x.cpu()

    return {k: fit(v) for k, v in inputs.items()} if isinstance(inputs, Mapping) else tuple(fit(v) for v in inputs)


def _on_cpu(model: nn.Module) -> nn.Module:
    elsewhere = any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers()))
    return copy.deepcopy(model).cpu() if elsewhere else model


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
