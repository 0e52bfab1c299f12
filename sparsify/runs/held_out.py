"""The test figures of a run that was made without them."""

import math
from functools import partial
from pathlib import Path

from torch import nn

from sparsify.data import Examples, load_data
from sparsify.errors import RunError
from sparsify.objective.objective import Objective, evaluate, make_objective
from sparsify.runs import run_folder
from sparsify.runs.model_base import Build
from sparsify.runs.save_load import rebuild_cut, rebuild_dense, verify_run, write_report
from sparsify_schemas.report import Report, Side

TEST_NOT_READ = "the test set was not read"


def add_test_figures(folder: Path, build: Build | None = None, tested: Report | None = None) -> Report:
    """Judge the dense and the cut model of a complete run on the test set, and write them into its report.

    A report that has them already is returned as it is.

    Args:
        folder: The run.
        build: Makes the dense model, where the recipe does not say how.
        tested: A report of the same recipe with test figures; those of its dense model are taken where it is
            the same.

    Raises:
        SparsifyError: The run or the data cannot be read.
    """
    report = verify_run(folder, run_folder.RECIPE, run_folder.CUTS, run_folder.WEIGHTS, run_folder.DENSE)
    if TEST_NOT_READ not in report.notes:
        return report
    recipe = run_folder.read_recipe(folder)
    if recipe.data is None:
        raise RunError(f"{folder}: its recipe has no data to test on")
    datasets = load_data(recipe.data, recipe.seed, recipe.task)
    judge = partial(_judge, test=datasets.test, objective=make_objective(recipe.task, datasets.classes))
    if tested is not None and tested.model_digest == report.model_digest:
        figures = {name: value for name, value in tested.dense.metrics.items() if name.startswith("test ")}
        dense = _put_figures(report.dense, tested.dense.test_metric, figures)
    else:
        dense = _put_figures(report.dense, *judge(rebuild_dense(folder, build)))
    cut = _put_figures(report.cut, *judge(rebuild_cut(folder, build)))
    notes = tuple(note for note in report.notes if note != TEST_NOT_READ)
    return write_report(folder, report.model_copy(update={"dense": dense, "cut": cut, "notes": notes}))


def _judge(model: nn.Module, test: Examples, objective: Objective) -> tuple[float | None, dict[str, float]]:
    """The deciding metric on the test set, and further figures by name."""
    found = evaluate(model, test, objective)
    further = list(found.figures.items())[1:]
    named = {f"test {name}": value for name, value in further if not math.isnan(value)}
    return None if math.isnan(found.deciding) else found.deciding, named


def _put_figures(side: Side, deciding: float | None, further: dict[str, float]) -> Side:
    return side.model_copy(update={"test_metric": deciding, "metrics": {**side.metrics, **further}})
