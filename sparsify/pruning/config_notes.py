"""Say at plan time what the configuration of a model of transformers cannot express after a cut."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from sparsify.errors import ModelError
from sparsify.graph.copy import copy_to_meta
from sparsify.graph.name_kinds import name_kind
from sparsify.graph.surgery import operations, transformers_config
from sparsify.pruning.planning.candidates import find_unit_multiple
from sparsify.pruning.planning.equal_layers import find_equal_layers
from sparsify.pruning.planning.plan import Assignment, Plan
from sparsify_schemas.group import removes_branches

_FILE = "the export to huggingface writes modeling_cut.py, which is loaded with trust_remote_code=True"


def note_config_limits(plan: Plan, model: nn.Module) -> Iterator[str]:
    """Notes on what `config.json` cannot express; none for other models.

    Whether there is a number for a width is found out on a copy that has lost half of every group.
    """
    if not transformers_config.is_built_from_config(model):
        return
    kind = type(vars(model)["config"]).__name__
    uniform: list[Assignment] = []
    for assignment in plan.assignments:
        rule = plan.recipe.rules[assignment.rule]
        if removes_branches(rule.group):
            yield f"rules.{assignment.rule}: {kind} cannot say which blocks are left: {_FILE}"
            continue
        pair = _find_unequal_pair(plan, assignment, model)
        if pair is None:
            uniform.append(assignment)
            continue
        yield (
            f"rules.{assignment.rule}: '{pair[0]}' and '{pair[1]}' may keep different widths, for which "
            f"{kind} has one number. keep: {{uniform: true}} gives them one width; otherwise {_FILE}"
        )
    reason = _find_missing_number(plan, uniform, model)
    if reason is not None:
        yield f"{reason}: {_FILE}"


def _find_unequal_pair(plan: Plan, assignment: Assignment, model: Any) -> tuple[str, str] | None:
    """Two groups of one rule whose width is one number of the configuration, and may come to differ."""
    if transformers_config.has_lists(model.config):
        return None
    equal = find_equal_layers(plan, assignment)
    seen: dict[tuple[str, int], str] = {}
    for name in assignment.coupled:
        like = name_kind(name), plan.map.by_name[name].width
        first = seen.setdefault(like, name)
        together = name in equal and equal[name] == equal.get(first)
        if first != name and not together:
            return first, name
    return None


def _find_missing_number(plan: Plan, assignments: Sequence[Assignment], model: Any) -> str | None:
    """Why no configuration builds the model with half of these groups; None if one does."""
    keep: dict[str, range] = {}
    for assignment in assignments:
        for name in assignment.coupled:
            width = plan.map.by_name[name].width
            step = find_unit_multiple(plan, assignment, name)
            left = max(step, plan.map.by_name[name].least, width // 2 // step * step)
            if left < width:
                keep[name] = range(left)
    if not keep:
        return None
    try:
        thin = operations.cut_on_trial(copy_to_meta(model), plan.map, keep)
    except Exception:  # a group that cannot be cut so is refused by the cut itself
        return None
    try:
        transformers_config.find_config(thin)
    except ModelError as error:
        return f"with half of each group, {error}"
    return None
