"""The stages of a run: train (with cuts between epochs where the recipe asks for them), cut and repair."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, assert_never

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from sparsify.cost.cost_model import Costs
from sparsify.cost.measure import count_macs
from sparsify.data import batches
from sparsify.events import CutDone, EpochDone, Event, Listener, StageStarted
from sparsify.graph.build_map import list_layers
from sparsify.graph.surgery import transfer_state
from sparsify.modelfile.weights import save_weights
from sparsify.objective.objective import evaluate
from sparsify.pruning import cut
from sparsify.pruning.make_plan import plan_recipe
from sparsify.pruning.planning.compile import compile_plan
from sparsify.pruning.planning.cut_targets import (
    Target,
    keep_present_rules,
    list_cuts,
    make_holding_rule,
    next_target,
    rewrite_recipe,
)
from sparsify.pruning.planning.depth_search import deepen_budget
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import Positions
from sparsify.runs import run_folder
from sparsify.runs.accuracy_search import begin_search
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.evaluate import worst_verdict
from sparsify.runs.repair_stage import agreement_after_cut, dense_of_run, repair_model_of_run
from sparsify.runs.setup import Run
from sparsify.training.optimizers import make_optimizer
from sparsify.training.seeds import derive_seed
from sparsify.training.stage import find_best, train_stage
from sparsify.training.stage_state import StageState
from sparsify_schemas.data import Augment
from sparsify_schemas.group import in_one_tensor
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Round, StageRow
from sparsify_schemas.rule import Rule
from sparsify_schemas.stage import Cut, Repair, Stage, Train

_BATCH = 64
"""Training examples in a batch that a criterion is given."""


def run_remaining_stages(run: Run, model: nn.Module, checkpoint: Checkpoint) -> tuple[nn.Module, Checkpoint]:
    """Run the stages from the checkpoint's on. Raises what training and cutting raise."""
    for index in range(checkpoint.stage, len(run.recipe.stages)):
        match run.recipe.stages[index]:
            case Train() as stage:
                model, checkpoint = _run_train_stage(run, stage, model, checkpoint)
            case Cut() as stage:
                if run.recipe.budget.accuracy_drop is not None and checkpoint.search is None:
                    checkpoint = begin_search(run, model, checkpoint)
                model, checkpoint = _run_cut_stage(run, stage, model, checkpoint)
            case Repair() as stage:
                model, checkpoint = repair_model_of_run(run, stage, model, checkpoint)
            case stage:
                assert_never(stage)
    return model, checkpoint


def _run_train_stage(
    run: Run, stage: Train, model: nn.Module, checkpoint: Checkpoint
) -> tuple[nn.Module, Checkpoint]:
    cut_epochs = [epoch for epoch, _ in list_cuts(stage.epochs, stage.cuts)] if stage.cuts else []
    progress = checkpoint.stage_state
    for epoch in (*cut_epochs, stage.epochs):
        if _is_cut_done(checkpoint, stage, epoch):
            continue
        if progress is None or progress.epochs < epoch:
            progress = _train_until(run, stage, model, replace(checkpoint, stage_state=progress), epoch)
        if epoch in cut_epochs:
            model, checkpoint, progress = _cut_between_epochs(run, stage, model, checkpoint, progress)
    assert progress is not None  # a stage has at least one epoch
    return model, replace(
        checkpoint,
        stage=checkpoint.stage + 1,
        weights={},
        stage_state=None,
        history=checkpoint.history + progress.history,
        stages=(*checkpoint.stages, _summarize_training(run, stage, progress)),
    )


def _is_cut_done(checkpoint: Checkpoint, stage: Train, epoch: int) -> bool:
    return any((done.stage, done.epoch) == (stage.name, epoch) for done in checkpoint.rounds)


def _summarize_training(run: Run, stage: Train, progress: StageState) -> StageRow:
    has_share = stage.penalties and progress.step_seconds
    last = progress.history[-1]
    best = find_best(run.objective, progress.history) if stage.ends_with == "best" else None
    ended = last if best is None else progress.history[best]
    return StageRow(
        name=stage.name,
        kind="train",
        seconds=progress.seconds,
        epochs=progress.epochs,
        loss=last.loss,
        validation_metric=ended.validation_metric,
        kept_epoch=None if ended is last else ended.epoch,
        penalty_share=progress.penalty_seconds / progress.step_seconds if has_share else None,
    )


def _train_until(run: Run, stage: Train, model: nn.Module, checkpoint: Checkpoint, epoch: int) -> StageState:
    """Train to the end of an epoch, with a checkpoint after each."""
    assert run.datasets is not None  # a recipe that trains without data was refused
    plan = _training_plan(run, stage, model, checkpoint)

    def save(progress: StageState) -> None:
        if run.accelerator.is_main_process:
            replace(checkpoint, weights=progress.model, stage_state=progress).write(run.folder)
        run.accelerator.wait_for_everyone()

    return train_stage(
        model,
        stage,
        run.datasets,
        plan,
        seed=run.recipe.seed,
        stage_index=checkpoint.stage,
        accelerator=run.accelerator,
        objective=run.objective,
        augment=run.recipe.data.augment if run.recipe.data else Augment(),
        hold_zeros=bool(checkpoint.cuts),
        restore=checkpoint.stage_state,
        until=epoch,
        listener=_report_dense_shares(run.listener, plan, run.plan) if plan else run.listener,
        on_epoch=save,
        teacher=_find_teacher(run, stage, model),
        cuts=() if stage.distill is None or stage.distill.is_from_file else checkpoint.cuts,
    )


