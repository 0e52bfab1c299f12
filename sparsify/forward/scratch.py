"""Scratch models: copies of our own, and copies of those that share the values of their weights.

A forward call reads weights. A copy that is only called needs its own modules, hooks, buffers and gradients,
and no values of its own where the original is a copy already. Some models write into their weights at a call
(a codebook that follows an average, rows that are scaled to a largest norm): `keep_values` takes that back.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sparsify.forward.copies import Memo, copy_model
from sparsify.forward.opaque import are_wrappers, is_higher_order, is_nested, without_compiling
from sparsify.forward.operator_mode import OperatorMode, written_arguments

_OWN: "WeakSet[nn.Module]" = WeakSet()
"""models that nobody else holds"""
_SHARED: "WeakSet[nn.Module]" = WeakSet()
"""models with parameters whose values another model has too"""


def make_scratch(model: nn.Module) -> nn.Module:
    """A deep copy that `copy_to_call` may share values with. Raises ModelError."""
    made = copy_model(model)
    _OWN.add(made)
    return made


def is_scratch(model: nn.Module) -> bool:
    return model in _OWN


def copy_to_call(model: nn.Module) -> nn.Module:
    """A copy to be called, with hooks or in another mode: of a scratch model it shares the weights' values,
    of any other model it is a deep copy. Raises ModelError."""
    return borrow_model(model) if model in _OWN else make_scratch(model)


def borrow_model(model: nn.Module) -> nn.Module:
    """A copy whose parameters are new ones that hold the values of the original's, without copying these.

    Buffers and all else are copied. What a call writes into its parameters lasts as long as the call. Raises
    ModelError.
    """
    memo: Memo = {id(p): borrow_parameter(p) for p in model.parameters() if is_plain(p)}
    made = copy_model(model, memo)
    _OWN.add(made)
    note_shared(made)
    return made


def note_shared(model: nn.Module) -> None:
    """Have `keep_values` take back what calls of this model write into its parameters."""
    _SHARED.add(model)


@contextmanager
def hold_weights(model: nn.Module) -> Iterator[None]:
    """Inside, the same for a model that shares nothing, such as one of a user that is to stay as it is."""
    was_shared = model in _SHARED
    _SHARED.add(model)
    try:
        yield
    finally:
        if not was_shared:
            _SHARED.discard(model)


def borrow_parameter(parameter: nn.Parameter) -> nn.Parameter:
    with torch.inference_mode(False):
        return nn.Parameter(parameter.detach(), parameter.requires_grad)


def is_plain(tensor: Tensor) -> bool:
    """Whether a parameter is one of torch's own class, strided, and no result of inference mode."""
    odd = tensor.layout is not torch.strided or is_nested(tensor) or tensor.is_inference()
    return type(tensor) is nn.Parameter and not odd


def find_storage(tensor: Tensor) -> int:
    """What names the memory of a strided tensor, as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def keep_values(model: nn.Module) -> Iterator[None]:
    """Restore afterwards what is written into the parameters of a model that shares their values; any other
    model is left alone."""
    if model not in _SHARED:
        yield
        return
    mode = _Saved(p for p in model.parameters() if is_plain(p))
    try:
        with without_compiling(), mode:
            yield
    finally:
        mode.restore()


class _Saved(OperatorMode):  # type: ignore[no-untyped-call]
    """Keeps what the memory of some tensors held before the first operator wrote into it."""

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched = {find_storage(tensor) for tensor in tensors}
        self.saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if are_wrappers(types):
            return NotImplemented
        if not is_higher_order(func):
            for at, name in written_arguments(func):
                self._save(args[at] if at < len(args) else kwargs.get(name))
        return func(*args, **kwargs)

    def _save(self, value: Any) -> None:
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or is_nested(tensor):
                continue
            own = find_storage(tensor)
            if own in self.watched and own not in self.saved:
                storage = tensor.untyped_storage()
                with _disable_current_modes():
                    self.saved[own] = storage, storage.clone()  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        for storage, before in self.saved.values():
            storage.copy_(before)
