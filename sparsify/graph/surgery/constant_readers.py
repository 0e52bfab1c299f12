"""Record every product of one forward call that reads removed units."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.graph.model_map import ModelMap
from sparsify.graph.names import all_names, canonical_names, walk_modules
from sparsify.graph.surgery.data_dependence import DataDependence
from sparsify.graph.surgery.data_masks import mask_everywhere
from sparsify.graph.surgery.operations import Keep, removed_branches
from sparsify.graph.surgery.product_operands import Operand, ProductOperands, bias_fits, read_operands
from sparsify.graph.surgery.removed_units import number_units
from sparsify.graph.trace.axis_labels import varying_dims
from sparsify.graph.trace.labels import Labels
from sparsify.graph.trace.made_labels import extend_marks
from sparsify.graph.trace.meta_kernels import short_name
from sparsify.graph.trace.operators import NORMS, flatten_arguments
from sparsify.graph.trace.tracer import Tracer

EXACT = 1e-11
"""largest deviation from one number, relative to the consumer's largest output, that counts as rounding"""


@dataclass
class Reader:
    """One product that reads removed units."""

    module: str
    weight: str
    """name of the parameter that it multiplies by; '' if the other operand is computed"""
    first_element: int
    """offset of the product's weight in that parameter"""
    bias: Tensor | None
    rank: int
    outputs_along: int
    units: Tensor
    """number of the removed unit at each place along the summed dimension, -1 elsewhere; broadcasts to the
    input"""
    constant: Tensor
    """whether no input changes the unit"""
    even: Tensor
    """whether its value is the same at every example and position"""
    read: Tensor
    """whether the product multiplies it by something other than zero"""
    padded: bool
    crossed: bool
    """whether the other operand is computed from data, so that a constant input gives no constant output"""
    largest: float
    kept: Tensor
    """whether each output stays"""
    lost: Callable[[Tensor], Tensor]
    """contribution of the masked inputs to the result"""
    readers: int = 0
    norm: Tensor | None = None
    """running mean of the normalisation that is the only reader of the result"""

    def emits(self) -> Tensor:
        """Where the product reads a constant."""
        return self.constant & self.read


