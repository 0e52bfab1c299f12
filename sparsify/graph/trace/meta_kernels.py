"""Run operators on meta tensors quickly, where torch's own meta kernels are slow.

Whole numbers and masks keep their values beside floating-point tensors without: a forward call branches on
masks and looks up positions, and what it computes for these does not depend on any weight.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sparsify.forward.opaque import are_wrappers, is_higher_order
from sparsify.forward.operator_mode import OperatorMode

ResultSpec = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""shape, strides, element type"""
KnownResults = dict[Any, tuple[tuple[ResultSpec, ...], bool]]
"""operator and arguments -> what it returns, and whether that is one tensor, not a tuple"""


def run_on_meta(name: str, func: Any, args: Any, kwargs: Any, known: KnownResults) -> Any:
    """Return func(*args, **kwargs).

    known: results of operators on tensors of the same shapes, which blocks of a network share; it is added
    to.
    """
    made = _run_by_rule(name, args, kwargs)
    if made is not None:
        return made
    if not _allocates_results(func) or not any(map(_holds_meta, args)):
        return _run_with_numbers(func, args, kwargs)
    key = func, _describe(args), _describe(tuple(kwargs.items()))
    found = known.get(key)
    if found is not None:
        return make_result(*found)
    made = _run_with_numbers(func, args, kwargs)
    description = describe_result(func, made)
    if description is not None:
        known[key] = description, isinstance(made, Tensor)
    return made


def _holds_meta(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_meta, value))
    return isinstance(value, Tensor) and value.is_meta


def _describe(value: Any) -> Any:
    """All of a value that the shape of a result may depend on."""
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout is torch.strided else value.layout
        return value.shape, strides, value.dtype, value.is_meta
    if isinstance(value, tuple | list):
        return tuple(map(_describe, value))
    return type(value), value


def _run_by_rule(name: str, args: Any, kwargs: Any) -> Any:
    """What an operator returns whose rule is written here; None of any other."""
    x = args[0] if args else None
    if isinstance(x, Tensor) and x.is_meta and x.is_floating_point() and not kwargs and x.is_contiguous():
        rule = _RULES.get(name)
        found = None if rule is None else rule(*args)
        if found is not None:
            return found
        if name[-1] == "_" and name[:-1] in (_ALONE | _PAIRS) and _result_if_alike(*args) is not None:
            return x
    return None


def _run_with_numbers(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator of which some tensors have values: with them if all have, and the result is whole
    numbers or a mask; else without."""
    placed = kwargs.get("device")
    on_meta = placed is not None and torch.device(placed).type == "meta"
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    if not any(tensor.is_meta for tensor in tensors):
        if not on_meta:
            return func(*args, **kwargs)
        bare_args, bare_kwargs = tree_map(_drop_values, (args, kwargs))
        made = func(*bare_args, **bare_kwargs)
        if not isinstance(made, Tensor) or not _is_number(made):
            return made
        return func(*args, **{**kwargs, "device": torch.device("cpu")})
    if any(not tensor.is_meta and tensor.dim() for tensor in tensors):
        args, kwargs = tree_map(_drop_values, (args, kwargs))
    return func(*args, **kwargs)


def _is_number(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _drop_values(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


class FastMeta(OperatorMode):  # type: ignore[no-untyped-call]
    """Runs every operator under it by `run_on_meta`."""

    supports_higher_order_operators = True

    def __init__(self, known: KnownResults) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if are_wrappers(types):
            return NotImplemented
        if is_higher_order(func):
            return func(*args, **(kwargs or {}))
        return run_on_meta(short_name(func), func, args, kwargs or {}, self.known)


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
