"""What removed units emit when no input changes it, and what their consumers lose with them.

A removed unit is constant where the weights prove it (see `data_dependence`). A filter of zeros in front
of a normalisation with a shift, or with a bias of its own, is dead and still emits a number. A consumer
with the output y = W x + b loses

    d_o = sum over removed constant inputs c of W[o, c] * x_c

If d is the same at every example and position, it is added to b exactly. If it is not (zeros of a padding,
values that vary along a sequence), its mean is added to b, and the difference from the mean is lost.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from sparsify.forward import calls
from sparsify.forward.call_model import named_inputs
from sparsify.forward.calls import Inputs
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.forward.opaque import is_sparse
from sparsify.graph.model_map import ModelMap
from sparsify.graph.names import all_names, canonical_names, walk_modules
from sparsify.graph.surgery.biases import can_take_bias, find_bias
from sparsify.graph.surgery.constant_shifts import Constants, Shift, ShiftTarget
from sparsify.graph.surgery.data_dependence import DataDependence
from sparsify.graph.surgery.data_masks import mask_everywhere
from sparsify.graph.surgery.operations import Keep, removed_branches
from sparsify.graph.surgery.product_operands import Operand, ProductOperands, bias_fits, read_operands
from sparsify.graph.surgery.removed_units import chosen_units, mark_units, number_units
from sparsify.graph.trace.axis_labels import varying_dims
from sparsify.graph.trace.labels import Labels
from sparsify.graph.trace.meta_kernels import short_name
from sparsify.graph.trace.operators import NORMS, decompose_operators, flatten_arguments
from sparsify.graph.trace.tracer import LeavingTorch, Tracer
from sparsify.graph.trace.zero_branches import zero_branches
from sparsify.nn import attention

EXACT = 1e-11
"""largest deviation from one number, relative to the consumer's largest output, that counts as rounding"""


def find_constants(dense: nn.Module, model_map: ModelMap, keep: Keep, inputs: Inputs) -> Constants:
    """Find what the units not in `keep` emit that no input changes.

    Args:
        dense: a copy of the model in eval mode, in the precision to compute in. Its attention modules are
            replaced by `sparsify.nn.attention`.

    Returns an empty result, without running the model, if no weight is exactly zero.
    """
    if not _has_zeros(dense):
        return Constants()
    for name in [name for name, module in walk_modules(dense) if attention.can_adopt(module)]:
        attention.adopt(dense, name)
    mode = _ConstantTracer(dense, model_map, keep)
    sums = [s for b in removed_branches(model_map, keep) for s in b.sums]
    for _, value in named_inputs(inputs):
        mode.dependence.enter(value)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        seed_generators(0)
        stack.enter_context(decompose_operators(dense))
        stack.enter_context(mode.track_modules(dense))
        stack.enter_context(LeavingTorch(mode))
        stack.enter_context(mode)
        stack.enter_context(zero_branches(dense, sums))
        calls.call_without_copies(dense, inputs)  # on the very tensors that were entered, not on copies
    with torch.no_grad():
        return Constants() if mode.dependence.escaped else mode.constants()


def _has_zeros(model: nn.Module) -> bool:
    """Whether some weight blocks data: a zero slice, a zero factor, or a table column that all rows share."""
    shifts = ("bias", "running_mean", "running_var")
    for name, tensor in all_names(model).items():
        if (
            not tensor.is_floating_point()
            or is_sparse(tensor)
            or not tensor.numel()
            or name.rpartition(".")[2].startswith(shifts)
        ):
            continue
        if tensor.dim() < 2:
            if bool((tensor == 0).any()):
                return True
            continue
        live = tensor != 0
        for dim in range(tensor.dim()):
            others = [d for d in range(tensor.dim()) if d != dim]
            if not bool(live.any(dim=others).all()):
                return True
    return any(
        isinstance(module, nn.Embedding | nn.EmbeddingBag)
        and bool((module.weight == module.weight[:1]).all(0).any())
        for _, module in walk_modules(model)
    )


@dataclass
class _Reader:
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


