"""What each layer bears to lose: the validation loss and accuracy against the share of its units that is gone.

By ablation units leave one layer at a time, lowest scores of the rule's criterion first, and what is left is validated. By
taylor nothing is tried: the loss is predicted to rise by the sum over these units of | sum over w of w * dL/dw |, the mean over
batches (arXiv:1906.10771, equation 8). By gsm the units of all layers are ranked together by that number, as global sparse
momentum does each step (arXiv:1909.12778), and each layer shows how many of its own would be left out.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import assert_never

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sparsify import files
from sparsify.cost.measure import copy_model
from sparsify.data import Datasets, Examples, batches, load_data
from sparsify.errors import DataError, RunError, first_line
from sparsify.events import Listener, Measuring, silence
from sparsify.files import read
from sparsify.graph.group_index import coupled_layout
from sparsify.graph.surgery import operations
from sparsify.pruning import scoring
from sparsify.pruning.criteria.scores import group_scores
from sparsify.pruning.criteria.statistics import looks
from sparsify.pruning.fitting_inputs import inputs_for
from sparsify.pruning.make_plan import plan_recipe
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import candidates
from sparsify.recipe import Loaded
from sparsify.runs import run_folder
from sparsify.runs.setup import Job, Source, asked, dense_model
from sparsify.training.objective import check_trainable, evaluate, mean_loss
from sparsify.training.stage import derived_seed
from sparsify_schemas.budget import Budget
from sparsify_schemas.criterion import Taylor
from sparsify_schemas.group import in_one_tensor
from sparsify_schemas.profile import By, Curve, Point, Profile, Tolerance
from sparsify_schemas.recipe import Rule
from sparsify_schemas.units import Share

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""of a layer's units that leave"""
EXAMPLES = 1000
"""validation examples that a layer is judged on, where there are as many"""
_BATCH = 100
Training = Sequence[tuple[Tensor, Tensor]]


def profile(
    recipe: Source,
    model_file: str | Path | None,
    out: Path,
    *,
    by: By = "ablation",
    tolerance: Tolerance | None = None,
    examples: int = EXAMPLES,
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    listener: Listener = silence,
) -> Profile:
    """Judge every layer that the rules reach, and write the profile to `out` after each measurement: what was cut short goes on.

    tolerance: sets limits, the largest share within it up to which all smaller ones are as well: points of accuracy by
    ablation, a share of the loss by taylor; by gsm the share of all units that is left out.
    Raises a SparsifyError; RunError when `out` holds a profile of something else.
    """
    job = asked(
        recipe, model_file, overrides, allow, False, False, limits=False
    )  # they may be what is about to be written
    wanted = job.loaded.recipe
    if wanted.data is None:
        raise DataError(
            "the recipe has no 'data', and layers are judged on validation examples; write 'data: {source: ...}'"
        )
    datasets = load_data(wanted.data, wanted.seed)
    if not len(datasets.validation):
        raise DataError("there is no validation data to judge layers on; write data.validation above 0%")
    own = _sample(datasets.validation, examples, wanted.seed)
    with torch.random.fork_rng(devices=[]):
        model, _ = dense_model(job)
        check_trainable(model, datasets)
        plan = _plan(job.loaded, model, datasets)
        loss, accuracy = evaluate(model, own)
        whole = Profile(
            by=by,
            digest=_digest(job, by, len(own)),
            network=plan.map.network,
            examples=len(own),
            loss=loss,
            accuracy=accuracy,
            curves=tuple(_curves(plan)),
        )
        found = _going_on(out, whole)
        train = batches(datasets.train, 64, seed=derived_seed(wanted.seed, 0, 0))
        for longer in _judged(found, plan, model, own, scoring.taken(train, wanted), listener):
            found = longer
            write(found, out)
    found = with_limits(found, tolerance)
    write(found, out)
    return found


