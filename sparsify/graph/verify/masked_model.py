"""Run the masked dense model: removed units and branches at zero, scores of removed experts at minus
infinity."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.forward.calls import Inputs
from sparsify.forward.scratch import find_storage
from sparsify.graph.broadcast_shapes import keep_lengths
from sparsify.graph.model_map import Coupled, ModelMap
from sparsify.graph.names import all_tensors
from sparsify.graph.surgery.operations import Keep, removed_branches, removed_indices
from sparsify.graph.trace.labels import Ints
from sparsify.graph.trace.zero_branches import zero_branches
from sparsify.graph.verify import masked_statistics
from sparsify.graph.verify.router_mask import mask_experts
from sparsify.graph.verify.run_models import (
    list_groups,
    run_model,
)
from sparsify.graph.verify.trial_weights import NOTHING_DRAWN, DrawnWeights


def narrowed_groups(model_map: ModelMap, keep: Keep) -> list[str]:
    return [
        name
        for name, kept in keep.items()
        if len(kept) < model_map.by_name[name].width and not _within_branches(model_map, keep, name)
    ]


def _within_branches(model_map: ModelMap, keep: Keep, name: str) -> bool:
    """Whether a group was removed because all of it is inside removed residual branches."""
    return not keep[name] and name not in {b.name for b in model_map.branches}


def run_masked_model(
    wide: nn.Module,
    model_map: ModelMap,
    keep: Keep,
    inputs: Inputs,
    whole: list[torch.Tensor] | None = None,
    drawn: DrawnWeights = NOTHING_DRAWN,
) -> list[torch.Tensor]:
    """Outputs of the masked dense model.

    whole: is given its outputs of whole numbers. drawn: what the weights of a trial model hold.
    """
    groups, sums = (
        narrowed_groups(model_map, keep),
        [s for b in removed_branches(model_map, keep) for s in b.sums],
    )
    with _mask_units(wide, model_map, keep, drawn), mask_experts(wide, model_map.mixtures, keep):
        if any(model_map.by_name[name].statistics for name in groups):
            # Inside branches that leave as well: what comes out of one has the labels of what it is added to.
            gone: dict[tuple[str, int], set[int]] = {}
            for (tensor, dim, _), lost in removed_indices(
                model_map, {name: keep[name] for name in groups if keep[name]}
            ).items():
                gone.setdefault((tensor, dim), set()).update(lost.tolist())
            masked = masked_statistics.run_without_removed(wide, inputs, gone, sums, whole)
        else:
            with zero_branches(wide, sums) as restart:
                masked = run_model(wide, inputs, restart, whole)
    return masked


def check_same_shapes(
    found: Sequence[torch.Tensor], masked: Sequence[torch.Tensor], groups: Sequence[str]
) -> None:
    """Raises VerificationError if the outputs of the cut model have other shapes than the masked one's."""
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in masked]:
        raise VerificationError(f"the cut model's outputs changed their shapes{list_groups(groups)}")


@contextmanager
def _mask_units(wide: nn.Module, model_map: ModelMap, keep: Keep, drawn: DrawnWeights) -> Iterator[None]:
    """Set the consumers' input slices of every removed unit to zero, and restore them afterwards.

    For a product without a weight (queries times keys), the slices that compute the units are zero as
    well. The weights of removed branches are left as they are.
    Values are restored in single precision: trial models are made in it, and other models are not used
    again. Those that were drawn are drawn again.
    """
    before: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []
    renewed: dict[int, torch.Tensor] = {}
    values = all_tensors(wide)
    with torch.no_grad():
        for tensor, dim, lost in _slices_to_zero(model_map, keep):
            value, at = values[tensor], torch.from_numpy(lost).to(values[tensor].device)
            if drawn.holds(value):
                renewed[find_storage(value)] = value
                _set_to_zero(value, dim, at)
                continue
            own = value.index_select(dim, at)
            before.append((value, dim, at, own.float() if own.dtype == torch.float64 else own))
            value.index_fill_(dim, at, 0.0)
        try:
            yield
        finally:
            for value, dim, at, own in reversed(before):
                value.index_copy_(dim, at, own.to(value.dtype))
            for value in renewed.values():
                drawn.fill(value)


def _set_to_zero(value: torch.Tensor, dim: int, at: torch.Tensor) -> None:
    """Set these indices of a dimension to zero; many of them by a product, which is several times as fast."""
    if 8 * len(at) < value.shape[dim]:
        value.index_fill_(dim, at, 0.0)
        return
    stays = torch.ones(value.shape[dim], dtype=value.dtype, device=value.device).index_fill_(0, at, 0.0)
    value.mul_(stays.view(keep_lengths(value.shape, (dim,))))


def _has_no_reader(group: Coupled) -> bool:
    """Whether no weight reads the units, so that the weights that compute them must be masked."""
    return group.paired or all(part.role != "in" for part in group.slices)


def _slices_to_zero(model_map: ModelMap, keep: Keep) -> Iterator[tuple[str, int, Ints]]:
    branches = {b.name: keep[b.name] for b in removed_branches(model_map, keep)}
    made = {name: kept for name, kept in keep.items() if _has_no_reader(model_map.by_name[name])}
    for chosen, role in (({**keep, **branches}, "in"), ({**made, **branches}, "out")):
        for (tensor, dim, own), lost in removed_indices(model_map, chosen).items():
            if own == role:
                yield tensor, dim, lost
