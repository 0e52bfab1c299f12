"""The report of a run: dense and cut model as reloaded from disk, counted, timed and compared with what was asked for."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
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
from sparsify.formatting.numbers import few, plural
from sparsify.formatting.verdict_text import fold_notes
from sparsify.forward import call_model
from sparsify.forward.calls import Inputs
from sparsify.graph import build_map
from sparsify.graph.model_map import Layer
from sparsify.modelfile import weights_digest
from sparsify.modelfile.weights import tensors
from sparsify.pruning.planning.cut_targets import last_zeroed
from sparsify.pruning.planning.plan import Plan
from sparsify.runs.int8 import in_int8, integers
from sparsify.runs.limits_met import limits
from sparsify.runs.measurement_cache import Parts
from sparsify.runs.run_folder import BASELINES, DENSE, PARTS, QUANTISED, WEIGHTS, recipe_digest, sha256
from sparsify.training.objective import evaluate, further_figures
from sparsify_schemas.cuts import Cuts, Fold
from sparsify_schemas.group import in_one_tensor
from sparsify_schemas.recipe import Baseline as Kind
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import (
    Baseline,
    Epoch,
    Integers,
    Latency,
    LayerRow,
    LayerTime,
    Report,
    Round,
    Search,
    Side,
    Sparsity,
    StageRow,
    Verdict,
)
from sparsify_schemas.target import Cpu, Target

_EAGER: Mapping[str, Target] = {"eager": Cpu(kind="cpu")}


def default_targets() -> Mapping[str, Target]:
    """What is timed where a recipe names no target: ONNX Runtime, where it is installed, and eager PyTorch beside it."""
    best = Cpu(kind="cpu", runtime="onnxruntime")
    return {"onnxruntime": best, **_EAGER} if describe_state(best) == "here" else _EAGER


@dataclass(frozen=True)
class Rival:
    """What the run did for one baseline, besides the model."""

    kind: Kind
    cuts: tuple[Cuts, ...]
    rounds: tuple[Round, ...]
    epochs: int
    """of training, in this run"""


@dataclass(frozen=True)
class Work:
    """What a run did, besides the two models."""

    plan: Plan
    cuts: tuple[Cuts, ...]
    """in order"""
    verdicts: tuple[Verdict, ...]
    rounds: tuple[Round, ...] = ()
    """a row for each cut"""
    stages: tuple[StageRow, ...] = ()
    history: tuple[Epoch, ...] = ()
    notes: tuple[str, ...] = ()
    search: Search | None = None
    """what was tried, where the budget limits an accuracy_drop"""
    dense_trained: bool = False
    """whether the training before the first cut trained the dense model as well"""
    rivals: tuple[Rival, ...] = ()

    @property
    def epochs(self) -> tuple[int, int]:
        """Epochs of training before the first cut and after it."""
        names = [stage.name for stage in self.stages]
        first = self.rounds[0] if self.rounds else None
        earlier = self.stages[: names.index(first.stage)] if first is not None else ()
        before = sum(s.epochs for s in earlier) + (first.epoch if first is not None else 0)
        return before, sum(s.epochs for s in self.stages) - before


def assess(
    work: Work,
    folder: Path,
    dense: nn.Module,
    cut: nn.Module,
    inputs: Inputs,
    datasets: Datasets | None,
    seconds: float,
    rivals: Mapping[Kind, nn.Module] = MappingProxyType({}),
) -> Report:
    """Measure both models and the baselines, as reloaded from `folder`, and judge the recipe's demands.

    seconds: spent on timing each target. The test set is read here and nowhere else.
    """
    recipe = work.plan.recipe
    before, after = work.epochs
    sides = (
        _side(dense, inputs, folder / DENSE, datasets, before if work.dense_trained else 0),
        _side(cut, inputs, folder / WEIGHTS, datasets, before + after),
    )
    if recipe.budget.peak_memory is not None:
        sides = (_with_peak(sides[0], dense, inputs), _with_peak(sides[1], cut, inputs))
    targets, timings, untimed = _timings(work, dense, cut, inputs, seconds)
    return Report(
        title=recipe.title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=recipe.seed,
        recipe_digest=recipe_digest(recipe),
        plan_digest=work.plan.digest,
        model_digest=weights_digest(dense),
        dense=sides[0],
        cut=sides[1],
        latency=timings,
        integers=_integers(targets, recipe, folder, dense, cut, inputs, datasets, seconds),
        limits=tuple(limits(work.plan, work.cuts, sides, (_bytes(dense), _bytes(cut)), timings)),
        layers=tuple(_layers(work.plan, dense, cut, inputs)),
        sparsities=tuple(_sparsities(work, dense, cut)),
        executions=tuple({e.module: e for cuts in work.cuts for e in cuts.executions}.values()),
        stages=work.stages,
        history=work.history,
        rounds=work.rounds,
        baselines=tuple(
            _baseline(work, rival, folder, dense, rivals[rival.kind], inputs, datasets, seconds, targets)
            for rival in work.rivals
        ),
        search=work.search,
        verdict=overall(work.verdicts),
        notes=(*work.notes, *_notes(work, cut), *_untargeted(work, targets), *untimed),
        environment=measure.describe_environment(),
    )


def _timings(
    work: Work, dense: nn.Module, cut: nn.Module, inputs: Inputs, seconds: float
) -> tuple[Mapping[str, Target], tuple[Latency, ...], tuple[str, ...]]:
    """The targets and what was timed on them. Nobody asked for the default ones, so one that cannot run the models is a note."""
    asked = work.plan.recipe.targets
    found: dict[str, Latency] = {}
    untimed = []
    targets = asked or default_targets()
    for name, target in targets.items():
        try:
            found[name] = _latency(work, name, target, dense, cut, inputs, seconds)
        except ModelError as error:
            if asked or target.runtime == "eager":
                raise
            untimed.append(
                f"the models could not be timed in ONNX Runtime, so in eager PyTorch alone: {error}"
            )
    return {name: targets[name] for name in found}, tuple(found.values()), tuple(untimed)


def _baseline(
    work: Work,
    rival: Rival,
    folder: Path,
    dense: nn.Module,
    model: nn.Module,
    inputs: Inputs,
    datasets: Datasets | None,
    seconds: float,
    targets: Mapping[str, Target],
) -> Baseline:
    own = replace(work, cuts=rival.cuts)
    side = _side(model, inputs, folder / BASELINES / rival.kind / WEIGHTS, datasets, rival.epochs)
    return Baseline(
        kind=rival.kind,
        side=_with_peak(side, model, inputs) if work.plan.recipe.budget.peak_memory is not None else side,
        latency=tuple(
            _latency(own, name, target, dense, model, inputs, seconds) for name, target in targets.items()
        ),
        cut_accuracy=rival.rounds[-1].validation_accuracy,
        verdict=overall(r.verdict for r in rival.rounds),
    )


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict that says least for the cut."""
    order = ("nothing cut", "equal", "statistics change")
    return max(
        verdicts,
        key=lambda v: (order.index(v.outcome), v.difference),
        default=Verdict(outcome="nothing cut", difference=0.0, control=0.0),
    )


