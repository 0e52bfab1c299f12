"""How much each layer can lose: validation loss and deciding metric by the fraction of its units removed.

ablation: remove units from one layer at a time, lowest scores of the rule's criterion first, and validate.
taylor: predict the rise of the loss, without removing anything, as the sum over the removed units of
    |sum over w of w * dL/dw|, averaged over batches (arXiv:1906.10771, equation 8).
gsm: rank the units of all layers together by that number, as global sparse momentum does in each step
    (arXiv:1909.12778), and show how many units of each layer are below the threshold.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, assert_never

import torch
from pydantic import ValidationError
from torch import nn

from sparsify import files
from sparsify.data import Datasets, Examples, batches, load_data
from sparsify.data.columns import count_examples
from sparsify.data.targets import split_batch
from sparsify.errors import DataError, RunError, first_line
from sparsify.events import Listener, silence
from sparsify.files import read_bytes
from sparsify.graph.model_shapes import check_shapes
from sparsify.objective.objective import (
    Evaluation,
    Objective,
    check_trainable,
    evaluate,
    evaluate_batches,
    make_objective,
)
from sparsify.pruning import scoring
from sparsify.pruning.fitting_inputs import find_inputs
from sparsify.pruning.make_plan import plan_recipe
from sparsify.pruning.planning.compile import compile_plan
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import Loaded
from sparsify.runs import run_folder
from sparsify.runs.profile_points import Setting, empty_curves, measure_points
from sparsify.runs.setup import RunRequest, Source, make_request, read_dense_model
from sparsify.training.seeds import derive_seed
from sparsify_schemas.budget import Budget, allowed_drop, fit_drop
from sparsify_schemas.group import in_one_tensor
from sparsify_schemas.profile import By, Curve, Point, Profile, Tolerance, read_tolerance
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Rule
from sparsify_schemas.task import Facts, deciding_metric
from sparsify_schemas.units import Share

EXAMPLES = 1000
"""Validation examples that a layer is judged on, where there are as many."""
_BATCH = 100
"""Examples in a batch of the loss's gradients."""


def profile_layers(
    recipe: Source,
    model_file: str | Path | None,
    out: Path,
    *,
    by: By = "ablation",
    tolerance: Tolerance | None = None,
    examples: int = EXAMPLES,
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    force: bool = False,
    listener: Listener = silence,
) -> Profile:
    """Judge every layer that the rules reach.

    The profile is written to `out` after each measurement, so an interrupted call resumes.

    Args:
        by: The method; see the docstring of the module.
        tolerance: Sets a limit for each layer: the largest fraction for which it and all smaller ones stay
            within the tolerance. It is in points of accuracy by ablation, a fraction of the loss by taylor,
            and by gsm the fraction of all units below the threshold.
        examples: Validation examples to judge on.
        force: Replace whatever `out` is, unless it is this profile, which is continued.

    Raises:
        SparsifyError: The recipe, the model or the data are wrong.
        RunError: `out` holds the profile of something else.
    """
    _check_place(out, force)
    # Without limits: the file that the recipe names for them may be the one that this call writes.
    request = make_request(recipe, model_file, overrides, allow, False, False, limits=False)
    loaded = request.loaded.recipe
    if loaded.data is None:
        raise DataError(
            "the recipe has no 'data', and layers are judged on validation examples; "
            "write 'data: {source: ...}'"
        )
    _fit_tolerance(by, tolerance, deciding_metric(loaded.task))  # before anything is measured
    datasets = load_data(loaded.data, loaded.seed, loaded.task)
    if not len(datasets.validation):
        raise DataError("there is no validation data to judge layers on; set data.validation above 0%")
    validation = _draw_examples(datasets.validation, examples, loaded.seed)
    objective = make_objective(loaded.task, datasets.classes)
    with torch.random.fork_rng(devices=[]):
        model, _ = read_dense_model(request)
        check_trainable(model, datasets, objective)
        plan = _plan_without_goals(request.loaded, model, datasets)
        found = evaluate(model, validation, objective)
        empty = Profile(
            by=by,
            digest=_compute_digest(request, by, len(validation)),
            network=plan.map.network,
            examples=len(validation),
            loss=found.loss,
            metric=found.deciding,
            judged_by=objective.deciding,
            curves=tuple(empty_curves(plan)),
        )
        profile = _resume_profile(out, empty, force)
        training = batches(datasets.train, 64, seed=derive_seed(loaded.seed, 0, 0))
        taken = scoring.take_batches(training, loaded)

        def judge(thinner: nn.Module) -> Evaluation:
            return evaluate(thinner, validation, objective)

        setting = Setting(plan, model, objective, judge, list(batches(validation, _BATCH)), taken)
        for longer in measure_points(profile, setting, listener):
            profile = longer
            write_profile(profile, out, force)
    profile = set_limits(profile, tolerance)
    write_profile(profile, out, force)
    return profile


