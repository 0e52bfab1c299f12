"""apply: a recipe and a dense model in, a run folder with a smaller model and its report out. The file to read first.

load -> plan -> for each stage train or cut -> save -> reload -> measure -> report
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from sparsify import folder as files
from sparsify import graph, modelfile, pruning
from sparsify.artefact import TIMING, Base, Build, base_on, begin, complete, load_run, rebuilt_dense
from sparsify.assess import Work, check_reloads, overall
from sparsify.checkpoint import Checkpoint
from sparsify.data import Datasets, batches, example_inputs, load_data
from sparsify.errors import ModelError, RunError
from sparsify.events import CutDone, Event, Listener, Note, RunStarted, StageStarted, StepDone, silence
from sparsify.graph import Inputs
from sparsify.load import Loaded, load
from sparsify.measure import count_macs
from sparsify.plan import Plan
from sparsify.train import Moment, derived_seed, make_accelerator, train_stage
from sparsify.weights import save_weights
from sparsify_schemas.budget import Budget
from sparsify_schemas.data import Augment
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import StageRow
from sparsify_schemas.stage import Cut, Train

Source = str | Path | Mapping[str, Any] | Recipe | Loaded


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
        _resumed(Path(resume), recipe, overrides)
        if resume is not None
        else _asked(recipe, model_file, overrides, allow, from_scratch, strict)
    )
    with torch.random.fork_rng(devices=[]), _opened(job, Path(out), timing, listener) as run:
        model, at = _where_it_stands(run)
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
    job = _asked(recipe, model_file, overrides, allow, from_scratch, strict)
    with torch.random.fork_rng(devices=[]):
        wanted = job.loaded.recipe
        model, _ = _dense_model(job)
        datasets = load_data(wanted.data, wanted.seed) if wanted.inputs is None and wanted.data is not None else None
        return pruning.make_plan(job.loaded, model, example_inputs(wanted, datasets), strict=strict)


@dataclass(frozen=True)
class _Job:
    """What is to be done, before anything is opened."""

    loaded: Loaded
    state: files.State
    folder: Path | None
    """of the run to go on with"""


@dataclass(frozen=True)
class _Run:
    """What stays the same from the first stage to the report."""

    recipe: Recipe
    state: files.State
    folder: Path
    datasets: Datasets | None
    inputs: Inputs
    plan: Plan
    dense: nn.Module
    """the model as it came in"""
    build: Build | None
    """builds the dense model's structure, where the recipe cannot"""
    accelerator: Accelerator
    timing: float
    listener: Listener


def _asked(
    recipe: Source | None,
    model_file: str | Path | None,
    overrides: Sequence[str],
    allow: Sequence[str],
    from_scratch: bool,
    strict: bool,
) -> _Job:
    if recipe is None:
        raise RunError("nothing to apply: give a recipe, or a run to resume")
    loaded = load(recipe, overrides)
    if from_scratch and model_file is not None:
        raise ModelError(f"both {model_file} and --from-scratch were given; leave one of them out")
    if not from_scratch and model_file is None:
        raise ModelError("no model file; give one, or --from-scratch to start from random weights")
    path = None if model_file is None else Path(model_file).resolve()
    if path is not None and not path.exists():
        raise ModelError(f"there is no model file {model_file}")
    state = files.State(
        recipe=files.recipe_json(loaded.recipe),
        model_file=None if path is None else str(path),
        model_digest=None if path is None else files.sha256(path),
        allow=tuple(allow),
        from_scratch=from_scratch,
        strict=strict,
    )
    return _Job(loaded, state, None)


def _resumed(folder: Path, recipe: Source | None, overrides: Sequence[str]) -> _Job:
    if recipe is not None or overrides:
        raise RunError(f"{folder} goes on with the recipe that it began with; start a new run to use another")
    if not folder.is_dir():
        raise RunError(f"there is no run {folder}; 'sparsify runs' lists them")
    if (folder / files.REPORT).exists():
        raise RunError(f"{folder} is complete: nothing to resume")
    state = files.State.read(folder)
    written = folder / files.RECIPE
    if written.exists() and files.recipe_digest(files.read_recipe(folder)) != state.digest:
        raise RunError(f"{written} was changed since the run began; start a new run with it")
    if state.model_file is not None and files.sha256(Path(state.model_file)) != state.model_digest:
        raise RunError(f"{state.model_file} was changed since the run began; start a new run with it")
    return _Job(load(state.resolved(folder)), state, folder)


@contextmanager
def _opened(job: _Job, out: Path, timing: float, listener: Listener) -> Iterator[_Run]:
    """Read and check everything, then make or lock the run's folder. A recipe that does not fit leaves no folder."""
    recipe, accelerator = job.loaded.recipe, make_accelerator()
    datasets = load_data(recipe.data, recipe.seed) if recipe.data is not None else None
    model, base = _dense_model(job)
    inputs = example_inputs(recipe, datasets)
    plan = pruning.make_plan(job.loaded, model, inputs, strict=job.state.strict)
    build = None if base.model else lambda: deepcopy(model)
    folder = job.folder or _created(accelerator, out, recipe.title)
    main = accelerator.is_main_process
    with files.locked(folder) if main else nullcontext():
        told = _logged(listener, folder) if main else silence
        run = _Run(recipe, job.state, folder, datasets, inputs, plan, model, build, accelerator, timing, told)
        if main and not (folder / files.CHECKPOINT).exists():
            _begin(run, base)
        accelerator.wait_for_everyone()
        told(RunStarted(str(folder), resumed=job.folder is not None))
        yield run


