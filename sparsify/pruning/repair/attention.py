"""Refit the projections inside torch's nn.MultiheadAttention, which calls no layer for them.

The queries, keys and values that stay are refitted towards those of the dense model. Then the heads run with
the new projections, and `out_proj` is refitted from what they compute towards the outputs of the dense model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.graph.layer_types import PROJECTIONS
from sparsify.nn.attention import MultiheadAttention
from sparsify.pruning.layer_matrix import find_forward
from sparsify.pruning.repair.choose_fit import Settings, choose_fit, repair_row
from sparsify.pruning.repair.positions import Positions, draw_positions, keep_columns, rows_at
from sparsify.pruning.repair.regression import Fit
from sparsify_schemas.report import LayerRepair

PARTS = ("queries", "keys", "values")
ODD_INPUTS = "its inputs are no batches of sequences"
_FORWARDS = (nn.MultiheadAttention.forward, MultiheadAttention.forward)


@dataclass(frozen=True)
class AttentionOutputs:
    """What an attention of the dense model computes at sampled places."""

    name: str
    places: Mapping[str, Positions]
    """the positions, for each of `PARTS` and for 'outputs'"""
    targets: Mapping[str, Tensor]
    """for the same: [rows, features that stay], examples first"""
    addend: Tensor | None
    """the other addend of the sum that the attention ends in, at the places of the outputs"""


def is_attention(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module computes what torch's MultiheadAttention does, by weights of its own."""
    return _attends(module) and _has_own_weights(module)


def is_attention_of_computed(module: nn.Module) -> bool:
    """Whether it does so by weights that are computed, such as under weight_norm."""
    return _attends(module) and not _has_own_weights(module)


def _attends(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    return isinstance(module, nn.MultiheadAttention) and find_forward(module) in _FORWARDS


def _has_own_weights(module: nn.MultiheadAttention) -> bool:
    parts = (module.in_proj_weight,) if module.in_proj_weight is not None else _separate(module)
    weights = (*parts, module.out_proj.weight)
    return all(isinstance(weight, nn.Parameter) for weight in weights)


def projection_names(module: nn.MultiheadAttention) -> tuple[str, ...]:
    """Names of the weights whose rows are queries, keys and values."""
    return PROJECTIONS[:1] if module.in_proj_weight is not None else PROJECTIONS[1:]


def sample_attention(
    name: str,
    module: nn.MultiheadAttention,
    stay: Mapping[str, Tensor],
    outputs_stay: Tensor | None,
    call: tuple[Any, Mapping[str, Any]],
    result: Any,
    addend: Tensor | None,
    count: int,
    generator: torch.Generator,
) -> AttentionOutputs | None:
    """Queries, keys, values and outputs of the dense model; None where it is called in another way.

    Args:
        stay: tensor -> numbers of its rows that the cuts kept; left out where all stay.
        outputs_stay: the same of the outputs.
        call: positional and keyword arguments of the attention.
        result: what it returned.
        addend: the other addend of its sum, of the shape of the outputs.
        count: places of each example that are sampled.
    """
    inputs = _inputs(module, call)
    output = result[0] if isinstance(result, tuple) else result
    if inputs is None or not isinstance(output, Tensor) or output.dim() != 3:
        return None
    rows = _rows_that_stay(module, stay)
    places: dict[str, Positions] = {}
    targets: dict[str, Tensor] = {}
    for part, value, (weight, bias), kept in zip(PARTS, inputs, _projections(module), rows, strict=True):
        places[part] = draw_positions(value, count, generator)
        own = None if bias is None else bias[kept]
        targets[part] = F.linear(rows_at(value, places[part]), weight[kept], own)
    made = _batch_first(module, output)
    where = draw_positions(made, count, generator)
    places["outputs"], targets["outputs"] = where, keep_columns(rows_at(made, where), outputs_stay)
    other = None
    if addend is not None and addend.shape == output.shape:
        other = keep_columns(rows_at(_batch_first(module, addend), where), outputs_stay)
    return AttentionOutputs(name, places, targets, other)


def refit_attention(
    module: nn.MultiheadAttention,
    call: tuple[Any, Mapping[str, Any]],
    dense: AttentionOutputs,
    addend: Tensor | None,
    examples: int,
    settings: Settings,
) -> list[LayerRepair]:
    """Refit an attention of the cut model, given the arguments that it is about to be called with.

    addend: what the output of the attention is added to, if it makes up for what that lost.
    """
    inputs = _inputs(module, call)
    if inputs is None:
        return [repair_row(dense.name, "skipped", reason=ODD_INPUTS)]
    found = []
    names = projection_names(module)
    tensors = names if len(names) > 1 else names * len(PARTS)
    for part, value, (weight, bias), tensor in zip(PARTS, inputs, _projections(module), tensors, strict=True):
        targets = dense.targets[part].float()
        rows = rows_at(value, dense.places[part]).float()
        name = f"{dense.name}.{part}"
        mask = settings.mask_of(f"{dense.name}.{tensor}", weight)
        found.append(_refit_linear(name, weight, bias, rows, targets, examples, settings, mask))
    args, kwargs = call
    with _without_output_projection(module), torch.no_grad():
        result = type(module).forward(module, *args, **kwargs)[0]
    rows = rows_at(_batch_first(module, result), dense.places["outputs"]).float()
    targets = dense.targets["outputs"].float()
    if addend is not None and dense.addend is not None:
        own = rows_at(_batch_first(module, addend), dense.places["outputs"])
        if own.shape == dense.addend.shape:
            targets = targets + (dense.addend - own).float()
    weight, bias = module.out_proj.weight, module.out_proj.bias
    name = f"{dense.name}.out_proj"
    mask = settings.mask_of(f"{name}.weight", weight)
    found.append(_refit_linear(name, weight.detach(), bias, rows, targets, examples, settings, mask))
    return found


def _refit_linear(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    targets: Tensor,
    examples: int,
    settings: Settings,
    mask: Tensor | None,
) -> LayerRepair:
    """Refit a weight [outputs, inputs] and its bias in place; mask: which weights may change."""
    if len(rows) != len(targets) or targets.shape[1] != len(weight):
        reason = "it runs at other places than in the dense model"
        return repair_row(name, "skipped", reason=reason)
    if bias is None:
        intercept = torch.zeros(1, len(weight), dtype=torch.float64, device=weight.device)
    else:
        intercept = bias.detach().double()[None]
    start = Fit(weight.T[None].double(), intercept)
    row, fit = choose_fit(
        name,
        rows[:, None],
        targets[:, None],
        start,
        weight.dtype,
        examples,
        settings,
        shiftable=bias is not None,
        mask=None if mask is None else mask.T[None],
    )
    if fit is not None:
        with torch.no_grad():
            weight.copy_(fit.weight[0].T.to(weight.dtype))
            if bias is not None:
                bias.copy_(fit.intercept[0].to(bias.dtype))
    return row


def _inputs(module: nn.MultiheadAttention, call: tuple[Any, Mapping[str, Any]]) -> list[Tensor] | None:
    """Query, key and value of a call, batch first; None where they are no batches of sequences."""
    args, kwargs = call
    given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs)
    values = [given.get(name) for name in ("query", "key", "value")]
    if not all(isinstance(value, Tensor) and not value.is_nested and value.dim() == 3 for value in values):
        return None
    return [_batch_first(module, value) for value in values if value is not None]


