"""Begin a study, join one that runs, or go on with one that was interrupted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from optuna.storages import BaseStorage

from sparsify.errors import RunError
from sparsify.files import write_bytes
from sparsify.recipe import load, write_source
from sparsify.runs import run_folder
from sparsify.runs.setup import make_request
from sparsify.tuning import storage as storages
from sparsify.tuning.data_and_code import add_digests, check_digests
from sparsify.tuning.finish import is_complete
from sparsify.tuning.ledger import Ledger, Worker
from sparsify.tuning.samplers import count_combinations
from sparsify.tuning.study_folder import (
    RECIPE,
    STATE,
    StudyState,
    check_model,
    hash_text,
    read_recipe_text,
)
from sparsify.tuning.trial_run import Setting
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.search import Search
from sparsify_schemas.search_fit import find_judge

TIMED = 3.0
"""Seconds that a target is timed for in each trial, where the study goes by latency."""


StudySource = str | Path | Mapping[str, Any] | Recipe
"""What the recipe of a study may be given as: variables must not be gone yet."""


@dataclass(frozen=True)
class TuneRequest:
    """The arguments of `tune`."""

    recipe: StudySource | None
    model_file: Path | None
    out: Path
    overrides: Sequence[str]
    allow: Sequence[str]
    from_scratch: bool
    strict: bool
    trials: int | None
    storage: str | None
    join: str | None
    resume: Path | None
    timing: float | None


@dataclass(frozen=True)
class OpenStudy:
    """A study that this worker takes part in."""

    setting: Setting
    ledger: Ledger
    is_new: bool
    storage: str | None
    """with its password"""
    backend: BaseStorage
    """the storage as it is open"""


def open_study(request: TuneRequest) -> OpenStudy:
    """Raises SparsifyError where the arguments do not go together, or the study cannot be opened."""
    _check_arguments(request)
    if request.resume is not None:
        return _reopen(request, request.resume)
    if request.join is not None:
        folder = Path(request.join)
        if (folder / STATE).exists() or request.storage is None:
            return _reopen(request, folder)
        return _join_from_elsewhere(request, request.join)
    return _begin(request)


def _check_arguments(request: TuneRequest) -> None:
    if request.trials is not None and request.trials < 1:
        raise RunError(f"a study has at least one trial, not {request.trials}")
    goes_on = request.resume if request.resume is not None else request.join
    if request.resume is not None and request.join is not None:
        raise RunError("both resume and join are given; leave one of them out")
    if goes_on is None and request.recipe is None:
        raise RunError("nothing to tune: give a recipe and a model, --resume STUDY or --join STUDY")
    if goes_on is not None and (request.overrides or request.allow or request.from_scratch or request.strict):
        raise RunError(f"{goes_on} goes on as it was started; start a new study to change anything")
    if request.join is not None and request.trials is not None:
        raise RunError("who joins a study takes its number of trials; leave it out, or give it with --resume")


def _begin(request: TuneRequest) -> OpenStudy:
    assert request.recipe is not None
    loaded = load(request.recipe, request.overrides)
    search = loaded.recipe.search
    if search is None:
        raise RunError(
            "the recipe has no 'search'; write what is tried, such as "
            "'search: {parameters: {budget.macs: [30%, 70%]}}'"
        )
    run = make_request(
        loaded, request.model_file, (), request.allow, request.from_scratch, request.strict
    )  # checks the arguments as `apply` does
    text = write_source(request.recipe, request.overrides)
    wanted = _count_wanted(search, request.trials)
    state = StudyState(
        name="",
        storage=_write_storage(request.storage),
        model_file=run.state.model_file,
        model_digest=run.state.model_digest,
        recipe_digest=hash_text(text),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        allow=tuple(request.allow),
        from_scratch=request.from_scratch,
        strict=request.strict,
    )
    state = add_digests(state, loaded.recipe)
    folder = run_folder.create_folder(request.out, f"{loaded.recipe.title[:40]} study")
    name = folder.name if request.storage is None else f"{folder.name}-{token_hex(3)}"
    state = replace(state, name=name)
    try:
        backend = storages.open_storage(request.storage, folder)
        study, claims = storages.create_study(state, backend, text, search, find_judge(loaded.recipe), wanted)
    except BaseException:
        run_folder.remove_empty(folder)
        raise
    write_bytes(folder / RECIPE, text.encode())
    state.write(folder)  # the last file: with it the study can be joined
    setting = _make_setting(request, folder, state, load(folder / RECIPE).recipe)
    ledger = Ledger(study, claims, Worker.of_this_process(), wanted)
    return OpenStudy(setting, ledger, True, request.storage, backend)


def _count_wanted(search: Search, trials: int | None) -> int:
    """Trials of the study; of a grid not more than it has combinations."""
    wanted = search.trials if trials is None else trials
    return min(wanted, count_combinations(search)) if search.sampler == "grid" else wanted


def _write_storage(storage: str | None) -> str | None:
    """A storage as other workers of this machine find it: the path of a journal absolute, no password."""
    if storage is None or "://" in storage:
        return None if storage is None else storages.hide_password(storage)
    return str(Path(storage).expanduser().resolve())


def _make_setting(request: TuneRequest, folder: Path, state: StudyState, recipe: Recipe) -> Setting:
    model_file = request.model_file
    if model_file is None and state.model_file is not None:
        model_file = Path(state.model_file)
    timing = request.timing
    if timing is None:
        timing = TIMED if _goes_by_latency(recipe) else 0.0
    return Setting(folder, state, recipe, model_file, timing)


def _goes_by_latency(recipe: Recipe) -> bool:
    assert recipe.search is not None
    cost = recipe.search.objective.cost
    return bool(recipe.budget.latency) or (cost is not None and cost.startswith("latency."))


def _reopen(request: TuneRequest, folder: Path) -> OpenStudy:
    if not folder.is_dir():
        raise RunError(f"there is no study {folder}")
    state = StudyState.read(folder)
    text = read_recipe_text(folder, state)
    recipe = load(folder / RECIPE).recipe
    if request.recipe is not None:
        _check_recipe(request.recipe, text, str(folder))
    setting = _make_setting(request, folder, state, recipe)
    if setting.model_file is not None:
        check_model(state, setting.model_file)
    given = request.storage if request.storage is not None else state.storage
    backend = storages.open_storage(given, folder)
    study, claims = storages.load_study(state.name, backend, recipe.search)
    ledger = Ledger(study, claims, Worker.of_this_process(), storages.read_wanted(study))
    wanted = _count_more(request, ledger, setting)
    check_digests(state, recipe)
    ledger.wanted = max(wanted, storages.read_wanted(study))
    if wanted == ledger.wanted and request.trials is not None:
        storages.write_wanted(study, wanted)
    return OpenStudy(setting, ledger, False, given, backend)


def _check_recipe(recipe: StudySource, text: str, study: str) -> None:
    if hash_text(write_source(recipe)) != hash_text(text):
        raise RunError(f"the recipe is not the one that the study {study} began with; leave it out")


def _count_more(request: TuneRequest, ledger: Ledger, setting: Setting) -> int:
    """Trials of a study that goes on: more, where they are asked for.

    Raises RunError where there is nothing to go on with.
    """
    assert setting.recipe.search is not None
    if request.resume is None:
        return ledger.wanted
    wanted = ledger.wanted
    if request.trials is not None:
        wanted = _count_wanted(setting.recipe.search, request.trials)
    if wanted < ledger.wanted:
        raise RunError(f"{setting.folder} has {ledger.wanted} trials; ask for more of them, not for {wanted}")
    if ledger.count_finished() >= wanted and is_complete(setting.folder, wanted):
        raise RunError(
            f"{setting.folder} is complete: nothing to resume; --trials {2 * wanted} asks for more"
        )
    return wanted


def _join_from_elsewhere(request: TuneRequest, name: str) -> OpenStudy:
    """Join a study by its name in a storage, from a machine that does not see its folder."""
    folder = request.out / name
    if (folder / STATE).exists():
        return _reopen(request, folder)
    backend = storages.open_storage(request.storage, folder)
    study, _ = storages.load_study(name, backend, None)
    values, text = storages.read_meta(study, name)
    storages.close_storage(backend)
    state = StudyState.from_json(values, f"the study '{name}'")
    if request.recipe is not None:
        _check_recipe(request.recipe, text, f"'{name}'")
    if request.model_file is not None:
        state = replace(state, model_file=str(request.model_file.resolve()))
    if state.model_file is not None:
        check_model(state, Path(state.model_file))
    state = replace(state, storage=_write_storage(request.storage))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror}") from None
    write_bytes(folder / RECIPE, text.encode())
    state.write(folder)
    try:
        return _reopen(request, folder)
    except BaseException:
        for file in (STATE, RECIPE):  # who is refused leaves nothing behind
            (folder / file).unlink(missing_ok=True)
        run_folder.remove_empty(folder)
        raise