def sensitivity(
    plan: Plan,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    by: By = "ablation",
    objective: Objective | None = None,
    tolerance: Tolerance | str | None = None,
    listener: Listener = silence,
) -> Profile:
    """Judge how much each layer that a plan reaches can lose, in a loop of your own.

    Args:
        plan: Made of this model. Its amounts, penalties and limits play no part.
        model: The model, which stays as it is.
        batches: Validation batches: pairs (inputs, targets), or mappings with the targets among them.
        by: `ablation` removes units and measures; `taylor` predicts the loss to first order; `gsm` ranks the
            units of all layers together.
        objective: Of `make_objective`; the recipe's task when left out.
        tolerance: Sets a limit for each layer, such as `1pp` of accuracy; see `sparsify sensitivity`.
        listener: Called with progress events.

    Returns:
        The profile: a curve for each layer, and its `limits`, which `keep: {limits: ...}` of a rule takes.

    Raises:
        DataError: There are no batches, or they have no targets.
        ModelError: The plan belongs to another model.

    Examples:
        >>> batches = [(torch.randn(32, 4), torch.randint(0, 3, (32,)))]
        >>> profile = sparsify.sensitivity(sparsify.make_plan(recipe, model, (x,)), model, batches)
        >>> [point.removed for point in profile.curves[0].points]
        [2, 3, 5, 6, 8, 10, 11, 13, 14]
    """
    check_shapes(plan.map, model)
    objective = objective or make_objective(plan.recipe.task)
    given = [split_batch(batch) for batch in batches]
    if not given:
        raise DataError("there are no validation batches to judge layers on")
    plain = compile_plan(_without_amounts(plan.recipe), plan.map)
    examples = sum(count_examples(targets) for _, targets in given)

    def judge(thinner: nn.Module) -> Evaluation:
        return evaluate_batches(thinner, given, objective)

    found = judge(model)
    profile = Profile(
        by=by,
        digest=plain.digest,
        network=plan.map.network,
        examples=examples,
        loss=found.loss,
        metric=found.deciding,
        judged_by=objective.deciding,
        curves=tuple(empty_curves(plain)),
    )
    setting = Setting(plain, model, objective, judge, given, given)
    for longer in measure_points(profile, setting, listener):
        profile = longer
    limit = read_tolerance(by, tolerance) if isinstance(tolerance, str) else tolerance
    return set_limits(profile, limit)


def read_profile(path: Path) -> Profile:
    """Read a profile from its file. Raises RunError."""
    try:
        return Profile.model_validate_json(read_bytes(path))
    except ValidationError as error:
        other = (
            f"{path} is damaged or not a sensitivity profile ({first_line(error)}); "
            "choose another place with --out, or replace it with --force"
        )
        raise RunError(files.explain_unreadable(path, error, other)) from None


def _check_place(out: Path, force: bool) -> None:
    """Refuse a file that is no profile before anything is measured. Raises RunError."""
    run_folder.refuse_own_name(out)
    if not force and out.is_file() and out.stat().st_size:
        read_profile(out)  # says what is wrong with it
    files.check_output(out, PROFILE, force=force)


def write_profile(profile: Profile, path: Path, force: bool = False) -> None:
    """Write a profile to its file, whole or not at all. Raises RunError."""
    files.write_output(path, (profile.model_dump_json(indent=1) + "\n").encode(), PROFILE, force=force)


PROFILE = files.Kind.of_model("a sensitivity profile", Profile)