def read_profile(path: Path) -> Profile:
    """A profile from its file. Raises RunError."""
    try:
        return Profile.model_validate_json(read(path))
    except ValidationError as error:
        raise RunError(
            f"{path} is damaged, no profile of a network ({first_line(error)}); delete it, or name another file with --out"
        ) from None


def write(profile: Profile, path: Path) -> None:
    """Whole or not at all. Raises RunError."""
    files.write(path, (profile.model_dump_json(indent=1) + "\n").encode())


def with_limits(profile: Profile, tolerance: Tolerance | None) -> Profile:
    """The profile with the limits that a tolerance comes to; with those it has where none is given. Residual branches get none."""
    if tolerance is None:
        return profile
    found = {
        curve.group: Share(round(100 * _most(profile, curve, tolerance.fraction), 4), "%")
        for curve in profile.curves
        if curve.width > 1
    }
    return profile.model_copy(update={"tolerance": str(tolerance), "limits": found})


def _most(profile: Profile, curve: Curve, tolerance: float) -> float:
    """The largest share of a layer's units that is within the tolerance, as are all smaller ones that were judged."""
    most = 0
    for point in curve.points:
        if not _within(profile, point, tolerance):
            break
        most = max(most, point.removed)
    return most / curve.width


def _within(profile: Profile, point: Point, tolerance: float) -> bool:
    match profile.by:
        case "ablation":
            return point.accuracy is not None and profile.accuracy - point.accuracy <= tolerance + 1e-9
        case "taylor":
            return point.loss is not None and point.loss - profile.loss <= tolerance * profile.loss
        case "gsm":
            return point.share <= tolerance + 1e-9
        case _:
            assert_never(profile.by)


def _sample(validation: Examples, count: int, seed: int) -> Examples:
    if count >= len(validation):
        return validation
    return validation[torch.randperm(len(validation), generator=torch.Generator().manual_seed(seed))[:count]]


def _plan(loaded: Loaded, model: nn.Module, datasets: Datasets) -> Plan:
    """What the rules reach, without budget, demands and limits: these have no say in what a layer bears."""
    recipe = loaded.recipe
    rules = tuple(rule if rule.protect else _plain(rule) for rule in recipe.rules)
    plain = recipe.model_copy(update={"budget": Budget(), "rules": rules})
    return plan_recipe(plain, model, inputs_for(recipe, model, datasets), positions=loaded.positions)


def _plain(rule: Rule) -> Rule:
    sparsity = rule.sparsity if in_one_tensor(rule.group) else None
    return rule.model_copy(
        update={"penalty": None, "sparsity": sparsity, "keep": rule.keep.model_copy(update={"limits": {}})}
    )