def _batch_first(module: nn.MultiheadAttention, value: Tensor) -> Tensor:
    return value if module.batch_first else value.transpose(0, 1)


def _separate(module: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    return module.q_proj_weight, module.k_proj_weight, module.v_proj_weight


def _projections(module: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of queries, keys and values; those of a packed weight are views of it."""
    packed, bias = module.in_proj_weight, module.in_proj_bias
    weights = _separate(module) if packed is None else packed.detach().chunk(3)
    biases = (None, None, None) if bias is None else bias.detach().chunk(3)
    return [(weight.detach(), own) for weight, own in zip(weights, biases, strict=True)]


def _rows_that_stay(module: nn.MultiheadAttention, stay: Mapping[str, Tensor]) -> list[Tensor]:
    """For queries, keys and values, the rows of their weights that the cuts kept."""
    widths = [len(weight) for weight, _ in _projections(module)]
    names = projection_names(module)
    if len(names) > 1:
        return [stay.get(name, torch.arange(width)) for name, width in zip(names, widths, strict=True)]
    packed = stay.get(names[0], torch.arange(sum(widths)))
    width = widths[0]
    return [packed[packed // width == part] - part * width for part in range(3)]


@contextmanager
def _without_output_projection(module: nn.MultiheadAttention) -> Iterator[None]:
    """Within the block, the attention returns what its heads compute: `out_proj` is the identity."""
    layer = module.out_proj
    weight, bias = layer.weight, layer.bias
    width = weight.shape[1]
    layer.weight = nn.Parameter(torch.eye(width, dtype=weight.dtype, device=weight.device), False)
    if bias is not None:
        layer.bias = nn.Parameter(torch.zeros(width, dtype=bias.dtype, device=bias.device), False)
    try:
        yield
    finally:
        layer.weight, layer.bias = weight, bias
