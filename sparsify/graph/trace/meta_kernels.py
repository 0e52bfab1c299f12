"""Run operators on meta tensors quickly, where torch's own meta kernels are slow."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparsify.forward.opaque import are_wrappers, is_higher_order
from sparsify.forward.operator_mode import OperatorMode

ResultSpec = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""shape, strides, element type"""


def run_on_meta(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """Return func(*args, **kwargs)."""
    x = args[0] if args else None
    if isinstance(x, Tensor) and x.is_meta and x.is_floating_point() and not kwargs and x.is_contiguous():
        rule = _RULES.get(name)
        found = None if rule is None else rule(*args)
        if found is not None:
            return found
        if name[-1] == "_" and name[:-1] in (_ALONE | _PAIRS) and _result_if_alike(*args) is not None:
            return x
    return func(*args, **kwargs)


class FastMeta(OperatorMode):  # type: ignore[no-untyped-call]
    """Runs every operator under it by `run_on_meta`."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if are_wrappers(types):
            return NotImplemented
        if is_higher_order(func):
            return func(*args, **(kwargs or {}))
        return run_on_meta(short_name(func), func, args, kwargs or {})


@cache
def short_name(func: Any) -> str:
    """Such as `add_` of aten::add_.Tensor."""
    name: str = func._schema.name.split("::")[1]
    return name


def _make_like(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device="meta")


def _result_if_alike(x: Tensor, *others: Any) -> Tensor | None:
    """A result like x if the other tensors are like x too."""
    for other in others:
        if isinstance(other, Tensor) and (
            other.shape != x.shape or other.dtype != x.dtype or not other.is_meta or not other.is_contiguous()
        ):
            return None
    return _make_like(x, *x.shape)


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...] | None:
    channels = x.shape[1]
    if any(v is not None and v.shape != (channels,) for v in rest[:4]):
        return None
    size = channels if rest[4] else 0
    return _make_like(x, *x.shape), _make_like(x, size), _make_like(x, size)


def _layer_norm(
    x: Tensor, over: Any, weight: Tensor | None, bias: Tensor | None, _eps: float
) -> tuple[Tensor, ...] | None:
    if tuple(over) != x.shape[x.dim() - len(over) :] or any(
        v is not None and v.shape != tuple(over) for v in (weight, bias)
    ):
        return None
    moments = (*x.shape[: x.dim() - len(over)], *[1] * len(over))
    return _make_like(x, *x.shape), _make_like(x, *moments), _make_like(x, *moments)


def _addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
    fits = (
        x.shape[1] == weight.shape[0]
        and bias.shape == (weight.shape[1],)
        and x.dtype == weight.dtype == bias.dtype
        and x.is_meta
    )
    return _make_like(x, x.shape[0], weight.shape[1]) if fits else None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    _out: Any,
    groups: int,
) -> Tensor | None:
    fits = x.dim() == weight.dim() and x.shape[1] == weight.shape[1] * groups and x.dtype == weight.dtype
    if (
        transposed
        or not fits
        or weight.shape[0] % groups
        or (bias is not None and bias.shape != weight.shape[:1])
    ):
        return None
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return _make_like(x, x.shape[0], weight.shape[0], *sizes) if min(sizes) > 0 else None


_ALONE = frozenset(
    "relu hardtanh gelu silu sigmoid tanh hardswish hardsigmoid leaky_relu elu mish softplus neg exp erf "
    "_softmax _safe_softmax".split()
)
_PAIRS = frozenset(("add", "sub", "mul", "div"))
_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_ALONE | _PAIRS, _result_if_alike),
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "addmm": _addmm,
    "convolution": _convolution,
}


def describe_result(func: Any, out: Any) -> tuple[ResultSpec, ...] | None:
    """How to make the operator's result again; None if it has values or shares storage with an argument."""
    results = (out,) if isinstance(out, Tensor) else out
    if (
        not _allocates_results(func)
        or not isinstance(results, tuple | list)
        or not all(isinstance(t, Tensor) and t.is_meta for t in results)
    ):
        return None
    return tuple((tuple(t.shape), t.stride(), t.dtype) for t in results)


def make_result(description: tuple[ResultSpec, ...], alone: bool) -> Any:
    """Make the result again; alone: one tensor, not a tuple."""
    results = [
        torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in description
    ]
    return results[0] if alone else tuple(results)


@cache
def _allocates_results(func: Any) -> bool:
    """Whether all results have storage of their own."""
    return not any(v.alias_info is not None for v in (*func._schema.arguments, *func._schema.returns))