def _digest(job: Job, by: By, examples: int) -> str:
    """Of all that a profile depends on; budget, penalties, stages and limits have no say in it."""
    body = run_folder.recipe_json(job.loaded.recipe)
    kept = {key: body.get(key) for key in ("model", "data", "inputs", "seed")}
    rules = [
        {key: rule.get(key) for key in ("layers", "group", "criterion", "protect", "override")}
        for rule in body["rules"]
    ]
    text = json.dumps([kept, rules, job.state.model_digest, by, examples], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _curves(plan: Plan) -> Iterator[Curve]:
    matrices = {layer.name for layer in plan.map.layers if len(layer.weight) > 1}
    for assignment in plan.assignments:
        for name in assignment.coupled:
            group = plan.map.by_name[name]
            makers = dict.fromkeys(
                part.tensor.rpartition(".")[0] for part in group.slices if part.role == "out"
            )
            yield Curve(
                group=name, layers=tuple(m for m in makers if m in matrices) or (name,), width=group.width
            )


def _going_on(out: Path, whole: Profile) -> Profile:
    """What an earlier call has measured already. Raises RunError when that was of something else."""
    if not out.exists():
        return whole
    found = read_profile(out)
    if found.digest != whole.digest:
        raise RunError(
            f"{out} is the profile of another model, other data, rules, or another method; name another file with --out, or delete it"
        )
    return found.model_copy(update={"network": whole.network})


def _judged(
    found: Profile, plan: Plan, model: nn.Module, own: Examples, train: Training, listener: Listener
) -> Iterator[Profile]:
    """The profile, once more for each point that is added."""
    match found.by:
        case "ablation":
            yield from _ablated(found, plan, model, own, train, listener)
        case "taylor" | "gsm":
            if not all(curve.points for curve in found.curves):
                scores = _changes(plan, model, own)
                yield found.model_copy(
                    update={
                        "curves": tuple(
                            _predicted(found, scores) if found.by == "taylor" else _left_out(found, scores)
                        )
                    }
                )
        case _:
            assert_never(found.by)


def _ablated(
    found: Profile, plan: Plan, model: nn.Module, own: Examples, train: Training, listener: Listener
) -> Iterator[Profile]:
    order = {c.name: c.order for c in candidates(plan, *scoring.scored(plan, model, train, mean_loss))}
    total, done = sum(len(_counts(curve, plan)) for curve in found.curves), 0
    for index, curve in enumerate(found.curves):
        for share, count in _counts(curve, plan):
            done += 1
            if any(point.share == share for point in found.curves[index].points):
                continue
            listener(Measuring(f"removing units of {curve.group}", done - 1, total))
            kept = sorted(order[curve.group][count:])
            thin = operations.cut(model, plan.map, {curve.group: kept}, "profile")[0]
            loss, accuracy = evaluate(thin, own)
            found = _with_point(found, index, Point(share=share, removed=count, loss=loss, accuracy=accuracy))
            yield found
    listener(Measuring("removing units", total, total))


def _counts(curve: Curve, plan: Plan) -> list[tuple[float, int]]:
    """(share, units that go); of a layer one unit stays, a residual branch goes as a whole."""
    if curve.group in {b.name for b in plan.map.branches}:
        return [(1.0, 1)]
    found = [(share, min(curve.width - 1, round(share * curve.width))) for share in SHARES]
    return [(share, count) for share, count in found if count]


def _with_point(found: Profile, index: int, point: Point) -> Profile:
    curve = found.curves[index]
    longer = curve.model_copy(update={"points": tuple(sorted((*curve.points, point), key=lambda p: p.share))})
    return found.model_copy(update={"curves": (*found.curves[:index], longer, *found.curves[index + 1 :])})


def _changes(plan: Plan, model: nn.Module, own: Examples) -> dict[str, list[float]]:
    """Coupled group -> the first-order change of the loss when each of its units goes, on the validation examples."""
    copy = copy_model(model)
    parameters = dict(copy.named_parameters())
    layout = coupled_layout(plan.map, [name for a in plan.assignments for name in a.coupled], parameters)
    given = list(batches(own, _BATCH))
    spec = Taylor(kind="taylor", batches=len(given))
    scores = group_scores(spec, layout, parameters, looks(copy, spec, given, mean_loss), plan.recipe.seed)
    return {name: part.tolist() for name, part in layout.split(scores).items()}


def _predicted(found: Profile, scores: Mapping[str, Sequence[float]]) -> Iterable[Curve]:
    for curve in found.curves:
        own = sorted(scores[curve.group])
        counts = [(share, round(share * curve.width)) for share in SHARES] if curve.width > 1 else [(1.0, 1)]
        points = (
            Point(share=share, removed=count, loss=found.loss + sum(own[:count]))
            for share, count in counts
            if count
        )
        yield curve.model_copy(update={"points": tuple(points)})


def _left_out(found: Profile, scores: Mapping[str, Sequence[float]]) -> Iterable[Curve]:
    every = sorted(value for curve in found.curves for value in scores[curve.group])
    bars = [(share, every[min(len(every) - 1, round(share * len(every)))]) for share in SHARES]
    for curve in found.curves:
        points = (
            Point(share=share, removed=sum(value < bar for value in scores[curve.group]))
            for share, bar in bars
        )
        yield curve.model_copy(update={"points": tuple(points)})
