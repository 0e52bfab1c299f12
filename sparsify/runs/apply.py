"""apply: a recipe and a dense model in, a run folder with a smaller model and its report out. The file to read first.

load -> plan -> for each stage train (cutting between epochs, where it says so) or cut -> save -> reload -> measure -> report
Where the budget limits the drop of accuracy, the stages from the first cut on are gone through once for each trial.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from sparsify.cost.cost_model import Costs
from sparsify.cost.latency import calibrate
from sparsify.cost.measure import count_macs
from sparsify.data import batches, load_data
from sparsify.errors import RunError, SparsifyError
from sparsify.events import CutDone, EpochDone, Event, Listener, Note, StageStarted, silence
from sparsify.forward.input_records import apply_record
from sparsify.graph.build_map import list_layers
from sparsify.graph.surgery import transfer_state
from sparsify.modelfile.weights import save_weights
from sparsify.pruning import cut
from sparsify.pruning.fitting_inputs import inputs_for
from sparsify.pruning.make_plan import plan_recipe
from sparsify.pruning.planning.compile import compile_plan
from sparsify.pruning.planning.cut_targets import (
    Target,
    holding,
    moments,
    next_target,
    rewritten,
    still_there,
)
from sparsify.pruning.planning.depth_search import deepened
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import Positions
from sparsify.runs import run_folder
from sparsify.runs.accuracy_search import first_trial, searched
from sparsify.runs.baselines import made_against
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.evaluate import Rival, Work, overall
from sparsify.runs.repair_stage import agreement_after_cut, dense_of_run, repair_model_of_run
from sparsify.runs.save_load import TIMING, UNBUILT, complete
from sparsify.runs.setup import Run, Source, asked, dense_model, opened, planned, resumed, where_it_stands
from sparsify.training.objective import check_trainable, evaluate, mean_loss
from sparsify.training.optimizers import make_optimizer
from sparsify.training.stage import Moment, derived_seed, train_stage
from sparsify_schemas.budget import Budget
from sparsify_schemas.data import Augment
from sparsify_schemas.group import in_one_tensor
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Round, StageRow
from sparsify_schemas.stage import Cut, Repair, Stage, Train
from sparsify_schemas.target import Target as Hardware

_CONNECTION = re.compile("gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
"""how torch.distributed says that another process does not answer; with gloo by a plain RuntimeError"""


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
    """Carry out a recipe and return the run's folder, `out/<title>-<n>`.

    A missed budget does not raise; the report says so.

    Args:
        recipe: A path, a mapping or a Recipe.
        model_file: Weights, a module or an earlier run.
        out: The folder in which the run's folder is made.
        overrides: `path.to.key=value` pairs that replace values of the recipe.
        allow: Packages whose classes a pickled model may use.
        from_scratch: Train from random weights; takes no model file.
        strict: A layer that cannot be cut safely is an error.
        resume: The folder of an interrupted run to continue; takes neither recipe nor model.
        timing: Seconds spent on timing each target.
        listener: Called with progress events.

    Returns:
        The path of the run's folder.

    Raises:
        SparsifyError: The run can be resumed afterwards, as it can when the process is killed.

    Examples:
        >>> digits = {
        ...     "version": 1,
        ...     "title": "one cut",
        ...     "model": {"build": "sparsify.models.digits_cnn"},
        ...     "data": {"source": "digits"},
        ...     "rules": [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}],
        ... }
        >>> run = sparsify.apply(digits, from_scratch=True)
        >>> run.name, (run / "report.html").exists()
        ('one-cut-1', True)
    """
    job = (
        resumed(Path(resume), recipe, overrides)
        if resume is not None
        else asked(recipe, model_file, overrides, allow, from_scratch, strict)
    )
    with torch.random.fork_rng(devices=[]), opened(job, Path(out), timing, listener) as run, _together(run):
        model, at = _carried_out(run)
        rivals, left_out = made_against(run, model, at, _carried_out)
        _finish(run, model, at, rivals, left_out)
    return run.folder


def _carried_out(run: Run) -> tuple[nn.Module, Checkpoint]:
    """All stages that are still to come; where the budget limits the drop of accuracy, once for each trial."""
    model, at = where_it_stands(run)
    return searched(run, *_to_the_end(run, model, at), _to_the_end)


def _to_the_end(run: Run, model: nn.Module, at: Checkpoint) -> tuple[nn.Module, Checkpoint]:
    for index in range(at.stage, len(run.recipe.stages)):
        match run.recipe.stages[index]:
            case Train() as stage:
                model, at = _train(run, stage, model, at)
            case Cut() as stage:
                if run.recipe.budget.accuracy_drop is not None and at.search is None:
                    at = first_trial(run, model, at)
                model, at = _cut(run, stage, model, at)
            case Repair() as stage:
                model, at = repair_model_of_run(run, stage, model, at)
    return model, at


@contextmanager
def _together(run: Run) -> Iterator[None]:
    """When another process is gone, say so: what this one sees is a broken connection, wherever it happened to wait."""
    try:
        yield
    except (RuntimeError, SparsifyError) as error:
        seen = error if isinstance(error, RuntimeError) else error.__cause__
        if run.accelerator.num_processes == 1 or not _broken(seen):
            raise
        raise RunError(
            f"another process of this run is gone (its own output says why), and this one cannot go on alone; go on with "
            f"'sparsify apply --resume {run.folder}', on any number of processes"
        ) from error


def _broken(error: BaseException | None) -> bool:
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and bool(_CONNECTION.search(str(error)))
    )


def preview(
    recipe: Source,
    model_file: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    from_scratch: bool = False,
    strict: bool = False,
    listener: Listener = silence,
) -> Plan:
    """The plan that `apply` would follow with the same arguments; writes nothing. Raises a SparsifyError."""
    job = asked(recipe, model_file, overrides, allow, from_scratch, strict)
    with torch.random.fork_rng(devices=[]):
        wanted = job.loaded.recipe
        model, _ = dense_model(job)
        datasets = (
            load_data(wanted.data, wanted.seed)
            if wanted.inputs is None and wanted.calls is None and wanted.data is not None
            else None
        )
        if datasets is not None:
            check_trainable(model, datasets)
        return planned(job, model, inputs_for(wanted, model, datasets), datasets, listener)


def measure_layers(
    recipe: Source,
    model_file: str | Path | None,
    name: str,
    target: Hardware,
    *,
    listener: Listener = silence,
) -> None:
    """Time what a latency budget on this target would need of a recipe's network, into the target's table. Raises a SparsifyError.

    model_file: when left out the model is built with random weights.
    """
    job = asked(recipe, model_file, (), (), model_file is None, False)
    with torch.random.fork_rng(devices=[]):
        model, _ = dense_model(job)
        wanted = job.loaded.recipe
        datasets = (
            load_data(wanted.data, wanted.seed)
            if wanted.inputs is None and wanted.calls is None and wanted.data is not None
            else None
        )
        inputs = inputs_for(wanted, model, datasets)
        # Not read again: what rules and baselines want of a budget is nothing to a network that is only timed.
        rules = tuple(rule.model_copy(update={"penalty": None}) for rule in wanted.rules)
        plain = wanted.model_copy(update={"budget": Budget(), "rules": rules, "baselines": ()})
        map = plan_recipe(plain, model, inputs, positions=Positions(job.loaded.positions.file)).map
        calibrate.build_latency_model(name, target, model, map, apply_record(map.inputs, inputs), listener)


def _train(run: Run, stage: Train, model: nn.Module, at: Checkpoint) -> tuple[nn.Module, Checkpoint]:
    cuts = moments(stage.epochs, stage.cuts) if stage.cuts else ()
    moment = at.moment
    for until in (*(epoch for epoch, _ in cuts), stage.epochs):
        if _was_cut(at, stage, until):
            continue
        if moment is None or moment.epochs < until:
            moment = _trained(run, stage, model, replace(at, moment=moment), until)
        if until in dict(cuts):
            model, at, moment = _cut_between(run, stage, model, at, moment)
    assert moment is not None  # a stage has at least one epoch
    last = moment.history[-1]
    row = StageRow(
        name=stage.name,
        kind="train",
        seconds=moment.seconds,
        epochs=moment.epochs,
        loss=last.loss,
        validation_accuracy=last.validation_accuracy,
        penalty_share=moment.penalty_seconds / moment.step_seconds
        if stage.penalties and moment.step_seconds
        else None,
    )
    return model, replace(
        at,
        stage=at.stage + 1,
        weights={},
        moment=None,
        history=at.history + moment.history,
        stages=(*at.stages, row),
    )


def _was_cut(at: Checkpoint, stage: Train, epoch: int) -> bool:
    return any((r.stage, r.epoch) == (stage.name, epoch) for r in at.rounds)


def _trained(run: Run, stage: Train, model: nn.Module, at: Checkpoint, until: int) -> Moment:
    """Train on to the end of an epoch, with a checkpoint after each."""
    assert run.datasets is not None  # the recipe was refused otherwise
    plan = _present_plan(run, model, at, stage)[0] if not at.cuts or _acts(run.recipe, stage) else None
    if plan is not None and not plan.recipe.rules:
        plan = None  # all that the rules spoke of has left with residual branches

    def save(moment: Moment) -> None:
        if run.accelerator.is_main_process:
            replace(at, weights=moment.model, moment=moment).write(run.folder)
        run.accelerator.wait_for_everyone()

    return train_stage(
        model,
        stage,
        run.datasets,
        plan,
        seed=run.recipe.seed,
        stage_index=at.stage,
        accelerator=run.accelerator,
        augment=run.recipe.data.augment if run.recipe.data else Augment(),
        hold_zeros=bool(at.cuts),
        restore=at.moment,
        until=until,
        listener=_of_the_dense(run.listener, plan, run.plan) if plan else run.listener,
        on_epoch=save,
        teacher=dense_of_run(run, model) if stage.distill is not None else None,
    )


def _of_the_dense(listener: Listener, plan: Plan, dense: Plan) -> Listener:
    """The listener, told shares of the dense model; a plan made after a cut counts those of the cut model."""
    now, before = Costs(plan.map).dense, Costs(dense.map).dense

    def tell(event: Event) -> None:
        if isinstance(event, EpochDone) and plan is not dense:
            event = replace(
                event,
                remaining=tuple((what, share * now[what] / before[what]) for what, share in event.remaining),
            )
        listener(event)

    return tell


def _acts(recipe: Recipe, stage: Train) -> bool:
    """Whether a penalty acts in the stage or zeros are held."""
    return any((r.penalty is not None and stage.penalties) or in_one_tensor(r.group) for r in recipe.rules)


def _present_plan(
    run: Run, model: nn.Module, at: Checkpoint, training: Train | None = None
) -> tuple[Plan, tuple[int, ...]]:
    """The plan of the model as it stands, for what the next cut is to leave, and which of the recipe's rules its own are.

    After a cut it is made anew, of the cut model. training: the stage that it is for, where no cut is made by it.
    """
    target = next_target(run.recipe, at.stage, at.moment.epochs if at.moment else 0)
    if target is not None and target.budget is None and at.search is not None and at.search.depth is not None:
        target = replace(target, budget=deepened(run.plan, at.search.depth))
    if not at.cuts:
        every = tuple(range(len(run.recipe.rules)))
        if target == Target():
            return run.plan, every
        plan = compile_plan(rewritten(run.plan, target), run.plan.map, positions=Positions(str(run.folder)))
        return replace(plan, prices=run.plan.prices), every
    recipe = rewritten(run.plan, target, at.cuts)
    if training is not None:
        recipe = recipe.model_copy(
            update={"rules": tuple(holding(rule, training.penalties) for rule in recipe.rules)}
        )
    rules = still_there(run.plan, recipe.rules, {layer.name for layer in list_layers(model, {})})
    recipe = recipe.model_copy(update={"rules": tuple(rules.values())})
    # Not read again: no rule may be left of it, where all that they spoke of has gone with residual branches.
    return plan_recipe(recipe, model, run.inputs, positions=Positions(str(run.folder))), tuple(rules)


def _cut(run: Run, stage: Cut, model: nn.Module, at: Checkpoint) -> tuple[nn.Module, Checkpoint]:
    started = time.perf_counter()
    run.listener(StageStarted(stage.name, "cut", 0, 0))
    result, round = _cut_now(run, stage, model, at)
    dense = dense_of_run(run, model) if at.cuts else model
    row = StageRow(
        name=stage.name,
        kind="cut",
        seconds=time.perf_counter() - started,
        validation_accuracy=round.validation_accuracy,
        agreement=agreement_after_cut(run, dense, result.model, at),
    )
    at = replace(at, stage=at.stage + 1, stages=(*at.stages, row))
    return result.model, _kept(run, model, result, round, at)


def _cut_between(
    run: Run, stage: Train, model: nn.Module, at: Checkpoint, moment: Moment
) -> tuple[nn.Module, Checkpoint, Moment]:
    """Cut between two epochs; the optimizer's state is narrowed with the model, schedules go on."""
    optimizer = make_optimizer(stage.optimizer, model)
    optimizer.load_state_dict(dict(moment.optimizer))
    before = replace(moment, epochs=moment.epochs - 1)  # the target is that of the cut which comes now
    result, round = _cut_now(run, stage, model, replace(at, moment=before), optimizer)
    hooks = {"own": _remembered(run, moment.hooks.get("own", {}), model, result)}
    moment = replace(moment, model=result.model.state_dict(), optimizer=optimizer.state_dict(), hooks=hooks)
    at = _kept(run, model, result, round, replace(at, moment=moment))
    return result.model, at, moment


