"""Models in another precision, and float64 even if the model casts to a lower precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import cast_tensor
from sparsify.forward.copies import Memo, copy_model
from sparsify.forward.opaque import without_compiling
from sparsify.forward.operator_mode import written_arguments
from sparsify.forward.scratch import borrow_parameter, find_storage, is_plain, note_shared
from sparsify.graph.trace.module_stack import ModuleStack

DOUBLE = frozenset([torch.float64, torch.complex128])
LOWER = frozenset([torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex32])
LARGE = 2**16
"""elements from which a weight is computed with in double precision without being stored in it"""
PIECE = 2**18
"""elements of a weight that are held in double precision at a time where a product can be taken in pieces:
they stay in the cache between the cast and the product"""

_LARGE_WEIGHTS: "WeakKeyDictionary[nn.Module, frozenset[int]]" = WeakKeyDictionary()
"""model of `widen_model` -> the storages of its weights that are stored in a lower precision"""


def cast_model(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the model in place: real tensors to `dtype`, complex ones to the complex type of that
    precision.

    `model.to(dtype)` would drop imaginary parts.
    """
    model._apply(lambda tensor: cast_tensor(tensor, dtype))  # type: ignore[no-untyped-call]
    return model


def widen_model(model: nn.Module) -> nn.Module:
    """A copy that computes in double precision under `keep_double`, in little more memory than it has.

    Its large weights are those of the model itself, in their precision: an operator that reads one gets it in
    double. Everything else is copied and cast. What a call writes into a large weight lasts as long as the
    call.
    """
    recurrent = {
        id(p) for m in model.modules() if isinstance(m, nn.RNNBase) for p in m.parameters()
    }  # a recurrent module compares the precision of its weights with that of its input
    large = [p for p in model.parameters() if _is_stored_lower(p) and id(p) not in recurrent]
    memo: Memo = {id(p): borrow_parameter(p) for p in large}
    made = copy_model(model, memo).eval()
    kept = frozenset(find_storage(p) for p in large)

    def widen(tensor: Tensor) -> Tensor:
        is_lower = tensor.dtype in LOWER and tensor.layout is torch.strided
        return (
            tensor
            if kept and is_lower and find_storage(tensor) in kept
            else cast_tensor(tensor, torch.float64)
        )

    made._apply(widen)  # type: ignore[no-untyped-call]
    _LARGE_WEIGHTS[made] = kept
    note_shared(made)
    return made


def _is_stored_lower(parameter: nn.Parameter) -> bool:
    lower = parameter.dtype in LOWER and not parameter.is_complex()
    return lower and parameter.numel() >= LARGE and not parameter.is_meta and is_plain(parameter)


def widen_tensor(tensor: Tensor) -> None:
    """Store a parameter or buffer of a model of `widen_model` in double precision, in place."""
    if tensor.dtype in LOWER:
        with torch.no_grad():
            tensor.data = cast_tensor(tensor.data, torch.float64)


class KeepDouble(ModuleStack):  # type: ignore[no-untyped-call]
    """Leaves out casts from double to a lower precision: rounding inside a model would hide what a cut
    changes. Gives weights that are stored in a lower precision to operators in double."""

    def __init__(self, large: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.casts = 0
        """number of casts left out"""
        self.large = large
        """storages of the weights that are stored in a lower precision"""
        self.spare = torch.empty(0, dtype=torch.float64)
        """memory for one weight in double precision, used again and again"""

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        cast_down = func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in LOWER
        if cast_down and isinstance(args[0], Tensor):
            if args[0].dtype in DOUBLE:
                self.casts += 1
                kwargs = {**kwargs, "dtype": args[0].dtype}
            elif self._is_large(args[0]):
                kwargs = {**kwargs, "dtype": torch.float64}
        if self.large and any(map(self._holds_large, args)) and not _returns_view(func):
            return self._run_wide(func, args, kwargs)
        return func(*args, **kwargs)

    def _is_large(self, value: Any) -> bool:
        is_lower = isinstance(value, Tensor) and value.dtype in LOWER and value.layout is torch.strided
        return is_lower and find_storage(value) in self.large

    def _holds_large(self, value: Any) -> bool:
        if isinstance(value, list | tuple):
            return any(map(self._is_large, value))
        return self._is_large(value)

    def _run_wide(self, func: Any, args: Any, kwargs: Any) -> Any:
        aten = torch.ops.aten
        if func is aten.embedding.default:  # the rows that are looked up, not the table
            return func(*args, **kwargs).double()
        place = {aten.mm.default: 1, aten.addmm.default: 2, aten.convolution.default: 1}.get(func)
        if place is not None and self._is_large(args[place]):
            if args[place].dim() == 2 and args[place].numel() > PIECE:
                return self._multiply_in_pieces(func, args, kwargs, place)
            given = list(args)
            given[place] = self._borrow_wide(args[place])
            return func(*map(self._widen, given), **kwargs)
        written = {at for at, _ in written_arguments(func)}
        wide = [value if at in written else self._widen(value) for at, value in enumerate(args)]
        return func(*wide, **kwargs)

    def _multiply_in_pieces(self, func: Any, args: Any, kwargs: Any, place: int) -> Tensor:
        """A matrix product, some columns of its result at a time."""
        rows, columns = args[place].shape
        step = max(1, PIECE // rows)
        front = [self._widen(value) for value in args[:place]]
        made = []
        for first in range(0, columns, step):
            part = self._borrow_wide(args[place][:, first : first + step])
            own = list(front)
            if place == 2 and own[0].dim() and own[0].shape[-1] == columns:  # what the product is added to
                own[0] = own[0][..., first : first + step]
            made.append(func(*own, part, **kwargs))
        return torch.cat(made, 1)

    def _borrow_wide(self, weight: Tensor) -> Tensor:
        """A weight in double precision, in memory that the next one is written into.

        For operators whose result is never a view of it. To get so much memory anew takes several times as
        long as to fill it.
        """
        dense = weight.is_contiguous() or (weight.dim() == 2 and weight.t().is_contiguous())
        if not dense or weight.device.type != "cpu" or weight.is_complex():
            return weight.double()
        if self.spare.numel() < weight.numel():
            self.spare = torch.empty(weight.numel(), dtype=torch.float64)
        return self.spare.as_strided(weight.shape, weight.stride()).copy_(weight)

    def _widen(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(self._widen, value))
        return value.double() if self._is_large(value) else value


@cache
def _returns_view(func: Any) -> bool:
    """Whether what an operator returns shares the memory of its input."""
    return bool(func.is_view)


@contextmanager
def keep_double(model: nn.Module) -> Iterator[KeepDouble]:
    """Keep double precision throughout the calls of a double-precision model; other models run as they
    are."""
    large = _LARGE_WEIGHTS.get(model, frozenset())
    mode = KeepDouble(large)
    with without_compiling():
        if large or any(tensor.dtype in DOUBLE for tensor in model.parameters()):
            with mode:
                yield mode
        else:
            yield mode
