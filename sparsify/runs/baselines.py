"""Train and cut a run's baselines.

Each has its own folder inside the run's, so each resumes where it was interrupted.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.utils import broadcast_object_list
from torch import nn

from sparsify import files
from sparsify.cost import measure
from sparsify.cost.measure.memory import measure_peak
from sparsify.errors import RecipeError, RunError, TrainingError, first_line
from sparsify.events import Note
from sparsify.files import read_bytes
from sparsify.formatting.numbers import format_count, format_share, format_size
from sparsify.formatting.verdict_text import LABELS
from sparsify.modelfile.weights import save_weights
from sparsify.peers.limited_process import PeerError
from sparsify.pruning import cut
from sparsify.pruning.planning.baseline_recipes import (
    Cost,
    choose_cost,
    find_chooser,
    find_first_cut,
    list_training_stages,
    make_baseline_recipe,
    make_dense_recipe,
    shares_dense_model,
)
from sparsify.pruning.planning.compile import compile_plan
from sparsify.runs import run_folder
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.model_base import write_cuts
from sparsify.runs.peer_baseline import begin_peer_baseline, share_cost
from sparsify.runs.reloaded_models import check_reloads
from sparsify.runs.run_record import BaselineResult
from sparsify.runs.save_load import rebuild_baseline, rebuild_dense
from sparsify.runs.setup import Run
from sparsify_schemas.baseline import Baseline
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import FailedBaseline

RunStages = Callable[[Run], tuple[nn.Module, Checkpoint]]
"""Runs the stages of a run's recipe, from where its folder's checkpoint is."""
_SECONDS = 1.5
"""Spent on timing the cut model, whose latency the baselines must match."""


@dataclass(frozen=True)
class Baselines:
    """What became of the baselines that a recipe asks for."""

    made: tuple[BaselineResult, ...] = ()
    failures: tuple[str, ...] = ()
    """For each that could not be made (it cannot be cut that far, or its training diverged), why."""
    failed: tuple[FailedBaseline, ...] = ()
    """Those of other packages that came to no model."""


def make_baselines(run: Run, model: nn.Module, checkpoint: Checkpoint, run_stages: RunStages) -> Baselines:
    """Make the baselines that the recipe asks for, each as cheap as the cut model.

    model: the finished cut model. Raises what training and cutting raise.
    """
    if not run.recipe.baselines:
        return Baselines()
    cost = _shared_cost(run, model, checkpoint)
    dense, epochs = _train_dense(run, run_stages)
    made: list[BaselineResult] = []
    failures: list[str] = []
    failed: list[FailedBaseline] = []
    for kind in run.recipe.baseline_kinds:
        run.listener(Note(f"baseline {kind}, {_describe_cost(cost)}"))
        try:
            nested = _prepare_baseline(run, kind, cost, dense)
            if kind == "torch_pruning":
                begin_peer_baseline(
                    nested, run.recipe.peer_baseline, share_cost(run, cost, model, checkpoint)
                )
            made.append(_make_baseline(run, nested, kind, epochs, run_stages))
        except PeerError as error:
            failed.append(FailedBaseline(kind=kind, outcome=str(error)))
        except RecipeError as error:  # without its file and advice, which are for the author of a recipe
            reasons = "; ".join(f"{problem.path}: {problem.message}" for problem in error.problems)
            failures.append(f"baseline {kind} could not be made: {reasons}")
        except TrainingError as error:
            if isinstance(error.__cause__, RuntimeError) and run.accelerator.num_processes > 1:
                raise  # another process may have stopped
            failures.append(f"baseline {kind} could not be made: {first_line(error)}")
    return Baselines(tuple(made), tuple(failures), tuple(failed))


def _describe_cost(cost: Cost) -> str:
    target = cost.what.removeprefix("latency.")
    if target != cost.what:
        return f"{format_share(cost.value)} of the time on {target}"
    in_bytes = cost.what in ("bytes", "peak_memory")
    return f"{LABELS[cost.what]} {format_size(cost.value) if in_bytes else format_count(cost.value)}"


def _prepare_baseline(run: Run, kind: Baseline, cost: Cost, dense: nn.Module) -> Run:
    """The run of one baseline, which cuts and trains in its own folder."""
    return replace(
        _nested_run(run, kind, make_baseline_recipe(run.plan, kind, cost)),
        dense=dense,
        chooser=find_chooser(kind),
        first=find_first_cut(run.recipe),
    )


def _make_baseline(
    run: Run, nested: Run, kind: Baseline, epochs: int, run_stages: RunStages
) -> BaselineResult:
    """Cut and train one baseline. epochs: that its dense model was trained for in this run."""
    model, checkpoint = run_stages(nested)
    if run.accelerator.is_main_process:
        write_cuts(nested.folder, checkpoint.cuts)
        save_weights(model, nested.folder / run_folder.WEIGHTS)
        reloaded = rebuild_baseline(run.folder, kind, run.build)
        check_reloads(model, reloaded, run.inputs, f"baseline {kind}")
    run.accelerator.wait_for_everyone()
    total_epochs = epochs + sum(stage.epochs for stage in checkpoint.stages)
    return BaselineResult(kind, checkpoint.cuts, checkpoint.rounds, total_epochs)


def _train_dense(run: Run, run_stages: RunStages) -> tuple[nn.Module, int]:
    """The model that the baselines are cut from, and the epochs that it was trained for in this run.

    It is the given model, or one that was trained without penalties.
    """
    before_cut, _ = list_training_stages(run.recipe, run.state.from_scratch)
    if not before_cut:
        return run.dense, 0
    epochs = sum(stage.epochs for stage in before_cut)
    if shares_dense_model(run.recipe):
        return rebuild_dense(run.folder, run.build), epochs
    run.listener(Note("dense model of the baselines: the same training without penalties"))
    model, _ = run_stages(_nested_run(run, "dense", make_dense_recipe(run.recipe)))
    return model, epochs


def _nested_run(run: Run, name: str, recipe: Recipe) -> Run:
    """A run inside the run, with its own folder and recipe, that starts from a given model."""
    folder = run.folder / run_folder.BASELINES / name
    if run.accelerator.is_main_process:
        _make_folder(folder)
    run.accelerator.wait_for_everyone()
    return replace(
        run,
        recipe=recipe,
        state=replace(run.state, recipe=run_folder.recipe_json(recipe), from_scratch=False),
        folder=folder,
        plan=compile_plan(recipe, run.plan.map),
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror or error}") from error


def _shared_cost(run: Run, model: nn.Module, checkpoint: Checkpoint) -> Cost:
    """The cost of the cut model, the same in every process.

    It is measured once and kept in a file, as no two timings agree.
    """
    shared: list[Cost | None] = [None]
    if run.accelerator.is_main_process:
        path = run.folder / run_folder.BASELINES / run_folder.COST
        if not path.exists():
            _make_folder(path.parent)
            cost = _measure_cost(run, model, checkpoint)
            files.write_bytes(path, files.as_json({"what": cost.what, "value": cost.value}))
        shared = [_read_cost(path)]
    broadcast_object_list(shared)
    assert shared[0] is not None
    return shared[0]


def _read_cost(path: Path) -> Cost:
    try:
        body = json.loads(read_bytes(path))
        return Cost(str(body["what"]), float(body["value"]))
    except (ValueError, LookupError, TypeError) as error:
        reason = first_line(error)
        raise RunError(f"{path} is damaged: {reason}; delete it, and it is measured again") from None


def _measure_cost(run: Run, model: nn.Module, checkpoint: Checkpoint) -> Cost:
    """What the cut model costs, in the unit that the recipe's budget counts first."""
    what = choose_cost(run.recipe.budget)
    if what == "peak_memory":
        # Measured and not computed, as the budget of the baselines is compared with measurements.
        return Cost(what, measure_peak(model, run.inputs))
    name = what.removeprefix("latency.")
    if name == what:
        return Cost(what, cut.measure_left(run.plan, model, checkpoint.cuts)[what])
    target = run.recipe.targets[name]
    floor = next(floor for floor in run.plan.floors if floor.what == what)
    allowed = floor.limit / floor.dense
    if target.table is not None:
        return Cost(what, allowed)
    timed = measure.measure_latency(
        rebuild_dense(run.folder, run.build),
        model,
        run.inputs,
        name,
        target,
        seconds=_SECONDS,
        seed=run.recipe.seed,
    )
    # A noisy timing must not give the baselines more than the recipe allows.
    return Cost(what, min(1 / timed.speedup, allowed))
