"""apply: a recipe and a dense model in, a run folder with a smaller model and its report out. The file to read first.

load -> plan -> for each stage train or cut -> save -> reload -> measure -> report
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sparsify import folder as files
from sparsify import pruning
from sparsify.artefact import TIMING, UNBUILT, complete
from sparsify.assess import Work, overall
from sparsify.checkpoint import Checkpoint
from sparsify.data import batches, example_inputs, load_data
from sparsify.events import CutDone, EpochDone, Event, Listener, Note, StageStarted, silence
from sparsify.graph import layers
from sparsify.measure import count_macs
from sparsify.opening import Run, Source, asked, dense_model, opened, planned, resumed, where_it_stands
from sparsify.plan import Plan
from sparsify.train import Moment, check_trainable, derived_seed, evaluate, train_stage
from sparsify.weights import save_weights
from sparsify_schemas.budget import Budget
from sparsify_schemas.data import Augment
from sparsify_schemas.group import in_one_tensor
from sparsify_schemas.recipe import Keep, Rule
from sparsify_schemas.report import StageRow
from sparsify_schemas.selector import selects
from sparsify_schemas.stage import Cut, Train
from sparsify_schemas.units import Share


def apply(
    recipe: Source | None = None,
    model_file: str | Path | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    from_scratch: bool = False,
    strict: bool = False,
    resume: str | Path | None = None,
    timing: float = TIMING,
    listener: Listener = silence,
) -> Path:
    """Carry out a recipe and return the run's folder, `out/<title>-<n>`; a missed budget is in its report.

    model_file: weights, a module or an earlier run; from_scratch: train from random weights instead.
    resume: an interrupted run, to go on with; it takes neither recipe nor model.
    timing: seconds spent on timing each target.
    Raises a SparsifyError; the run then stays resumable, as it does when the process is killed.
    """
    job = (
        resumed(Path(resume), recipe, overrides)
        if resume is not None
        else asked(recipe, model_file, overrides, allow, from_scratch, strict)
    )
    with torch.random.fork_rng(devices=[]), opened(job, Path(out), timing, listener) as run:
        model, at = where_it_stands(run)
        for index in range(at.stage, len(run.recipe.stages)):
            match run.recipe.stages[index]:
                case Train() as stage:
                    model, at = _train(run, stage, model, at)
                case Cut() as stage:
                    model, at = _cut(run, stage, model, at)
        _finish(run, model, at)
    return run.folder


def preview(
    recipe: Source,
    model_file: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    from_scratch: bool = False,
    strict: bool = False,
) -> Plan:
    """The plan that `apply` would follow with the same arguments; writes nothing. Raises a SparsifyError."""
    job = asked(recipe, model_file, overrides, allow, from_scratch, strict)
    with torch.random.fork_rng(devices=[]):
        wanted = job.loaded.recipe
        model, _ = dense_model(job)
        datasets = load_data(wanted.data, wanted.seed) if wanted.inputs is None and wanted.data is not None else None
        if datasets is not None:
            check_trainable(model, datasets)
        return planned(job, model, example_inputs(wanted, datasets))


def _train(run: Run, stage: Train, model: nn.Module, at: Checkpoint) -> tuple[nn.Module, Checkpoint]:
    assert run.datasets is not None  # the recipe was refused otherwise
    main = run.accelerator.is_main_process
    plan = _stage_plan(run, stage, model, at)

    def save(moment: Moment) -> None:
        if main:
            replace(at, weights=moment.model, moment=moment).write(run.folder)
        run.accelerator.wait_for_everyone()

    moment = train_stage(
        model,
        stage,
        run.datasets,
        plan,
        seed=run.recipe.seed,
        stage_index=at.stage,
        accelerator=run.accelerator,
        augment=run.recipe.data.augment if run.recipe.data else Augment(),
        hold_zeros=at.cuts is not None,
        restore=at.moment,
        listener=_of_the_dense(run.listener, plan.map.macs / run.plan.map.macs) if plan and run.plan.map.macs else run.listener,
        on_epoch=save,
    )
    last = moment.history[-1]
    row = StageRow(
        name=stage.name,
        kind="train",
        seconds=moment.seconds,
        epochs=moment.epochs,
        loss=last.loss,
        validation_accuracy=last.validation_accuracy,
        penalty_share=moment.penalty_seconds / moment.step_seconds if stage.penalties and moment.step_seconds else None,
    )
    return model, replace(
        at, stage=at.stage + 1, weights={}, moment=None, history=at.history + moment.history, stages=(*at.stages, row)
    )


def _of_the_dense(listener: Listener, left: float) -> Listener:
    """The listener, told shares of the dense model's MACs; a stage after the cut counts those of the cut model."""

    def tell(event: Event) -> None:
        if isinstance(event, EpochDone) and left != 1:
            event = replace(event, remaining=tuple((what, share * left if what == "macs" else share) for what, share in event.remaining))
        listener(event)

    return tell