def _find_teacher(run: Run, stage: Train, model: nn.Module) -> nn.Module | None:
    """What a stage with `distill` learns from: the model as the first cut found it, or one of a file."""
    if stage.distill is None:
        return None
    return run.teachers[stage.distill.teacher] if stage.distill.is_from_file else dense_of_run(run, model)


def _training_plan(run: Run, stage: Train, model: nn.Module, checkpoint: Checkpoint) -> Plan | None:
    """The plan to train with; None where no rule acts in this stage."""
    if checkpoint.cuts and not _has_acting_rule(run.recipe, stage):
        return None
    plan, _ = _plan_next_cut(run, model, checkpoint, stage)
    # No rule is left when the residual branches that they name were removed.
    return plan if plan.recipe.rules else None


def _has_acting_rule(recipe: Recipe, stage: Train) -> bool:
    """Whether a penalty acts in the stage or zeros are held."""
    return any(
        (rule.penalty is not None and stage.penalties) or in_one_tensor(rule.group) for rule in recipe.rules
    )


def _report_dense_shares(listener: Listener, plan: Plan, dense: Plan) -> Listener:
    """A listener that turns shares of a cut model, which its plan counts, into shares of the dense model."""
    if plan is dense:
        return listener
    cut_costs, dense_costs = Costs(plan.map).dense, Costs(dense.map).dense

    def tell(event: Event) -> None:
        if isinstance(event, EpochDone):
            shares = [(what, share * cut_costs[what] / dense_costs[what]) for what, share in event.remaining]
            event = replace(event, remaining=tuple(shares))
        listener(event)

    return tell


def _plan_next_cut(
    run: Run, model: nn.Module, checkpoint: Checkpoint, stage: Train | None = None
) -> tuple[Plan, tuple[int, ...]]:
    """The plan of the model as it is now, aimed at the next cut; and for each of its rules the recipe's rule.

    stage: the train stage that the plan is for; None where a cut is made by it.
    """
    target = _next_target(run, checkpoint)
    positions = Positions(str(run.folder))
    if not checkpoint.cuts:
        every_rule = tuple(range(len(run.recipe.rules)))
        if target == Target():
            return run.plan, every_rule
        recipe = rewrite_recipe(run.plan, target)
        plan = compile_plan(recipe, run.plan.map, positions=positions)
        return replace(plan, prices=run.plan.prices), every_rule
    recipe = rewrite_recipe(run.plan, target, checkpoint.cuts)
    rules: Sequence[Rule] = recipe.rules
    if stage is not None:
        rules = [make_holding_rule(rule, stage.penalties) for rule in rules]
    remaining = keep_present_rules(run.plan, rules, _layer_names(model))
    # Validators are skipped on purpose: no rule may be left once residual branches are removed.
    recipe = recipe.model_copy(update={"rules": tuple(remaining.values())})
    plan = plan_recipe(recipe, model, run.inputs, positions=positions)
    return plan, tuple(remaining)


def _next_target(run: Run, checkpoint: Checkpoint) -> Target | None:
    """What the next cut is to leave; in a search for the deepest cut, at the depth of the current trial."""
    epochs = checkpoint.stage_state.epochs if checkpoint.stage_state else 0
    target = next_target(run.recipe, checkpoint.stage, epochs)
    depth = checkpoint.search.depth if checkpoint.search is not None else None
    if target is None or target.budget is not None or depth is None:
        return target
    return replace(target, budget=deepen_budget(run.plan, depth))


def _layer_names(model: nn.Module) -> set[str]:
    return {layer.name for layer in list_layers(model, {})}


def _run_cut_stage(
    run: Run, stage: Cut, model: nn.Module, checkpoint: Checkpoint
) -> tuple[nn.Module, Checkpoint]:
    started = time.perf_counter()
    run.listener(StageStarted(stage.name, "cut", 0, 0))
    result, round_ = _cut_model(run, stage, model, checkpoint)
    dense = dense_of_run(run, model) if checkpoint.cuts else model
    row = StageRow(
        name=stage.name,
        kind="cut",
        seconds=time.perf_counter() - started,
        validation_metric=round_.validation_metric,
        agreement=agreement_after_cut(run, dense, result.model, checkpoint),
    )
    checkpoint = replace(checkpoint, stage=checkpoint.stage + 1, stages=(*checkpoint.stages, row))
    return result.model, _save_after_cut(run, model, result, round_, checkpoint)


