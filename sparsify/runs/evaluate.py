"""Make the report of a run: count, time and compare the dense and the cut model as reloaded from disk."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify.cost import measure
from sparsify.cost.cost_model import Costs
from sparsify.cost.latency import calibrate, tables
from sparsify.cost.latency_model import LatencyModel
from sparsify.cost.measure.availability import describe_state
from sparsify.cost.measure.memory import compute_peak, measure_peak
from sparsify.data import Datasets
from sparsify.errors import ModelError, VerificationError
from sparsify.files import write
from sparsify.forward import call_model
from sparsify.forward.calls import Inputs
from sparsify.graph import build_map
from sparsify.graph.model_map import Layer
from sparsify.modelfile import weights_digest
from sparsify.modelfile.weights import tensors
from sparsify.pruning.planning.cut_targets import last_zeroed
from sparsify.pruning.planning.plan import Plan
from sparsify.runs.int8 import compare_int8, select_int8
from sparsify.runs.limits_met import check_limits
from sparsify.runs.measurement_cache import MeasurementCache
from sparsify.runs.report_notes import count_zeros, write_notes
from sparsify.runs.run_folder import BASELINES, DENSE, PARTS, QUANTISED, WEIGHTS, recipe_digest, sha256
from sparsify.runs.run_record import BaselineResult, RunRecord
from sparsify.training.objective import evaluate, further_figures
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.recipe import Baseline as Kind
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import (
    Baseline,
    Integers,
    Latency,
    LayerRow,
    LayerTime,
    Report,
    Side,
    Sparsity,
    Verdict,
)
from sparsify_schemas.target import Cpu, Target

_EAGER: Mapping[str, Target] = {"eager": Cpu(kind="cpu")}


def default_targets() -> Mapping[str, Target]:
    """The targets of a recipe that names none: ONNX Runtime, where it is installed, and eager PyTorch."""
    onnxruntime = Cpu(kind="cpu", runtime="onnxruntime")
    if describe_state(onnxruntime) != "here":
        return _EAGER
    return {"onnxruntime": onnxruntime, **_EAGER}


@dataclass(frozen=True)
class Models:
    """The models of a run as reloaded from its folder, and what they are measured on."""

    folder: Path
    dense: nn.Module
    cut: nn.Module
    baselines: Mapping[Kind, nn.Module]
    inputs: Inputs
    datasets: Datasets | None


def evaluate_run(record: RunRecord, models: Models, seconds: float) -> Report:
    """Measure the models and compare them with the limits of the recipe.

    The test set is read here and nowhere else. seconds: spent on timing each target.
    """
    recipe = record.plan.recipe
    dense, cut = models.dense, models.cut
    before, after = record.epochs
    dense_epochs = before if record.dense_trained else 0
    sides = (
        _measure_side(recipe, models, dense, DENSE, dense_epochs),
        _measure_side(recipe, models, cut, WEIGHTS, before + after),
    )
    targets, timings, failures = _time_targets(record, models, seconds)
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
        dense=sides[0],
        cut=sides[1],
        latency=timings,
        integers=_measure_int8(recipe, models, targets, seconds),
        limits=tuple(check_limits(record.plan, record.cuts, sides, stored, timings)),
        layers=tuple(_list_layers(record.plan, dense, cut, models.inputs)),
        sparsities=tuple(_measure_sparsities(record, dense, cut)),
        executions=tuple(executions.values()),
        stages=record.stages,
        history=record.history,
        rounds=record.rounds,
        baselines=tuple(baselines),
        search=record.search,
        verdict=worst_verdict(record.verdicts),
        notes=(*write_notes(record, cut, targets), *failures),
        environment=measure.describe_environment(),
    )


def _time_targets(
    record: RunRecord, models: Models, seconds: float
) -> tuple[Mapping[str, Target], tuple[Latency, ...], tuple[str, ...]]:
    """The targets that were timed, their latencies, and notes on those that could not run the models.

    Only a default target may fail: the recipe did not ask for it.
    """
    asked = record.plan.recipe.targets
    targets = asked or default_targets()
    timed: dict[str, Latency] = {}
    failures = []
    for name, target in targets.items():
        try:
            timed[name] = _measure_latency(
                record.plan, record.cuts, models, models.cut, name, target, seconds
            )
        except ModelError as error:
            if asked or target.runtime == "eager":
                raise
            failures.append(f"the models could not be timed in ONNX Runtime, only in eager PyTorch: {error}")
    return {name: targets[name] for name in timed}, tuple(timed.values()), tuple(failures)


def _measure_baseline(
    record: RunRecord,
    models: Models,
    result: BaselineResult,
    targets: Mapping[str, Target],
    seconds: float,
) -> Baseline:
    model = models.baselines[result.kind]
    weights = f"{BASELINES}/{result.kind}/{WEIGHTS}"
    timings = [
        _measure_latency(record.plan, result.cuts, models, model, name, target, seconds)
        for name, target in targets.items()
    ]
    return Baseline(
        kind=result.kind,
        side=_measure_side(record.plan.recipe, models, model, weights, result.epochs),
        latency=tuple(timings),
        cut_accuracy=result.rounds[-1].validation_accuracy,
        verdict=worst_verdict(round_.verdict for round_ in result.rounds),
    )


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst verdict: ordered by outcome, then by difference."""
    order = ("nothing cut", "equal", "statistics change")
    return max(
        verdicts,
        key=lambda v: (order.index(v.outcome), v.difference),
        default=Verdict(outcome="nothing cut", difference=0.0, control=0.0),
    )


