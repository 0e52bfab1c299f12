"""Zeroing: which groups inside weight tensors become zero at the cut, and which units die of it.

The choice is made on the model after the structural choice, so that a pattern such as 2:4 holds in what is
stored. The zeros are then carried back to the dense model: with them it is what the cut model must be equal
to.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsify.cost.measure import copy_model
from sparsify.errors import ModelError
from sparsify.forward.scratch import make_scratch
from sparsify.graph.broadcast_shapes import vector_shape
from sparsify.graph.dead_units import find_dead_units
from sparsify.graph.group_index import broadcast
from sparsify.graph.group_layouts import inner_layout
from sparsify.graph.names import canonical_names
from sparsify.graph.surgery import operations
from sparsify.pruning.criteria.scores import Statistics, group_scores, weight_scores
from sparsify.pruning.planning.candidates import find_unit_multiple, width_kept
from sparsify.pruning.planning.plan import Assignment, Plan, join_ranked
from sparsify.pruning.planning.selection import count_share
from sparsify_schemas.criterion import Criterion
from sparsify_schemas.cuts import Zero, Zeroed
from sparsify_schemas.group import Block, Pattern, facts_of, in_one_tensor
from sparsify_schemas.rule import Rule

Kept = Mapping[str, Sequence[int]]
"""coupled group -> units that stay"""
GatherStatistics = Callable[[nn.Module, Criterion], Statistics | None]
"""(model, criterion) -> what the criterion takes from training data"""


def zero_weights(
    plan: Plan, dense: nn.Module, keep: Kept, gather: GatherStatistics
) -> tuple[nn.Module, tuple[Zeroed, ...]]:
    """The dense model with every group at zero that the rules ask for, and what each of them did."""
    if not find_covered_weights(plan, dense):
        return dense, ()
    thin, _ = operations.cut(dense, plan.map, keep, plan.digest)
    zeroing_log = tuple(_zero_rule(plan, assignment, thin, gather) for assignment in _join_assignments(plan))
    reference, names = make_scratch(dense), canonical_names(dense)
    for name, small in find_covered_weights(plan, thin).items():
        weight = reference.get_parameter(name)
        _place_zeros(weight, small, operations.kept_indices(plan.map, keep, names[name], weight.shape))
    return reference, zeroing_log


def _join_assignments(plan: Plan) -> list[Assignment]:
    """The same, those that compete as one joined under the first of them."""
    inner = list_inner_assignments(plan)
    found = []
    for together in join_ranked(plan):
        own = [assignment for assignment in together if assignment in inner]
        if own:
            tensors = dict.fromkeys(name for assignment in own for name in assignment.tensors)
            found.append(replace(own[0], tensors=tuple(tensors)))
    return found


def list_inner_assignments(plan: Plan) -> list[Assignment]:
    """The rules whose groups lie inside tensors, where they reach any."""
    return [a for a in plan.assignments if in_one_tensor(plan.recipe.rules[a.rule].group) and a.tensors]


def find_covered_weights(plan: Plan, model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights in which such rules set groups to zero, less those that left with a residual branch."""
    there = dict(model.named_parameters(remove_duplicate=False))
    return {name: there[name] for a in list_inner_assignments(plan) for name in a.tensors if name in there}


def count_zeros(plan: Plan, thin: nn.Module) -> tuple[Zero, ...]:
    """How many zeros each of them stores now."""
    return tuple(
        Zero(tensor=name, count=int((w == 0).sum()), size=w.numel())
        for name, w in find_covered_weights(plan, thin).items()
    )