def _cut_between_epochs(
    run: Run, stage: Train, model: nn.Module, checkpoint: Checkpoint, progress: StageState
) -> tuple[nn.Module, Checkpoint, StageState]:
    """Cut between two epochs. The optimizer's state is pruned with the model; schedules continue."""
    optimizer = make_optimizer(stage.optimizer, model, stage.rates)
    optimizer.load_state_dict(dict(progress.optimizer))
    # One epoch back, so that the target of this cut is found and not that of the one after it.
    before = replace(progress, epochs=progress.epochs - 1)
    result, round_ = _cut_model(run, stage, model, replace(checkpoint, stage_state=before), optimizer)
    penalty_state = _carry_penalty_state(run, progress.hooks.get("own", {}), model, result)
    progress = replace(
        progress,
        model=result.model.state_dict(),
        optimizer=optimizer.state_dict(),
        hooks={"own": penalty_state},
    )
    checkpoint = replace(checkpoint, stage_state=progress)
    return result.model, _save_after_cut(run, model, result, round_, checkpoint), progress


def _carry_penalty_state(
    run: Run, state: Mapping[int, Mapping[str, Any]], model: nn.Module, result: cut.Result
) -> dict[int, dict[str, Any]]:
    """Prune the penalties' state along with the model, and key it by the rules of the cut model's plan."""
    rules = run.plan.recipe.rules
    before = list(keep_present_rules(run.plan, rules, _layer_names(model)))
    after = list(keep_present_rules(run.plan, rules, _layer_names(result.model)))
    new_index = {old: after.index(rule) for old, rule in enumerate(before) if rule in after}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def carry(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        by_name = {name: entry for name, entry in value.items() if isinstance(entry, Tensor)}
        return transfer_state.transfer_named_values(by_name, result.cuts, shapes)

    carried = {}
    for old, entries in state.items():
        if old in new_index:
            carried[new_index[old]] = {key: carry(value) for key, value in entries.items()}
    return carried


def _cut_model(
    run: Run,
    stage: Stage,
    model: nn.Module,
    checkpoint: Checkpoint,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[cut.Result, Round]:
    """Cut the model, and return the report's row of the cut as well."""
    epoch = checkpoint.stage_state.epochs + 1 if checkpoint.stage_state else 0
    seed = derive_seed(run.recipe.seed, checkpoint.stage, epoch)
    plan, rules = _plan_next_cut(run, model, checkpoint)
    result = cut.cut(
        plan,
        model,
        optimizer=optimizer,
        inputs=run.inputs,
        batches=batches(run.datasets.train, _BATCH, seed=seed) if run.datasets is not None else None,
        objective=run.objective,
        listener=run.listener,
        agree=_synchronize,
        chooser=run.chooser,
    )
    result = _number_rules(result, rules)
    verdict = worst_verdict(result.verdicts)
    macs = count_macs(model, run.inputs)[0], count_macs(result.model, run.inputs)[0]
    params = _count_params(model), _count_params(result.model)
    figure = None
    if run.datasets and len(run.datasets.validation):
        figure = evaluate(result.model, run.datasets.validation, run.objective).deciding
    run.listener(CutDone(verdict.outcome, verdict.difference, macs, params, figure, run.objective.deciding))
    return result, Round(
        stage=stage.name,
        epoch=epoch,
        macs=macs[1],
        params=params[1],
        validation_metric=figure,
        verdict=verdict,
    )


def _number_rules(result: cut.Result, rules: Sequence[int]) -> cut.Result:
    """Number the rules in the cut log as the recipe does. rules: plan's rule -> recipe's rule."""
    zeroed = tuple(entry.model_copy(update={"rule": rules[entry.rule]}) for entry in result.cuts.zeroed)
    return replace(result, cuts=result.cuts.model_copy(update={"zeroed": zeroed}))


def _save_after_cut(
    run: Run, model: nn.Module, result: cut.Result, round_: Round, checkpoint: Checkpoint
) -> Checkpoint:
    """Write the checkpoint after a cut.

    After the first cut the weights that it found too, where they are not those that were given: of a run from
    random weights they are the dense model.
    """
    is_first = not checkpoint.cuts
    checkpoint = replace(
        checkpoint,
        weights=result.model.state_dict(),
        cuts=(*checkpoint.cuts, result.cuts),
        rounds=(*checkpoint.rounds, round_),
    )
    if run.accelerator.is_main_process:
        if run.state.from_scratch and is_first:
            save_weights(model, run.folder / run_folder.DENSE)
        elif is_first and (checkpoint.history or checkpoint.stage_state is not None):
            save_weights(model, run.folder / run_folder.UNCUT)
        checkpoint.write(run.folder)
    run.accelerator.wait_for_everyone()
    return checkpoint


def _synchronize(keep: dict[str, list[int]]) -> dict[str, list[int]]:
    """Broadcast the selection from rank 0: timings, and so selections, may differ between processes."""
    shared = [keep]
    broadcast_object_list(shared)
    return shared[0]


def _count_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
