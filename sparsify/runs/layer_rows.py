"""The report's row of each layer: its widths, parameters, zeros and MACs before and after."""

from collections.abc import Iterator, Mapping

from torch import nn

from sparsify.cost import measure
from sparsify.forward.calls import Inputs
from sparsify.graph import build_map
from sparsify.graph.model_map import Layer
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.report import (
    LayerRow,
)


def list_layer_rows(plan: Plan, dense: nn.Module, cut: nn.Module, inputs: Inputs) -> Iterator[LayerRow]:
    macs_before, macs_after = (measure.count_macs(model, inputs)[1] for model in (dense, cut))
    remaining = {layer.name: layer for layer in build_map.list_layers(cut, macs_after)}
    protected = _list_protected(plan)
    for before in build_map.list_layers(dense, macs_before):
        params = _count_own_params(dense.get_submodule(before.name))
        after = remaining.get(before.name)
        if after is None:
            yield _row_of_removed_layer(before, params)
            continue
        module = cut.get_submodule(after.name)
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        yield LayerRow(
            name=before.name,
            type=before.type,
            kind=_name_kind(before),
            inputs=before.inputs,
            inputs_after=after.inputs,
            outputs=before.outputs,
            outputs_after=after.outputs,
            params=params,
            params_after=_count_own_params(module),
            zeros=float((weight == 0).float().mean()) if weight is not None else 0.0,
            macs=before.macs,
            macs_after=after.macs,
            protected=protected.get(before.name),
        )


def _name_kind(layer: Layer) -> str | None:
    return layer.kind if layer.ancestors else None


def _row_of_removed_layer(layer: Layer, params: int) -> LayerRow:
    """The row of a layer that was removed as a whole."""
    return LayerRow(
        name=layer.name,
        type=layer.type,
        kind=_name_kind(layer),
        inputs=layer.inputs,
        inputs_after=0,
        outputs=layer.outputs,
        outputs_after=0,
        params=params,
        params_after=0,
        zeros=0.0,
        macs=layer.macs,
        macs_after=0,
        removed=True,
    )


def _count_own_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _list_protected(plan: Plan) -> Mapping[str, str]:
    """Layer -> why its output width was kept."""
    reasons = {}
    for group in plan.map.coupled:
        if group.protected and group.is_reached:
            for part in group.slices:
                if part.role == "out":
                    reasons[part.tensor.rpartition(".")[0]] = group.protected
    return reasons
