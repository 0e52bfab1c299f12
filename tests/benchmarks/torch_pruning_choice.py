"""What torch-pruning's own pruner would remove, for a cut by sparsify: the same layers, the same cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparsify.cost.cost_model import Costs
from sparsify.forward.copies import copy_model
from sparsify.objective.objective import CLASSIFICATION, Objective, measure_batch
from sparsify.pruning.planning.plan import Plan

TORCH_PRUNING = {"torch_pruning taylor": "TaylorImportance", "torch_pruning magnitude": "MagnitudeImportance"}
"""name in the tables -> importance"""
IMPORTANCES = {name: {"kind": "torch_pruning", "importance": kind} for name, kind in TORCH_PRUNING.items()}
"""the same as criteria of a recipe: with equal numbers from every block its own pruner has no more to say"""
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
TRIALS = 8
"""halvings of the range of ratios: to a part in 256"""


class TorchPruningFailed(Exception):
    """Its pruner raised an error."""


def choose_by_torch_pruning(
    plan: Plan,
    model: nn.Module,
    name: str,
    share: int,
    batches: Sequence[Any],
    objective: Objective = CLASSIFICATION,
) -> Mapping[str, list[int]]:
    """Coupled group -> units that its pruner keeps, in one ranking over all layers of the plan.

    The smallest ratio is taken at which no more than `share` percent of the MACs are left. At most nine
    tenths of a layer leave, as without such a bound it removes whole layers.

    batches: (inputs, targets), of which the gradients are made. Raises TorchPruningFailed.
    """
    model = copy_model(model)
    for x, y in batches:
        measure_batch(objective, model, x, y).backward()
    reached = {group for assignment in plan.assignments for group in assignment.coupled}
    group_of = {
        part.tensor.removesuffix(".weight"): group.name
        for group in plan.map.by_name.values()
        for part in group.slices
        if part.role == "out" and part.tensor.endswith(".weight")
    }
    costs = Costs(plan.map)
    example = torch.zeros_like(batches[0][0][:1])

    def remove(ratio: float) -> dict[str, list[int]]:
        try:
            return _remove(model, example, name, ratio, group_of, reached)
        except Exception as error:
            raise TorchPruningFailed(f"at ratio {ratio:g}: {type(error).__name__}: {error}") from error

    low, high = 0.0, 1.0
    for _ in range(TRIALS):
        middle = (low + high) / 2
        fits = costs.of(remove(middle))["macs"] <= costs.dense["macs"] * share / 100
        low, high = (low, middle) if fits else (middle, high)
    removed = remove(high)
    widths = {group: plan.map.by_name[group].width for group in reached}
    return {group: sorted(set(range(widths[group])) - set(removed.get(group, ()))) for group in reached}


def _remove(
    model: nn.Module,
    example: torch.Tensor,
    name: str,
    ratio: float,
    group_of: Mapping[str, str],
    reached: set[str],
) -> dict[str, list[int]]:
    """Coupled group -> units that leave at this ratio; the model stays as it is."""
    import torch_pruning as tp

    thinner = copy_model(model)
    for own, other in zip(thinner.parameters(), model.parameters(), strict=True):
        own.grad = None if other.grad is None else other.grad.clone()
    names = {module: path for path, module in thinner.named_modules()}
    open_layers = {path for path in group_of if group_of[path] in reached}
    ignored = [m for m, path in names.items() if isinstance(m, LAYERS) and path not in open_layers]
    pruner = tp.pruner.BasePruner(
        thinner,
        example,
        importance=getattr(tp.importance, TORCH_PRUNING[name])(),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=0.9,
        ignored_layers=ignored,
    )
    found = {}
    for group in pruner.step(interactive=True):
        dependency, places = group[0]
        found[group_of[names[dependency.target.module]]] = sorted(places)
        group.prune()
    return found
