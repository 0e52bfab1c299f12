"""Count parameters, bytes and multiply-accumulates."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from sparsify.errors import ModelError, first_line
from sparsify.forward.calls import Inputs, call_without_copies, count_examples, list_calls
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import (
    are_wrappers,
    holds_nested,
    is_higher_order,
    is_scripted,
    without_compiling,
)
from sparsify.forward.operator_mode import OperatorMode
from sparsify.forward.scratch import copy_to_call
from sparsify.forward.trial_calls import detach_inputs, format_inputs
from sparsify.nn import attention
from sparsify_schemas.report import Side


def measure_side(
    model: nn.Module,
    inputs: Inputs,
    weights_file: Path,
    *,
    validation_metric: float | None = None,
    test_metric: float | None = None,
) -> Side:
    """Count parameters (shared ones once), nonzero parameters, MACs and bytes on disk of a model.

    weights_file: the file that holds the weights.
    """
    parameters = list(model.parameters())
    return Side(
        params=sum(p.numel() for p in parameters),
        nonzero=sum(int(p.count_nonzero()) for p in parameters),
        macs=count_macs(model, inputs)[0],
        bytes=weights_file.stat().st_size,
        validation_metric=validation_metric,
        test_metric=test_metric,
    )


class MacCounts(NamedTuple):
    """Multiply-accumulates of one forward call on one example."""

    macs: int
    by_module: dict[str, int]
    missed: tuple[str, ...] = ()
    """operators whose multiply-accumulates could not be counted"""


def count_macs(model: nn.Module, inputs: Inputs) -> tuple[int, dict[str, int]]:
    """The total and the counts by module of `count_macs_by_module`."""
    found = count_macs_by_module(model, inputs)
    return found.macs, found.by_module


def count_macs_by_module(model: nn.Module, inputs: Inputs) -> MacCounts:
    """Multiply-accumulates of one forward call on ONE example: in all, and by the module whose forward
    runs them.

    inputs: a tuple, a mapping for keyword inputs, or several calls, whose counts are added up. If nothing
    counts examples, the counts are for the whole call.

    The counts of the modules add up to the total; a model's own functional calls are counted under ''.
    Names as in named_modules. Modules without MACs are absent. What a TorchScript module does is charged
    to the module around it.

    A copy of the model runs in eval mode with the attention fast path off. Formulas:
    torch.utils.flop_counter, two FLOPs a MAC, and _FURTHER_FORMULAS for operators that it does not know.

    Raises ModelError if the forward call fails.
    """
    model = copy_to_call(model).eval()
    for name in [name for name, module in model.named_modules() if attention.can_adopt(module)]:
        # It calls its output projection as a module, which is then charged with its share.
        attention.adopt(model, name)
    calls = list_calls(inputs)
    macs: defaultdict[str, float] = defaultdict(float)
    missed: set[str] = set()
    for each in calls:
        examples = count_examples(each) or 1
        spent, uncounted = _count_flops(model, (each,) if calls is inputs else each.inputs)
        missed |= uncounted
        for name, flops in spent.items():
            macs[name] += flops / (2 * examples)
    by_module = {name: round(count) for name, count in macs.items() if count}
    return MacCounts(sum(by_module.values()), by_module, tuple(sorted(missed)))


def _count_flops(model: nn.Module, inputs: Inputs) -> tuple[dict[str, int], set[str]]:
    """FLOPs by the module whose forward runs them; and the operators that have no formula."""
    spent: defaultdict[str, int] = defaultdict(int)
    with (
        torch.random.fork_rng(devices=[]),
        torch.no_grad(),
        without_compiling(),
        _count_without_fast_path() as counter,
        _charge_modules(model, lambda: counter.flops, spent),
    ):
        try:
            call_without_copies(model, detach_inputs(inputs))
        except Exception as error:
            raise ModelError(
                f"a forward call with inputs {format_inputs(inputs)} failed: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
    return spent, set(counter.missed)


@contextmanager
def _charge_modules(
    model: nn.Module, total: Callable[[], int], spent: defaultdict[str, int]
) -> Iterator[None]:
    """Charge the growth of `total` to the innermost running module.

    torch's own counts by module include the modules inside, and cannot tell apart those of a module that
    is called from elsewhere than its parent.
    """
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
        if is_scripted(module):
            continue  # it takes no hooks
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
        handles.append(module.register_forward_hook(lambda *_: leave(), always_call=True))
    try:
        yield
        settle()
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _count_without_fast_path() -> Iterator["_FlopCounter"]:
    """A counter, with the attention fast path off, whose fused operator no counter sees."""
    with without_fused_attention(), _FlopCounter() as counter:
        yield counter


class _FlopCounter(OperatorMode):
    """Adds up the FLOPs of every operator that runs under it.

    torch's own FlopCounterMode also tracks modules through autograd hooks, which fail on views of
    parameters and on gradients taken inside the forward call.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.missed: set[str] = set()
        self._formulas = {**flop_registry, **_FURTHER_FORMULAS}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if are_wrappers(types):
            return NotImplemented  # a tensor that wraps others: count what is done to those
        if is_higher_order(func):
            self.missed.add(func.name())
            return func(*args, **kwargs)
        formula = self._formulas.get(func._overloadpacket)
        if formula is None and holds_nested((args, kwargs)):  # those have kernels of their own
            self.missed.add(func._overloadpacket.__name__)
            return func(*args, **kwargs)
        if formula is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        try:
            self.flops += formula(*args, **kwargs, out_val=out)
        except Exception:  # shapes that the formula does not expect: of nested tensors, of sparse ones
            self.missed.add(func._overloadpacket.__name__)
        return out


def _lstm_flops(x: Tensor, w_ih: Tensor, w_hh: Tensor, *_: Any, **__: Any) -> int:
    """One layer and direction: each step multiplies the input and the state with the rows of the gates."""
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
    """Of a bilinear layer: each output of each example reads every pair of the two inputs' features."""
    spread: list[Tensor] = []
    for tensor, dims in zip((a, b, c), added, strict=False):
        spread.append(functools.reduce(lambda x, dim: x.unsqueeze(dim), sorted(dims), tensor))
    lengths: list[int] = [max(sizes) for sizes in zip(*(tuple(x.shape) for x in spread), strict=True)]
    return 2 * prod(lengths)


def _mark_raw(count: Callable[..., int]) -> Callable[..., int]:
    """Mark a function that takes tensors: flop_counter gives other functions the shapes."""
    setattr(count, "_get_raw", True)  # noqa: B010
    return count


# What torch's counter passes over on a CPU: attention, LSTM in inference, vectors, bilinear layers.
_FURTHER_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _mark_raw(_attention_flops),
    torch.ops.aten.mkldnn_rnn_layer: _mark_raw(_lstm_flops),
    torch.ops.aten.mv: _mark_raw(_product_flops),
    torch.ops.aten.dot: _mark_raw(_product_flops),
    torch.ops.aten.vdot: _mark_raw(_product_flops),
    torch.ops.aten._trilinear: _mark_raw(_trilinear_flops),
    torch.ops.aten.addmv: _mark_raw(_added_product_flops),
}
