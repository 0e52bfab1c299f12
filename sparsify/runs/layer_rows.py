"""The report's row of each layer, with its widths, parameters, zeros and MACs before and after, and of each
mixture of experts."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from sparsify.cost import measure
from sparsify.forward.calls import Inputs
from sparsify.graph import build_map
from sparsify.graph.expert_numbers import find_shortened, list_kept_widths, rename_in_turn
from sparsify.graph.model_map import Layer
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.report import (
    LayerRow,
    MixtureRow,
)


def list_layer_rows(
    plan: Plan, dense: nn.Module, cut: nn.Module, inputs: Inputs, rounds: Sequence[Cuts]
) -> Iterator[LayerRow]:
    """A row for each layer of the dense model, beside what has become of it.

    rounds: the logs of the cuts, which say what number an expert has now.
    """
    shortened = [op for cuts in rounds for op in find_shortened(cuts)]
    macs_before, macs_after = (measure.count_macs(model, inputs)[1] for model in (dense, cut))
    remaining = {layer.name: layer for layer in build_map.list_layers(cut, macs_after)}
    narrowed = _list_narrowed_by_experts(plan, rounds)
    protected = {name: why for name, why in _list_protected(plan).items() if name not in narrowed}
    for before in build_map.list_layers(dense, macs_before):
        params = _count_own_params(dense.get_submodule(before.name))
        name = rename_in_turn(before.name, shortened)
        after = None if name is None else remaining.get(name)
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


def list_mixture_rows(plan: Plan, rounds: Sequence[Cuts]) -> Iterator[MixtureRow]:
    """A row for each mixture of experts that a rule reaches."""
    reached = {name for assignment in plan.assignments for name in assignment.coupled}
    kept = list_kept_widths(rounds)
    for mixture in plan.map.mixtures:
        if mixture.name in reached:
            units = mixture.group.width
            each = mixture.count // units
            yield MixtureRow(
                name=mixture.name,
                type=mixture.type,
                experts=mixture.count,
                experts_after=each * kept.get(mixture.name, units),
                least=each * mixture.group.least,
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


def _list_narrowed_by_experts(plan: Plan, rounds: Sequence[Cuts]) -> set[str]:
    """Layers that lost what belongs to whole experts, as a router whose rows are protected one by one."""
    kept = list_kept_widths(rounds)
    own = [m for m in plan.map.mixtures if kept.get(m.name, m.group.width) < m.group.width]
    return {layer for mixture in own for layer in mixture.group.layers}


def _list_protected(plan: Plan) -> Mapping[str, str]:
    """Layer -> why its output width was kept."""
    reasons = {}
    for group in plan.map.coupled:
        if group.protected and group.is_reached:
            for part in group.slices:
                if part.role == "out":
                    reasons[part.tensor.rpartition(".")[0]] = group.protected
    return reasons
