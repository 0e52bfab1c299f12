"""From a plan's rules to penalties that are ready to act on a model's parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.distributed import local_part
from sparsify.errors import ModelError
from sparsify.graph.group_index import Layout
from sparsify.graph.group_layouts import coupled_layout, element_layout, inner_layout, layer_layout
from sparsify.pruning.criteria.scores import group_scores
from sparsify.pruning.planning.group_types import group_type_of
from sparsify.pruning.planning.plan import Assignment, Plan, join_ranked
from sparsify.pruning.planning.selection import choose
from sparsify.recipe.schedules import needs_steps, value
from sparsify.training.penalties import build
from sparsify.training.penalties.auto_strength import TunedPenalty
from sparsify.training.penalties.group_lasso import group_norms
from sparsify.training.penalties.group_weights import weigh_groups
from sparsify.training.penalties.step_action import Action
from sparsify.training.penalties.topk import Portions, flag_lowest, list_portions
from sparsify_schemas.budget import Budget
from sparsify_schemas.criterion import Magnitude
from sparsify_schemas.group import in_one_tensor, is_unstructured, within
from sparsify_schemas.penalty import GroupLasso, GrowingL2, Penalty
from sparsify_schemas.rule import Rule
from sparsify_schemas.schedule import Auto
from sparsify_schemas.units import Duration


@dataclass(frozen=True)
class Regularizer:
    """One penalty, ready to act."""

    spec: Penalty
    rule: int
    """the plan's rule that it is of, the first where several share it"""
    layouts: tuple[Layout, ...]
    names: tuple[str, ...]
    """the tensors that it covers"""
    action: Action
    share: float
    """what the rule's own `sparsity` removes; 0 without one"""
    tuned: TunedPenalty | None
    """how its strength is found, where it is not given"""


def build_regularizers(
    plan: Plan, parameters: Mapping[str, Tensor], steps_per_epoch: int | None, steps: int | None
) -> list[Regularizer]:
    """The penalties of every rule that has one and reaches a parameter. Raises ModelError."""
    found = [
        _build_regularizer(plan, together, parameters, steps_per_epoch, steps)
        for together in join_ranked(plan)
    ]
    return [regularizer for regularizer in found if regularizer is not None]


def compute_strength(
    regularizer: Regularizer, step: int, steps_per_epoch: int, steps: int, span: tuple[int, int]
) -> float | None:
    """Of a penalty at a step: lambda, for agp the share that is held at zero,
    None where there is no such thing.

    span: steps of the last cut and of the next one, or of the stage's beginning and
    end; agp goes from one to the other.
    """
    if regularizer.action.strength_at is not None:
        return regularizer.action.strength_at(step, span, steps_per_epoch)
    given = regularizer.spec.facts().strength
    if isinstance(given, Auto):
        return float(regularizer.action.state["strength"])
    return None if given is None else value(given, step, steps_per_epoch, steps)


def _build_regularizer(
    plan: Plan,
    together: Sequence[Assignment],
    parameters: Mapping[str, Tensor],
    steps_per_epoch: int | None,
    steps: int | None,
) -> Regularizer | None:
    rule = plan.recipe.rules[together[0].rule]
    if rule.penalty is None or not _has_goal(plan, rule):
        return None
    _check_lengths(rule.penalty, together[0].rule, steps_per_epoch, steps)
    layouts = [_make_layout(plan, plan.recipe.rules[a.rule], a, parameters) for a in together]
    layouts = [layout for layout in layouts if layout.parts]
    if not layouts:
        return None
    share, single = (
        rule.sparsity.fraction if rule.sparsity is not None else 0.0,
        in_one_tensor(rule.group) and not within(rule.group),
    )
    names = tuple(dict.fromkeys(part.name for layout in layouts for part in layout.parts))
    roots = _weigh_norms(plan, rule, together[0], layouts[0], parameters)
    action = build(rule.penalty, layouts, parameters, share=share, single=single, roots=roots)
    if isinstance(rule.penalty, GrowingL2):
        here = {name: local_part(parameter.detach()) for name, parameter in parameters.items()}
        action.state["chosen"].copy_(_choose_removed(plan, rule, layouts[0], parameters, here, share))
    among = list_portions([layouts[0]], parameters)
    return Regularizer(
        rule.penalty,
        together[0].rule,
        tuple(layouts),
        names,
        action,
        share,
        _make_tuned(rule, layouts[0], roots, action, among),
    )


def _has_goal(plan: Plan, rule: Rule) -> bool:
    """Whether a penalty that aims at something has it; after the cut what the recipe asked for is done."""
    match None if rule.penalty is None else rule.penalty.facts().goal:
        case "sparsity":
            return rule.sparsity is not None
        case "sparsity or budget":
            return rule.sparsity is not None or plan.recipe.budget != Budget()
        case None:
            return True


