"""The points of a profile: what each layer is worth with some of its units gone, measured or predicted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from torch import nn

from sparsify.events import Listener, Measuring
from sparsify.forward.copies import copy_model
from sparsify.graph.group_layouts import coupled_layout
from sparsify.graph.surgery import operations
from sparsify.objective.objective import Evaluation, Objective
from sparsify.pruning import scoring
from sparsify.pruning.criteria.scores import group_scores
from sparsify.pruning.criteria.statistics import gather_statistics
from sparsify.pruning.planning.candidates import list_candidates
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.criterion import Taylor
from sparsify_schemas.profile import Curve, Point, Profile

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Fractions of a layer's units to remove."""
Batches = Sequence[tuple[Any, Any]]


def empty_curves(plan: Plan) -> Iterator[Curve]:
    """A curve without points for each coupled group that the plan reaches."""
    matrices = {layer.name for layer in plan.map.layers if len(layer.weight) > 1}
    for assignment in plan.assignments:
        for name in assignment.coupled:
            group = plan.map.by_name[name]
            tensors = [part.tensor for part in group.slices if part.role == "out"]
            layers = dict.fromkeys(tensor.rpartition(".")[0] for tensor in tensors)
            named = tuple(layer for layer in layers if layer in matrices)
            yield Curve(group=name, layers=named or (name,), width=group.width)


@dataclass(frozen=True)
class Setting:
    """What layers are measured with."""

    plan: Plan
    model: nn.Module
    objective: Objective
    judge: Callable[[nn.Module], Evaluation]
    """loss and metrics of a thinner model on the validation examples"""
    validation: Batches
    training: Batches
    """for criteria that look at data"""


def measure_points(profile: Profile, setting: Setting, listener: Listener) -> Iterator[Profile]:
    """Yield the profile after each point that is added."""
    match profile.by:
        case "ablation":
            yield from _ablate_units(profile, setting, listener)
        case "taylor" | "gsm":
            if not all(curve.points for curve in profile.curves):
                scores = _score_units(setting)
                fill = _predict_losses if profile.by == "taylor" else _rank_globally
                yield profile.model_copy(update={"curves": tuple(fill(profile, scores, setting.plan))})
        case _:
            assert_never(profile.by)


def _ablate_units(profile: Profile, setting: Setting, listener: Listener) -> Iterator[Profile]:
    plan, model = setting.plan, setting.model
    scores, dead, _ = scoring.score_units(plan, model, setting.training, setting.objective)
    order = {found.name: found.order for found in list_candidates(plan, scores, dead)}
    counts = [_removal_counts(curve, plan) for curve in profile.curves]
    total, done = sum(map(len, counts)), 0
    for index, curve in enumerate(profile.curves):
        for share, count in counts[index]:
            done += 1
            if any(point.share == share for point in profile.curves[index].points):
                continue
            listener(Measuring(f"removing units of {curve.group}", done - 1, total))
            kept = sorted(order[curve.group][count:])
            thinner = operations.cut(model, plan.map, {curve.group: kept}, "profile")[0]
            found = setting.judge(thinner)
            point = Point(share=share, removed=count, loss=found.loss, metric=found.deciding)
            profile = _add_point(profile, index, point)
            yield profile
    listener(Measuring("removing units", total, total))


def _removal_counts(curve: Curve, plan: Plan) -> list[tuple[float, int]]:
    """(fraction, units to remove). A layer keeps one unit, a mixture the experts that its router takes; a
    residual branch is removed as a whole."""
    if _is_branch(curve, plan):
        return [(1.0, 1)]
    most = curve.width - plan.map.by_name[curve.group].least
    found = [(share, min(most, round(share * curve.width))) for share in SHARES]
    return [(share, count) for share, count in found if count]


def _is_branch(curve: Curve, plan: Plan) -> bool:
    return curve.group in {branch.name for branch in plan.map.branches}


def _count_most(curve: Curve, plan: Plan) -> int:
    """How many of a layer's units may be ranked as gone: all, or those that a mixture does not need."""
    least = 1 if _is_branch(curve, plan) else plan.map.by_name[curve.group].least
    return curve.width - least if least > 1 else curve.width


def _add_point(profile: Profile, index: int, point: Point) -> Profile:
    curve = profile.curves[index]
    points = sorted((*curve.points, point), key=lambda p: p.share)
    longer = curve.model_copy(update={"points": tuple(points)})
    curves = (*profile.curves[:index], longer, *profile.curves[index + 1 :])
    return profile.model_copy(update={"curves": curves})


def _score_units(setting: Setting) -> dict[str, list[float]]:
    """Coupled group -> the first-order change of the validation loss when each of its units is removed."""
    plan, copy = setting.plan, copy_model(setting.model)
    parameters = dict(copy.named_parameters())
    names = [name for assignment in plan.assignments for name in assignment.coupled]
    layout = coupled_layout(plan.map, names, parameters)
    taylor = Taylor(kind="taylor", batches=len(setting.validation))
    seen = gather_statistics(copy, taylor, setting.validation, setting.objective)
    scores = group_scores(taylor, layout, parameters, seen, plan.recipe.seed)
    return {name: part.tolist() for name, part in layout.split(scores).items()}


def _predict_losses(profile: Profile, scores: Mapping[str, Sequence[float]], plan: Plan) -> Iterator[Curve]:
    for curve in profile.curves:
        ascending = sorted(scores[curve.group])
        points = []
        for share, count in _removal_counts(curve, plan):
            loss = profile.loss + sum(ascending[:count])
            points.append(Point(share=share, removed=count, loss=loss))
        yield curve.model_copy(update={"points": tuple(points)})


def _rank_globally(profile: Profile, scores: Mapping[str, Sequence[float]], plan: Plan) -> Iterator[Curve]:
    ascending = sorted(value for curve in profile.curves for value in scores[curve.group])
    last = len(ascending) - 1
    thresholds = [(share, ascending[min(last, round(share * len(ascending)))]) for share in SHARES]
    for curve in profile.curves:
        points = []
        for share, threshold in thresholds:
            below = sum(value < threshold for value in scores[curve.group])
            removed = min(below, _count_most(curve, plan))
            points.append(Point(share=share, removed=removed))
        yield curve.model_copy(update={"points": tuple(points)})
