"""Find which table each integer input indexes, by following the numbers through one run of the model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.forward import calls
from sparsify.forward.calls import Call, Inputs, add_argument_names, rebuild_value, tensors_by_path
from sparsify.forward.opaque import without_compiling
from sparsify.forward.operator_mode import OperatorMode
from sparsify.forward.scratch import copy_to_call
from sparsify.graph.trace.meta_kernels import short_name

_KEEPS_NUMBERS = frozenset(
    "view _unsafe_view reshape _reshape_alias expand permute transpose t squeeze unsqueeze select slice "
    "split unbind chunk clone _to_copy detach alias contiguous cat stack index index_select gather "
    "masked_select masked_fill where clamp repeat flip roll constant_pad_nd narrow unfold copy "
    "lift_fresh".split()
)
"""operators whose result holds the same numbers as their input"""
_LOOKS_UP_ROWS = frozenset(["embedding", "_embedding_bag", "_embedding_bag_forward_only"])
_INDEXES_ALONG = frozenset(
    [
        "gather",
        "index_select",
        "index_add",
        "index_copy",
        "index_fill",
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "index_reduce",
    ]
)
"""operators called as (table, dimension, index, ...)"""


def add_names_and_vocabularies(model: nn.Module, inputs: Inputs) -> tuple[Call, ...]:
    """Add the names of the model's arguments and the vocabularies of integer tensors to the calls.

    The vocabulary of an integer tensor is the number of rows of the smallest table that its numbers index:
    an embedding, a tensor that is indexed along a dimension, the classes of a loss. If arithmetic changes
    the numbers first, there is none.
    """
    named = add_argument_names(model, inputs)
    found = tuple(_find_vocabularies(model, each) for each in named)
    return tuple(
        replace(each, vocabularies={**each.vocabularies, **rows})
        for each, rows in zip(named, found, strict=True)
    )


def _lacks_vocabulary(each: Call) -> bool:
    """Whether one of its integer tensors has no vocabulary yet."""
    tensors = tensors_by_path(each)
    return any(_is_integer(tensor) and path not in each.vocabularies for path, tensor in tensors.items())


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)


def _find_vocabularies(model: nn.Module, each: Call) -> dict[str, int]:
    """Path -> number of rows, as far as the model runs; empty if all of them are known."""
    if not _lacks_vocabulary(each):
        return {}
    watch = _IndexTracker()

    def enter(path: str, tensor: Tensor) -> Tensor:
        own = tensor.clone()
        if _is_integer(own):
            watch.origins[own] = frozenset([path])
        return own

    try:
        copy = copy_to_call(model).eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_compiling():
            given = replace(each, inputs=rebuild_value(each.inputs, enter))
            with watch:
                calls.call_without_copies(copy, (given,))
    except Exception:  # that the model does not run is said where that matters
        pass
    return watch.rows


class _IndexTracker(OperatorMode):
    """Knows which inputs the numbers of a tensor come from, and records the tables that they index."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.rows: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = short_name(func).rstrip("_")
        for index, rows in _indexed_tables(name, args, kwargs):
            for path in self._origins_of(index):
                self.rows[path] = min(rows, self.rows.get(path, rows))
        out = func(*args, **kwargs)
        if name in _KEEPS_NUMBERS:
            values = args[:1] if name in ("index", "index_select", "gather") else args
            origin = frozenset(path for value in values for path in self._origins_of(value))
            for made in out if isinstance(out, list | tuple) else [out]:
                if origin and isinstance(made, Tensor):
                    self.origins[made] = origin
        return out

    def _origins_of(self, value: Any) -> frozenset[str]:
        if isinstance(value, Tensor):
            found: frozenset[str] = self.origins.get(value, frozenset())  # type: ignore[no-untyped-call]
            return found
        if isinstance(value, list | tuple):
            return frozenset(path for item in value for path in self._origins_of(item))
        return frozenset()


def _indexed_tables(name: str, args: Any, kwargs: Mapping[str, Any]) -> Iterator[tuple[Tensor, int]]:
    """(index, number of rows of the indexed table) of an operator."""
    table = args[0] if args and isinstance(args[0], Tensor) else None
    if table is None:
        return
    if name in _LOOKS_UP_ROWS:
        yield args[1], table.shape[0]
    elif name in _INDEXES_ALONG and table.dim():
        index = args[2] if len(args) > 2 else kwargs.get("index")
        if isinstance(index, Tensor):
            yield index, table.shape[args[1]]
    elif name in ("index", "index_put", "_unsafe_index", "_unsafe_index_put"):
        at = 0
        for index in args[1]:
            if isinstance(index, Tensor) and index.dtype is torch.bool:
                at += index.dim()
            else:
                if isinstance(index, Tensor):
                    yield index, table.shape[at]
                at += 1
    elif name in ("nll_loss_forward", "nll_loss2d_forward"):
        yield args[1], table.shape[1 if table.dim() > 1 else 0]
    elif name == "one_hot" and len(args) > 1 and args[1] > 0:
        yield table, args[1]
    elif name == "take":
        yield args[1], table.numel()
