"""Before the first epoch.

Read and check everything, make or lock the run's folder, find out how far the run is.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from sparsify import modelfile
from sparsify.cost.measure import check_target
from sparsify.data import Datasets, load_data
from sparsify.data.digest import hash_datasets
from sparsify.data.odd_data import list_warnings
from sparsify.errors import DataError, ModelError, RecipeError, RunError, SparsifyError
from sparsify.events import Event, Listener, Note, RunStarted, StepDone, silence
from sparsify.forward.calls import Inputs
from sparsify.forward.copies import copy_model
from sparsify.forward.input_records import apply_record
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.modelfile.folders import find_weights
from sparsify.modelfile.weights import save_weights
from sparsify.nn.load_tensors import load_tensors
from sparsify.objective.objective import Objective, check_trainable, make_objective
from sparsify.pruning.fitting_inputs import find_inputs
from sparsify.pruning.make_plan import make_plan
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import Chooser, choose
from sparsify.recipe import Loaded, load
from sparsify.recipe.cut_defaults import add_defaults
from sparsify.runs import run_folder
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.model_base import Base, Build, read_cut_base
from sparsify.runs.preflight import check_batches, check_stages, check_targets
from sparsify.runs.reloaded_models import check_reloads
from sparsify.runs.save_load import load_run, rebuild_dense, write_start
from sparsify.runs.source_digests import check_data, check_sources, hash_sources
from sparsify.runs.teachers import read_teachers
from sparsify.runs.trackers import check_trackers, track_events
from sparsify.training.accelerator import make_accelerator
from sparsify.training.optimizers import find_unmatched
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.stage import Train
from sparsify_schemas.task import Facts

Source = str | Path | Mapping[str, Any] | Recipe | Loaded
"""What a recipe may be given as."""
SEARCH_LEFT_OUT = "the recipe's `search` is left out: 'sparsify tune' carries it out"


@dataclass(frozen=True)
class RunRequest:
    """A run that was asked for: its checked recipe and arguments. Model and data are not read yet."""

    loaded: Loaded
    state: run_folder.State
    folder: Path | None
    """Folder of the run to resume; None for a new run."""
    name: str | None = None
    """Name of a new run's folder in place of its title and a number."""
    has_search: bool = False
    """Whether a search was left out of the recipe."""


@dataclass(frozen=True)
class Run:
    """Everything that stays the same from the first stage to the report."""

    recipe: Recipe
    state: run_folder.State
    folder: Path
    datasets: Datasets | None
    inputs: Inputs
    plan: Plan
    dense: nn.Module
    """The model as given."""
    build: Build | None
    """Builds the dense model's structure, where the recipe cannot."""
    objective: Objective
    """What training minimises and models are judged by."""
    accelerator: Accelerator
    timing: float
    listener: Listener
    chooser: Chooser = choose
    """Selects the units to keep."""
    first: int = 0
    """Index of the first stage."""
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    """Path -> model, of teachers that train stages name."""


def make_request(
    recipe: Source | None,
    model_file: str | Path | None,
    overrides: Sequence[str],
    allow: Sequence[str],
    from_scratch: bool,
    strict: bool,
    limits: bool = True,
    repairs: bool = False,
) -> RunRequest:
    """Read the recipe and check the arguments of a new run. Raises SparsifyError.

    limits: whether to read the limits file that the recipe names.
    repairs: whether to add the repair that follows a cut by default.
    A search is left out of the recipe: it is the business of `sparsify tune`.
    """
    if recipe is None:
        raise RunError("nothing to apply: give a recipe, or --resume RUN")
    loaded = load(recipe, overrides, limits=limits)
    has_search = loaded.recipe.search is not None
    loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"search": None}))
    loaded = add_defaults(loaded) if repairs else loaded
    if from_scratch and model_file is not None:
        raise ModelError(f"both {model_file} and --from-scratch are given; leave one of them out")
    if not from_scratch and model_file is None:
        raise ModelError("no model file; give one, or --from-scratch to start from random weights")
    if re.match(r"[A-Za-z][A-Za-z0-9+.]+:/", str(model_file)):  # a Path has lost one of its slashes
        url = re.sub(":/+", "://", str(model_file), count=1)
        raise ModelError(f"{url} is a URL; download the file, and give its path")
    path = None if model_file is None else Path(model_file).resolve()
    if path is not None and not path.exists():
        raise ModelError(f"there is no model file {model_file}")
    if path is not None and (path / run_folder.STATE).exists() and not (path / run_folder.REPORT).exists():
        raise ModelError(
            f"{model_file} is a run that has not finished and has no cut model yet; "
            f"continue it with 'sparsify apply --resume {model_file}'"
        )
    digest = None if path is None else hash_model(path)
    state = run_folder.State(
        recipe=run_folder.recipe_json(loaded.recipe),
        model_file=None if path is None else str(path),
        model_digest=digest,
        allow=tuple(allow),
        from_scratch=from_scratch,
        strict=strict,
    )
    return RunRequest(loaded, state, None, has_search=has_search)


