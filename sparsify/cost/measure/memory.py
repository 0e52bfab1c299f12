"""Memory of one inference: what the allocator hands out while it runs, and how long each tensor lives.

    peak = bytes of parameters and buffers + bytes of the inputs
           + largest sum of what is allocated at one moment of the call

on one example, in eval mode. A measured peak includes the kernels' own work space (columns of a
convolution by matrix product).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from sparsify.forward.calls import Inputs, all_tensors, call_without_copies, map_tensors, resize_batch
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import without_compiling
from sparsify.forward.operator_mode import OperatorMode
from sparsify.forward.trial_calls import eval_mode


def count_stored_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers; shared ones count once."""
    return sum(
        {id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}.values()
    )


def count_input_bytes(inputs: Inputs) -> int:
    """Bytes of the inputs of one example."""
    return sum(t.numel() * t.element_size() for t in all_tensors(resize_batch(inputs, 1)))


def measure_peak(model: nn.Module, inputs: Inputs) -> int:
    """Bytes at the peak of one inference on one example, as the allocator of the model's device saw it."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    fed = _move_inputs(resize_batch(inputs, 1), device)
    with eval_mode(model), torch.inference_mode():
        call_without_copies(model, fed)  # what is kept from a first call is no part of it
        used = _measure_on_cuda(model, fed) if device.type == "cuda" else _measure_on_cpu(model, fed)
    return count_stored_bytes(model) + count_input_bytes(inputs) + used


def _measure_on_cuda(model: nn.Module, inputs: Inputs) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call_without_copies(model, inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _measure_on_cpu(model: nn.Module, inputs: Inputs) -> int:
    with (
        _silence_profiler(),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        call_without_copies(model, inputs)
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    now = most = 0
    for event in sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    ):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextmanager
def _silence_profiler() -> Iterator[None]:
    """Silence the profiler's library, which reports its start and stop on stderr."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = "99"
    try:
        yield
    finally:
        os.environ.pop("KINETO_LOG_LEVEL")
        if before is not None:
            os.environ["KINETO_LOG_LEVEL"] = before


def trace_lifetimes(
    model: nn.Module, inputs: Inputs
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Trace when the tensors of one inference on one example are made and freed.

    Storages are tracked, so views and in-place results count once, and a tensor lives as long as Python
    holds it. The attention fast path is off, as for counting MACs. Also runs on the meta device.

    Returns the operators in the order in which they ran, and for every tensor that they made
    (made by operator, freed before operator, bytes).
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    fed = _move_inputs(resize_batch(inputs, 1), device)
    known = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers(), *all_tensors(fed))}
    watch, fork = _StorageTracker(known), torch.random.fork_rng(devices=[])
    with eval_mode(model), torch.no_grad(), fork, without_fused_attention(), without_compiling(), watch:
        call_without_copies(model, fed)
    return watch.lifetimes()


def compute_peak(model: nn.Module, inputs: Inputs) -> int:
    """Bytes at the peak of one inference on one example, computed from the lifetimes of the tensors."""
    operators, lives = trace_lifetimes(model, inputs)
    change = [0] * (len(operators) + 1)
    for born, dies, size in lives:
        change[born] += size
        change[dies] -= size
    return count_stored_bytes(model) + count_input_bytes(inputs) + max(accumulate(change), default=0)


class _StorageTracker(OperatorMode):
    """Records when storages are allocated and freed."""

    supports_higher_order_operators = True

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = known
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._lives: list[tuple[int, int, int]] = []
        self._operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._record_freed()
        out = func(*args, **(kwargs or {}))
        at = len(self._operators)
        self._operators.append(str(func))
        for value in tree_leaves(out):
            storage = value.untyped_storage() if isinstance(value, Tensor) else None
            if (
                storage is not None
                and storage._cdata not in self._known
                and storage._cdata not in self._alive
            ):
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive[storage._cdata] = (reference, len(self._lives))
                self._lives.append((at, -1, storage.nbytes()))
        return out

    def _record_freed(self) -> None:
        now = len(self._operators)
        for key, (reference, place) in list(self._alive.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                del self._alive[key]
                born, _, size = self._lives[place]
                self._lives[place] = (born, now, size)

    def lifetimes(self) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
        """Operators and lifetimes; what outlives the call lives to its end."""
        self._record_freed()
        end = len(self._operators)
        lives = []
        for born, dies, size in self._lives:
            lives.append((born, end if dies < 0 else dies, size))
        return tuple(self._operators), tuple(lives)


def _move_inputs(inputs: Inputs, device: torch.device) -> Inputs:
    return map_tensors(inputs, lambda tensor: tensor.to(device))