class ConstantTracer(Tracer):  # type: ignore[no-untyped-call]
    """Follows labels and data through one forward call, and records every product that reads removed
    units."""

    def __init__(self, model: nn.Module, model_map: ModelMap, keep: Keep) -> None:
        super().__init__(Labels())
        self.enter_model(model)
        self.dependence = DataDependence()
        self.modules = dict(walk_modules(model))
        self.model_map = model_map
        self.names_by_memory = {t.untyped_storage().data_ptr(): name for name, t in self._owned(model)}
        self.tensors = dict(self._owned(model))
        self._units, self.unit_ranges = number_units(self.labels, model_map, keep)
        self._gone = tuple(removed_branches(model_map, keep))
        self.readers: list[Reader] = []
        self._made_by: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.reads: Counter[tuple[int, int, int]] = Counter()
        """(memory, first element, size) -> how many operators read that tensor"""
        self.calls: Counter[str] = Counter()

    @staticmethod
    def _owned(model: nn.Module) -> list[tuple[str, Tensor]]:
        canonical = canonical_names(model)
        return [(name, tensor) for name, tensor in all_names(model).items() if canonical[name] == name]

    def on_enter(self, name: str, args: Any, kwargs: Any) -> None:
        super().on_enter(name, args, kwargs)
        self.calls[name] += 1

    def protect(self, values: Any, reason: str) -> None:
        """Data leave the traced graph here, so nothing can be derived from what comes back."""
        super().protect(values, reason)
        if any(self.dependence.mask_of(v) is not None for v in tree_leaves(values) if isinstance(v, Tensor)):
            self.dependence.escaped = True

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = short_name(func)
        given = [v for v in flatten_arguments(args, kwargs) if isinstance(v, Tensor)]
        self._note_reads(name, args, given)
        product = read_operands(name, args)
        out = super().run_operator(func, args, kwargs)
        self.dependence.record(name, func, args, kwargs, out)
        if not _is_view(given, out):
            for value in given:
                self.reads[memory_address(value)] += 1
        if product is not None and isinstance(out, Tensor):
            self._note_product(product, func, out)
        return out

    def _note_reads(self, name: str, args: Any, given: Iterable[Tensor]) -> None:
        for value in given:
            reader: Reader | None = self._made_by.get(value)  # type: ignore[no-untyped-call]
            if reader is None:
                continue
            reader.readers += 1
            stored = len(args) > 4 and name in NORMS and args[0] is value and not _uses_batch_statistics(args)
            reader.norm = args[3] if stored else None

    def _note_product(self, product: ProductOperands, func: Any, out: Tensor) -> None:
        if any(b.holds(self.within[-1]) for b in self._gone if self.within):
            return
        sides = [side for side in product.sides if self.dependence.mask_of(side.x) is not None]
        # Without any data (learnt queries), no constant can stand for a unit: its reader counts as living.
        for side in sides or product.sides[:1]:
            for aspect in self.labels_unread(side.x).aspects:
                units = self._units_of(aspect) if side.along in varying_dims(aspect) else None
                if units is not None and bool((units >= 0).any()):
                    self._add_reader(product, side, aspect, units, func, out)

    def _add_reader(
        self,
        product: ProductOperands,
        side: Operand,
        aspect: Tensor,
        units: Tensor,
        func: Any,
        out: Tensor,
    ) -> None:
        x = side.x
        others = [d for d in range(x.dim()) if d not in varying_dims(aspect)]
        reached = self.dependence.mask_of(x)
        # Both operands are computed from data, such as queries and keys.
        crossed = self.dependence.mask_of(side.other) is not None
        without_data = reached is None
        reached = mask_everywhere(x) if reached is None else reached
        wide = reached.any(dim=others, keepdim=True) if others else reached
        constant = (units >= 0) & ~wide.expand(units.shape)
        spread, height = _measure_spread(x, others, units.shape)
        shape, dtype = out.shape, out.dtype
        emits = bool(constant.any())

        def contribute(mask: Tensor) -> Tensor:
            return side.contribution(func, x * mask)

        def contribute_nothing(_mask: Tensor) -> Tensor:
            # Without constants, the input need not be kept in memory until the end.
            return torch.zeros(shape, dtype=dtype)

        along = side.outputs_along % out.dim()
        module = self.within[-1] if self.within else ""
        bias = product.bias if bias_fits(product.bias, side) else None
        largest = float(out.abs().max()) if out.numel() else 0.0
        lost = contribute if emits else contribute_nothing
        reader = Reader(
            module=module,
            weight=self.names_by_memory.get(side.other.untyped_storage().data_ptr(), ""),
            first_element=int(side.other.storage_offset()),
            bias=bias,
            rank=out.dim(),
            outputs_along=along,
            units=units,
            constant=constant,
            even=spread <= EXACT * height,
            # Only what no data reach is known to be zero; data may be zero at these inputs alone.
            read=side.mark_live(units.shape) & ((height > 0) | ~(constant | without_data)),
            padded=product.padded,
            crossed=crossed,
            largest=largest,
            kept=self._mark_kept_outputs(out, along),
            lost=lost,
        )
        self.readers.append(reader)
        if not crossed:
            self._made_by[out] = reader

    def _units_of(self, labels: Tensor) -> Tensor:
        """The removed unit that each label belongs to, or -1."""
        self._units = extend_marks(self._units, self.labels.count, self.labels.made, -1)
        return self._units[labels]

    def _mark_kept_outputs(self, out: Tensor, along: int) -> Tensor:
        gone = torch.zeros(out.shape[along], dtype=torch.bool)
        for aspect in self.labels_unread(out).aspects:
            if varying_dims(aspect) == {along}:
                gone |= self._units_of(aspect.flatten()) >= 0
        return ~gone


def memory_address(tensor: Tensor) -> tuple[int, int, int]:
    """(memory, first element in it, number of elements)"""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.numel()


def _uses_batch_statistics(args: Any) -> bool:
    """Whether a batch normalisation uses the statistics of the batch."""
    return next((a for a in args[3:] if isinstance(a, bool)), False)


def _is_view(given: Sequence[Tensor], out: Any) -> bool:
    """Whether an operator's result is a view of its first argument."""
    if not isinstance(out, Tensor) or not given:
        return (
            isinstance(out, list | tuple)
            and bool(out)
            and isinstance(out[0], Tensor)
            and _is_view(given, out[0])
        )
    return out.untyped_storage().data_ptr() == given[0].untyped_storage().data_ptr()


def _measure_spread(x: Tensor, others: Sequence[int], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """(range of the values, largest absolute value) along some dimensions."""
    if not x.numel():  # such as an expert that no token was sent to
        return torch.zeros(shape), torch.zeros(shape)
    if not others:
        return torch.zeros(shape), x.abs().expand(shape)
    high, low = x.amax(dim=list(others), keepdim=True), x.amin(dim=list(others), keepdim=True)
    return (high - low).expand(shape), torch.maximum(high.abs(), low.abs()).expand(shape)