def set_limits(profile: Profile, tolerance: Tolerance | None) -> Profile:
    """Set the limits that follow from a tolerance; keep the profile as it is without one.

    Residual branches get no limit, as a branch is removed as a whole or not at all. Raises DataError where
    the tolerance is in another unit than the deciding metric.
    """
    tolerance = _fit_tolerance(profile.by, tolerance, profile.judged_by)
    if tolerance is None:
        return profile
    allowed = _find_allowed(profile, tolerance)
    limits = {}
    for curve in profile.curves:
        if curve.width > 1:
            fraction = _largest_within(profile, curve, allowed)
            limits[curve.group] = Share(round(100 * fraction, 4), "%")
    return profile.model_copy(update={"tolerance": str(tolerance), "limits": limits})


def _fit_tolerance(by: By, tolerance: Tolerance | None, judged_by: Facts) -> Tolerance | None:
    """A tolerance in the deciding metric's own unit. Raises DataError."""
    if tolerance is None or by != "ablation":
        return tolerance
    try:
        return fit_drop(tolerance, judged_by)
    except ValueError as error:
        raise DataError(f"the tolerance of the limits: {error}") from None


def _find_allowed(profile: Profile, tolerance: Tolerance) -> float:
    """How much worse the metric may be in its own unit; by taylor and gsm a fraction."""
    if profile.by == "ablation" or isinstance(tolerance, float):
        return allowed_drop(tolerance, profile.metric)
    return tolerance.fraction


def _largest_within(profile: Profile, curve: Curve, allowed: float) -> float:
    """The largest fraction of a layer's units for which it and all smaller ones are within what is
    allowed."""
    removed = 0
    for point in curve.points:
        if not _is_within(profile, point, allowed):
            break
        removed = max(removed, point.removed)
    return removed / curve.width


def _is_within(profile: Profile, point: Point, allowed: float) -> bool:
    match profile.by:
        case "ablation":
            if point.metric is None:
                return False
            return profile.judged_by.worse_by(profile.metric, point.metric) <= allowed + 1e-9
        case "taylor":
            return point.loss is not None and point.loss - profile.loss <= allowed * profile.loss
        case "gsm":
            return point.share <= allowed + 1e-9
        case _:
            assert_never(profile.by)


def _draw_examples(validation: Examples, count: int, seed: int) -> Examples:
    if count >= len(validation):
        return validation
    generator = torch.Generator().manual_seed(seed)
    return validation[torch.randperm(len(validation), generator=generator)[:count]]


def _plan_without_goals(loaded: Loaded, model: nn.Module, datasets: Datasets) -> Plan:
    """Plan what the rules reach, without budget, sparsities and limits.

    A layer's sensitivity depends on none of them.
    """
    recipe = loaded.recipe
    plain = _without_amounts(recipe)
    return plan_recipe(plain, model, find_inputs(recipe, model, datasets), positions=loaded.positions)


def _without_amounts(recipe: Recipe) -> Recipe:
    rules = tuple(rule if rule.protect else _without_goals(rule) for rule in recipe.rules)
    return recipe.model_copy(update={"budget": Budget(), "rules": rules})


def _without_goals(rule: Rule) -> Rule:
    sparsity = rule.sparsity if in_one_tensor(rule.group) else None
    keep = rule.keep.model_copy(update={"limits": {}})
    return rule.model_copy(update={"penalty": None, "sparsity": sparsity, "keep": keep})


def _compute_digest(request: RunRequest, by: By, examples: int) -> str:
    """Digest of all that a profile depends on. It does not depend on budget, penalties, stages and limits."""
    body = run_folder.recipe_json(request.loaded.recipe)
    recipe = {key: body.get(key) for key in ("model", "data", "inputs", "seed")}
    if "task" in body:  # left out of digests of before there were tasks
        recipe["task"] = body["task"]
    rules = []
    for rule in body["rules"]:
        rules.append({key: rule.get(key) for key in ("layers", "group", "criterion", "protect", "override")})
    text = json.dumps([recipe, rules, request.state.model_digest, by, examples], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _resume_profile(out: Path, empty: Profile, force: bool) -> Profile:
    """The profile that an earlier call has begun, else the empty one.

    Raises RunError when the file holds the profile of something else and is not to be replaced.
    """
    if not out.exists() or not out.stat().st_size:
        return empty
    try:
        found = read_profile(out)
    except RunError:
        if force:
            return empty
        raise
    if found.digest != empty.digest and force:
        return empty
    if found.digest != empty.digest:
        raise RunError(
            f"{out} is a profile made with another model, data, rules or method; "
            "choose another place with --out, or replace it with --force"
        )
    return found.model_copy(update={"network": empty.network})
