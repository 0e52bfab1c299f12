"""What happens before the first epoch: read and check everything, make or lock the run's folder, see where the run stands."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from sparsify import modelfile
from sparsify.cost.measure import check_target
from sparsify.data import Datasets, load_data
from sparsify.errors import ModelError, RunError, SparsifyError
from sparsify.events import Event, Listener, RunStarted, StepDone, silence
from sparsify.forward.calls import Inputs
from sparsify.forward.copies import copy_model
from sparsify.forward.input_records import apply_record
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.modelfile.weights import save_weights
from sparsify.pruning.fitting_inputs import inputs_for
from sparsify.pruning.make_plan import make_plan
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import Chooser, choose
from sparsify.recipe import Loaded, load
from sparsify.runs import run_folder
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.evaluate import check_reloads
from sparsify.runs.preflight import check_runs
from sparsify.runs.save_load import Base, Build, base_on, begin, load_run, rebuilt_dense
from sparsify.training.objective import check_trainable
from sparsify.training.stage import make_accelerator
from sparsify_schemas.recipe import Recipe

Source = str | Path | Mapping[str, Any] | Recipe | Loaded


@dataclass(frozen=True)
class Job:
    """What is to be done, before anything is opened."""

    loaded: Loaded
    state: run_folder.State
    folder: Path | None
    """of the run to go on with"""


@dataclass(frozen=True)
class Run:
    """What stays the same from the first stage to the report."""

    recipe: Recipe
    state: run_folder.State
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
    chooser: Chooser = choose
    """what decides which units stay"""
    first: int = 0
    """index of the stage that it begins with"""


def asked(
    recipe: Source | None,
    model_file: str | Path | None,
    overrides: Sequence[str],
    allow: Sequence[str],
    from_scratch: bool,
    strict: bool,
    limits: bool = True,
) -> Job:
    if recipe is None:
        raise RunError("nothing to apply: give a recipe, or a run to resume")
    loaded = load(recipe, overrides, limits=limits)
    if from_scratch and model_file is not None:
        raise ModelError(f"both {model_file} and --from-scratch were given; leave one of them out")
    if not from_scratch and model_file is None:
        raise ModelError("no model file; give one, or --from-scratch to start from random weights")
    path = None if model_file is None else Path(model_file).resolve()
    if path is not None and not path.exists():
        raise ModelError(f"there is no model file {model_file}")
    state = run_folder.State(
        recipe=run_folder.recipe_json(loaded.recipe),
        model_file=None if path is None else str(path),
        model_digest=None if path is None else run_folder.sha256(path),
        allow=tuple(allow),
        from_scratch=from_scratch,
        strict=strict,
    )
    return Job(loaded, state, None)


def resumed(folder: Path, recipe: Source | None, overrides: Sequence[str]) -> Job:
    if recipe is not None or overrides:
        raise RunError(f"{folder} goes on with the recipe that it began with; start a new run to use another")
    if not folder.is_dir():
        raise RunError(f"there is no run {folder}; 'sparsify runs' lists them")
    if (folder / run_folder.REPORT).exists():
        raise RunError(f"{folder} is complete: nothing to resume")
    state = run_folder.State.read(folder)
    written = folder / run_folder.RECIPE
    if written.exists() and run_folder.recipe_digest(run_folder.read_recipe(folder)) != state.digest:
        raise RunError(f"{written} was changed since the run began; start a new run with it")
    if state.model_file is not None and run_folder.sha256(Path(state.model_file)) != state.model_digest:
        raise RunError(f"{state.model_file} was changed since the run began; start a new run with it")
    return Job(load(state.resolved(folder)), state, folder)


@contextmanager
def opened(job: Job, out: Path, timing: float, listener: Listener) -> Iterator[Run]:
    """Read and check everything, then make or lock the run's folder. A recipe that does not fit leaves no folder."""
    recipe, accelerator = job.loaded.recipe, make_accelerator()
    datasets = load_data(recipe.data, recipe.seed) if recipe.data is not None else None
    model, base = dense_model(job)
    inputs = inputs_for(recipe, model, datasets)
    for name, target in recipe.targets.items():  # before the first epoch, not when all is trained
        check_target(name, target)
    plan = planned(job, model, inputs, datasets, listener)
    inputs = apply_record(plan.map.inputs, inputs)
    if datasets is not None:
        check_trainable(model, datasets)
    if job.folder is None:
        check_runs(model, inputs, recipe.targets)
    build = None if base.model else lambda: copy_model(model)
    folder = job.folder or _created(accelerator, out, recipe.title)
    main = accelerator.is_main_process
    with run_folder.locked(folder) if main else nullcontext():
        told = _logged(listener, folder) if main else silence
        run = Run(recipe, job.state, folder, datasets, inputs, plan, model, build, accelerator, timing, told)
        with _recorded(job.state, folder) if main else nullcontext():
            if main and not (folder / run_folder.CHECKPOINT).exists():
                _begin(run, base)
            accelerator.wait_for_everyone()
            (told if main else listener)(RunStarted(str(folder), resumed=job.folder is not None))
            yield run