def _stage_plan(run: Run, stage: Train, model: nn.Module, at: Checkpoint) -> Plan | None:
    """Whose penalties act and whose zeros are held. After the cut the plan is made anew, of the cut model."""
    if at.cuts is None:
        return run.plan
    acting = any((r.penalty is not None and stage.penalties) or in_one_tensor(r.group) for r in run.recipe.rules)
    if not acting:
        return None
    rules = tuple(_afterwards(r, stage.penalties) for r in _still_there(run, model))
    if not rules:
        return None
    return pruning.make_plan(run.recipe.model_copy(update={"rules": rules, "budget": Budget()}), model, run.inputs)


def _still_there(run: Run, model: nn.Module) -> Iterator[Rule]:
    """The rules without what speaks only of layers that left with a residual branch."""
    map, left = run.plan.map, {layer.name for layer in layers(model, {})}
    for rule in run.recipe.rules:
        named = [(layer.name, layer.type, layer.name in left) for layer in map.layers if rule.group != "depth"]
        if rule.protect or rule.group == "depth":
            named += [(b.module, b.type, any(t.rpartition(".")[0] in left for t in b.tensors)) for b in map.branches]
        kept = tuple(p for p in rule.layers if any(there and selects((p,), name, kind) for name, kind, there in named))
        if kept:
            yield rule.model_copy(update={"layers": kept})


def _afterwards(rule: Rule, penalties: bool) -> Rule:
    """A rule for the cut model. Budgets and demands were of the dense one, and what they asked for is done."""
    if not in_one_tensor(rule.group):
        return rule if rule.protect else rule.model_copy(update={"sparsity": None})
    if rule.penalty is None or not penalties or rule.group == "weight":  # then only its zeros are held
        penalty = rule.penalty if penalties else None
        return rule.model_copy(update={"group": "weight", "penalty": penalty, "keep": Keep(), "sparsity": Share.parse("0%"), "override": True})
    return rule.model_copy(update={"sparsity": None, "override": True})


def _cut(run: Run, stage: Cut, model: nn.Module, at: Checkpoint) -> tuple[nn.Module, Checkpoint]:
    started = time.perf_counter()
    run.listener(StageStarted(stage.name, "cut", 0, 0))
    seed = derived_seed(run.recipe.seed, at.stage, 0)
    given = batches(run.datasets.train, 64, seed=seed) if run.datasets is not None else None
    result = pruning.cut(run.plan, model, inputs=run.inputs, batches=given)
    verdict = overall(result.verdicts)
    macs = count_macs(model, run.inputs)[0], count_macs(result.model, run.inputs)[0]
    params = _params(model), _params(result.model)
    held = evaluate(result.model, run.datasets.validation)[1] if run.datasets and len(run.datasets.validation) else None
    row = StageRow(name=stage.name, kind="cut", seconds=time.perf_counter() - started, validation_accuracy=held)
    at = replace(
        at,
        stage=at.stage + 1,
        weights=result.model.state_dict(),
        stages=(*at.stages, row),
        cuts=result.cuts,
        verdicts=result.verdicts,
    )
    if run.accelerator.is_main_process:
        if run.state.from_scratch:
            save_weights(model, run.folder / files.DENSE)
        at.write(run.folder)
    run.listener(CutDone(verdict.outcome, verdict.difference, macs, params, held))
    return result.model, at


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _finish(run: Run, model: nn.Module, at: Checkpoint) -> None:
    assert at.cuts is not None  # every recipe has a cut stage
    run.listener(Note("measuring the dense and the cut model side by side"))
    if run.accelerator.is_main_process:
        work = Work(run.plan, at.cuts, at.verdicts, at.stages, at.history, tuple(_notes(run)), run.state.from_scratch)
        complete(run.folder, work, model, run.inputs, run.datasets, run.build, run.timing)
        files.finished(run.folder)
    run.accelerator.wait_for_everyone()


def _notes(run: Run) -> Iterator[str]:
    """Which dense model the report compares with, and how the run loads."""
    if run.state.from_scratch:
        yield "trained from random weights: the dense model is the one that this run trained, as it stood right before the cut"
    else:
        yield f"the dense model is {Path(run.state.model_file or '').name} as given"
    if run.build is not None:
        yield UNBUILT
