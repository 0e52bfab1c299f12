"""What of a model is zero during training, and what the model would cost without it."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.distributed import gather_tensor
from sparsify.graph.dead_units import flag_nonzero
from sparsify.graph.group_layouts import inner_layout
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.group import Group, in_one_tensor, within


def measure_sparsity(plan: Plan, dead: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> float:
    """Share of the covered groups (of single weights, for groups `weight` and n:m) that are zero now.

    dead: for every coupled group of the plan, which of its units are dead.
    Where parameters are sharded, all processes must call.
    """
    counts = [(int(flags.sum()), flags.numel()) for flags in dead.values()]
    for group, tensors in _list_inner_groups(plan, parameters):
        weights = {name: parameters[name].detach() for name in tensors}
        counts.append(_count_zero_groups(group, weights) if within(group) else _count_zero_weights(weights))
    zero = sum(zeros for zeros, _ in counts)
    total = sum(every for _, every in counts)
    return zero / total if total else 0.0


def measure_remaining(plan: Plan, costs: Costs, dead: Mapping[str, Tensor]) -> dict[str, float]:
    """MACs, then what is budgeted besides -> share of the dense model that would remain without
    dead units."""
    gone = {name: torch.nonzero(flags).flatten().tolist() for name, flags in dead.items()}
    now, dense = costs.of(gone), costs.dense
    asked = {"macs": 0.0, **absolute_limits(plan.recipe.budget, dense)}
    return {what: now[what] / dense[what] for what in asked if dense[what]}


def _list_inner_groups(plan: Plan, parameters: Mapping[str, Tensor]) -> Iterator[tuple[Group, list[str]]]:
    """Groups inside tensors that rules cover, and in which tensors."""
    for assignment in plan.assignments:
        group = plan.recipe.rules[assignment.rule].group
        if group is not None and in_one_tensor(group):
            yield group, [name for name in assignment.tensors if name in parameters]


def _count_zero_groups(group: Group, weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """(groups that are zero, all groups)."""
    layout = inner_layout(group, weights, weights)
    nonzero = layout.reduce(partial(flag_nonzero, weights))[:-1]
    return int((nonzero == 0).sum()), layout.count


def _count_zero_weights(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """(weights that are zero, all weights)."""
    zero = sum(int(gather_tensor((weight == 0).sum())) for weight in weights.values())
    return zero, sum(weight.numel() for weight in weights.values())


def mask_zeros(parameters: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """For each named tensor 0 where it is zero and 1 elsewhere."""
    return {name: (parameters[name].detach() != 0).to(parameters[name].dtype) for name in names}