def _dense_model(job: _Job) -> tuple[nn.Module, Base]:
    """The dense model as given, and how its structure is built anew."""
    recipe, state = job.loaded.recipe, job.state
    path = None if state.model_file is None else Path(state.model_file)
    if path is not None and path.is_dir():
        return load_run(path), base_on(path)
    return modelfile.read_model(path, recipe, allow=state.allow), Base(recipe.model)


def _created(accelerator: Accelerator, out: Path, title: str) -> Path:
    """The main process makes the folder and tells the others."""
    names = [str(files.create(out, title)) if accelerator.is_main_process else ""]
    broadcast_object_list(names)
    return Path(names[0])


def _begin(run: _Run, base: Base) -> None:
    """Write what is known before the first epoch; state.json comes first, as a folder that has it can be resumed."""
    run.state.write(run.folder)
    begin(run.folder, run.plan)
    if base.cuts:
        base.write(run.folder)
    if not run.state.from_scratch:
        save_weights(run.dense, run.folder / files.DENSE)
        check_reloads(run.dense, rebuilt_dense(run.folder, run.build), run.inputs, "dense model")


def _where_it_stands(run: _Run) -> tuple[nn.Module, Checkpoint]:
    """The model and the checkpoint that the run goes on from; its beginning where there is none yet."""
    found = Checkpoint.read(run.folder)
    if found is None:
        return deepcopy(run.dense), Checkpoint(run.state.digest, run.state.model_digest, 0, {})
    if (found.recipe, found.model) != (run.state.digest, run.state.model_digest):
        raise RunError(f"{run.folder / files.CHECKPOINT} belongs to another run; start a new one")
    model = graph.replay(run.dense, found.cuts) if found.cuts else deepcopy(run.dense)
    try:
        model.load_state_dict(found.weights)
    except RuntimeError as error:
        raise RunError(f"{run.folder / files.CHECKPOINT} does not fit the model that the recipe builds: {error}") from error
    return model, found


def _train(run: _Run, stage: Train, model: nn.Module, at: Checkpoint) -> tuple[nn.Module, Checkpoint]:
    assert run.datasets is not None  # the recipe was refused otherwise
    main = run.accelerator.is_main_process

    def save(moment: Moment) -> None:
        if main:
            replace(at, weights=moment.model, moment=moment).write(run.folder)
        run.accelerator.wait_for_everyone()

    moment = train_stage(
        model,
        stage,
        run.datasets,
        _stage_plan(run, stage, model, at),
        seed=run.recipe.seed,
        stage_index=at.stage,
        accelerator=run.accelerator,
        augment=run.recipe.data.augment if run.recipe.data else Augment(),
        hold_zeros=at.cuts is not None,
        restore=at.moment,
        listener=run.listener,
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


def _stage_plan(run: _Run, stage: Train, model: nn.Module, at: Checkpoint) -> Plan | None:
    """Whose penalties act and whose zeros are held. After the cut the plan is made anew, of the cut model."""
    if at.cuts is None:
        return run.plan
    acting = any((r.penalty is not None and stage.penalties) or r.group == "weight" for r in run.recipe.rules)
    if not acting:
        return None
    # Budgets and demands were of the dense model, and what they asked for is done.
    rules = tuple(r if r.group == "weight" or r.protect else r.model_copy(update={"sparsity": None}) for r in run.recipe.rules)
    return pruning.make_plan(run.recipe.model_copy(update={"rules": rules, "budget": Budget()}), model, run.inputs)


def _cut(run: _Run, stage: Cut, model: nn.Module, at: Checkpoint) -> tuple[nn.Module, Checkpoint]:
    started = time.perf_counter()
    run.listener(StageStarted(stage.name, "cut", 0, 0))
    seed = derived_seed(run.recipe.seed, at.stage, 0)
    given = batches(run.datasets.train, 64, seed=seed) if run.datasets is not None else None
    result = pruning.cut(run.plan, model, inputs=run.inputs, batches=given)
    verdict = overall(result.verdicts)
    macs = count_macs(model, run.inputs)[0], count_macs(result.model, run.inputs)[0]
    params = _params(model), _params(result.model)
    row = StageRow(name=stage.name, kind="cut", seconds=time.perf_counter() - started)
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
    run.listener(CutDone(verdict.outcome, verdict.difference, macs, params))
    return result.model, at


def _params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _finish(run: _Run, model: nn.Module, at: Checkpoint) -> None:
    assert at.cuts is not None  # every recipe has a cut stage
    run.listener(Note("measuring the dense and the cut model side by side"))
    if run.accelerator.is_main_process:
        if run.state.from_scratch:
            note = (
                "trained from random weights: the dense model is the one that this run trained, as it stood right before the cut"
            )
        else:
            note = f"the dense model is {Path(run.state.model_file or '').name} as given"
        notes = (
            (note,)
            if run.build is None
            else (note, "the recipe has no `model:`, so the run loads only with a builder: load_run(folder, build=...)")
        )
        work = Work(run.plan, at.cuts, at.verdicts, at.stages, at.history, notes)
        complete(run.folder, work, model, run.inputs, run.datasets, run.build, run.timing)
        files.finished(run.folder)
    run.accelerator.wait_for_everyone()


def _logged(listener: Listener, folder: Path) -> Listener:
    """The listener, with every event but the single steps appended to the run's log."""

    def tell(event: Event) -> None:
        if not isinstance(event, StepDone):
            files.log(
                folder, {"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": type(event).__name__, **asdict(event)}
            )
        listener(event)

    return tell