def drop_dead_units(plan: Plan, model: nn.Module, keep: Kept) -> dict[str, list[int]]:
    """`keep` less the units that the zeros of the model leave without any effect, repeated until no more die.

    A unit is dead when its producers' weights are all zero or its consumers' input slices all are. Groups
    that a normalisation takes statistics over stay whole, as do those whose units a pattern counts.
    """
    kept = {name: list(units) for name, units in keep.items()}
    canonical, left = (
        canonical_names(model),
        {t for b in operations.removed_branches(plan.map, keep) for t in b.tensors},
    )
    touched = {canonical[name] for name in find_covered_weights(plan, model)}
    if not touched:
        return kept
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.dim() > 1 and n not in left}
    _zero_removed_units(plan, weights, kept)
    while touched:
        free = [group for group in plan.map.coupled if group.protected is None and not group.statistics]
        open_groups = [group for group in free if not touched.isdisjoint(s.tensor for s in group.slices)]
        names = [c.name for c in open_groups if c.name not in _list_patterned_groups(plan)]
        leaving = {}
        for name, flags in find_dead_units(plan.map, names, weights).items():
            units = _limit_dead(plan, name, kept.get(name), torch.nonzero(flags.cpu()).flatten().tolist())
            if units:
                leaving[name] = units
        if not leaving:
            break
        for name, units in leaving.items():
            kept[name] = sorted(set(kept.get(name, range(plan.map.by_name[name].width))) - set(units))
            touched |= {s.tensor for s in plan.map.by_name[name].slices}
        _zero_removed_units(plan, weights, kept)
    return kept


def _limit_dead(plan: Plan, name: str, kept: Sequence[int] | None, dead: list[int]) -> list[int]:
    """Those of the dead units that may leave: the floors of the group's rule hold, and one unit stays."""
    width, least = plan.map.by_name[name].width, plan.map.by_name[name].least
    stays = set(range(width) if kept is None else kept)
    own = [unit for unit in dead if unit in stays]
    at_least, multiple = next(
        (
            (plan.recipe.rules[a.rule].keep.at_least or 1, find_unit_multiple(plan, a, name))
            for a in plan.assignments
            if name in a.coupled
        ),
        (1, 1),
    )
    left = width_kept(width, width - len(stays) + len(own), max(at_least, least), multiple)
    return own[: max(0, len(stays) - left)]


def _list_patterned_groups(plan: Plan) -> set[str]:
    """Coupled groups along whose units a block or an n:m pattern is laid."""
    found = set()
    for assignment in list_inner_assignments(plan):
        match plan.recipe.rules[assignment.rule].group:
            case Pattern():
                dims = {1}
            case Block(rows, columns):
                dims = {dim for dim, size in enumerate((rows, columns)) if size > 1}
            case _:
                continue
        found |= {
            c.name
            for c in plan.map.coupled
            for s in c.slices
            if s.tensor in assignment.tensors and s.dim in dims
        }
    return found


def _zero_removed_units(plan: Plan, weights: Mapping[str, Tensor], keep: Kept) -> None:
    """Set every slice of the removed units to zero."""
    for (name, dim, role), lost in operations.removed_indices(plan.map, keep).items():
        if role != "size" and name in weights:
            weights[name].index_fill_(dim, torch.tensor(sorted(lost), device=weights[name].device), 0.0)


@torch.no_grad()
def _place_zeros(weight: Tensor, small: Tensor, places: Sequence[Sequence[int]]) -> None:
    """The zeros of a narrowed weight, at their places in the whole one."""
    index = []
    for dim, own in enumerate(places):
        index.append(torch.tensor(own, device=weight.device).view(vector_shape(weight.dim(), dim)))
    weight[tuple(index)] *= small != 0


def _zero_rule(plan: Plan, assignment: Assignment, thin: nn.Module, gather: GatherStatistics) -> Zeroed:
    rule = plan.recipe.rules[assignment.rule]
    copy = copy_model(thin)
    there = dict(copy.named_parameters(remove_duplicate=False))
    weights = {name: there[name] for name in assignment.tensors if name in there}
    chosen = _choose_weights(rule, plan.recipe.seed + assignment.rule, weights, gather(copy, rule.criterion))
    with torch.no_grad():
        for name, gone in chosen.masks.items():
            thin.get_parameter(name).masked_fill_(gone, 0.0)
    total = sum(weight.numel() for weight in weights.values())
    zeros = sum(int(mask.sum()) for mask in chosen.masks.values())
    return Zeroed(
        rule=assignment.rule,
        group=str(rule.group),
        groups=chosen.groups,
        gone=chosen.gone,
        weights=total,
        zeros=zeros,
    )


@dataclass(frozen=True)
class _Choice:
    masks: Mapping[str, Tensor]
    """True where a weight becomes zero"""
    groups: int
    gone: int


