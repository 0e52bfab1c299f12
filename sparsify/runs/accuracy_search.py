"""The deepest cut within an accuracy_drop: each trial goes from where the first cut comes to the recipe's end.

What the run had come to before its first cut is kept, and so is the end of the best trial so far; the run's checkpoint says
which trial goes on, so that a run which was stopped goes on within it.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from sparsify.cost.measure import count_macs
from sparsify.events import Note
from sparsify.formatting.numbers import points, share
from sparsify.pruning.planning.depth_search import best, next_depth
from sparsify.runs import run_folder
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.setup import Run, kept_at
from sparsify.training.objective import evaluate
from sparsify_schemas.budget import Budget
from sparsify_schemas.report import Search, Trial

Carry = Callable[[Run, nn.Module, Checkpoint], tuple[nn.Module, Checkpoint]]
"""goes through every stage that is left"""


def first_trial(run: Run, model: nn.Module, at: Checkpoint) -> Checkpoint:
    """Where the search for the deepest cut begins; every trial comes back to here."""
    assert run.datasets is not None  # the recipe was refused otherwise
    whole = model if run.state.from_scratch else run.dense
    at = replace(
        at, weights=model.state_dict(), search=Search(dense=evaluate(whole, run.datasets.validation)[1])
    )
    _write(run, at, run_folder.BEFORE)
    return _next_trial(run, at)


def _next_trial(run: Run, at: Checkpoint) -> Checkpoint:
    """The checkpoint with the depth that comes next; None where the search is over, which is not yet written."""
    asked = run.recipe.budget.accuracy_drop
    assert asked is not None and at.search is not None
    other = run.recipe.budget.model_copy(update={"accuracy_drop": None}) != Budget()
    depth = next_depth(at.search, asked, other)
    number = len(at.search.trials) + 1
    at = replace(at, search=at.search.model_copy(update={"depth": depth}))
    if depth is not None:
        run.listener(
            Note(
                f"trial {number} of at most {asked.trials}: {share(depth)} of the way from what the budget asks for to all that can go"
            )
        )
        _write(run, at)
    return at


def searched(run: Run, model: nn.Module, at: Checkpoint, to_the_end: Carry) -> tuple[nn.Module, Checkpoint]:
    """The deepest cut within the budget's accuracy_drop; every trial goes from the first cut to the recipe's end."""
    while at.search is not None and at.search.depth is not None:
        trial = _tried(run, model, at)
        search = at.search.model_copy(update={"trials": (*at.search.trials, trial)})
        run.listener(
            Note(
                f"trial {len(search.trials)}: {points(-trial.drop)} of validated accuracy, {'inside' if trial.inside else 'outside'}"
            )
        )
        if best(search) == trial:
            _write(run, replace(at, weights=model.state_dict()), run_folder.BEST)
        model, before = kept_at(run, run_folder.BEFORE)
        following = _next_trial(run, replace(before, search=search))
        if following.search is not None and following.search.depth is not None:
            model, at = to_the_end(run, model, following)
        else:
            model, taken = kept_at(run, run_folder.BEST)
            at = replace(taken, search=following.search)
            _write(run, at)
    return model, at


def _tried(run: Run, model: nn.Module, at: Checkpoint) -> Trial:
    asked = run.recipe.budget.accuracy_drop
    assert (
        asked is not None
        and at.search is not None
        and at.search.depth is not None
        and run.datasets is not None
    )
    held = evaluate(model, run.datasets.validation)[1]
    drop, cut = at.search.dense - held, {r.stage for r in at.rounds}
    first = next((i for i, row in enumerate(at.stages) if row.name in cut), 0)
    return Trial(
        depth=at.search.depth,
        macs=count_macs(model, run.inputs)[0],
        params=sum(p.numel() for p in model.parameters()),
        validation_accuracy=held,
        drop=drop,
        inside=drop <= asked.at_most.fraction + 1e-9,
        seconds=sum(row.seconds for row in at.stages[first:]),
    )


def _write(run: Run, at: Checkpoint, name: str = run_folder.CHECKPOINT) -> None:
    """For all processes to read."""
    if run.accelerator.is_main_process:
        at.write(run.folder, name)
    run.accelerator.wait_for_everyone()
