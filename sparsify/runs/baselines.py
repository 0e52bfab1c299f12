"""Making a run's baselines: each in a folder of its own inside the run's, so that each goes on where it was stopped."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate.utils import broadcast_object_list
from torch import nn

from sparsify import files
from sparsify.cost import measure
from sparsify.cost.measure.memory import measure_peak
from sparsify.errors import RecipeError, RunError, TrainingError, first_line
from sparsify.events import Note
from sparsify.files import read
from sparsify.formatting.numbers import count, share, size
from sparsify.formatting.verdict_text import LABELS
from sparsify.modelfile.weights import save_weights
from sparsify.pruning import cut
from sparsify.pruning.planning.baseline_recipes import (
    Cost,
    baseline_recipe,
    chooser,
    counted_in,
    dense_recipe,
    first_cut,
    same_dense,
    training,
)
from sparsify.pruning.planning.compile import compile_plan
from sparsify.runs import run_folder
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.evaluate import Rival, check_reloads
from sparsify.runs.save_load import rebuilt_baseline, rebuilt_dense, write_cuts
from sparsify.runs.setup import Run
from sparsify_schemas.recipe import Baseline, Recipe

Carry = Callable[[Run], tuple[nn.Module, Checkpoint]]
"""goes through the stages of a run's recipe, from where its folder says that it stands"""
_SECONDS = 1.5
"""spent on timing what the cut model costs"""


def made_against(
    run: Run, model: nn.Module, at: Checkpoint, carry: Carry
) -> tuple[tuple[Rival, ...], tuple[str, ...]]:
    """The baselines that the recipe asks for, and why one could not be made.

    model: what the run has come to. Raises what training and cutting raise; a baseline whose cost is out of its reach, or
    whose training diverges, is left out.
    """
    if not run.recipe.baselines:
        return (), ()
    cost = _agreed_cost(run, model, at)
    dense, epochs = _dense(run, carry)
    made, left_out = [], []
    for kind in run.recipe.baselines:
        run.listener(Note(f"baseline {kind}, {_said(cost)}"))
        try:
            made.append(_made(run, kind, cost, dense, epochs, carry))
        except RecipeError as error:  # its advice is for who writes a recipe
            left_out.append(
                f"baseline {kind} could not be made: {'; '.join(f'{p.path}: {p.message}' for p in error.problems)}"
            )
        except TrainingError as error:
            if isinstance(error.__cause__, RuntimeError) and run.accelerator.num_processes > 1:
                raise  # another process may be gone
            left_out.append(f"baseline {kind} could not be made: {first_line(error)}")
    return tuple(made), tuple(left_out)


def _said(cost: Cost) -> str:
    target = cost.what.removeprefix("latency.")
    if target != cost.what:
        return f"{share(cost.value)} of the time on {target}"
    return f"{LABELS[cost.what]} {size(cost.value) if cost.what in ('bytes', 'peak_memory') else count(cost.value)}"


def _made(run: Run, kind: Baseline, cost: Cost, dense: nn.Module, epochs: int, carry: Carry) -> Rival:
    own = replace(
        _within(run, kind, baseline_recipe(run.plan, kind, cost)),
        dense=dense,
        chooser=chooser(kind),
        first=first_cut(run.recipe),
    )
    model, at = carry(own)
    if run.accelerator.is_main_process:
        write_cuts(own.folder, at.cuts)
        save_weights(model, own.folder / run_folder.WEIGHTS)
        check_reloads(model, rebuilt_baseline(run.folder, kind, run.build), run.inputs, f"baseline {kind}")
    run.accelerator.wait_for_everyone()
    return Rival(kind, at.cuts, at.rounds, epochs + sum(s.epochs for s in at.stages))


def _dense(run: Run, carry: Carry) -> tuple[nn.Module, int]:
    """What the baselines are cut from, and its epochs in this run: the given model, or one trained without penalties."""
    before, _ = training(run.recipe, run.state.from_scratch)
    epochs = sum(s.epochs for s in before)
    if not before:
        return run.dense, 0
    if same_dense(run.recipe):
        return rebuilt_dense(run.folder, run.build), epochs
    run.listener(Note("dense model of the baselines: the same training without penalties"))
    return carry(_within(run, "dense", dense_recipe(run.recipe)))[0], epochs


def _within(run: Run, name: str, recipe: Recipe) -> Run:
    """A run inside the run: its own folder and recipe, a given model."""
    folder = run.folder / run_folder.BASELINES / name
    if run.accelerator.is_main_process:
        _make(folder)
    run.accelerator.wait_for_everyone()
    state = replace(run.state, recipe=run_folder.recipe_json(recipe), from_scratch=False)
    return replace(
        run,
        recipe=recipe,
        state=state,
        folder=folder,
        plan=compile_plan(recipe, run.plan.map),
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror or error}") from error


def _agreed_cost(run: Run, model: nn.Module, at: Checkpoint) -> Cost:
    """What the cut model costs, measured once and kept, as no two timings agree."""
    found: list[Cost | None] = [None]
    if run.accelerator.is_main_process:
        path = run.folder / run_folder.BASELINES / run_folder.COST
        if not path.exists():
            _make(path.parent)
            cost = _cost(run, model, at)
            files.write(path, files.as_json({"what": cost.what, "value": cost.value}))
        found = [_read_cost(path)]
    broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def _read_cost(path: Path) -> Cost:
    try:
        body = json.loads(read(path))
        return Cost(str(body["what"]), float(body["value"]))
    except (ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{path} is damaged: {first_line(error)}; remove it, and the run measures anew"
        ) from None


def _cost(run: Run, model: nn.Module, at: Checkpoint) -> Cost:
    what = counted_in(run.recipe.budget)
    if what == "peak_memory":
        return Cost(
            what, measure_peak(model, run.inputs)
        )  # as measured, since the baselines' budget is held to that
    name = what.removeprefix("latency.")
    if name == what:
        return Cost(what, cut.left_of(run.plan, model, at.cuts)[what])
    target, floor = run.recipe.targets[name], next(f for f in run.plan.floors if f.what == what)
    allowed = floor.limit / floor.dense
    if target.table is not None:
        return Cost(what, allowed)
    timed = measure.measure_latency(
        rebuilt_dense(run.folder, run.build),
        model,
        run.inputs,
        name,
        target,
        seconds=_SECONDS,
        seed=run.recipe.seed,
    )
    return Cost(
        what, min(1 / timed.speedup, allowed)
    )  # no two timings agree, and nobody gets more than the recipe allows
