"""Fold what removed units still emitted into the biases of their consumers, or into the BatchNorm behind
them."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from sparsify.errors import VerificationError
from sparsify.graph.expert_numbers import rename
from sparsify.graph.model_map import ModelMap
from sparsify.graph.names import all_names
from sparsify.graph.precision import DOUBLE, widen_tensor
from sparsify.graph.surgery.biases import create_bias
from sparsify.graph.surgery.constant_shifts import Shift, ShiftTarget
from sparsify.graph.surgery.expert_lists import list_shortened
from sparsify.graph.surgery.operations import Keep, removed_indices
from sparsify.graph.trace.labels import Ints
from sparsify_schemas.cuts import AddBias, Fold


@dataclass(frozen=True)
class FoldResult:
    """What folding did to a cut model."""

    operations: tuple[AddBias | Fold, ...] = ()
    """the log, in order"""
    values: Mapping[str, Tensor] = field(default_factory=dict)
    """tensor -> its new value before rounding to the model's precision"""


def fold_constants(
    thin: nn.Module,
    shifts: Iterable[Shift],
    model_map: ModelMap,
    keep: Keep,
    created: Collection[str] | None = None,
) -> FoldResult:
    """Give the cut model, in place, what it lost with constant units.

    created: the layers that got a bias in the log that was replayed on this model. Other layers get no
    bias, and what they lost is not restored.
    """
    gone: dict[str, list[tuple[int, Ints]]] = defaultdict(list)
    for (tensor, dim, role), lost in removed_indices(model_map, keep).items():
        if role != "size":
            gone[tensor].append((dim, lost))
    shapes = {tensor.name: tensor.shape for tensor in model_map.tensors}
    operations: list[AddBias | Fold] = []
    values: dict[str, Tensor] = {}
    shortened = list_shortened(model_map, keep)
    for shift in shifts:
        module = rename(shift.module, shortened)
        if module is None:
            continue  # the consumer left with an expert
        shift = replace(shift, module=module)
        target = shift.target
        layer = "" if target is None else rename(target.module, shortened)
        if created is not None and target is not None and layer not in ("", *created):
            target = None
            shift = replace(shift, target=None, exact=False)
        if target is not None:
            if created is None and layer and AddBias(module=layer) not in operations:
                create_bias(thin, layer)
                operations.append(AddBias(module=layer))
            numbers = shift.values[shift.kept]
            if target.rows_of:
                rows = [(dim, lost) for dim, lost in gone[target.rows_of] if dim == 0]
                stays = _mark_kept_elements(shapes[target.rows_of][:1], rows)
                numbers = _scatter_values(shift.values, target, len(stays))[stays]
            elif not target.module:
                stays = _mark_kept_elements(shapes[target.tensor], gone[target.tensor])
                numbers = _scatter_values(shift.values, target, len(stays))[stays]
            tensor = rename(target.tensor, shortened) or target.tensor
            destination = _find_tensor(thin, tensor)
            old = values.get(tensor, destination.detach().to("cpu", numbers.dtype))
            values[tensor] = old + shift.sign * numbers.view(destination.shape)
        operations.append(_log_entry(shift))
    for name, value in values.items():
        _write_tensor(_find_tensor(thin, name), value)
    return FoldResult(tuple(operations), values)


def _log_entry(shift: Shift) -> Fold:
    return Fold(
        module=shift.module or "the model",
        channels=shift.channels,
        exact=shift.exact,
        loss=shift.loss,
        into="nothing" if shift.target is None else shift.target.into,
    )


def add_shifts_of_masked_units(model: nn.Module, shifts: Iterable[Shift]) -> None:
    """Give a dense model, in place, the shifts of the constants that its mask sets to zero."""
    created: set[str] = set()
    for shift in shifts:
        target = shift.target
        if target is None or not bool((shift.masked != 0).any()):
            continue
        if target.module and target.module not in created:
            create_bias(model, target.module)
            created.add(target.module)
        destination = _find_tensor(model, target.tensor)
        if _computes_in_double(model):
            widen_tensor(destination)
        numbers = _scatter_values(shift.masked, target, destination.numel()).view(destination.shape)
        _write_tensor(destination, destination.detach() + shift.sign * numbers.to(destination.device))


def _computes_in_double(model: nn.Module) -> bool:
    return any(parameter.dtype in DOUBLE for parameter in model.parameters())


def _find_tensor(model: nn.Module, name: str) -> Tensor:
    return all_names(model)[name]


@torch.no_grad()
def _write_tensor(destination: Tensor, value: Tensor) -> None:
    destination.copy_(value)


def _scatter_values(values: Tensor, target: ShiftTarget, size: int) -> Tensor:
    """The values at their elements of the target's tensor, zeros elsewhere."""
    return values.new_zeros(size).index_copy(0, target.index, values)


def _mark_kept_elements(shape: tuple[int, ...], gone: Iterable[tuple[int, Ints]]) -> Tensor:
    """Whether each element of a flattened tensor of the dense model stays."""
    stays = torch.ones(shape, dtype=torch.bool)
    for dim, lost in gone:
        stays.index_fill_(dim, torch.from_numpy(lost), False)
    return stays.flatten()


def write_unrounded_values(model: nn.Module, values: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write folded values without rounding into a float64 copy, so that rounding does not hide
    differences.

    dtype: precision of the delivered model.
    Raises VerificationError if the model does not hold the rounded value.
    """
    for name, value in values.items():
        destination = _find_tensor(model, name)
        widen_tensor(destination)
        if not torch.equal(value.to(dtype).to(destination), destination.detach()):
            raise VerificationError(f"'{name}' of the cut model does not hold what was folded into it")
        _write_tensor(destination, value)


def keep_harmless_units(keep: Keep, whole: Mapping[str, tuple[int, ...]]) -> dict[str, list[int]]:
    """What the masked model keeps: the units that stay, and those whose removal changes nothing."""
    return {name: sorted({*kept, *whole.get(name, ())}) for name, kept in keep.items()}
