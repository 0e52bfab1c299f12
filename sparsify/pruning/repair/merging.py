"""Add what removed units computed to the kept units that are most like them, without looking at data.

A unit's row is what makes it: the weights of its layer times g = gamma / sqrt(var + eps) of the batch
normalisation right behind, and its intercept, as the weight of an input that is always 1. With r_j the row of
a removed unit and r_i that of the kept one with the largest cosine,

    x_j ~ s x_i,    s = <r_j, r_i> / <r_i, r_i>,    so    W[:, i] <- W[:, i] + s W[:, j]

in each layer that reads them. Positive homogeneous activations such as ReLU keep s, which is positive; others
keep it nearly. A depthwise layer behind multiplies s by the ratio of its own rows.

Source: neuron merging (Kim et al., NeurIPS 2020), with the least-squares scale in place of the norms' ratio.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.graph.layer_types import WEIGHTS, is_depthwise, is_transposed_linear
from sparsify.graph.model_map import Coupled, ModelMap
from sparsify.graph.surgery.operations import to_indices
from sparsify.pruning.criteria.reconstruction import find_readers
from sparsify.pruning.layer_matrix import (
    groups_of,
    is_product,
    is_product_of_computed,
    set_weight,
    weight_matrix,
)
from sparsify.pruning.repair.kept_outputs import find_kept_outputs, find_zeroed_tensors, kept_columns
from sparsify.pruning.repair.skipped_layers import COMPUTED, OTHER_EXAMPLES, make_member_test
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.report import LayerRepair

LEAST_COSINE = 0.45
"""units that are less alike are not merged; the paper's threshold"""
OTHER_FORM = "since the cut it has a smaller kernel, or gathers its inputs"
CHANGED_SINCE = (
    "its weights are no longer those that the cut left: merge right after the cut, before any other repair "
    "or training"
)


@dataclass(frozen=True)
class _Rows:
    """What makes the units of a group, layer by layer: [units, numbers]."""

    own: Tensor
    followers: tuple[Tensor, ...]
    """of depthwise layers behind"""


@dataclass(frozen=True)
class _Partner:
    """A kept unit that stands for a removed one."""

    removed: int
    kept: int
    scale: float


def merge_units(
    dense: nn.Module, model: nn.Module, model_map: ModelMap, cuts: Cuts
) -> tuple[LayerRepair, ...]:
    """Fold removed units into kept ones, in place.

    Args:
        dense: the model before the cut.
        model: what the cut left.
        model_map: of the dense model.
        cuts: the log of the cut.
    """
    zeroed = find_zeroed_tensors((cuts,))
    is_member = make_member_test((cuts,))
    taken: dict[str, int] = {}
    lost: dict[str, int] = {}
    reasons: dict[str, str] = {}
    columns, outputs = kept_columns(dense, (cuts,)), find_kept_outputs(dense, (cuts,))
    changed = {
        layer: _find_change(dense, model, layer, stay, outputs.get(layer))
        for layer, stay in columns.items()
        if not is_member(layer)
    }
    widths = {width.group: width for width in cuts.widths}
    for group in model_map.coupled:
        width = widths.get(group.name)
        if width is None:
            continue
        keep = to_indices(width.keep).tolist()
        gone = sorted(set(range(group.width)) - set(keep))
        if not gone:
            continue
        rows = _rows_of(dense, model_map, group)
        partners = [] if isinstance(rows, str) else list(_partners(rows, keep, gone))
        for layer in _list_computed_readers(dense, group):
            lost[layer] = lost.get(layer, 0) + len(gone)
            taken.setdefault(layer, 0)
            reasons[layer] = COMPUTED
        for reader in find_readers(dense, group):
            layer = reader.layer
            stay = columns.get(layer)
            if stay is None:
                continue  # it reads the group in another way than by its columns
            lost[layer] = lost.get(layer, 0) + len(gone)
            if is_member(layer):
                taken.setdefault(layer, 0)
                reasons[layer] = OTHER_EXAMPLES
                continue
            if f"{layer}.weight" in zeroed:
                taken.setdefault(layer, 0)
                reasons[layer] = "the cut set single weights of it to zero, which stay"
                continue
            if changed[layer]:
                taken.setdefault(layer, 0)
                reasons[layer] = changed[layer]
                continue
            taken[layer] = taken.get(layer, 0) + len(partners)
            if isinstance(rows, str):
                reasons[layer] = rows
            _add_columns(dense, model, layer, reader.columns, stay, outputs.get(layer), partners)
    return tuple(_report(layer, taken[layer], lost[layer], reasons.get(layer)) for layer in lost)


def _report(layer: str, taken: int, lost: int, reason: str | None) -> LayerRepair:
    if not taken:
        why = reason or "no unit that stayed is like those that it lost"
        return LayerRepair(layer=layer, outcome="skipped", reason=why)
    return LayerRepair(layer=layer, outcome="merged", reason=f"{taken} of the {lost} units that it lost")


def _rows_of(dense: nn.Module, model_map: ModelMap, group: Coupled) -> _Rows | str:
    """The rows of a group's units, or why they are not known."""
    if group.statistics:
        return "a normalisation takes statistics over the units"
    own: list[Tensor] = []
    followers: list[Tensor] = []
    for part in group.slices:
        layer, _, tensor = part.tensor.rpartition(".")
        layer, _, computed = layer.partition(".parametrizations.")
        if part.role != "out" or computed == "bias" or tensor.startswith(("bias", "running_", "num_batches")):
            continue
        module = dense.get_submodule(layer)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if is_product_of_computed(module):
            return f"'{layer}' makes them by a weight that is computed from other tensors"
        if not is_product(module) or any(span.repeat != 1 for span in part.spans):
            return f"'{layer}' makes them, which is no convolution and no Linear layer"
        rows = _layer_rows(dense, model_map, group, layer)
        alone = groups_of(module) == 1
        if len(rows) != group.width or not (alone or is_depthwise(module)):
            return f"'{layer}' makes several outputs of a unit, or some units in groups"
        (own if alone else followers).append(rows)
    if len(own) != 1:
        return f"{len(own)} layers make the units together"
    return _Rows(own[0], tuple(followers))


