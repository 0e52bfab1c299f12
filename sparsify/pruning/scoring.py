"""Scores of the units that a plan may remove, from the weights or from batches."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.cost.measure import copy_model
from sparsify.data.targets import split_batch
from sparsify.errors import ModelError
from sparsify.forward.opaque import explain_errors, is_scripted
from sparsify.forward.scratch import copy_to_call
from sparsify.graph.dead_units import find_dead_units
from sparsify.graph.group_layouts import coupled_layout
from sparsify.objective.objective import Objective
from sparsify.pruning.criteria.peer_scores import check_peer_scores, peer_scores
from sparsify.pruning.criteria.reconstruction import CannotScoreError, model_scores
from sparsify.pruning.criteria.scores import group_scores
from sparsify.pruning.criteria.statistics import gather_statistics
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.criterion import Criterion, Magnitude, Reconstruction, TorchPruning
from sparsify_schemas.recipe import Recipe

Batches = Iterable[Any]
"""(inputs, targets) of each batch, or mappings that hold both"""


Scores = dict[str, list[float]]


def take_batches(batches: Batches, recipe: Recipe) -> list[tuple[Any, Any]]:
    """As many of the training batches as the recipe's criteria look at, as (inputs, targets).

    Where no criterion takes gradients, batches need no targets; they are None then. Raises ModelError where
    there are no batches and a criterion looks at some.
    """
    count = count_batches(recipe)
    if not isinstance(batches, Iterable):
        raise ModelError(
            f"batches are an iterable of (x, y) training batches, found {type(batches).__name__}; put a "
            "single batch in a list"
        )
    key = recipe.data.target if recipe.data is not None else None
    name = key if isinstance(key, str) else None
    optional = not takes_targets(recipe)
    taken = [split_batch(batch, name, optional) for batch in islice(batches, count)]
    if count and not taken:
        raise ModelError(
            f"criterion '{find_seeing(recipe)}' looks at training data, and the batches held none; an "
            "iterator that was gone through before gives nothing more"
        )
    return taken


def takes_targets(recipe: Recipe) -> bool:
    """Whether a criterion takes the gradient of the loss."""
    return any(rule.criterion.facts().sees.startswith("gradients") for rule in recipe.rules)


def find_seeing(recipe: Recipe) -> str:
    """The first criterion that looks at training data."""
    return next(rule.criterion.kind for rule in recipe.rules if rule.criterion.count_batches())


def count_batches(recipe: Recipe) -> int:
    return max((rule.criterion.count_batches() for rule in recipe.rules), default=0)


def score_units(
    plan: Plan, model: nn.Module, batches: Sequence[tuple[Any, Any]] | None, objective: Objective | None
) -> tuple[Scores, dict[str, list[bool]], tuple[str, ...]]:
    """What each unit of each coupled group is worth to its rule's criterion, whether it is dead, and notes.

    objective: whose loss' gradients criteria look at; None without batches.
    """
    copy = copy_without_masks(model)
    parameters: dict[str, Tensor] = {}
    for name, parameter in copy.named_parameters():
        parameters[name] = torch.view_as_real(parameter) if parameter.is_complex() else parameter
    criteria = [replace_without_data(rule.criterion, batches) for rule in plan.recipe.rules]
    notes: tuple[str, ...] = ()
    with explain_errors("scoring the units that may go"):
        try:
            scores = _score_groups(plan, copy, parameters, criteria, batches, objective)
        except CannotScoreError as error:
            if error.required:
                raise
            # Scores of two kinds do not compare, so magnitude chooses in all rules that allow it.
            notes = (f"Magnitude chose, in place of criterion 'reconstruction': {error.reason}.",)
            criteria = [_replace_optional(spec) for spec in criteria]
            scores = _score_groups(plan, copy, parameters, criteria, batches, objective)
    _check_scores(plan, scores, criteria, parameters)
    names = [name for a in plan.assignments for name in a.coupled]
    dead = {name: flags.tolist() for name, flags in find_dead_units(plan.map, names, parameters).items()}
    return scores, dead, notes


def _replace_optional(spec: Criterion) -> Criterion:
    optional = isinstance(spec, Reconstruction) and not spec.required
    return Magnitude(kind="magnitude") if optional else spec


def _score_groups(
    plan: Plan,
    copy: nn.Module,
    parameters: Mapping[str, Tensor],
    criteria: Sequence[Criterion],
    batches: Sequence[tuple[Any, Any]] | None,
    objective: Objective | None,
) -> Scores:
    """criteria: of each rule."""
    scores: Scores = {}
    together: list[tuple[Criterion, list[str]]] = []
    for assignment in plan.assignments:
        spec = criteria[assignment.rule]
        layout = coupled_layout(plan.map, assignment.coupled, parameters, spec.facts().roles)
        if layout.count == 0:
            continue
        if spec.facts().sees == "model":
            _add_names(together, spec, assignment.coupled)
            continue
        statistics = gather_statistics(copy, spec, batches, objective)
        seed = plan.recipe.seed + assignment.rule
        if isinstance(spec, TorchPruning):
            made = peer_scores(spec, copy, plan.map, assignment.coupled, statistics, seed, assignment.rule)
            scores |= {name: values.tolist() for name, values in made.items()}
            continue
        values = group_scores(spec, layout, parameters, statistics, seed)
        scores |= {name: part.tolist() for name, part in layout.split(values).items()}
    for spec, names in together:
        assert batches is not None  # magnitude stands in for it otherwise
        found = model_scores(spec, copy, plan.map, names, batches, plan.recipe.seed, plan.recipe.task)
        scores |= {name: values.tolist() for name, values in found.items()}
    return scores


def _add_names(together: list[tuple[Criterion, list[str]]], spec: Criterion, names: Sequence[str]) -> None:
    """Groups of several rules with the same criterion are scored in one pass through the batches."""
    own = next((own for other, own in together if other == spec), None)
    if own is None:
        together.append((spec, list(names)))
    else:
        own += names


def copy_without_masks(model: nn.Module) -> nn.Module:
    """A copy in which what a mask of torch.nn.utils.prune hides is zero."""
    if not any(name.endswith("_mask") for name, _ in model.named_buffers()):
        return copy_to_call(model)
    copy = copy_model(model)
    apply_masks(copy)
    return copy


@torch.no_grad()
def apply_masks(model: nn.Module) -> None:
    """What a mask of torch.nn.utils.prune hides counts as the zero that it acts as."""
    for module in model.modules():
        if is_scripted(module):
            continue
        for name, mask in module.named_buffers(recurse=False):
            orig = module._parameters.get(f"{name.removesuffix('_mask')}_orig")
            if name.endswith("_mask") and orig is not None:
                orig.mul_(mask)


def replace_without_data(spec: Criterion, batches: object) -> Criterion:
    # A preview has no data: it shows what magnitude would choose.
    return Magnitude(kind="magnitude") if spec.count_batches() and batches is None else spec


def check_peers(plan: Plan, model: nn.Module) -> None:
    """Try whether criteria of other packages score what their rules reach. Raises RuleScoreError."""
    copy: nn.Module | None = None
    for assignment in plan.assignments:
        spec = plan.recipe.rules[assignment.rule].criterion
        if isinstance(spec, TorchPruning):
            copy = copy_without_masks(model) if copy is None else copy
            seed = plan.recipe.seed + assignment.rule
            check_peer_scores(spec, copy, plan.map, assignment.coupled, seed, assignment.rule)


def _check_scores(
    plan: Plan, scores: Scores, criteria: Sequence[Criterion], parameters: Mapping[str, Tensor]
) -> None:
    """Raises ModelError for scores that are not finite, and says whether the weights or the data are to
    blame."""
    for assignment in plan.assignments:
        for name in assignment.coupled:
            if torch.tensor(scores.get(name, ())).isfinite().all():
                continue
            spec = criteria[assignment.rule]
            parts = coupled_layout(plan.map, [name], parameters, spec.facts().roles).parts
            is_sound = all(bool(parameters[part.name].norm().isfinite()) for part in parts)
            if spec.count_batches() and is_sound:
                raise ModelError(
                    f"criterion '{spec.kind}' comes to no finite number for '{name}', whose weights are "
                    "finite: the training batches hold NaN or infinity, or what the model makes of them is "
                    "not finite; look at the batches"
                )
            raise ModelError(
                f"the weights of '{name}' or of what is coupled to it are not finite, or so large that their "
                "norms are not; restart from sound weights"
            )