def check_reloads(model: nn.Module, reloaded: nn.Module, inputs: Inputs, what: str) -> None:
    """Refuse a file whose model computes something else than the model that was saved.

    Raises VerificationError.

    Rounding is allowed for, as the memory layout may differ. A model that is random in eval mode is not
    checked.
    """
    model = measure.copy_model(model).cpu().eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        first, again, after = (
            list(call_model.float_tensors(call_model.call_model(m, inputs))) for m in (model, model, reloaded)
        )
    is_deterministic = _are_close(first, again)
    if is_deterministic and not _are_close(first, after):
        raise VerificationError(
            f"the {what} as reloaded from disk does not compute what it computed before it was saved; "
            "does `model:` in the recipe build the very model that the file was made from?"
        )


def _are_close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    def close(x: torch.Tensor, y: torch.Tensor) -> bool:
        scale = float(x.abs().max()) if x.numel() else 0.0
        return x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)

    return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))


def _measure_side(recipe: Recipe, models: Models, model: nn.Module, weights: str, epochs: int) -> Side:
    """Count, weigh and validate one model. weights: its file in the folder.

    Epochs: of its training in this run.
    """
    side = measure.measure_side(model, models.inputs, models.folder / weights)
    side = side.model_copy(update={"epochs": epochs})
    if models.datasets is not None:
        validation = evaluate(model, models.datasets.validation)[1]
        test = evaluate(model, models.datasets.test)[1]
        side = side.model_copy(
            update={
                "validation_accuracy": None if math.isnan(validation) else validation,
                "test_accuracy": None if math.isnan(test) else test,
                "metrics": _measure_further_figures(model, models.datasets),
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


def _measure_further_figures(model: nn.Module, datasets: Datasets) -> dict[str, float]:
    """Figures besides accuracy, under names such as 'test loss'."""
    figures = {}
    for which, examples in (("validation", datasets.validation), ("test", datasets.test)):
        for name, value in further_figures(model, examples).items():
            figures[f"{which} {name}"] = value
    return figures


def _count_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in tensors(model).values())


def _measure_int8(
    recipe: Recipe, models: Models, targets: Mapping[str, Target], seconds: float
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
        int8_targets,
        seconds,
        recipe.seed,
        MeasurementCache(models.folder / PARTS, _cache_key(recipe, models.folder)),
    )
    write(models.folder / QUANTISED, file)
    return found


def _cache_key(recipe: Recipe, folder: Path) -> str:
    """Digest of what the int8 measurements depend on: both models, the data, the machine and its software."""
    parts = [
        recipe_digest(recipe),
        sha256(folder / DENSE),
        sha256(folder / WEIGHTS),
        measure.describe_environment().model_dump_json(),
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _measure_latency(
    plan: Plan,
    cuts: tuple[Cuts, ...],
    models: Models,
    cut: nn.Module,
    name: str,
    target: Target,
    seconds: float,
) -> Latency:
    """Time the dense model and a cut one in turn.

    The latency is predicted as well where the budget limits it, and only predicted where the target is
    another machine.
    """
    predicted: dict[str, Any] = {}
    if target.table is not None or name in plan.recipe.budget.latency:
        clock = calibrate.build_latency_model(name, target, models.dense, plan.map, models.inputs)
        predicted = _predict_latency(plan, cuts, clock)
    if target.table is None:
        timed = measure.measure_latency(
            models.dense, cut, models.inputs, name, target, seconds=seconds, seed=plan.recipe.seed
        )
        return timed.model_copy(update=predicted)
    before, after = predicted["predicted_dense_ms"], predicted["predicted_cut_ms"]
    # The table knows the machine that it was timed on; the recipe's target knows only the table.
    machine = measure.describe_target(tables.read_table(name, target).target)
    ratio = before / after
    return Latency(
        target=name,
        description=f"{machine}, predicted from {target.table}",
        dense_ms=before,
        cut_ms=after,
        speedup=ratio,
        low=ratio,
        high=ratio,
        pairs=0,
        load=0.0,
        measured=False,
    ).model_copy(update=predicted)


def _predict_latency(plan: Plan, cuts: tuple[Cuts, ...], clock: LatencyModel) -> dict[str, Any]:
    """The fields of a Latency that a clock predicts for the dense and the cut model."""
    shapes = Costs(plan.map).shapes
    widths = {name: group.width for name, group in plan.map.by_name.items()}
    kept = {width.group: width.kept for done in cuts for width in done.widths}  # the last cut decides
    removed = {name: range(kept[name], widths[name]) for name in kept if name in widths}
    dense, cut = shapes({}), shapes(removed)
    before, after = clock.by_layer(dense), clock.by_layer(cut)
    layers = [LayerTime(layer=layer, dense_ms=ms, cut_ms=after[layer]) for layer, ms in before.items()]
    return {
        "predicted_dense_ms": clock.dense_ms or clock.ms(dense),
        "predicted_cut_ms": clock.ms(cut),
        "by_layer": tuple(layers),
        "steps": clock.steps,
    }


def _measure_sparsities(record: RunRecord, dense: nn.Module, cut: nn.Module) -> Iterator[Sparsity]:
    """A row for each rule on groups inside tensors, and one named 'model' over all parameters."""
    tensors_of = {assignment.rule: assignment.tensors for assignment in record.plan.assignments}
    zeroed = last_zeroed(record.cuts)
    for done in zeroed.values():
        names = tensors_of[done.rule]
        total = sum(dense.get_parameter(name).numel() for name in names)
        zero, stored = count_zeros(cut, names)
        yield Sparsity(
            what=f"rules.{done.rule}",
            group=done.group,
            nominal=_fraction(done.zeros, done.weights),
            effective=1 - (stored - zero) / total if total else 0.0,
            weights=total,
        )
    if zeroed:
        total = sum(p.numel() for p in dense.parameters())
        nonzero = sum(int(p.count_nonzero()) for p in cut.parameters())
        zeros = sum(done.zeros for done in zeroed.values())
        yield Sparsity(
            what="model",
            group="",
            nominal=_fraction(zeros, total),
            effective=1 - _fraction(nonzero, total),
            weights=total,
        )


def _fraction(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _list_layers(plan: Plan, dense: nn.Module, cut: nn.Module, inputs: Inputs) -> Iterator[LayerRow]:
    macs_before, macs_after = (measure.count_macs(model, inputs)[1] for model in (dense, cut))
    remaining = {layer.name: layer for layer in build_map.list_layers(cut, macs_after)}
    protected = _list_protected(plan)
    for before in build_map.list_layers(dense, macs_before):
        params = _count_own_params(dense.get_submodule(before.name))
        after = remaining.get(before.name)
        if after is None:
            yield _removed_row(before, params)
            continue
        module = cut.get_submodule(after.name)
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        yield LayerRow(
            name=before.name,
            type=before.type,
            kind=_kind(before),
            inputs=before.inputs,
            inputs_after=after.inputs,
            outputs=before.outputs,
            outputs_after=after.outputs,
            params=params,
            params_after=_count_own_params(module),
            zeros=float((weight == 0).float().mean()) if weight is not None else 0.0,
            macs=before.macs,
            macs_after=after.macs,
            protected=protected.get(before.name),
        )


def _kind(layer: Layer) -> str | None:
    return layer.kind if layer.ancestors else None


def _removed_row(layer: Layer, params: int) -> LayerRow:
    """The row of a layer that was removed as a whole."""
    return LayerRow(
        name=layer.name,
        type=layer.type,
        kind=_kind(layer),
        inputs=layer.inputs,
        inputs_after=0,
        outputs=layer.outputs,
        outputs_after=0,
        params=params,
        params_after=0,
        zeros=0.0,
        macs=layer.macs,
        macs_after=0,
        removed=True,
    )


def _count_own_params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _list_protected(plan: Plan) -> Mapping[str, str]:
    """Layer -> why its output width was kept."""
    reasons = {}
    for group in plan.map.coupled:
        if group.protected:
            for part in group.slices:
                if part.role == "out":
                    reasons[part.tensor.rpartition(".")[0]] = group.protected
    return reasons
