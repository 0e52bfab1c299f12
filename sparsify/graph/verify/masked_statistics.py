"""Outputs of the masked dense model if statistics are taken over removed units: the statistics leave them
out.

After a cut, a LayerNorm, RMSNorm, GroupNorm, softmax or mean over the cut dimension sees fewer units. The
masked model computes the same: each such operator runs on the kept elements only, and the removed ones
become zero. This holds for normalised weights too (weight standardisation): they are zero at removed
units.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsify.forward.call_model import float_tensors, restore_buffers, whole_tensors
from sparsify.forward.calls import Inputs
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.graph.broadcast_shapes import replace_length
from sparsify.graph.model_map import Sum
from sparsify.graph.peft_adapters import call_in_each_state
from sparsify.graph.precision import keep_double
from sparsify.graph.trace.axis_labels import AxisLabels, varying_dims
from sparsify.graph.trace.labels import Labels
from sparsify.graph.trace.made_labels import extend_marks
from sparsify.graph.trace.operators import (
    ALONG,
    DISTANCES,
    LOSSES,
    NORMS,
    REDUCTIONS,
    decompose_operators,
    dims_run_over,
    without_grouped_experts,
)
from sparsify.graph.trace.tracer import Tracer
from sparsify.graph.trace.zero_branches import zero_branches

FURTHER_NORMS = frozenset(["native_layer_norm", "native_group_norm", "_weight_norm_interface"])
MIXING_OPERATORS = (REDUCTIONS | ALONG | NORMS | DISTANCES | FURTHER_NORMS | frozenset(LOSSES)) - {"glu"}
"""operators whose result at one place depends on other places"""
PRODUCTS = frozenset(
    "mm addmm bmm baddbmm addbmm mv addmv linear convolution deform_conv2d _grouped_mm".split()
)


class MaskedTracer(Tracer):  # type: ignore[no-untyped-call]
    """Traces again, and runs operators that mix elements on the kept ones only."""

    def __init__(self, labels: Labels) -> None:
        super().__init__(labels)
        self.removed = torch.zeros(1, dtype=torch.bool)
        self.given = 0
        """how many labels parameters and buffers have"""
        self.own: set[int] = set()
        """addresses of the model's own parameters and buffers, and of views of them"""

    def run_plain(self, _name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if _name in PRODUCTS:
            args = tuple(map(self._zero_removed, args))
        x = args[0] if args else None
        if not isinstance(x, Tensor) or _name not in MIXING_OPERATORS:
            return func(*args, **kwargs)
        axis_labels = self._join_operands(x, args) if _name in LOSSES else self.labels_of(x)
        kept = {
            dim: stays.to(x.device)
            for dim in dims_run_over(_name, args, kwargs)
            if (stays := self._kept_indices(axis_labels, dim)) is not None
        }
        return self._run_on_kept(_name, func, args, kwargs, kept) if kept else func(*args, **kwargs)

    def label_created(self, name: str, out: Any) -> AxisLabels | None:
        """The rows of an identity matrix are whole here: what it is multiplied by has the zeros."""
        return None if name == "eye" else super().label_created(name, out)

    def _join_operands(self, x: Tensor, args: Any) -> AxisLabels:
        """The labels of all operands of a loss."""
        return self.algebra.join_elementwise(
            x.shape, [self.labels_of(value) for value in args if isinstance(value, Tensor)]
        )

    def _zero_removed(self, tensor: Any) -> Any:
        """A weight that was computed from others, with zeros at removed units; anything else as it is."""
        if not isinstance(tensor, Tensor):
            return tensor
        axis_labels = self.labels_of(tensor)
        if not axis_labels.parameter or tensor.untyped_storage().data_ptr() in self.own:
            return tensor
        gone = [self._leaves(aspect).to(tensor.device) for aspect in axis_labels.aspects]
        return reduce(lambda t, own: t.masked_fill(own, 0.0), gone, tensor)

    def _leaves(self, labels: Tensor) -> Tensor:
        """Whether each label is removed."""
        self.removed = extend_marks(self.removed, self.labels.count, self.labels.made, False)
        return self.removed[labels]

    def mark_named(self) -> Tensor:
        """Whether each label that the call made is removed: those of zeros leave with what they are joined
        with."""
        removed = extend_marks(self.removed, self.labels.count, self.labels.made, False).numpy()
        classes = self.labels.find_joined()
        leaving = np.setdiff1d(classes[removed], classes[:1])  # label 0 stays
        for axis in self.labels.named:
            own = slice(axis.first, axis.first + axis.size)
            removed[own] |= np.isin(classes[own], leaving)
        return torch.from_numpy(removed[self.given :])

    def _kept_indices(self, axis_labels: AxisLabels, dim: int) -> Tensor | None:
        """Indices along a dimension at which something is kept; None if all are."""
        for aspect in axis_labels.aspects:
            if dim in varying_dims(aspect):
                stays = (~self._leaves(aspect)).movedim(dim, 0).reshape(aspect.shape[dim], -1).any(1)
                if not bool(stays.all()):
                    return torch.nonzero(stays).flatten()
        return None

    def _run_on_kept(self, name: str, func: Any, args: Any, kwargs: Any, kept: Mapping[int, Tensor]) -> Any:
        x = args[0]
        beside = name in DISTANCES or name in LOSSES
        rest = list(args[1:])
        if beside:
            rest = [_select_kept(value, x.dim(), kept) for value in rest]
        for dim, stays in kept.items():
            if name == "native_layer_norm":
                place = dim - x.dim() + len(rest[0])
                rest[0] = replace_length(rest[0], place, len(stays))
                rest[1:3] = [_select_along(value, place, stays) for value in rest[1:3]]
            if name == "native_group_norm":
                rest[0:2] = [_select_along(value, 0, stays) for value in rest[0:2]]
                rest[3], rest[5] = len(stays), _count_groups(stays, x.shape[1], rest[5])
        out = func(_select_kept(x, x.dim(), kept), *rest, **kwargs)
        if beside or name in REDUCTIONS:
            return out
        filled = reduce(
            lambda t, d: _scatter_kept(t, d, kept[d], x.shape[d]),
            kept,
            out if isinstance(out, Tensor) else out[0],
        )
        return filled if isinstance(out, Tensor) else (filled, *out[1:])


def _count_groups(stays: Tensor, channels: int, groups: int) -> int:
    """How many of equal groups of channels have some that stay: whole groups leave, or the same places of
    all."""
    return len(torch.unique(stays // (channels // groups)))


def _select_along(operand: Any, dim: int, stays: Tensor) -> Any:
    """The kept elements along one dimension; what is no tensor as it is."""
    return operand.index_select(dim, stays) if isinstance(operand, Tensor) else operand


def _select_kept(operand: Any, rank: int, kept: Mapping[int, Tensor]) -> Any:
    """The kept elements of an operand that broadcasts to `rank` dimensions; what is no tensor as it is."""
    if not isinstance(operand, Tensor):
        return operand
    for dim, stays in kept.items():
        own = dim - rank + operand.dim()
        if own >= 0 and operand.shape[own] > 1:
            operand = operand.index_select(own, stays)
    return operand


def _scatter_kept(narrow: Tensor, dim: int, places: Tensor, size: int) -> Tensor:
    """Put kept indices of a dimension back to their places, with zeros between them."""
    zeros = narrow.new_zeros(replace_length(narrow.shape, dim, size))
    return zeros.index_copy(dim, places, narrow)


def run_without_removed(
    model: nn.Module,
    inputs: Inputs,
    gone: Mapping[tuple[str, int], Iterable[int]],
    sums: Collection[Sum] = (),
    whole: list[Tensor] | None = None,
) -> list[Tensor]:
    """Outputs of the masked model.

    gone: (tensor, dimension) -> removed indices. sums: the sums whose branches are removed. whole: is given
    the outputs of whole numbers.
    """
    seen: list[Tensor] = [] if whole is None else whole
    found, mode = _run_masked(model, inputs, gone, sums, None, seen)
    if mode.labels.named:  # what they belong to is known at the end
        found, _ = _run_masked(model, inputs, gone, sums, mode.mark_named(), seen)
    return found


def _run_masked(
    model: nn.Module,
    inputs: Inputs,
    gone: Mapping[tuple[str, int], Iterable[int]],
    sums: Collection[Sum],
    made: Tensor | None,
    whole: list[Tensor],
) -> tuple[list[Tensor], MaskedTracer]:
    """The outputs, and the tracer. made: whether each label that the call makes is removed, where known."""
    labels = Labels()
    mode = MaskedTracer(labels)
    mode.enter_model(model)
    mode.own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    mode.given = labels.count
    mode.removed = torch.zeros(labels.count, dtype=torch.bool)
    for axis in labels.axes:
        lost = torch.tensor(sorted(gone.get((axis.tensor, axis.dim), ())), dtype=torch.long)
        mode.removed[axis.first + lost] = True
    if made is not None:
        mode.removed = torch.cat([mode.removed, made])
    with (
        decompose_operators(model),
        without_grouped_experts(model),
        torch.random.fork_rng(devices=[]),
        restore_buffers(model),
        keep_double(model),
        mode,
        zero_branches(model, sums) as restart,
    ):
        found: list[Tensor] = []
        whole.clear()  # of a pass before
        seed_generators(0)
        for output in call_in_each_state(model, inputs):
            found += float_tensors(output)
            whole += whole_tensors(output)
            seed_generators(0)
            restart()
        return found, mode