def _weigh_norms(
    plan: Plan, rule: Rule, assignment: Assignment, layout: Layout, parameters: Mapping[str, Tensor]
) -> Tensor:
    """What a lasso weighs each slot's norm by, else sqrt(|g|) with all that leaves with the group."""
    if isinstance(rule.penalty, GroupLasso):
        return weigh_groups(rule.penalty, plan, layout, parameters)
    arrives = rule.penalty is not None and rule.penalty.facts().reach == "arrivals"
    if arrives and not in_one_tensor(rule.group):
        layout = coupled_layout(plan.map, assignment.coupled, parameters)
    return layout.sizes(parameters).sqrt()


def _make_layout(plan: Plan, rule: Rule, assignment: Assignment, parameters: Mapping[str, Tensor]) -> Layout:
    """The groups, or weights, that a rule's penalty acts on."""
    assert rule.penalty is not None and rule.group is not None
    if within(rule.group):
        return inner_layout(rule.group, assignment.tensors, parameters)
    inside = in_one_tensor(rule.group)
    match rule.penalty.facts().reach:
        case "elements":
            return element_layout(assignment.tensors, parameters)
        case "arrivals" if inside:
            return element_layout(assignment.tensors, parameters)
        case "arrivals":
            return coupled_layout(plan.map, assignment.coupled, parameters, frozenset({"in"}))
        case "units" if not inside:
            return coupled_layout(plan.map, assignment.coupled, parameters)
        case "units" | "slices" | "weights":
            role = group_type_of(rule.group).role
            dims = {s.tensor: s.dim for c in plan.map.coupled for s in c.slices if s.role == role}
            return layer_layout([(t, dims.get(t, 0)) for t in assignment.tensors], parameters)


def _choose_removed(
    plan: Plan,
    rule: Rule,
    layout: Layout,
    parameters: Mapping[str, Tensor],
    here: Mapping[str, Tensor],
    share: float,
) -> Tensor:
    """Single weights, or slots, that a cut by magnitude would remove now;
    the spare slot stays. here: this process's parts."""
    if within(rule.group):
        norms = (group_norms(layout, here) / layout.sizes(here).sqrt())[:-1]
        return torch.cat([flag_lowest([norms], share), torch.zeros(1, dtype=torch.bool, device=norms.device)])
    if in_one_tensor(rule.group):
        return flag_lowest(
            [here[part.name] for part in layout.parts], share, list_portions([layout], parameters)
        )
    names = [name for a in plan.assignments for name in a.coupled]
    every = coupled_layout(plan.map, names, parameters)
    scores = every.split(group_scores(Magnitude(kind="magnitude"), every, here, None, 0))
    keep = choose(plan, {name: own.tolist() for name, own in scores.items()}, {})
    flags = torch.ones(layout.count + 1, dtype=torch.bool)
    for name, own in layout.split(flags).items():
        own[keep[name]] = False
    flags[-1] = False
    return flags


def _make_tuned(
    rule: Rule, layout: Layout, roots: Tensor, action: Action, among: Portions
) -> TunedPenalty | None:
    facts = None if rule.penalty is None else rule.penalty.facts()
    if facts is None or not isinstance(facts.strength, Auto):
        return None
    share = None if rule.sparsity is None else rule.sparsity.fraction
    criterion = (
        rule.criterion if isinstance(rule.criterion, Magnitude) else Magnitude(kind="magnitude")
    )  # others need data
    return TunedPenalty(
        facts.strength,
        criterion,
        facts.every,
        layout,
        roots,
        action.state,
        share,
        is_unstructured(rule.group),
        among,
    )


def _check_lengths(spec: Penalty, rule: int, steps_per_epoch: int | None, steps: int | None) -> None:
    if steps_per_epoch is not None and steps is not None:
        return
    facts = spec.facts()
    _refuse_lengths(any(_needs_stage_length(moment) for moment in facts.moments), f"rules.{rule}.penalty")
    if isinstance(facts.strength, Auto):
        raise ModelError(
            f"rules.{rule}.penalty.strength is 'auto', which needs to know how long the stage is: pass "
            "steps_per_epoch=len(loader) and steps=epochs * len(loader) to attach"
        )
    if facts.strength is not None:
        _refuse_lengths(needs_steps(facts.strength), f"rules.{rule}.penalty.strength")


def _needs_stage_length(moment: Duration) -> bool:
    return moment.unit != "it" and moment.value != 0


def _refuse_lengths(needed: bool, path: str) -> None:
    if needed:
        raise ModelError(
            f"{path} counts in epochs or in shares of the stage: pass steps_per_epoch=len(loader) and "
            "steps=epochs * len(loader) to attach, or write the schedule in steps (200it)"
        )
