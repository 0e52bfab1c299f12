"""The end of a study: recipes and test figures of the chosen trials, study.json and report.html."""

import time
from contextlib import ExitStack
from pathlib import Path

from sparsify.errors import RunError
from sparsify.files import read_bytes, write_bytes
from sparsify.modelfile import read_model
from sparsify.recipe import dump, load
from sparsify.recipe.cut_defaults import add_defaults
from sparsify.recipe.search_space import write_overrides
from sparsify.reporting.html.study_page import study_html
from sparsify.reporting.study_file import STUDY, read_study
from sparsify.runs import run_folder
from sparsify.runs.held_out import add_test_figures
from sparsify.runs.model_base import Build
from sparsify.runs.run_folder import recipe_digest
from sparsify.runs.save_load import load_run
from sparsify.tuning import chosen_recipes
from sparsify.tuning.chosen_recipes import BEST
from sparsify.tuning.ledger import Ledger
from sparsify.tuning.study_folder import PAGE, RECIPE, list_folders
from sparsify.tuning.study_record import list_reasons, make_record
from sparsify.tuning.trial_run import Setting, find_metric
from sparsify_schemas.study import Study

_PAUSE = 0.2


def finish_study(setting: Setting, ledger: Ledger) -> Study:
    """Write everything that a finished study leaves. Of several workers in one folder, one does it.

    Raises RunError where every trial failed, after the record is written.
    """
    with ExitStack() as stack:
        _take_turn(setting.folder, stack)
        digest = recipe_digest(setting.recipe)
        record = make_record(ledger, setting.state, setting.recipe, digest)
        done = read_record(setting.folder)
        if done is not None and _list_results(done) == _list_results(record) and not _lacks_tests(done):
            record = done
        else:
            record = _write_recipes(setting, _test_chosen(setting, ledger, record))
            _write_record(setting.folder, record)
    if record.trials and not record.chosen:
        _refuse_failures(setting.folder, record)
    return record


def read_record(folder: Path) -> Study | None:
    """The record of a study that was finished; None where there is none."""
    try:
        return read_study(folder)
    except RunError:  # a damaged one is written again
        return None


def is_complete(folder: Path, wanted: int) -> bool:
    """Whether a study has its record, of so many trials, with every test figure."""
    record = read_record(folder)
    return record is not None and len(record.trials) == wanted and not _lacks_tests(record)


def _list_results(record: Study) -> list[tuple[int, str, float | None]]:
    return [(record.wanted, "", None), *((row.number, row.state, row.metric) for row in record.trials)]


def _lacks_tests(record: Study) -> bool:
    return any(record.trials[number].test_metric is None for number in record.chosen)


def _take_turn(folder: Path, stack: ExitStack) -> None:
    """Wait until no other worker of this folder is in here."""
    while True:
        try:
            stack.enter_context(run_folder.lock_run(folder))
            return
        except RunError as error:
            if "is in use" not in str(error):
                raise
        time.sleep(_PAUSE)


def _test_chosen(setting: Setting, ledger: Ledger, record: Study) -> Study:
    """The record with the test figures of the chosen trials whose runs lie here, or that others have told."""
    assert setting.recipe.search is not None
    name, build = setting.recipe.search.objective.metric, _find_builder(setting)
    rows, dense, notes = list(record.trials), record.dense, list(record.notes)
    here = list_folders(setting.folder, record.chosen)
    report = None
    for number in record.chosen:
        if number in here:
            report = add_test_figures(here[number], build, report)
            tested = [find_metric(report, side, name, "test") for side in (report.cut, report.dense)]
            ledger.study.set_user_attr(f"test {number}", tested)
        figures = ledger.study.user_attrs.get(f"test {number}")
        if figures is None:
            notes.append(
                f"trial {number} was not tested: its run lies with {rows[number].worker}; "
                "'sparsify tune --resume' reads the test set there"
            )
            continue
        rows[number] = rows[number].model_copy(update={"test_metric": figures[0]})
        if dense is not None and dense.test_metric is None:
            dense = dense.model_copy(update={"test_metric": figures[1]})
    return record.model_copy(update={"trials": tuple(rows), "dense": dense, "notes": tuple(notes)})


def _find_builder(setting: Setting) -> Build | None:
    """Makes the dense model, where the recipe does not say how."""
    path, recipe = setting.model_file, setting.recipe
    if recipe.model is not None or path is None:
        return None
    if run_folder.is_run(path):
        return lambda: load_run(path)
    return lambda: read_model(path, recipe, allow=setting.state.allow)


def _write_recipes(setting: Setting, record: Study) -> Study:
    """Write the recipe of each chosen trial, as `apply` takes it."""
    is_front = record.cost is not None
    texts, names = {}, {}
    for number in record.chosen:
        loaded = load(setting.folder / RECIPE, write_overrides(record.trials[number].parameters))
        recipe = add_defaults(loaded).recipe.model_copy(update={"search": None})
        names[str(number)] = f"best-{number}.yaml" if is_front else BEST
        texts[names[str(number)]] = dump(recipe)
    kept = chosen_recipes.replace_recipes(setting.folder, texts)
    notes = (*record.notes, *kept)
    return record.model_copy(update={"recipes": names, "notes": notes})


def _write_record(folder: Path, record: Study) -> None:
    """The page first: where there is a record, all is there."""
    recipe = read_bytes(folder / RECIPE).decode()
    write_bytes(folder / PAGE, study_html(record, recipe).encode())
    write_bytes(folder / STUDY, (record.model_dump_json(indent=1) + "\n").encode())


def _refuse_failures(folder: Path, record: Study) -> None:
    reasons = list_reasons(record.trials)
    total = len(record.trials)
    if not reasons:
        raise RunError(f"no trial of {folder} was complete: all {total} were stopped early")
    reason, count = reasons[0]
    raise RunError(
        f"no trial of {folder} was complete; the most frequent reason ({count} of {total}): {reason}"
    )