class _ConstantTracer(Tracer):  # type: ignore[no-untyped-call]
    """Follows labels and data through one forward call and records every product that reads removed units."""

    def __init__(self, model: nn.Module, model_map: ModelMap, keep: Keep) -> None:
        super().__init__(Labels())
        self.enter_model(model)
        self.dependence = DataDependence()
        self._modules = dict(walk_modules(model))
        self._map, self._keep = model_map, keep
        self._names = {t.untyped_storage().data_ptr(): name for name, t in self._owned(model)}
        self._tensors = dict(self._owned(model))
        self._units, self._all_units = number_units(self.labels, model_map, keep)
        self._gone = tuple(removed_branches(model_map, keep))
        self._readers: list[_Reader] = []
        self._made_by: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._reads: Counter[tuple[int, int, int]] = Counter()
        """(memory, first element, size) -> how many operators read that tensor"""
        self._calls: Counter[str] = Counter()

    @staticmethod
    def _owned(model: nn.Module) -> list[tuple[str, Tensor]]:
        canonical = canonical_names(model)
        return [(name, tensor) for name, tensor in all_names(model).items() if canonical[name] == name]

    def on_enter(self, name: str, args: Any, kwargs: Any) -> None:
        super().on_enter(name, args, kwargs)
        self._calls[name] += 1

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
                self._reads[_memory_address(value)] += 1
        if product is not None and isinstance(out, Tensor):
            self._note_product(product, func, out)
        return out

    def _note_reads(self, name: str, args: Any, given: Iterable[Tensor]) -> None:
        for value in given:
            use: _Reader | None = self._made_by.get(value)  # type: ignore[no-untyped-call]
            if use is None:
                continue
            use.readers += 1
            stored = len(args) > 4 and name in NORMS and args[0] is value and not _uses_batch_statistics(args)
            use.norm = args[3] if stored else None

    def _note_product(self, product: "ProductOperands", func: Any, out: Tensor) -> None:
        if any(b.holds(self.within[-1]) for b in self._gone if self.within):
            return
        sides = [side for side in product.sides if self.dependence.mask_of(side.x) is not None]
        # Without any data (learnt queries), no constant can stand for a unit: its reader counts as living.
        for side in sides or product.sides[:1]:
            for aspect in self.labels_unread(side.x).aspects:
                units = self._units[aspect] if side.along in varying_dims(aspect) else None
                if units is not None and bool((units >= 0).any()):
                    self._add_reader(product, side, aspect, units, func, out)

    def _add_reader(
        self,
        product: "ProductOperands",
        side: "Operand",
        aspect: Tensor,
        units: Tensor,
        func: Any,
        out: Tensor,
    ) -> None:
        x = side.x
        others = [d for d in range(x.dim()) if d not in varying_dims(aspect)]
        reached = self.dependence.mask_of(x)
        crossed = (
            self.dependence.mask_of(side.other) is not None
        )  # two computed tensors, such as queries and keys
        without_data = reached is None
        reached = mask_everywhere(x) if reached is None else reached
        wide = reached.any(dim=others, keepdim=True) if others else reached
        constant = (units >= 0) & ~wide.expand(units.shape)
        spread, height = _measure_spread(x, others, units.shape)
        shape, dtype = out.shape, out.dtype
        emits = bool(constant.any())
        use = _Reader(
            module=self.within[-1] if self.within else "",
            weight=self._names.get(side.other.untyped_storage().data_ptr(), ""),
            first_element=int(side.other.storage_offset()),
            bias=product.bias if bias_fits(product.bias, side) else None,
            rank=out.dim(),
            outputs_along=side.outputs_along % out.dim(),
            units=units,
            constant=constant,
            even=spread <= EXACT * height,
            # Only what no data reach is known to be zero; data may be zero at these inputs alone.
            read=side.mark_live(units.shape) & ((height > 0) | ~(constant | without_data)),
            padded=product.padded,
            crossed=crossed,
            largest=float(out.abs().max()) if out.numel() else 0.0,
            kept=self._mark_kept_outputs(out, side.outputs_along % out.dim()),
            # Without constants the input need not be held until the end.
            lost=(lambda mask: side.contribution(func, x * mask))
            if emits
            else lambda _: torch.zeros(shape, dtype=dtype),
        )
        self._readers.append(use)
        if not crossed:
            self._made_by[out] = use

    def _mark_kept_outputs(self, out: Tensor, along: int) -> Tensor:
        gone = torch.zeros(out.shape[along], dtype=torch.bool)
        for aspect in self.labels_unread(out).aspects:
            if varying_dims(aspect) == {along}:
                gone |= self._units[aspect.flatten()] >= 0
        return ~gone

    # after the call

    def constants(self) -> Constants:
        """The constants found; call it after the model has run."""
        by_place: dict[Any, list[_Reader]] = defaultdict(list)
        places: dict[int, ShiftTarget | None] = {}
        for number, use in enumerate(self._readers):
            place = self._find_target(use)
            places[number] = place
            by_place[(place.tensor, int(place.index[0])) if place else number].append(use)
        numbers = {id(use): number for number, use in enumerate(self._readers)}
        complete = {}
        for key, uses in by_place.items():
            place = places[numbers[id(uses[0])]]
            complete[key] = place if place is not None and self._all_covered(place, uses) else None
        exact_units = self._units_without_effect(by_place, complete)
        shifts = [
            shift
            for key, uses in by_place.items()
            for shift in self._make_shifts(uses, complete[key], exact_units)
        ]
        emitted: set[int] = set()
        for use in self._readers:
            emitted |= chosen_units(use.units, use.emits())
        for use in self._readers:
            emitted -= chosen_units(use.units, use.read & ~use.constant)
        return Constants(tuple(shifts), self._group_units(exact_units), self._group_units(emitted))

    def _find_target(self, use: _Reader) -> ShiftTarget | None:
        """Find what can absorb a shift of this product's outputs.

        In order: the bias of the product, the bias of its layer, the normalisation behind it, a new bias.
        """
        if use.crossed:
            return None
        count = len(use.kept)
        everything = torch.arange(count)
        if use.bias is not None:
            name = self._names.get(use.bias.untyped_storage().data_ptr())
            if name is None or use.bias.numel() != count:
                return self._target_masked_bias(use)
            first, step = int(use.bias.storage_offset()), max(use.bias.stride())
            return ShiftTarget("bias", name, first + step * everything)
        module = self._modules.get(use.module)
        weight = use.weight.removeprefix(f"{use.module}.") if use.module else use.weight
        bias = None if module is None else find_bias(module, weight)
        if module is not None and bias is not None:
            name = f"{use.module}.{bias.name}" if use.module else bias.name
            if bias.exists:
                stored = self._names.get(module.get_parameter(bias.name).untyped_storage().data_ptr(), name)
                return ShiftTarget("bias", stored, everything)
            if use.norm is None or use.readers != 1:
                return self._target_new_bias(use, module, name) if can_take_bias(module) else None
        if use.norm is not None and use.readers == 1:
            name = self._names.get(use.norm.untyped_storage().data_ptr())
            if name is not None and use.norm.numel() == count:
                return ShiftTarget("running_mean", name, everything)
        return None

    def _target_masked_bias(self, use: _Reader) -> ShiftTarget | None:
        """The stored bias under a mask of torch.nn.utils.prune, if the mask hides nothing."""
        prefix = f"{use.module}." if use.module else ""
        stored, mask = self._tensors.get(f"{prefix}bias_orig"), self._tensors.get(f"{prefix}bias_mask")
        if stored is None or mask is None or not bool(mask.all()) or stored.numel() != len(use.kept):
            return None
        return ShiftTarget("bias", f"{prefix}bias_orig", torch.arange(len(use.kept)))

    def _target_new_bias(self, use: _Reader, module: nn.Module, name: str) -> ShiftTarget:
        """A bias to be created. In a packed projection it starts at the product's first row."""
        if not isinstance(module, nn.MultiheadAttention):
            return ShiftTarget("bias", name, torch.arange(len(use.kept)), use.module)
        columns = self._tensors[use.weight].shape[1]
        rows = use.first_element // columns + torch.arange(len(use.kept))
        return ShiftTarget("bias", name, rows, use.module, rows_of=use.weight)

    def _all_covered(self, place: ShiftTarget, uses: Sequence[_Reader]) -> bool:
        """Whether these products are the only readers of the target."""
        if place.module:
            products = Counter(use.module for use in uses)[place.module]
            return products == self._calls[place.module] or not isinstance(
                self._modules[place.module], nn.Linear | nn.modules.conv._ConvNd
            )
        if place.tensor.endswith("bias_orig"):
            return True
        memory, *_ = _memory_address(self._tensors[place.tensor])
        first, size = int(place.index[0]), len(place.index)
        reads = {read: count for read, count in self._reads.items() if read[0] == memory}
        others = [
            read
            for read in reads
            if read[1] < first + size and first < read[1] + read[2] and read[1:] != (first, size)
        ]
        return reads.get((memory, first, size), 0) == len(uses) and not others

    def _units_without_effect(
        self, by_place: Mapping[Any, Sequence[_Reader]], places: Mapping[Any, ShiftTarget | None]
    ) -> frozenset[int]:
        """Removed units whose readers all lose nothing, or get it back exactly."""
        seen: set[int] = set()
        harmed: set[int] = set()
        for key, uses in by_place.items():
            agree = places[key] is not None and _lose_the_same(uses)
            for use in uses:
                seen |= chosen_units(use.units, use.units >= 0)
                harmed |= chosen_units(use.units, use.read & ~use.constant)
                exact = use.even & (agree and not use.padded)
                harmed |= chosen_units(use.units, use.emits() & ~exact)
        return frozenset(seen - harmed - self._units_never_harmless())

    def _units_never_harmless(self) -> set[int]:
        """Units of groups with statistics or paired products: removing them always changes the outputs."""
        return {
            number
            for name, (first, count) in self._all_units.items()
            for number in range(first, first + count)
            if self._map.by_name[name].statistics or self._map.by_name[name].paired
        }

    def _group_units(self, units: Collection[int]) -> dict[str, tuple[int, ...]]:
        found = {}
        for name, (first, count) in self._all_units.items():
            own = tuple(unit for unit in range(count) if first + unit in units)
            if own:
                found[name] = own
        return found

    def _make_shifts(
        self, uses: Sequence[_Reader], place: ShiftTarget | None, exact: frozenset[int]
    ) -> Iterator[Shift]:
        """Average what the products that share a target lose."""
        emitting = [use for use in uses if bool(use.emits().any())]
        if not emitting:
            return
        lost = [use.lost(use.emits()) for use in uses]
        rows = [_rows_by_output(d, use.outputs_along) for d, use in zip(lost, uses, strict=True)]
        if len({len(r) for r in rows}) != 1:
            rows, uses, place = rows[:1], uses[:1], None
        values = torch.cat(rows, 1).mean(1)
        kept = uses[0].kept
        for use in uses[1:]:
            kept = kept & use.kept
        deviation = torch.cat([(r - values[:, None]).abs() for r in rows], 1).amax(1)
        if place is None:
            deviation, values = torch.cat([r.abs() for r in rows], 1).amax(1), torch.zeros_like(values)
        largest = max(use.largest for use in uses)
        worst = float(deviation[kept].max()) / largest if bool(kept.any()) and largest else 0.0
        if place is None and worst <= EXACT:
            return
        others = [
            _rows_by_output(use.lost(use.emits() & ~mark_units(use.units, exact)), use.outputs_along)
            for use in uses
        ]
        beside = torch.cat(others, 1).mean(1) if place is not None else torch.zeros_like(values)
        even = not any(use.padded for use in emitting) and worst <= EXACT
        yield Shift(
            module=uses[0].module,
            place=place,
            channels=max(int(use.emits().sum()) for use in emitting),
            values=values,
            beside=beside,
            kept=kept,
            loss=0.0 if even else worst,
            exact=even and place is not None,
        )


def _memory_address(tensor: Tensor) -> tuple[int, int, int]:
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


def _rows_by_output(values: Tensor, along: int) -> Tensor:
    """Reshape to [outputs, everything else]."""
    return values.movedim(along, 0).flatten(1) if values.dim() > 1 else values[:, None]


def _lose_the_same(uses: Sequence[_Reader]) -> bool:
    """Whether all products that share a target lose the same values, as far as their constants are even."""
    if len(uses) == 1:
        return True
    rows = [_rows_by_output(use.lost(use.emits() & use.even), use.outputs_along).mean(1) for use in uses]
    if len({len(r) for r in rows}) != 1:
        return False
    largest = max(use.largest for use in uses)
    return all(float((r - rows[0]).abs().max()) <= EXACT * largest for r in rows)
