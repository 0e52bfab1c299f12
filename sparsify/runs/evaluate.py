"""Make the report of a run: count, time and compare the dense and the cut model as reloaded from disk."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from sparsify.cost import measure
from sparsify.cost.measure.memory import compute_peak, measure_peak
from sparsify.files import write_bytes
from sparsify.modelfile import weights_digest
from sparsify.modelfile.weights import list_tensors
from sparsify.objective.objective import Evaluation, evaluate, evaluate_batches
from sparsify.runs.int8 import compare_int8, select_int8
from sparsify.runs.layer_rows import list_layer_rows, list_mixture_rows
from sparsify.runs.limits_met import check_limits
from sparsify.runs.measurement_cache import MeasurementCache
from sparsify.runs.reloaded_models import ReloadedModels
from sparsify.runs.report_notes import write_notes
from sparsify.runs.run_folder import BASELINES, DENSE, PARTS, QUANTISED, WEIGHTS, hash_file, recipe_digest
from sparsify.runs.run_record import BaselineResult, RunRecord
from sparsify.runs.sparsity_rows import list_sparsity_rows
from sparsify.runs.timed_targets import measure_latency, time_targets
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import (
    Baseline,
    Integers,
    Report,
    Side,
    Verdict,
)
from sparsify_schemas.target import Target


def evaluate_run(record: RunRecord, models: ReloadedModels, seconds: float) -> Report:
    """Measure the models and compare them with the limits of the recipe.

    The test set is read here and nowhere else. seconds: spent on timing each target.
    """
    recipe = record.plan.recipe
    dense, cut = models.dense, models.cut
    before, after = record.epochs
    dense_epochs = before if record.dense_trained else 0
    sides = (
        _measure_side(recipe, models, dense, DENSE, dense_epochs, record.dense_known),
        _measure_side(recipe, models, cut, WEIGHTS, before + after),
    )
    targets, timings, failures = time_targets(record, models, seconds)
    baselines = [_measure_baseline(record, models, result, targets, seconds) for result in record.baselines]
    executions = {entry.module: entry for cuts in record.cuts for entry in cuts.executions}
    stored = _count_bytes(dense), _count_bytes(cut)
    return Report(
        title=recipe.title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=recipe.seed,
        recipe_digest=recipe_digest(recipe),
        plan_digest=record.plan.digest,
        model_digest=weights_digest(dense),
        metric=models.objective.deciding,
        dense=sides[0],
        cut=sides[1],
        latency=timings,
        integers=_measure_int8(recipe, models, targets, seconds),
        limits=tuple(check_limits(record.plan, record.cuts, sides, stored, timings)),
        layers=tuple(list_layer_rows(record.plan, dense, cut, models.inputs, record.cuts)),
        mixtures=tuple(list_mixture_rows(record.plan, record.cuts)),
        sparsities=tuple(list_sparsity_rows(record, dense, cut)),
        executions=tuple(executions.values()),
        stages=record.stages,
        history=record.history,
        rounds=record.rounds,
        baselines=tuple(baselines),
        failed=record.failed,
        search=record.search,
        verdict=worst_verdict(record.verdicts),
        notes=(*write_notes(record, cut, targets), *failures),
        environment=measure.describe_environment(),
    )


def _measure_baseline(
    record: RunRecord,
    models: ReloadedModels,
    result: BaselineResult,
    targets: Mapping[str, Target],
    seconds: float,
) -> Baseline:
    model = models.baselines[result.kind]
    weights = f"{BASELINES}/{result.kind}/{WEIGHTS}"
    timings = [
        measure_latency(record.plan, result.cuts, models, model, name, target, seconds)
        for name, target in targets.items()
    ]
    return Baseline(
        kind=result.kind,
        side=_measure_side(record.plan.recipe, models, model, weights, result.epochs),
        latency=tuple(timings),
        cut_metric=result.rounds[-1].validation_metric,
        verdict=worst_verdict(round_.verdict for round_ in result.rounds),
    )


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict: ordered by outcome, then by difference."""
    order = ("nothing cut", "equal", "statistics change", "wrong")
    return max(
        verdicts,
        key=lambda v: (order.index(v.outcome), v.difference),
        default=Verdict(outcome="nothing cut", difference=0.0, control=0.0),
    )


