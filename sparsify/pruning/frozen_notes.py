"""Say at plan time which penalties act on weights that are frozen."""

from collections.abc import Iterator

from torch import nn

from sparsify.formatting.numbers import count_noun
from sparsify.pruning.planning.plan import Assignment, Plan


def note_frozen_weights(plan: Plan, model: nn.Module) -> Iterator[str]:
    """Notes on rules whose penalty acts on weights that take no gradient: no penalty moves them."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and p.dim() > 1}
    weights = {name for name, p in model.named_parameters() if p.dim() > 1}
    if not frozen or frozen == weights:
        return
    for assignment in plan.assignments:
        if plan.recipe.rules[assignment.rule].penalty is None:
            continue
        reached = _find_tensors(plan, assignment) & weights
        still = reached & frozen
        if still:
            yield (
                f"rules.{assignment.rule}: {len(still)} of the {count_noun(len(reached), 'weight tensor')} "
                "that its penalty reaches are frozen (requires_grad is False), so no group of them becomes "
                "zero by the penalty; what leaves is chosen by the criterion"
            )


def _find_tensors(plan: Plan, assignment: Assignment) -> set[str]:
    """Tensors that a rule's groups reach, or weights that it covers."""
    groups = [plan.map.by_name[name] for name in assignment.coupled]
    return {name for group in groups for name in group.reached} | set(assignment.tensors)
