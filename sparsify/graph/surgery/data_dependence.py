"""Which elements of a model's tensors depend on the data, derived from its weights.

An element is *free of data* if the weights prove that no input can change it: everything that carries data
into it is multiplied by an exact zero. The derivation follows one forward call operator by operator. It
only looks at which weights are exactly zero, never at how an activation varies: a value that does not
change over a few examples is not proven constant.

A mask says for each element of a tensor whether data reach it. It has the tensor's rank, and size 1 along
every dimension in which it does not vary. In doubt, data count as reaching: that can only miss constants.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.graph.surgery.contraction_masks import CONTRACTIONS
from sparsify.graph.surgery.data_masks import (
    any_along,
    mask_everywhere,
    mask_nowhere,
    mask_of_base,
    scale_mask,
)
from sparsify.graph.trace.axis_labels import compress_labels
from sparsify.graph.trace.operators import (
    ALONG,
    FRESH,
    LIKE,
    MOVES,
    NORMS,
    POINTWISE,
    REDUCTIONS,
    SPATIAL,
    apply_move,
    dims_run_over,
    flatten_arguments,
    read_argument,
    wrap_dim,
)

RANDOM = frozenset(
    "rand randn randint rand_like randn_like randint_like bernoulli normal uniform randperm "
    "native_dropout dropout multinomial exponential random geometric log_normal cauchy poisson".split()
)
"""operators whose results the weights do not determine"""
KEEPS_ELEMENTS = frozenset(["detach", "alias", "clone", "contiguous", "_to_copy", "lift_fresh", "copy"])
"""operators that keep every element at its place"""
TO_PYTHON = frozenset(["_local_scalar_dense", "is_nonzero", "equal", "nonzero"])
"""operators that hand data to Python, where they cannot be followed"""
KEEPS_ROWS = frozenset(["view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "unsqueeze"])
"""moves that keep rows of the last dimension whole if its length does not change"""
MOVES_ELEMENTS = MOVES | {"select", "slice", "as_strided"}
JOINS_TENSORS = frozenset(["cat", "stack"])
SPLITS_TENSOR = frozenset(
    [
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unsafe_chunk",
    ]
)
PICKS_BY_NUMBER = frozenset(["index", "index_select", "gather", "take_along_dim"])
"""operators that pick elements by number"""


class DataDependence:
    """Masks of the tensors of one forward call. A tensor that no input reaches has none."""

    def __init__(self) -> None:
        self._masks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._shared: set[StorageWeakRef] = set()
        self._averaging: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        """tensors whose rows along the last dimension sum to one: results of a softmax"""
        self._time = 0
        self._learnt: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        """time at which the mask of a tensor was recorded"""
        self._grown: dict[StorageWeakRef, int] = {}
        """time at which data were written into shared memory: older masks of its tensors are invalid"""
        self.escaped = False
        """data decided what Python did: nothing can be derived"""

    def enter(self, tensor: Tensor) -> None:
        """Mark all of this tensor as data."""
        self._set(tensor, mask_everywhere(tensor))

    def _set(self, tensor: Tensor, mask: Tensor) -> None:
        self._masks[tensor] = mask
        self._learnt[tensor] = self._time

    def mask_of(self, tensor: Tensor) -> Tensor | None:
        """The mask of a tensor; None where it is computed from weights alone."""
        mask: Tensor | None = self._masks.get(tensor)  # type: ignore[no-untyped-call]
        if mask is not None and mask.dim() != tensor.dim():  # its rank was changed in place
            return mask_everywhere(tensor)
        if self._grown:
            learnt: int = self._learnt.get(tensor, -1)  # type: ignore[no-untyped-call]
            if learnt < self._grown.get(_storage(tensor), -1):
                return mask_everywhere(tensor)
        return mask

    def record(self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """Derive the masks of an operator's results. Call it after the operator ran."""
        self._time += 1
        results = [v for v in flatten_arguments((out,), {}) if isinstance(v, Tensor)]
        given = [v for v in flatten_arguments(args, kwargs) if isinstance(v, Tensor)]
        in_place = name.endswith("_") and not name.startswith("_")
        plain_name = name[:-1] if in_place else name
        if plain_name in RANDOM:
            masks: Sequence[Tensor | None] = [mask_everywhere(v) for v in results]
        elif all(self.mask_of(v) is None for v in given):
            masks = [None] * len(results)
        else:
            if name in TO_PYTHON:
                self.escaped = True
            masks = self._masks_of_results(plain_name, func, args, kwargs, results)
        if in_place and given:
            self._record_write(given[0], masks[0] if masks else None)
            return
        self._note_sharing(given, results)
        self._note_averaging(plain_name, args, kwargs, results)
        for value, mask in zip(results, masks, strict=True):
            if mask is not None:
                self._set(value, mask)

    def _record_write(self, target: Tensor, mask: Tensor | None) -> None:
        """Record that an operator wrote into a tensor, and so into all that share its memory."""
        memory = _storage(target)
        for averaging in list(self._averaging.keys()):  # type: ignore[no-untyped-call]
            if _storage(averaging) == memory:  # whatever is written, its rows need not sum to one any more
                del self._averaging[averaging]
        old = self.mask_of(target)
        if mask is None:
            mask = mask_nowhere(target)
        grew = bool((mask & ~(mask_nowhere(target) if old is None else old)).any())
        base = target._base
        if grew and (base is not None or _storage(target) in self._shared):
            before = None if base is None else self.mask_of(base)
            self._grown[_storage(target)] = self._time
            if base is not None:
                self._set(base, mask_of_base(target, mask, base, before))
        self._set(target, mask)

    def _note_sharing(self, given: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        memory = {v.untyped_storage().data_ptr() for v in given}
        for value in results:
            if value.untyped_storage().data_ptr() in memory:
                self._shared.add(_storage(value))

    def _note_averaging(
        self, name: str, args: Any, kwargs: Mapping[str, Any], results: Sequence[Tensor]
    ) -> None:
        """Note results whose rows sum to one: a softmax, or such rows under another shape, each of them
        whole."""
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if x is None or not results or not results[0].dim():
            return
        # A row that is masked as a whole is all zeros behind `_safe_softmax`: its sum is not one.
        rows = name in ("_softmax", "softmax") and dims_run_over(name, args, kwargs) == {x.dim() - 1}
        moved = name in KEEPS_ELEMENTS or name in KEEPS_ROWS
        kept = moved and x in self._averaging and x.dim() > 0 and x.shape[-1] == results[0].shape[-1]
        if rows or kept:
            self._averaging[results[0]] = True

    def _masks_of_results(
        self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], results: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        one = self._mask_of_first_result(name, func, args, kwargs, results)
        if one is None:
            return [mask_everywhere(v) for v in results]
        if isinstance(one, list):
            return one
        # An operator of several results: the further ones (indices, statistics) count as data all over.
        return [one, *(mask_everywhere(v) for v in results[1:])]

    def _mask_of_first_result(
        self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], results: Sequence[Tensor]
    ) -> Tensor | list[Tensor | None] | None:
        """The mask of the first result, or those of all results; None if nothing can be said."""
        if not results:
            return []
        out, x = results[0], args[0] if args else None
        if name in FRESH or name in LIKE or name in ("zero", "fill"):
            return (
                mask_nowhere(out)
                if not isinstance(read_argument(args, kwargs, 1, "value", 0), Tensor)
                else None
            )
        if name == "copy":
            return self.join_masks(args[1:2], out)
        if name in KEEPS_ELEMENTS:
            return self.mask_of(args[0])
        if name == "mul":
            return self._mask_product(args[0], args[1], out)
        if name in CONTRACTIONS:
            return CONTRACTIONS[name](self, args, kwargs, out)
        if name == "embedding":
            return self._mask_embedding(args[0], args[1], out)
        if name in NORMS:
            return self._mask_batch_norm(name, args, kwargs, out)
        if name == "native_layer_norm":
            over = dims_run_over(name, args, kwargs)
            return scale_mask(
                any_along(self.mask_or_nowhere(args[0]), over),
                args[2],
                range(out.dim() - len(args[1]), out.dim()),
                out,
            )
        if name == "native_group_norm":
            return self._mask_group_norm(args, out)
        if name in JOINS_TENSORS:
            return self._concatenate_masks(func, args, kwargs, out)
        if name == "gather" and self.mask_of(args[2]) is not None:
            return self._mask_gather(args[0], wrap_dim(args[1], args[0]), args[2])
        if not isinstance(x, Tensor) or any(
            self.mask_of(v) is not None for v in _other_tensors(args, kwargs)
        ):
            return self.join_masks(_all_tensors(args, kwargs), out) if _is_pointwise(name, func) else None
        if _is_pointwise(name, func):
            return self.join_masks(_all_tensors(args, kwargs), out)
        if name in MOVES_ELEMENTS or name in SPLITS_TENSOR or name in PICKS_BY_NUMBER:
            return self._move_mask(name, func, args, kwargs, results)
        if name in SPATIAL:
            resized = {d for d in range(x.dim()) if x.shape[d] != out.shape[d]}
            return any_along(self.mask_or_nowhere(x), resized | set(range(min(2, x.dim() - 1), x.dim())))
        if name in ALONG and name != "glu":
            over = dims_run_over(name, args, kwargs)
            mask = any_along(self.mask_or_nowhere(x), over)
            return mask if out.dim() == x.dim() else mask.squeeze(sorted(over))
        if "fake_quantize" in name:
            return self.mask_or_nowhere(x)
        if name in REDUCTIONS:
            return self._reduce_mask(name, args, kwargs, out)
        if name == "im2col":  # [N, C, H, W] -> [N, C * places, windows]
            places = out.shape[-2] // x.shape[-3]
            rows = any_along(self.mask_or_nowhere(x), {x.dim() - 2, x.dim() - 1}).flatten(-2)
            return rows.expand(*rows.shape[:-2], x.shape[-3], 1).repeat_interleave(places, -2)
        if name == "col2im":  # [N, C * places, windows] -> [N, C, H, W]
            rows = any_along(self.mask_or_nowhere(x), {x.dim() - 1}).expand(
                *x.shape[:-1], 1
            )  # one size for all examples
            return torch.unflatten(rows, -2, (out.shape[-3], -1)).any(-2, keepdim=True)
        if name == "constant_pad_nd":
            padded = {x.dim() - 1 - i // 2 for i, amount in enumerate(args[1]) if amount}
            return any_along(self.mask_or_nowhere(x), padded)
        return None

    def is_averaging(self, tensor: Tensor) -> bool:
        """Whether the tensor's rows along the last dimension sum to one."""
        return tensor in self._averaging

    def mask_or_nowhere(self, tensor: Tensor) -> Tensor:
        """The mask of a tensor; if it has none, a mask that marks nothing."""
        found = self.mask_of(tensor)
        return mask_nowhere(tensor) if found is None else found

    def join_masks(self, operands: Iterable[Any], out: Tensor) -> Tensor:
        """Elementwise with broadcasting: data reach a result where they reach any operand."""
        found = mask_nowhere(out)
        for value in operands:
            mask = self.mask_of(value) if isinstance(value, Tensor) else None
            if mask is not None:
                found = found | mask
        return found

    def _mask_product(self, a: Any, b: Any, out: Tensor) -> Tensor:
        """a * b: no data pass if the other factor is an exact zero that no data reach."""
        found = mask_nowhere(out)
        for one, other in ((a, b), (b, a)):
            mask = self.mask_of(one) if isinstance(one, Tensor) else None
            if mask is not None:
                found = found | (mask & ~self._is_zero(other))
        return found

    def _is_zero(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            return torch.tensor(value == 0)
        mask = self.mask_of(value)
        if mask is not None and bool(mask.all()):
            return torch.zeros([1] * value.dim(), dtype=torch.bool, device=value.device)
        zero = value == 0
        return zero if mask is None else zero & ~mask

    def _mask_embedding(self, table: Tensor, numbers: Tensor, out: Tensor) -> Tensor | None:
        """A column that is the same in every row of the table is free of data, whichever row is looked up."""
        if (
            self.mask_of(table) is not None
            or not isinstance(numbers, Tensor)
            or out.shape[-1] != table.shape[1]
        ):
            return None
        differs = (table != table[:1]).any(0)
        return differs.view([1] * (out.dim() - 1) + [-1])

    def _mask_gather(self, x: Tensor, dim: int, numbers: Tensor) -> Tensor | None:
        """What is constant along the dimension is free of data, whichever element of it is taken."""
        if any(n != m for d, (n, m) in enumerate(zip(x.shape, numbers.shape, strict=True)) if d != dim):
            return None
        differs = (x != x.narrow(dim, 0, 1)).any(dim, keepdim=True)
        return compress_labels(differs | any_along(self.mask_or_nowhere(x), {dim}))

    def _mask_batch_norm(self, name: str, args: Any, kwargs: Mapping[str, Any], out: Tensor) -> Tensor | None:
        if any(isinstance(v, Tensor) and self.mask_of(v) is not None for v in args[1:5]):
            return None
        mask = any_along(self.mask_or_nowhere(args[0]), dims_run_over(name, args, kwargs))
        return scale_mask(mask, args[1], range(1, 2), out)

    def _mask_group_norm(self, args: Any, out: Tensor) -> Tensor:
        x, groups = args[0], args[6]
        channels = x.shape[1]
        mask = any_along(self.mask_or_nowhere(x), set(range(2, x.dim())))
        whole_width = mask.expand(-1, channels, *mask.shape[2:])
        together = torch.unflatten(whole_width, 1, (groups, channels // groups))
        reached = together.any(2, keepdim=True).expand_as(together).flatten(1, 2)
        return scale_mask(reached, args[1], range(1, 2), out)

    # moves

    def _move_mask(
        self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], results: Sequence[Tensor]
    ) -> list[Tensor | None]:
        mask = self.mask_or_nowhere(args[0])
        if mask.numel() == 1:
            uniform = bool(mask)
            return [torch.full([1] * v.dim(), uniform, dtype=torch.bool, device=v.device) for v in results]
        full = mask.expand(args[0].shape)
        if name in MOVES:
            own = {k: v for k, v in kwargs.items() if k in ("dims", "dim", "implicit")}
            moved: Any = apply_move(func, full, args[1:], own)
        elif name == "as_strided":
            moved = mask_everywhere(results[0])
        else:
            moved = func(full, *args[1:], **kwargs)
        return [compress_labels(v) for v in flatten_arguments((moved,), {})]

    def _concatenate_masks(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Tensor) -> Tensor:
        masks = [self.mask_or_nowhere(v).expand(v.shape) for v in args[0]]
        if all(bool(mask.all()) for mask in masks):
            return mask_everywhere(out)
        return compress_labels(func(masks, *args[1:], **kwargs))

    def _reduce_mask(self, name: str, args: Any, kwargs: Mapping[str, Any], out: Tensor) -> Tensor | None:
        x = args[0]
        if name in ("argmax", "argmin"):
            return None
        over = dims_run_over(name, args, kwargs)
        mask = any_along(self.mask_or_nowhere(x), over)
        return mask if out.dim() == x.dim() else mask.squeeze(sorted(over))


def _is_pointwise(name: str, func: Any) -> bool:
    return torch.Tag.pointwise in func.tags or name in POINTWISE


def _all_tensors(args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    return [v for v in flatten_arguments(args, kwargs) if isinstance(v, Tensor)]


def _other_tensors(args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors besides the first argument."""
    return [v for v in flatten_arguments(args[1:], kwargs) if isinstance(v, Tensor)]


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
