"""The test figures of a run that was made without them."""

import math
from pathlib import Path

from torch import nn

from sparsify.data import Examples, load_data
from sparsify.errors import RunError
from sparsify.objective.objective import Objective, evaluate, make_objective
from sparsify.runs import run_folder
from sparsify.runs.save_load import Build, rebuild_cut, rebuild_dense, verify_run, write_report
from sparsify_schemas.report import Report, Side

TEST_NOT_READ = "the test set was not read"


def add_test_figures(folder: Path, build: Build | None = None) -> Report:
    """Judge the dense and the cut model of a complete run on the test set, and write them into its report.

    A report that has them already is returned as it is. build: makes the dense model, where the recipe does
    not say how. Raises SparsifyError.
    """
    report = verify_run(folder, run_folder.RECIPE, run_folder.CUTS, run_folder.WEIGHTS, run_folder.DENSE)
    if TEST_NOT_READ not in report.notes:
        return report
    recipe = run_folder.read_recipe(folder)
    if recipe.data is None:
        raise RunError(f"{folder}: its recipe has no data to test on")
    datasets = load_data(recipe.data, recipe.seed, recipe.task)
    objective = make_objective(recipe.task, datasets.classes)
    sides = [
        _add_figures(side, model, datasets.test, objective)
        for side, model in (
            (report.dense, rebuild_dense(folder, build)),
            (report.cut, rebuild_cut(folder, build)),
        )
    ]
    notes = tuple(note for note in report.notes if note != TEST_NOT_READ)
    tested = report.model_copy(update={"dense": sides[0], "cut": sides[1], "notes": notes})
    return write_report(folder, tested)


def _add_figures(side: Side, model: nn.Module, test: Examples, objective: Objective) -> Side:
    found = evaluate(model, test, objective)
    further = {
        f"test {name}": value for name, value in list(found.figures.items())[1:] if not math.isnan(value)
    }
    deciding = None if math.isnan(found.deciding) else found.deciding
    return side.model_copy(update={"test_metric": deciding, "metrics": {**side.metrics, **further}})
