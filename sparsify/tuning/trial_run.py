"""The run of one trial, and what came of it."""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify.errors import SparsifyError, describe_error, first_line
from sparsify.events import EpochDone, Event, Listener
from sparsify.recipe import load
from sparsify.recipe.search_space import write_overrides
from sparsify.reporting.headline import list_missed
from sparsify.reporting.report_file import read_report
from sparsify.runs import run_folder
from sparsify.runs.apply import apply
from sparsify.tuning.study_folder import RECIPE, StudyState, name_trial
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Latency, Report, Side
from sparsify_schemas.stage import Train
from sparsify_schemas.study import DenseModel, StudyTrial, TrialCosts

ShouldStop = Callable[[int, float], bool]
"""(epochs so far, validation metric after them) -> whether the trial falls behind"""


class StoppedEarly(SparsifyError):
    """A trial fell behind and was stopped."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to, and the dense model as its report has it."""

    trial: StudyTrial
    dense: DenseModel | None = None


@dataclass(frozen=True)
class Setting:
    """What all trials of a study have in common."""

    folder: Path
    """of the study"""
    state: StudyState
    recipe: Recipe
    model_file: Path | None
    timing: float


def run_trial(
    setting: Setting,
    number: int,
    parameters: Mapping[str, Any],
    should_stop: ShouldStop | None,
    listener: Listener,
) -> Outcome:
    """Run a trial, or go on with the run that its folder holds. The test set is not read.

    Whatever ends the run but an interruption makes a trial that is stopped or failed.
    """
    started = time.monotonic()
    last: list[tuple[int, float | None]] = [(0, None)]

    def tell(event: Event) -> None:
        listener(event)
        if isinstance(event, EpochDone):
            last[0] = count_epochs(recipe, event), event.validation_metric
            _stop_behind(event, last[0][0], should_stop)

    row = StudyTrial(number=number, state="failed", parameters=dict(parameters))
    dense = None
    recipe = setting.recipe
    try:
        recipe = load(setting.folder / RECIPE, write_overrides(parameters)).recipe  # with epochs of its own
        report = _run(setting, number, parameters, tell)
        row = judge_report(setting.recipe, report, row)
        dense = describe_dense(setting.recipe, report)
        last[0] = report.cut.epochs, row.metric
    except StoppedEarly as stop:
        row = row.model_copy(update={"state": "stopped", "reason": str(stop), "metric": last[0][1]})
    except SparsifyError as error:
        # A value of the search stands where `--set` would put it.
        row = row.model_copy(update={"reason": first_line(error).replace("--set: ", "search: ", 1)})
    except Exception as error:  # of the user's code, or of a library that ran out of memory
        row = row.model_copy(update={"reason": describe_error(error)})
    name = name_trial(number)
    more = {
        "epochs": last[0][0],
        "seconds": round(time.monotonic() - started, 2),
        "folder": name if (setting.folder / name).is_dir() else None,
    }
    return Outcome(row.model_copy(update=more), dense)


def _run(setting: Setting, number: int, parameters: Mapping[str, Any], listener: Listener) -> Report:
    folder = setting.folder / name_trial(number)
    if not run_folder.is_run(folder):
        if (folder / run_folder.STATE).exists():
            apply(resume=folder, timing=setting.timing, listener=listener)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that was lost before it began
            apply(
                setting.folder / RECIPE,
                setting.model_file,
                out=setting.folder,
                name=folder.name,
                overrides=[*write_overrides(parameters), *_leave_baselines(setting.recipe)],
                allow=setting.state.allow,
                from_scratch=setting.state.from_scratch,
                strict=setting.state.strict,
                timing=setting.timing,
                reads_test=False,
                listener=listener,
            )
    return read_report(folder)


def _leave_baselines(recipe: Recipe) -> Sequence[str]:
    """Baselines are trained like the result: they are made when the best recipe is applied."""
    return ["baselines=[]"] if recipe.baselines else []


def count_epochs(recipe: Recipe, event: EpochDone) -> int:
    """Epochs of all training stages up to the end of this one. recipe: of the trial."""
    total = 0
    for stage in recipe.stages:
        if stage.name == event.stage:
            break
        total += stage.epochs if isinstance(stage, Train) else 0
    return total + event.epoch


def _stop_behind(event: EpochDone, epochs: int, should_stop: ShouldStop | None) -> None:
    figure = event.validation_metric
    if should_stop is not None and figure is not None and should_stop(epochs, figure):
        raise StoppedEarly(describe_stop(event.judged_by.name, epochs, figure))


def describe_stop(name: str, epochs: int, figure: float) -> str:
    """Why a trial was stopped early."""
    return (
        f"stopped early by asha after epoch {epochs}: validation {name} {figure:.4g} is not among the best "
        "third of the trials that came so far"
    )


def judge_report(recipe: Recipe, report: Report, row: StudyTrial) -> StudyTrial:
    """The row of a trial whose run is complete: failed where a limit is missed or there is no figure."""
    assert recipe.search is not None
    name = recipe.search.objective.metric
    costs = count_costs(report.cut, report.latency, is_dense=False)
    row = row.model_copy(update={"metric": find_metric(report, report.cut, name), "costs": costs})
    missed = list_missed(report)
    if missed:
        return row.model_copy(update={"reason": f"missed: {'; '.join(missed)}"})
    if row.metric is None or not math.isfinite(row.metric):
        reason = f"the validation {name or report.metric.name} is not a finite number"
        return row.model_copy(update={"reason": reason, "metric": None})
    return row.model_copy(update={"state": "complete"})


def find_metric(report: Report, side: Side, name: str | None, which: str = "validation") -> float | None:
    """A metric of one model by its name; the one that decides where no name is given."""
    if name is None or name == report.metric.name:
        return side.validation_metric if which == "validation" else side.test_metric
    return side.metrics.get(f"{which} {name}")


def count_costs(side: Side, latency: Sequence[Latency], is_dense: bool) -> TrialCosts:
    key = "dense_ms" if is_dense else "cut_ms"
    times = {one.target: getattr(one, key) for one in latency}
    return TrialCosts(macs=side.macs, params=side.params, bytes=side.bytes, latency=times)


def describe_dense(recipe: Recipe, report: Report) -> DenseModel:
    """The dense model as a report has it."""
    assert recipe.search is not None
    name = recipe.search.objective.metric
    return DenseModel(
        metric=find_metric(report, report.dense, name),
        test_metric=find_metric(report, report.dense, name, "test"),
        costs=count_costs(report.dense, report.latency, is_dense=True),
    )
