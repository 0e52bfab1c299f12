"""Read the report of a run from its folder."""

from pathlib import Path

from pydantic import ValidationError

from sparsify.errors import RunError, first_line
from sparsify.files import explain_unreadable, read_bytes
from sparsify_schemas.report import Report

FILE = "report.json"
STUDY, STARTED = "study.json", "tune.json"
"""files of a study, and of one that has begun"""
RECIPE, PLAN, STATE = "recipe.yaml", "plan.json", "state.json"
"""of a run: its recipe and plan, and how it was started, which is there until its report is"""


def has_lost_record(folder: Path) -> bool:
    """Whether a run was begun in a folder that has lost both its report and what it could be continued by.

    A run writes its plan beside its recipe; a recipe alone is the user's own.
    """
    is_begun = (folder / RECIPE).exists() and (folder / PLAN).exists()
    return is_begun and not any((folder / name).exists() for name in (FILE, STATE))


def read_report(run: Path) -> Report:
    """Read the report of a run's folder, or a report.json.

    Raises RunError, which says what to do when there is none.
    """
    file = run if run.is_file() else run / FILE
    if not run.exists():
        raise RunError(f"{run}: no such run; 'sparsify runs' lists them, 'sparsify apply' makes one")
    if not file.is_file():
        if (run / STATE).exists():
            raise RunError(
                f"{run}: this run has not finished and has no report yet; "
                f"continue it with 'sparsify apply --resume {run}'"
            )
        if has_lost_record(run):
            raise RunError(
                f"{run}: {FILE} of this run is missing, and it cannot be continued without {STATE}; "
                f"make the run again with 'sparsify apply {run / RECIPE}'"
            )
        if (run / STUDY).exists():
            raise RunError(f"{run} is a study; take a run in it, which 'sparsify runs {run}' lists")
        if (run / STARTED).exists():
            raise RunError(
                f"{run} is a study that has not finished; continue it with 'sparsify tune --resume {run}', "
                f"or list its trials with 'sparsify runs {run}'"
            )
        raise RunError(
            f"{run}: there is no {FILE} here, so this is not a run; "
            f"'sparsify runs {run}' lists the runs in a folder"
        )
    try:
        return Report.model_validate_json(read_bytes(file))
    except ValidationError as error:
        damaged = f"{file}: damaged, not a report ({first_line(error)}); make it again with 'sparsify apply'"
        raise RunError(explain_unreadable(file, error, damaged)) from None