def _list_computed_readers(dense: nn.Module, group: Coupled) -> Iterator[str]:
    """Layers that the units go into by a weight that is computed from other tensors."""
    ends = tuple(f".{name}" for name in WEIGHTS)
    for part in group.slices:
        if part.role != "in" or not part.tensor.endswith(ends):
            continue
        layer = part.tensor.rpartition(".")[0].partition(".parametrizations.")[0]
        module = dense.get_submodule(layer)
        # A norm of the weight reads its rows too, which are the outputs.
        turned = is_transposed_linear(module) or isinstance(module, nn.modules.conv._ConvTransposeNd)
        if is_product_of_computed(module) and part.dim == (0 if turned else 1):
            yield layer


def _layer_rows(dense: nn.Module, model_map: ModelMap, group: Coupled, layer: str) -> Tensor:
    """g W and g (b - mean) + beta of each output."""
    module = dense.get_submodule(layer)
    matrix = weight_matrix(module).double()  # [groups, columns, outputs]
    rows = matrix.permute(0, 2, 1).flatten(0, 1)
    bias = module._parameters.get("bias")
    intercept = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    intercept = intercept if bias is None else bias.detach().double()
    norm = _norm_behind(dense, model_map, group, layer)
    if norm is not None and norm.running_mean is not None and norm.running_var is not None:
        gain = (norm.running_var.double() + norm.eps).rsqrt()
        shift = torch.zeros_like(gain)
        if norm.weight is not None:
            gain, shift = gain * norm.weight.detach().double(), norm.bias.detach().double()
        rows = gain[:, None] * rows
        intercept = gain * (intercept - norm.running_mean.double()) + shift
    return torch.cat([rows, intercept[:, None]], dim=1)


def _norm_behind(
    dense: nn.Module, model_map: ModelMap, group: Coupled, layer: str
) -> nn.modules.batchnorm._BatchNorm | None:
    """The batch normalisation of the group that comes next to a layer in the model."""
    names = [one.name for one in model_map.layers]
    following = names[names.index(layer) + 1 :][:1]
    for name in following:
        module = dense.get_submodule(name)
        if name in group.layers and isinstance(module, nn.modules.batchnorm._BatchNorm):
            return module
    return None


def _partners(rows: _Rows, keep: list[int], gone: list[int]) -> Iterator[_Partner]:
    """For removed units, the kept ones that are most like them."""
    if not keep:
        return
    scales = torch.ones(len(gone), len(keep), dtype=rows.own.dtype, device=rows.own.device)
    cosines = scales.clone()
    for part in (rows.own, *rows.followers):
        weights = part[:, :-1]
        products = part[gone] @ part[keep].T
        norms = part[keep].square().sum(1)
        scales *= products / norms.clamp_min(torch.finfo(norms.dtype).tiny)
        sizes = part[gone].norm(dim=1)[:, None] * norms.sqrt()
        alike = products / sizes.clamp_min(torch.finfo(norms.dtype).tiny)
        dead = ~weights[gone].any(1)  # constant units; what they emitted is folded already
        alike[dead] = -1
        cosines = torch.minimum(cosines, alike)
    best = cosines.max(1)
    for number, unit in enumerate(gone):
        if float(best.values[number]) >= LEAST_COSINE:
            place = int(best.indices[number])
            yield _Partner(unit, keep[place], float(scales[number, place]))


def _find_change(dense: nn.Module, model: nn.Module, layer: str, stay: Tensor, outputs: Tensor | None) -> str:
    """Why columns of the dense layer do not fit to those of the cut one; '' where they do.

    stay: columns of the dense weight that the cut kept, in order.
    """
    as_cut = _dense_matrix(dense, layer, outputs)[stay]
    module = model.get_submodule(layer)
    matrix = weight_matrix(module)[0] if is_product(module) else None
    if matrix is None or matrix.shape != as_cut.shape:
        return OTHER_FORM
    return "" if torch.equal(matrix, as_cut.to(matrix)) else CHANGED_SINCE


def _dense_matrix(dense: nn.Module, layer: str, outputs: Tensor | None) -> Tensor:
    """The dense weight, [columns, outputs that stay]."""
    matrix = weight_matrix(dense.get_submodule(layer))[0]
    return matrix if outputs is None else matrix[:, outputs.to(matrix.device)]


def _add_columns(
    dense: nn.Module,
    model: nn.Module,
    layer: str,
    columns: tuple[Tensor, ...],
    stay: Tensor,
    outputs: Tensor | None,
    partners: list[_Partner],
) -> None:
    """Add scaled columns of the dense layer to those of the cut one.

    columns: unit -> columns of the dense weight; stay: those of them all that the cut kept, in order.
    """
    before = _dense_matrix(dense, layer, outputs).double()
    matrix = weight_matrix(model.get_submodule(layer)).double()
    place = {int(number): at for at, number in enumerate(stay)}
    for partner in partners:
        into = [place[int(number)] for number in columns[partner.kept]]
        matrix[0, into] += partner.scale * before[columns[partner.removed]].to(matrix.device)
    set_weight(model.get_submodule(layer), matrix)