def _measure_side(
    recipe: Recipe, models: ReloadedModels, model: nn.Module, weights: str, epochs: int, judged: bool = True
) -> Side:
    """Count, weigh and validate one model. weights: its file in the folder.

    Epochs: of its training in this run. judged: whether metrics of it mean anything.
    """
    side = measure.measure_side(model, models.inputs, models.folder / weights)
    side = side.model_copy(update={"epochs": epochs})
    validation, test = _judge(models, model, judged)
    own = _find_given(models, model)
    side = side.model_copy(
        update={
            "validation_metric": _find_deciding("validation", validation, models, own),
            "test_metric": _find_deciding("test", test, models, own),
            "metrics": {
                **_name_further("validation", validation),
                **_name_further("test", test),
                **_name_given(models, own),
            },
        }
    )
    if recipe.budget.peak_memory is not None:
        side = side.model_copy(
            update={
                "peak_memory": measure_peak(model, models.inputs),
                "peak_memory_computed": compute_peak(model, models.inputs),
            }
        )
    return side


def _find_given(models: ReloadedModels, model: nn.Module) -> Mapping[str, float]:
    """The figures of a model that were handed over; none of a baseline."""
    given = models.own.metrics or {}
    if model is models.cut:
        return given.get("cut", {})
    return given.get("dense", {}) if model is models.dense else {}


def _judge(models: ReloadedModels, model: nn.Module, judged: bool) -> tuple[Evaluation, Evaluation]:
    """On the validation and on the test set; on no examples where the model is not to be judged."""
    if not judged:
        nothing = evaluate_batches(model, (), models.objective)
        return nothing, nothing
    if models.datasets is not None:
        sets = (models.datasets.validation, models.datasets.test)
        validation, test = (evaluate(model, examples, models.objective) for examples in sets)
        return validation, test
    batches = (models.own.validation, models.own.test)
    validation, test = (evaluate_batches(model, given, models.objective) for given in batches)
    return validation, test


def _find_deciding(
    which: str, found: Evaluation, models: ReloadedModels, own: Mapping[str, float]
) -> float | None:
    """The deciding metric as measured, else as it was handed over; None where it is unknown."""
    if not math.isnan(found.deciding):
        return found.deciding
    return own.get(f"{which} {models.objective.deciding.name}")


def _name_given(models: ReloadedModels, own: Mapping[str, float]) -> dict[str, float]:
    """Figures that were handed over, besides the deciding ones."""
    deciding = {f"{which} {models.objective.deciding.name}" for which in ("validation", "test")}
    return {name: value for name, value in own.items() if name not in deciding}


def _name_further(which: str, found: Evaluation) -> dict[str, float]:
    """Figures besides the deciding one, under names such as 'test iou'."""
    further = list(found.figures.items())[1:]
    return {f"{which} {name}": value for name, value in further if not math.isnan(value)}


def _count_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in list_tensors(model).values())


def _measure_int8(
    recipe: Recipe, models: ReloadedModels, targets: Mapping[str, Target], seconds: float
) -> Integers | None:
    """Compare both models in float32 and in int8, where a target computes in int8.

    Keep the int8 file of the cut model.
    """
    int8_targets = select_int8(targets)
    if not int8_targets:
        return None
    found, file = compare_int8(
        models.dense,
        models.cut,
        models.inputs,
        models.datasets,
        models.objective,
        int8_targets,
        seconds,
        recipe.seed,
        MeasurementCache(models.folder / PARTS, _cache_key(recipe, models.folder)),
    )
    write_bytes(models.folder / QUANTISED, file)
    return found


def _cache_key(recipe: Recipe, folder: Path) -> str:
    """Digest of what the int8 measurements depend on: both models, the data, the machine and its software."""
    parts = [
        recipe_digest(recipe),
        hash_file(folder / DENSE),
        hash_file(folder / WEIGHTS),
        measure.describe_environment().model_dump_json(),
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
