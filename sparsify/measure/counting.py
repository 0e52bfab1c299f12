"""Counting: parameters, bytes, multiply-accumulates."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparsify.errors import ModelError
from sparsify.measure.calling import Inputs, call, copied, detached, first, shown
from sparsify.models import attention
from sparsify_schemas.report import Side


def side(
    model: nn.Module,
    inputs: Inputs,
    weights_file: Path,
    *,
    validation_accuracy: float | None = None,
    test_accuracy: float | None = None,
) -> Side:
    """Count a model whose weights lie in a file: parameters (shared ones once), those that are not zero, MACs, bytes on disk."""
    parameters = list(model.parameters())
    return Side(
        params=sum(p.numel() for p in parameters),
        nonzero=sum(int(p.count_nonzero()) for p in parameters),
        macs=count_macs(model, inputs)[0],
        bytes=weights_file.stat().st_size,
        validation_accuracy=validation_accuracy,
        test_accuracy=test_accuracy,
    )


def count_macs(model: nn.Module, inputs: Inputs) -> tuple[int, dict[str, int]]:
    """Multiply-accumulates of one forward call on ONE example: in all, and by the module in whose forward they happen.

    inputs: a tuple, or a mapping for keyword inputs; the batch is the first dimension of the first tensor. The figures
    of the modules add up to the total; a model's own functional calls are counted under ''. Names as in named_modules.
    A copy of the model runs in eval mode with the attention fast path off; modules without MACs are absent.
    Counted by torch.utils.flop_counter, two FLOPs a MAC, with the operators added that it does not know (_UNKNOWN).
    Raises ModelError when the forward call fails.
    """
    batch = first(inputs).shape[0]
    spent: defaultdict[str, int] = defaultdict(int)
    model = copied(model).eval()
    for name in [name for name, module in model.named_modules() if attention.can_adopt(module)]:
        attention.adopt(model, name)  # it calls its output projection as a module, which is then charged with its share
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _counter() as counter, _charged(model, counter.get_total_flops, spent):
        try:
            call(model, detached(inputs))
        except Exception as error:
            raise ModelError(f"a forward call with inputs {shown(inputs)} failed: {type(error).__name__}: {error}") from error
    by_module = {name: round(flops / (2 * batch)) for name, flops in spent.items() if flops}
    return sum(by_module.values()), by_module


@contextmanager
def _charged(model: nn.Module, total: Callable[[], int], spent: defaultdict[str, int]) -> Iterator[None]:
    """Charge what `total` grows by to the innermost module that is running. torch's own figures by module include the
    modules inside, and those of a module called from elsewhere than its parent cannot be told apart."""
    running, seen = [""], 0

    def settle() -> None:
        nonlocal seen
        now = total()
        spent[running[-1]] += now - seen
        seen = now

    def enter(name: str) -> None:
        settle()
        running.append(name)

    def leave() -> None:
        settle()
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
    try:
        yield
        settle()
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    """torch's counter, without the attention fast path, whose fused operator no counter sees."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=_UNKNOWN) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _lstm_flops(x: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    """One layer and direction: each step multiplies the input and the state with the gates' rows."""
    return 2 * x.shape[0] * x.shape[1] * (w_ih.numel() + w_hh.numel())


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """(..., L, E) x (..., S, E) and (..., L, S) x (..., S, V)."""
    pairs = query.shape[:-1].numel() * key.shape[-2]
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


def _product_flops(a: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel()


def _added_product_flops(_: Tensor, a: Tensor, *__: Any, **___: Any) -> int:
    return 2 * a.numel()


def _trilinear_flops(a: Tensor, b: Tensor, c: Tensor, *added: Any, **__: Any) -> int:
    """Of a bilinear layer: each output of each example takes every pair of the two inputs' features."""
    spread: list[Tensor] = []
    for tensor, dims in zip((a, b, c), added, strict=False):
        spread.append(functools.reduce(lambda x, dim: x.unsqueeze(dim), sorted(dims), tensor))
    lengths: list[int] = [max(sizes) for sizes in zip(*(tuple(x.shape) for x in spread), strict=True)]
    return 2 * prod(lengths)


def _raw(count: Callable[..., int]) -> Callable[..., int]:
    """Mark a function that takes tensors: flop_counter gives others the shapes."""
    setattr(count, "_get_raw", True)  # noqa: B010
    return count


# What torch's counter passes over on a CPU: attention, LSTM in inference, vectors, bilinear layers.
_UNKNOWN: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _raw(_attention_flops),
    torch.ops.aten.mkldnn_rnn_layer: _raw(_lstm_flops),
    torch.ops.aten.mv: _raw(_product_flops),
    torch.ops.aten.dot: _raw(_product_flops),
    torch.ops.aten.vdot: _raw(_product_flops),
    torch.ops.aten._trilinear: _raw(_trilinear_flops),
    torch.ops.aten.addmv: _raw(_added_product_flops),
}