def check_reloads(model: nn.Module, reloaded: nn.Module, inputs: Inputs, what: str) -> None:
    """Refuse an artefact that computes something else than the model saved. Raises VerificationError.

    Rounding is allowed for, as memory layout may differ; a model that is random in eval mode is passed over.
    """
    model = measure.copy_model(model).cpu().eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before, again, after = (
            list(call_model.float_tensors(call_model.call_model(m, inputs))) for m in (model, model, reloaded)
        )
    if not _close(before, again):
        return
    if not _close(before, after):
        raise VerificationError(
            f"the {what} as reloaded from disk does not compute what it computed before it was saved; "
            "does `model:` in the recipe build the very model that the file was made from?"
        )


def _close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    def same(x: torch.Tensor, y: torch.Tensor) -> bool:
        scale = float(x.abs().max()) if x.numel() else 0.0
        return x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)

    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def _side(model: nn.Module, inputs: Inputs, weights: Path, datasets: Datasets | None, epochs: int) -> Side:
    side = measure.measure_side(model, inputs, weights).model_copy(update={"epochs": epochs})
    if datasets is None:
        return side
    accuracies = (evaluate(model, examples)[1] for examples in (datasets.validation, datasets.test))
    validation, test = (None if math.isnan(a) else a for a in accuracies)
    sets = {"validation": datasets.validation, "test": datasets.test}
    further = {
        f"{which} {name}": value
        for which, examples in sets.items()
        for name, value in further_figures(model, examples).items()
    }
    return side.model_copy(
        update={"validation_accuracy": validation, "test_accuracy": test, "metrics": further}
    )