def _remembered(
    run: Run, own: Mapping[int, Mapping[str, Any]], model: nn.Module, result: cut.Result
) -> dict[int, dict[str, Any]]:
    """What a cut has left of what the penalties remembered, under the places that their rules have in a plan of the cut model."""
    before, after = (
        [*still_there(run.plan, run.plan.recipe.rules, {layer.name for layer in list_layers(m, {})})]
        for m in (model, result.model)
    )
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def carried(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return transfer_state.transfer_named_values(
            {name: own for name, own in value.items() if isinstance(own, Tensor)}, result.cuts, shapes
        )

    places = {rule: after.index(place) for rule, place in enumerate(before) if place in after}
    return {
        places[rule]: {key: carried(value) for key, value in row.items()}
        for rule, row in own.items()
        if rule in places
    }


def _cut_now(
    run: Run, stage: Stage, model: nn.Module, at: Checkpoint, optimizer: torch.optim.Optimizer | None = None
) -> tuple[cut.Result, Round]:
    """The cut and the row that the report shows of it."""
    epoch = at.moment.epochs + 1 if at.moment else 0
    seed = derived_seed(run.recipe.seed, at.stage, epoch)
    given = batches(run.datasets.train, 64, seed=seed) if run.datasets is not None else None
    plan, rules = _present_plan(run, model, at)
    result = cut.cut(
        plan,
        model,
        optimizer=optimizer,
        inputs=run.inputs,
        batches=given,
        loss=mean_loss,
        listener=run.listener,
        agree=_agreed,
        chooser=run.chooser,
    )
    zeroed = tuple(done.model_copy(update={"rule": rules[done.rule]}) for done in result.cuts.zeroed)
    result = replace(result, cuts=result.cuts.model_copy(update={"zeroed": zeroed}))
    verdict = overall(result.verdicts)
    macs = count_macs(model, run.inputs)[0], count_macs(result.model, run.inputs)[0]
    params = _params(model), _params(result.model)
    held = (
        evaluate(result.model, run.datasets.validation)[1]
        if run.datasets and len(run.datasets.validation)
        else None
    )
    run.listener(CutDone(verdict.outcome, verdict.difference, macs, params, held))
    return result, Round(
        stage=stage.name,
        epoch=epoch,
        macs=macs[1],
        params=params[1],
        validation_accuracy=held,
        verdict=verdict,
    )


def _kept(run: Run, model: nn.Module, result: cut.Result, round: Round, at: Checkpoint) -> Checkpoint:
    """The checkpoint after a cut, written; before a first cut in a run from random weights also the dense model."""
    first = not at.cuts
    at = replace(
        at, weights=result.model.state_dict(), cuts=(*at.cuts, result.cuts), rounds=(*at.rounds, round)
    )
    if run.accelerator.is_main_process:
        if run.state.from_scratch and first:
            save_weights(model, run.folder / run_folder.DENSE)
        at.write(run.folder)
    return at


def _agreed(keep: dict[str, list[int]]) -> dict[str, list[int]]:
    """What the main process chose: timings, and so choices, may differ between processes."""
    shared = [keep]
    broadcast_object_list(shared)
    return shared[0]


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _finish(
    run: Run, model: nn.Module, at: Checkpoint, rivals: tuple[Rival, ...], left_out: tuple[str, ...]
) -> None:
    run.listener(Note("measuring the dense and the cut model side by side"))
    if run.accelerator.is_main_process:
        work = Work(
            run.plan,
            at.cuts,
            tuple(r.verdict for r in at.rounds),
            at.rounds,
            at.stages,
            at.history,
            (*_notes(run, at.rounds), *left_out),
            at.search,
            run.state.from_scratch,
            rivals,
        )
        complete(run.folder, work, model, run.inputs, run.datasets, run.build, run.timing)
        run_folder.finished(run.folder)
    run.accelerator.wait_for_everyone()


def _notes(run: Run, rounds: tuple[Round, ...]) -> Iterator[str]:
    """Which dense model the report compares with, and how the run loads."""
    if run.state.from_scratch:
        yield f"trained from random weights: the dense model is the one that this run trained, as it stood right before the {'first ' if len(rounds) > 1 else ''}cut"
    else:
        yield f"the dense model is {Path(run.state.model_file or '').name} as given"
    if run.build is not None:
        yield UNBUILT
