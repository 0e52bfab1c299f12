"""The deepest cut within a budget's accuracy_drop.

Each trial runs from the first cut to the end of the recipe.

Two more checkpoints are kept: the run before its first cut, and the end of the best trial. The run's own
checkpoint holds the current trial, so an interrupted run resumes within it.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from sparsify.cost.measure import count_macs
from sparsify.events import Note
from sparsify.formatting.numbers import format_share, metric_change
from sparsify.objective.objective import evaluate
from sparsify.pruning.planning.depth_search import choose_best, choose_next_depth
from sparsify.runs import run_folder
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.setup import Run, load_checkpoint
from sparsify_schemas.budget import AccuracyDrop, Budget, allowed_drop
from sparsify_schemas.report import Search, Trial

RunStages = Callable[[Run, nn.Module, Checkpoint], tuple[nn.Module, Checkpoint]]
"""Runs every stage that is left."""


def begin_search(run: Run, model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """Save the state that every trial starts from, and choose the depth of the first trial."""
    assert run.datasets is not None  # a recipe with accuracy_drop and without data was refused
    dense = model if run.state.from_scratch else run.dense
    figure = evaluate(dense, run.datasets.validation, run.objective).deciding
    checkpoint = replace(checkpoint, weights=model.state_dict(), search=Search(dense=figure))
    _write(run, checkpoint, run_folder.BEFORE)
    return _choose_depth(run, checkpoint)


def search_depth(
    run: Run, model: nn.Module, checkpoint: Checkpoint, run_stages: RunStages
) -> tuple[nn.Module, Checkpoint]:
    """Run trials until the deepest cut within the accuracy drop is found; return the end of that trial.

    model, checkpoint: the end of the first trial. Without a search in the checkpoint they are returned as
    they are.
    """
    while checkpoint.search is not None and checkpoint.search.depth is not None:
        trial = _judge_trial(run, model, checkpoint)
        search = checkpoint.search.model_copy(update={"trials": (*checkpoint.search.trials, trial)})
        verdict = "within the budget" if trial.inside else "over the budget"
        judged_by = run.objective.deciding
        change = (
            f"{metric_change(_signed_change(run, trial), judged_by.percent)} of validation {judged_by.name}"
        )
        run.listener(Note(f"trial {len(search.trials)}: {change}, {verdict}"))
        if choose_best(search) == trial:
            _write(run, replace(checkpoint, weights=model.state_dict()), run_folder.BEST)
        model, before = load_checkpoint(run, run_folder.BEFORE)
        checkpoint = _choose_depth(run, replace(before, search=search))
        if checkpoint.search is not None and checkpoint.search.depth is not None:
            model, checkpoint = run_stages(run, model, checkpoint)
        else:
            model, best_end = load_checkpoint(run, run_folder.BEST)
            checkpoint = replace(best_end, search=checkpoint.search)
            _write(run, checkpoint)
    return model, checkpoint


def _choose_depth(run: Run, checkpoint: Checkpoint) -> Checkpoint:
    """Set the depth of the next trial and write the checkpoint.

    A depth of None, not written, ends the search.
    """
    limit = _find_limit(run)
    assert checkpoint.search is not None
    has_other_limits = run.recipe.budget.model_copy(update={"accuracy_drop": None}) != Budget()
    depth = choose_next_depth(checkpoint.search, limit, has_other_limits)
    checkpoint = replace(checkpoint, search=checkpoint.search.model_copy(update={"depth": depth}))
    if depth is not None:
        number = len(checkpoint.search.trials) + 1 if checkpoint.search else 1
        run.listener(
            Note(
                f"trial {number} of at most {limit.trials}: "
                f"depth {format_share(depth)} (0 % is what the budget asks for, 100 % is all that can be "
                "removed)"
            )
        )
        _write(run, checkpoint)
    return checkpoint


def _judge_trial(run: Run, model: nn.Module, checkpoint: Checkpoint) -> Trial:
    limit, search = _find_limit(run), checkpoint.search
    assert search is not None and search.depth is not None and run.datasets is not None
    figure = evaluate(model, run.datasets.validation, run.objective).deciding
    drop = run.objective.deciding.worse_by(search.dense, figure)
    cut_stages = {round_.stage for round_ in checkpoint.rounds}
    first = next((i for i, row in enumerate(checkpoint.stages) if row.name in cut_stages), 0)
    return Trial(
        depth=search.depth,
        macs=count_macs(model, run.inputs)[0],
        params=sum(p.numel() for p in model.parameters()),
        validation_metric=figure,
        drop=drop,
        inside=drop <= allowed_drop(limit.at_most, search.dense) + 1e-9,
        seconds=sum(row.seconds for row in checkpoint.stages[first:]),
    )


def _signed_change(run: Run, trial: Trial) -> float:
    """The metric after the trial less that before: below zero for an accuracy that fell."""
    return -trial.drop if run.objective.deciding.better == "higher" else trial.drop


def _find_limit(run: Run) -> AccuracyDrop:
    limit = run.recipe.budget.accuracy_drop
    assert limit is not None  # there is no search otherwise
    return limit


def _write(run: Run, checkpoint: Checkpoint, name: str = run_folder.CHECKPOINT) -> None:
    """Write in the main process; every process may read afterwards."""
    if run.accelerator.is_main_process:
        checkpoint.write(run.folder, name)
    run.accelerator.wait_for_everyone()