def hash_model(path: Path) -> str:
    """The digest of a run or of a file of weights; of shards that of their digests. Raises SparsifyError."""
    files = (path,) if run_folder.is_run(path) else find_weights(path)
    digests = [run_folder.hash_file(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def resume_request(folder: Path, recipe: Source | None, overrides: Sequence[str]) -> RunRequest:
    """Read how an interrupted run was started.

    Raises RunError when it is complete, damaged or has changed.
    """
    if recipe is not None or overrides:
        raise RunError(f"{folder} continues with its own recipe; start a new run to use another")
    if not folder.is_dir():
        raise RunError(f"there is no run {folder}; 'sparsify runs' lists them")
    if (folder / run_folder.REPORT).exists():
        run_folder.remove_temporary_files(folder)  # a crash after the report may have left them
        raise RunError(f"{folder} is complete: nothing to resume")
    state = run_folder.State.read(folder)
    written = folder / run_folder.RECIPE
    if written.exists() and run_folder.recipe_digest(run_folder.read_recipe(folder)) != state.digest:
        raise RunError(f"{written} was changed since the run began; start a new run with it")
    if state.model_file is not None and hash_model(Path(state.model_file)) != state.model_digest:
        raise RunError(f"{state.model_file} was changed since the run began; start a new run with it")
    return RunRequest(load(state.parse_recipe(folder)), state, folder)


@contextmanager
def open_run(request: RunRequest, out: Path, timing: float, listener: Listener) -> Iterator[Run]:
    """Read and check everything, then make or lock the run's folder.

    A recipe that does not fit the model leaves no folder.
    """
    recipe, accelerator = request.loaded.recipe, make_accelerator()
    check_trackers(recipe.trackers)
    if request.folder is not None:
        check_sources(request.state.sources, recipe)
    datasets = None
    if recipe.data is not None:
        reads_test = request.state.reads_test
        datasets = load_data(recipe.data, recipe.seed, recipe.task, reads_test=reads_test)
    request = _with_digests(request, datasets)
    objective = make_objective(recipe.task, datasets.classes if datasets is not None else 0)
    model, base = read_dense_model(request)
    inputs = find_inputs(recipe, model, datasets)
    # Before the first epoch: a target that is not here must not be found out after the training.
    for name, target in recipe.targets.items():
        check_target(name, target)
    plan = plan_request(request, model, inputs, datasets, listener)
    inputs = apply_record(plan.map.inputs, inputs)
    teachers: dict[str, nn.Module] = {}
    if datasets is not None:
        check_trainable(model, datasets, objective)
        check_stages(request.loaded, model, datasets, objective)
        teachers = read_teachers(request.loaded, request.state.allow, model, datasets, objective)
    if request.folder is None:
        check_targets(model, inputs, recipe.targets)
    folder = request.folder or _create_folder(accelerator, out, recipe.title, request.name)
    is_main = accelerator.is_main_process
    with (
        run_folder.remove_unbegun(folder) if is_main else nullcontext(),
        run_folder.lock_run(folder) if is_main else nullcontext(),
        _record_failure(request.state, folder) if is_main else nullcontext(),
    ):
        run = Run(
            recipe=recipe,
            state=request.state,
            folder=folder,
            datasets=datasets,
            inputs=inputs,
            plan=plan,
            dense=model,
            build=None if base.model else lambda: copy_model(model),
            objective=objective,
            accelerator=accelerator,
            timing=timing,
            listener=_log_events(listener, folder) if is_main else silence,
            teachers=teachers,
        )
        is_beginning = is_main and not (folder / run_folder.CHECKPOINT).exists()
        if is_beginning:
            run.state.write(folder)  # the first file: with it the run can be resumed
        with track_events(run.listener, recipe, folder) if is_main else nullcontext(listener) as tell:
            # Told at once, so that who is stopped from here on says how to resume.
            tell(RunStarted(str(folder), resumed=request.folder is not None))
            if request.has_search:
                tell(Note(SEARCH_LEFT_OUT))
            if is_beginning:
                _write_start(run, base)
            accelerator.wait_for_everyone()
            yield replace(run, listener=tell) if is_main else run


def _with_digests(request: RunRequest, datasets: Datasets | None) -> RunRequest:
    """The request of a new run with digests of its data and code; that of a resumed one, checked by its
    own."""
    digests = hash_datasets(datasets) if datasets is not None else {}
    if request.folder is not None:
        check_data(request.state.data, request.loaded.recipe, digests)
        return request
    sources = hash_sources(request.loaded.recipe)
    return replace(request, state=replace(request.state, data=digests, sources=sources))


@contextmanager
def _record_failure(state: run_folder.State, folder: Path) -> Iterator[None]:
    """Write an error that ends the run into state.json, where `sparsify runs` reads it.

    Resuming removes it.
    """
    clean = replace(state, failure=None)
    if state.failure is not None:
        clean.write(folder)
    try:
        yield
    except Exception as error:
        if (folder / run_folder.STATE).exists():
            with suppress(RunError):  # the disk may be what failed; the error itself matters more
                replace(clean, failure=_describe_error(error)).write(folder)
        raise


def _describe_error(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if isinstance(error, SparsifyError) else f"{type(error).__name__}: {first}"


def plan_request(
    request: RunRequest,
    model: nn.Module,
    inputs: Inputs,
    datasets: Datasets | None,
    listener: Listener = silence,
) -> Plan:
    """Make the plan, and mark in it that the weights are random or that the recipe's `model:` is not used."""
    _check_rates(request.loaded, model)
    check_batches(model, inputs, request.loaded.recipe.targets)
    state, spec = request.state, request.loaded.recipe.model
    data = request.loaded.recipe.data
    odd = () if data is None or datasets is None else tuple(list_warnings(data, datasets))
    if state.strict and odd:
        raise DataError(f"{odd[0]}; change it, or run without --strict")
    plan = make_plan(
        request.loaded,
        model,
        inputs,
        examples=None if datasets is None else len(datasets.train),
        strict=state.strict,
        listener=listener,
    )
    plan = replace(plan, notes=(*odd, *plan.notes))
    path = Path(state.model_file or "")
    if spec is not None and state.model_file is not None and run_folder.is_run(path):
        note = (
            f"the dense model is the cut model of the run {path.name}; "
            f"the recipe's own model ({spec.build}) is not used"
        )
        plan = replace(plan, notes=(note, *plan.notes))
    return replace(plan, random=state.from_scratch)


def _check_rates(loaded: Loaded, model: nn.Module) -> None:
    """Refuse learning rates of layers that the model does not have. Raises RecipeError."""
    problems = [
        loaded.positions.problem(f"stages.{index}.rates", f"'{pattern}' matches no layer of the model", hint)
        for index, stage in enumerate(loaded.recipe.stages)
        if isinstance(stage, Train)
        for pattern, hint in find_unmatched(model, stage.rates).items()
    ]
    if problems:
        raise RecipeError(problems)


def read_dense_model(request: RunRequest) -> tuple[nn.Module, Base]:
    """The dense model as given, and how to rebuild its structure."""
    recipe, state = request.loaded.recipe, request.state
    path = None if state.model_file is None else Path(state.model_file)
    if path is not None and run_folder.is_run(path):
        return load_run(path), read_cut_base(path)
    return modelfile.read_model(path, recipe, allow=state.allow), Base(recipe.model)


def _create_folder(accelerator: Accelerator, out: Path, title: str, name: str | None) -> Path:
    """Make the folder in the main process and broadcast its name."""
    names = [""]
    if accelerator.is_main_process:
        folder = run_folder.create_folder(out, title) if name is None else run_folder.take_folder(out / name)
        names = [str(folder)]
    broadcast_object_list(names)
    return Path(names[0])


def _write_start(run: Run, base: Base) -> None:
    """Write what is known before the first epoch."""
    write_start(run.folder, run.plan)
    if base.cuts:
        base.write(run.folder)
    if not run.state.from_scratch:
        save_weights(run.dense, run.folder / run_folder.DENSE)
        check_reloads(run.dense, rebuild_dense(run.folder, run.build), run.inputs, "dense model")


def load_progress(run: Run) -> tuple[nn.Module, Checkpoint]:
    """The model and the checkpoint that the run continues from; the dense model where there is none yet."""
    if not (run.folder / run_folder.CHECKPOINT).exists():
        return copy_model(run.dense), Checkpoint(run.state.digest, run.state.model_digest, run.first, {})
    return load_checkpoint(run, run_folder.CHECKPOINT)


def load_checkpoint(run: Run, name: str) -> tuple[nn.Module, Checkpoint]:
    """The model and the checkpoint in a file of the run's folder. Raises RunError."""
    path, stages = run.folder / name, len(run.recipe.stages)
    found = Checkpoint.read(run.folder, name)
    if found is None:
        raise RunError(f"{path} is missing; the run cannot be resumed, start a new one")
    if (found.recipe, found.model) != (run.state.digest, run.state.model_digest):
        raise RunError(f"{path} belongs to another run; start a new one")
    if type(found.stage) is not int or not 0 <= found.stage <= stages:
        raise RunError(f"{path} is damaged (its stage is {found.stage} of {stages}); start a new run")
    modelfile.check_finite(found.weights, str(path))
    model = copy_model(run.dense)
    for cuts in found.cuts:
        model = replay_cuts(model, cuts)
    try:
        load_tensors(model, found.weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{path} does not fit the model that the recipe builds: {reason}") from error
    return model, found


def _as_json(event: Event) -> dict[str, Any]:
    """The fields of an event; accuracy, the usual metric, goes without saying."""
    fields = asdict(event)
    judged_by = fields.pop("judged_by", None)
    return fields if judged_by in (None, Facts()) else {**fields, "judged_by": judged_by.model_dump()}


def _log_events(listener: Listener, folder: Path) -> Listener:
    """A listener that also appends every event, except single steps, to the run's log."""

    def tell(event: Event) -> None:
        if not isinstance(event, StepDone):
            now = datetime.now(UTC).isoformat(timespec="seconds")
            entry = {"at": now, "event": type(event).__name__, **_as_json(event)}
            run_folder.append_log(folder, entry)
        listener(event)

    return tell
