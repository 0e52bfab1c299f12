"""What removed units emit when no input changes it, and what their consumers lose with them.

A removed unit is constant where the weights prove it (see `data_dependence`). A filter of zeros in front
of a normalisation with a shift, or with a bias of its own, is dead and still emits a number. A consumer
with the output y = W x + b loses

    d_o = sum over removed constant inputs c of W[o, c] * x_c

If d is the same at every example and position, it is added to b exactly. If it is not (zeros of a padding,
values that vary along a sequence), its mean is added to b, and the difference from the mean is lost.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward import calls
from sparsify.forward.call_model import named_inputs
from sparsify.forward.calls import Inputs
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.forward.opaque import is_sparse
from sparsify.graph.dead_units import is_alive_everywhere
from sparsify.graph.model_map import ModelMap
from sparsify.graph.names import all_names, walk_modules
from sparsify.graph.surgery.constant_readers import EXACT, ConstantTracer, Reader
from sparsify.graph.surgery.constant_shifts import Constants, Shift, ShiftTarget
from sparsify.graph.surgery.operations import Keep, removed_branches
from sparsify.graph.surgery.removed_units import chosen_units, mark_units
from sparsify.graph.surgery.shift_targets import find_target, is_covered
from sparsify.graph.trace.operators import decompose_operators
from sparsify.graph.trace.tracer import LeavingTorch
from sparsify.graph.trace.zero_branches import zero_branches
from sparsify.nn import attention


def find_constants(dense: nn.Module, model_map: ModelMap, keep: Keep, inputs: Inputs) -> Constants:
    """Find what the units not in `keep` emit that no input changes.

    Args:
        dense: a copy of the model in eval mode, in the precision to compute in. Its attention modules are
            replaced by `sparsify.nn.attention`.

    Returns an empty result, without running the model, if no weight is exactly zero.
    """
    if not has_zeros(dense):
        return Constants()
    for name in [name for name, module in walk_modules(dense) if attention.can_adopt(module)]:
        attention.adopt(dense, name)
    mode = ConstantTracer(dense, model_map, keep)
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
        return Constants() if mode.dependence.escaped else _derive_constants(mode)


def has_zeros(model: nn.Module) -> bool:
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
        if is_alive_everywhere(tensor):
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


def _derive_constants(tracer: ConstantTracer) -> Constants:
    """Derive the constants from what a traced forward call recorded."""
    by_target: dict[Any, list[Reader]] = defaultdict(list)
    targets: dict[int, ShiftTarget | None] = {}
    for number, reader in enumerate(tracer.readers):
        target = find_target(tracer, reader)
        targets[number] = target
        by_target[(target.tensor, int(target.index[0])) if target else number].append(reader)
    numbers = {id(reader): number for number, reader in enumerate(tracer.readers)}
    complete = {}
    for key, readers in by_target.items():
        target = targets[numbers[id(readers[0])]]
        complete[key] = target if target is not None and is_covered(tracer, target, readers) else None
    exact_units = _units_without_effect(tracer, by_target, complete)
    shifts = [
        shift
        for key, readers in by_target.items()
        for shift in _make_shifts(readers, complete[key], exact_units)
    ]
    emitted: set[int] = set()
    for reader in tracer.readers:
        emitted |= chosen_units(reader.units, reader.emits())
    for reader in tracer.readers:
        emitted -= chosen_units(reader.units, reader.read & ~reader.constant)
    return Constants(tuple(shifts), _group_units(tracer, exact_units), _group_units(tracer, emitted))


def _units_without_effect(
    tracer: ConstantTracer,
    by_target: Mapping[Any, Sequence[Reader]],
    targets: Mapping[Any, ShiftTarget | None],
) -> frozenset[int]:
    """Removed units whose readers all lose nothing, or get it back exactly."""
    seen: set[int] = set()
    harmed: set[int] = set()
    for key, readers in by_target.items():
        agree = targets[key] is not None and _lose_the_same(readers)
        for reader in readers:
            seen |= chosen_units(reader.units, reader.units >= 0)
            harmed |= chosen_units(reader.units, reader.read & ~reader.constant)
            exact = reader.even & (agree and not reader.padded)
            harmed |= chosen_units(reader.units, reader.emits() & ~exact)
    return frozenset(seen - harmed - _units_never_harmless(tracer))


def _units_never_harmless(tracer: ConstantTracer) -> set[int]:
    """Units of groups with statistics or paired products: removing them always changes the outputs."""
    return {
        number
        for name, (first, count) in tracer.unit_ranges.items()
        for number in range(first, first + count)
        if tracer.model_map.by_name[name].statistics or tracer.model_map.by_name[name].paired
    }


def _group_units(tracer: ConstantTracer, units: Collection[int]) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, (first, count) in tracer.unit_ranges.items():
        own = tuple(unit for unit in range(count) if first + unit in units)
        if own:
            found[name] = own
    return found


def _make_shifts(
    readers: Sequence[Reader], target: ShiftTarget | None, exact: frozenset[int]
) -> Iterator[Shift]:
    """Average what the products that share a target lose."""
    emitting = [reader for reader in readers if bool(reader.emits().any())]
    if not emitting:
        return
    lost = [reader.lost(reader.emits()) for reader in readers]
    rows = [_rows_by_output(d, reader.outputs_along) for d, reader in zip(lost, readers, strict=True)]
    if len({len(r) for r in rows}) != 1:
        rows, readers, target = rows[:1], readers[:1], None
    values = torch.cat(rows, 1).mean(1)
    kept = readers[0].kept
    for reader in readers[1:]:
        kept = kept & reader.kept
    deviation = torch.cat([(r - values[:, None]).abs() for r in rows], 1).amax(1)
    if target is None:
        deviation, values = torch.cat([r.abs() for r in rows], 1).amax(1), torch.zeros_like(values)
    largest = max(reader.largest for reader in readers)
    worst = float(deviation[kept].max()) / largest if bool(kept.any()) and largest else 0.0
    if target is None and worst <= EXACT:
        return
    others = [
        _rows_by_output(reader.lost(reader.emits() & ~mark_units(reader.units, exact)), reader.outputs_along)
        for reader in readers
    ]
    masked = torch.cat(others, 1).mean(1) if target is not None else torch.zeros_like(values)
    even = not any(reader.padded for reader in emitting) and worst <= EXACT
    channels = max(int(reader.emits().sum()) for reader in emitting)
    yield Shift(
        module=readers[0].module,
        target=target,
        channels=channels,
        values=values,
        masked=masked,
        kept=kept,
        loss=0.0 if even else worst,
        exact=even and target is not None,
    )


def _rows_by_output(values: Tensor, along: int) -> Tensor:
    """Reshape to [outputs, everything else]."""
    return values.movedim(along, 0).flatten(1) if values.dim() > 1 else values[:, None]


def _lose_the_same(readers: Sequence[Reader]) -> bool:
    """Whether all products that share a target lose the same values, as far as their constants are even."""
    if len(readers) == 1:
        return True
    rows = [
        _rows_by_output(reader.lost(reader.emits() & reader.even), reader.outputs_along).mean(1)
        for reader in readers
    ]
    if len({len(r) for r in rows}) != 1:
        return False
    largest = max(reader.largest for reader in readers)
    return all(float((r - rows[0]).abs().max()) <= EXACT * largest for r in rows)