@contextmanager
def _recorded(state: run_folder.State, folder: Path) -> Iterator[None]:
    """An error that ends the run is kept in state.json, for `sparsify runs`; going on with the run takes it out again."""
    begun = replace(state, failure=None)
    if state.failure is not None:
        begun.write(folder)
    try:
        yield
    except Exception as error:
        if (folder / run_folder.STATE).exists():
            with suppress(RunError):  # the disk may be what failed; the error itself matters more
                replace(begun, failure=_reason(error)).write(folder)
        raise


def _reason(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if isinstance(error, SparsifyError) else f"{type(error).__name__}: {first}"


def planned(
    job: Job, model: nn.Module, inputs: Inputs, datasets: Datasets | None, listener: Listener = silence
) -> Plan:
    """The plan of a job, with what only the job knows: that a recipe's `model:` has no say, or that the weights are random."""
    examples = None if datasets is None else len(datasets.train)
    plan = make_plan(job.loaded, model, inputs, examples=examples, strict=job.state.strict, listener=listener)
    path, spec = Path(job.state.model_file or ""), job.loaded.recipe.model
    if spec is not None and job.state.model_file is not None and path.is_dir():
        note = f"the dense model is the cut model of the run {path.name}; the recipe's own model ({spec.build}) is not used"
        plan = replace(plan, notes=(note, *plan.notes))
    return replace(plan, random=job.state.from_scratch)


def dense_model(job: Job) -> tuple[nn.Module, Base]:
    """The dense model as given, and how its structure is built anew."""
    recipe, state = job.loaded.recipe, job.state
    path = None if state.model_file is None else Path(state.model_file)
    if path is not None and path.is_dir():
        return load_run(path), base_on(path)
    return modelfile.read_model(path, recipe, allow=state.allow), Base(recipe.model)


def _created(accelerator: Accelerator, out: Path, title: str) -> Path:
    """The main process makes the folder and tells the others."""
    names = [str(run_folder.create(out, title)) if accelerator.is_main_process else ""]
    broadcast_object_list(names)
    return Path(names[0])


def _begin(run: Run, base: Base) -> None:
    """Write what is known before the first epoch; state.json comes first, as a folder that has it can be resumed."""
    run.state.write(run.folder)
    begin(run.folder, run.plan)
    if base.cuts:
        base.write(run.folder)
    if not run.state.from_scratch:
        save_weights(run.dense, run.folder / run_folder.DENSE)
        check_reloads(run.dense, rebuilt_dense(run.folder, run.build), run.inputs, "dense model")


def where_it_stands(run: Run) -> tuple[nn.Module, Checkpoint]:
    """The model and the checkpoint that the run goes on from; its beginning where there is none yet."""
    if not (run.folder / run_folder.CHECKPOINT).exists():
        return copy_model(run.dense), Checkpoint(run.state.digest, run.state.model_digest, run.first, {})
    return kept_at(run, run_folder.CHECKPOINT)


def kept_at(run: Run, name: str) -> tuple[nn.Module, Checkpoint]:
    """The model and the checkpoint that a file of the run's folder holds. Raises RunError."""
    found = Checkpoint.read(run.folder, name)
    if found is None:
        raise RunError(f"{run.folder / name} is missing; the run cannot be resumed, start a new one")
    if (found.recipe, found.model) != (run.state.digest, run.state.model_digest):
        raise RunError(f"{run.folder / name} belongs to another run; start a new one")
    if type(found.stage) is not int or not 0 <= found.stage <= len(run.recipe.stages):
        raise RunError(
            f"{run.folder / name} is damaged (it stands at stage {found.stage} of {len(run.recipe.stages)}); start a new run"
        )
    modelfile.check_finite(found.weights, str(run.folder / name))
    model = copy_model(run.dense)
    for cuts in found.cuts:
        model = replay_cuts(model, cuts)
    try:
        model.load_state_dict(found.weights)
    except RuntimeError as error:
        raise RunError(
            f"{run.folder / name} does not fit the model that the recipe builds: {' '.join(str(error).split())[:300]}"
        ) from error
    return model, found


def _logged(listener: Listener, folder: Path) -> Listener:
    """The listener, with every event but the single steps appended to the run's log."""

    def tell(event: Event) -> None:
        if not isinstance(event, StepDone):
            run_folder.log(
                folder,
                {
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "event": type(event).__name__,
                    **asdict(event),
                },
            )
        listener(event)

    return tell