def _choose_weights(
    rule: Rule, seed: int, weights: Mapping[str, nn.Parameter], statistics: Statistics | None
) -> _Choice:
    if not weights:
        return _Choice({}, 0, 0)
    match rule.group:
        case "weight":
            scores = [
                _score_elements(rule, name, w, statistics, seed + i)
                for i, (name, w) in enumerate(weights.items())
            ]
            gone = _flag_lowest(torch.cat([s.flatten() for s in scores]), rule)
            parts = torch.split(gone, [w.numel() for w in weights.values()])
            masks = {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}
            return _Choice(masks, len(gone), int(gone.sum()))
        case Pattern() as pattern:
            scored = {
                name: _score_elements(rule, name, w, statistics, seed + i)
                for i, (name, w) in enumerate(weights.items())
            }
            masks = {
                name: _flag_beyond_pattern(pattern, scores) | (weights[name] == 0)
                for name, scores in scored.items()
            }
            total = sum(weight.numel() for weight in weights.values())
            return _Choice(masks, total, sum(int(mask.sum()) for mask in masks.values()))
        case _:
            return _choose_groups(rule, seed, weights, statistics)


def _choose_groups(
    rule: Rule, seed: int, weights: Mapping[str, nn.Parameter], statistics: Statistics | None
) -> _Choice:
    """Shapes, taps or blocks: the lowest scores over all layers of the rule, in none of them below its
    floor."""
    assert rule.group is not None
    layout = inner_layout(rule.group, weights, weights)
    scores = group_scores(rule.criterion, layout, weights, statistics, seed).clone()
    check_scores(scores, weights)
    scores[layout.reduce(lambda name: (weights[name] != 0).to(torch.float32))[:-1] == 0] = -1.0
    if facts_of(rule.group).keep == "groups":
        for own in layout.split(scores).values():
            best = own.topk(min(rule.keep.at_least or 1, len(own))).indices
            own[best[own[best] >= 0]] = torch.inf
    gone = _flag_lowest(scores, rule)
    flags = torch.cat([gone, gone.new_zeros(1)])
    shapes = {name: w.shape for name, w in weights.items()}
    masks = {
        part.name: broadcast(flags, part.axes[0], shapes[part.name]).expand(shapes[part.name])
        for part in layout.parts
    }
    return _Choice(masks, len(gone), int(gone.sum()))


def _score_elements(
    rule: Rule, name: str, weight: nn.Parameter, statistics: Statistics | None, seed: int
) -> Tensor:
    scores = weight_scores(rule.criterion, weight, statistics, seed).clone()
    check_scores(scores, [name])
    scores[weight == 0] = -1.0  # what is zero goes first
    return scores


def _flag_lowest(scores: Tensor, rule: Rule) -> Tensor:
    """Which go: what is zero (-1) in any case, and of the others the lowest, never what a floor holds
    (inf)."""
    count = count_share(len(scores), rule.sparsity.fraction) if rule.sparsity is not None else 0
    gone = scores == -1.0
    gone[scores.topk(count, largest=False).indices] = True
    return gone & (scores < torch.inf)


def _flag_beyond_pattern(pattern: Pattern, scores: Tensor) -> Tensor:
    """Of every `of` weights along the input channels, all but the `stay` highest; a rest of fewer stays
    whole."""
    lined = scores.movedim(1, -1)
    length = lined.shape[-1] // pattern.of * pattern.of
    gone = torch.zeros(lined.shape, dtype=torch.bool, device=scores.device)
    if length:
        runs = lined[..., :length].reshape(*lined.shape[:-1], -1, pattern.of)
        low = runs.topk(pattern.of - pattern.stay, largest=False).indices
        gone[..., :length] = (
            torch.zeros_like(runs, dtype=torch.bool).scatter(-1, low, True).reshape(*lined.shape[:-1], length)
        )
    return gone.movedim(-1, 1)


def check_scores(scores: Tensor, names: Iterable[str]) -> None:
    if not bool(scores.isfinite().all()):
        raise ModelError(
            f"the weights of {', '.join(map(repr, names))} are not finite, or so large that their squares "
            "are not; restart from sound weights"
        )