def _with_peak(side: Side, model: nn.Module, inputs: Inputs) -> Side:
    return side.model_copy(
        update={
            "peak_memory": measure_peak(model, inputs),
            "peak_memory_computed": compute_peak(model, inputs),
        }
    )


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in tensors(model).values())


def _integers(
    targets: Mapping[str, Target],
    recipe: Recipe,
    folder: Path,
    dense: nn.Module,
    cut: nn.Module,
    inputs: Inputs,
    datasets: Datasets | None,
    seconds: float,
) -> Integers | None:
    """The four forms where a target computes in int8; the cut model in integers is kept in the folder."""
    whole = in_int8(targets)
    if not whole:
        return None
    found, file = integers(
        dense, cut, inputs, datasets, whole, seconds, recipe.seed, Parts(folder / PARTS, _of(recipe, folder))
    )
    write(folder / QUANTISED, file)
    return found


def _of(recipe: Recipe, folder: Path) -> str:
    """What accuracies and times in integers depend on: both models, the data, the machine and what is installed on it."""
    text = " ".join(
        [
            recipe_digest(recipe),
            sha256(folder / DENSE),
            sha256(folder / WEIGHTS),
            measure.describe_environment().model_dump_json(),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _latency(
    work: Work, name: str, target: Target, dense: nn.Module, cut: nn.Module, inputs: Inputs, seconds: float
) -> Latency:
    """Both models timed; predicted as well where the budget limits this latency, and predicted only where the target is not here."""
    foretold = None
    if target.table is not None or name in work.plan.recipe.budget.latency:
        foretold = _foretold(work, calibrate.build_latency_model(name, target, dense, work.plan.map, inputs))
    if target.table is None:
        found = measure.measure_latency(
            dense, cut, inputs, name, target, seconds=seconds, seed=work.plan.recipe.seed
        )
        return found if foretold is None else found.model_copy(update=foretold)
    assert foretold is not None
    before, after = foretold["predicted_dense_ms"], foretold["predicted_cut_ms"]
    there = tables.read_table(
        name, target
    ).target  # what was timed: the recipe's own target says no more than where its table is
    what, ratio = f"{measure.describe_target(there)}, predicted from {target.table}", before / after
    found = Latency(
        target=name,
        description=what,
        dense_ms=before,
        cut_ms=after,
        speedup=ratio,
        low=ratio,
        high=ratio,
        pairs=0,
        load=0.0,
        measured=False,
    )
    return found.model_copy(update=foretold)


def _foretold(work: Work, clock: LatencyModel) -> dict[str, Any]:
    """What a clock says of the dense and the cut model, as fields of a Latency."""
    shapes = Costs(work.plan.map).shapes
    left = {w.group: w.kept for cuts in work.cuts for w in cuts.widths}  # the last cut has the last word
    widths = {name: group.width for name, group in work.plan.map.by_name.items()}
    dense, cut = (
        shapes({}),
        shapes({name: range(kept, widths[name]) for name, kept in left.items() if name in widths}),
    )
    before, after = clock.by_layer(dense), clock.by_layer(cut)
    layers = tuple(LayerTime(layer=layer, dense_ms=ms, cut_ms=after[layer]) for layer, ms in before.items())
    return {
        "predicted_dense_ms": clock.dense_ms or clock.ms(dense),
        "predicted_cut_ms": clock.ms(cut),
        "by_layer": layers,
        "steps": clock.steps,
    }


def zeros(model: nn.Module, names: Iterable[str]) -> tuple[int, int]:
    """(elements that are zero, elements) of the named tensors."""
    state = model.state_dict()
    found = [state[name] for name in names if name in state]
    return sum(int((t == 0).sum()) for t in found), sum(t.numel() for t in found)


def _sparsities(work: Work, dense: nn.Module, cut: nn.Module) -> Iterable[Sparsity]:
    """Per rule and, as 'model', over all parameters."""
    of_rule = {a.rule: a for a in work.plan.assignments}
    zeroed = last_zeroed(work.cuts)
    for done in zeroed.values():
        names = of_rule[done.rule].tensors
        total, (zero, stored) = sum(dense.get_parameter(n).numel() for n in names), zeros(cut, names)
        effective = 1 - (stored - zero) / total if total else 0.0
        yield Sparsity(
            what=f"rules.{done.rule}",
            group=done.group,
            nominal=_share(done.zeros, done.weights),
            effective=effective,
            weights=total,
        )
    if zeroed:
        total, left = (
            sum(int(p.count_nonzero()) if m is cut else p.numel() for p in m.parameters())
            for m in (dense, cut)
        )
        nominal = sum(done.zeros for done in zeroed.values())
        yield Sparsity(
            what="model",
            group="",
            nominal=_share(nominal, total),
            effective=1 - _share(left, total),
            weights=total,
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _layers(plan: Plan, dense: nn.Module, cut: nn.Module, inputs: Inputs) -> Iterable[LayerRow]:
    before, after = (measure.count_macs(m, inputs)[1] for m in (dense, cut))
    protected, left = _protected(plan), {b.name: b for b in build_map.list_layers(cut, after)}
    for a in build_map.list_layers(dense, before):
        b = left.get(a.name)
        if b is None:
            yield _removed(a, _count(dense.get_submodule(a.name)))
            continue
        stored = dict(cut.get_submodule(b.name).named_parameters(recurse=False))
        yield LayerRow(
            name=a.name,
            type=a.type,
            kind=_kind(a),
            inputs=a.inputs,
            inputs_after=b.inputs,
            outputs=a.outputs,
            outputs_after=b.outputs,
            params=_count(dense.get_submodule(a.name)),
            params_after=_count(cut.get_submodule(b.name)),
            zeros=float((stored["weight"] == 0).float().mean()) if "weight" in stored else 0.0,
            macs=a.macs,
            macs_after=b.macs,
            protected=protected.get(a.name),
        )


def _kind(layer: Layer) -> str | None:
    return layer.kind if layer.ancestors else None


def _removed(layer: Layer, params: int) -> LayerRow:
    """A layer that left as a whole."""
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


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters(recurse=False))


def _protected(plan: Plan) -> Mapping[str, str]:
    """Layer -> why its output width was kept."""
    return {
        s.tensor.rpartition(".")[0]: g.protected
        for g in plan.map.coupled
        if g.protected
        for s in g.slices
        if s.role == "out"
    }


def _unequal_training(work: Work) -> Iterable[str]:
    """Where accuracies are compared of models that were not trained for as long."""
    before, after = work.epochs
    tuned = f"fine-tuned for {plural(after, 'epoch')} after the cut"
    if before and not work.dense_trained:
        more = f" and {tuned}" if after else ""
        yield f"the cut model was trained for {plural(before, 'epoch')} before the cut{more}; the dense model was not"
    elif after:
        yield f"the cut model was {tuned}; the dense model was not"


def _notes(work: Work, cut: nn.Module) -> Iterable[str]:
    recipe = work.plan.recipe
    yield from _unequal_training(work)
    yield from (
        note for note in work.plan.notes if "weights are set to zero" not in note
    )  # said with numbers below
    yield from dict.fromkeys(note for cuts in work.cuts for note in cuts.notes)
    for assignment in work.plan.assignments:
        if in_one_tensor(recipe.rules[assignment.rule].group):
            count, total = zeros(cut, assignment.tensors)
            if count:
                yield f"rules.{assignment.rule}: {count} of {total} weights stored are zero; zeros in the tensors bring no speed and no smaller file"
    for assignment in work.plan.assignments:
        if recipe.rules[assignment.rule].group == "depth":
            gone = tuple(
                name
                for name in assignment.coupled
                if name in {w.group for cuts in work.cuts for w in cuts.widths if not w.keep}
            )
            whole = plural(len(assignment.coupled), "residual block")
            yield f"rules.{assignment.rule}: {len(gone)} of {whole} left as a whole{': ' + few(gone, 12) if gone else ''}"
    yield from fold_notes(op for cuts in work.cuts for op in cuts.operations if isinstance(op, Fold))


def _untargeted(work: Work, targets: Mapping[str, Target]) -> Iterable[str]:
    if not work.plan.recipe.targets:
        beside = "ONNX Runtime, and eager PyTorch beside it" if "onnxruntime" in targets else "eager PyTorch"
        yield f"the recipe names no target, so both models were timed on this machine's CPU: {beside}, 1 thread, batch 1"
