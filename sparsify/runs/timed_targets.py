"""The latency of a dense and a cut model on the recipe's targets, measured or predicted."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from sparsify.cost import measure
from sparsify.cost.cost_model import Costs
from sparsify.cost.latency import calibrate, tables
from sparsify.cost.latency_model import LatencyModel
from sparsify.cost.measure.availability import describe_state
from sparsify.errors import ModelError
from sparsify.graph.expert_numbers import list_kept_widths
from sparsify.pruning.planning.plan import Plan
from sparsify.runs.reloaded_models import ReloadedModels
from sparsify.runs.run_record import RunRecord
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.report import (
    Latency,
    LayerTime,
)
from sparsify_schemas.target import Cpu, Target

SHORTEST = 0.1
"""Seconds that a target of the recipe is timed for at least."""
_EAGER: Mapping[str, Target] = {"eager": Cpu(kind="cpu")}


def default_targets() -> Mapping[str, Target]:
    """The targets of a recipe that names none: ONNX Runtime, where it is installed, and eager PyTorch."""
    onnxruntime = Cpu(kind="cpu", runtime="onnxruntime")
    if describe_state(onnxruntime) != "here":
        return _EAGER
    return {"onnxruntime": onnxruntime, **_EAGER}


def time_targets(
    record: RunRecord, models: ReloadedModels, seconds: float
) -> tuple[Mapping[str, Target], tuple[Latency, ...], tuple[str, ...]]:
    """The targets that were timed, their latencies, and notes on those that could not run the models.

    Only a default target may fail: the recipe did not ask for it. With 0 seconds no default target is timed.
    """
    asked = record.plan.recipe.targets
    targets = asked or (default_targets() if seconds > 0 else {})
    seconds = max(seconds, SHORTEST)
    timed: dict[str, Latency] = {}
    failures = []
    for name, target in targets.items():
        try:
            timed[name] = measure_latency(record.plan, record.cuts, models, models.cut, name, target, seconds)
        except ModelError as error:
            if asked or target.runtime == "eager":
                raise
            failures.append(f"the models could not be timed in ONNX Runtime, only in eager PyTorch: {error}")
    return {name: targets[name] for name in timed}, tuple(timed.values()), tuple(failures)


def measure_latency(
    plan: Plan,
    cuts: tuple[Cuts, ...],
    models: ReloadedModels,
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
    kept = list_kept_widths(cuts)
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
