"""Save and load the models of run folders.

Without pickle, rebuilt from a builder, a log of cuts and the weights.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sparsify import files
from sparsify.data import Datasets, example_inputs
from sparsify.errors import RunError
from sparsify.files import read_bytes
from sparsify.forward.calls import Call, Inputs, map_tensors, normalize_inputs
from sparsify.forward.copies import copy_model
from sparsify.forward.input_records import apply_record, draw_from_record
from sparsify.modelfile.weights import load_weights, save_weights
from sparsify.objective.objective import Objective, make_objective
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import dump
from sparsify.reporting import report_tables
from sparsify.reporting.html import to_html
from sparsify.reporting.report_file import read_report
from sparsify.runs import run_folder
from sparsify.runs.evaluate import evaluate_run
from sparsify.runs.model_base import Build, read_base, read_cut_base, read_cuts, write_cuts
from sparsify.runs.own_figures import (
    NOTHING,
    Figures,
    OwnFigures,
    collect_figures,
    describe_given,
)
from sparsify.runs.own_history import UNPLACED, describe_cut, read_history
from sparsify.runs.reloaded_models import ReloadedModels, check_reloads
from sparsify.runs.run_record import RunRecord
from sparsify_schemas.baseline import Baseline
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Epoch, Report

TIMING_SECONDS = 3.0
"""Spent on timing each target."""
NEEDS_BUILDER = (
    "the recipe has no `model:`, so the run loads only with a builder: load_run(folder, build=...)"
)


def load_run(folder: str | Path, *, build: Build | None = None) -> nn.Module:
    """Load the cut model of a complete run.

    Args:
        folder: The folder of the run.
        build: Makes the dense model, with any weights. Needed where the recipe of the run has no `model:`.

    Returns:
        The cut model in eval mode. Its outputs are those of the model that was saved.

    Raises:
        RunError: A file is missing, damaged or does not fit; the message names it.

    Examples:
        >>> result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
        >>> run = sparsify.save_run(result, "runs/reloaded")
        >>> again = sparsify.load_run(run, build=lambda: model)
        >>> torch.equal(again(x), result.model.eval()(x))
        True
    """
    path = Path(folder)
    verify_run(path, run_folder.RECIPE, run_folder.CUTS, run_folder.WEIGHTS)
    return rebuild_cut(path, build)


def load_dense(folder: str | Path, *, build: Build | None = None) -> nn.Module:
    """Load the dense model that a complete run compares with, in eval mode. Arguments as of `load_run`."""
    path = Path(folder)
    verify_run(path, run_folder.RECIPE, run_folder.DENSE)
    return rebuild_dense(path, build)


def save_run(
    result: Result,
    folder: str | Path,
    *,
    inputs: Inputs | Call | Sequence[Call] | None = None,
    datasets: Datasets | None = None,
    validation: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    objective: Objective | None = None,
    metrics: Figures | None = None,
    history: Sequence[Epoch | Mapping[str, Any]] | None = None,
    timing: float = TIMING_SECONDS,
) -> Path:
    """Save a cut model and its dense one as a run, measured as reloaded from disk.

    The folder appears whole or not at all.

    Args:
        result: As `cut` returns it. `result.model` may have been trained further.
        folder: The folder to make. It must not exist, or be empty.
        inputs: Example inputs, as in `make_plan`. Left out, they come from the data, or are drawn at random
            in the shapes of the plan's.
        datasets: What the task's metrics are measured on: of `sparsify.data.load_data`.
        validation: Batches in place of datasets: pairs (inputs, targets), or mappings with the targets among
            them. Both models are measured on them as reloaded.
        test: The same, for figures that no choice was made by.
        objective: What batches are judged by, of `make_objective`; the recipe's task when left out.
        metrics: Figures measured elsewhere, `{"dense": {"test mAP": 0.41}, "cut": {"test mAP": 0.40}}`; the
        report
            says that they were handed over.
        history: A row for each epoch of your training, in order: `{"loss": 0.3, "validation_metric": 0.9}`,
        and as
            you have them `stage`, `epoch`, `train_metric`, `validation_loss`, `lr`, `sparsity`, `strength`,
            `seconds`. A row `{"stage": "cut"}` stands where the model was cut, `{"stage": "repair"}` where it
            was repaired. The report draws them.
        timing: Seconds spent on timing each target.

    Returns:
        The path of the folder.

    Raises:
        RunError: The folder exists or cannot be written.
        VerificationError: The reloaded model computes something else.

    Examples:
        >>> result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
        >>> run = sparsify.save_run(result, "runs/tiny")
        >>> sorted(path.name for path in run.iterdir() if path.suffix == ".safetensors")
        ['dense.safetensors', 'model.safetensors']
    """
    path, plan = Path(folder), result.plan
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} exists already; choose another folder")
    given = _default_inputs(plan, datasets) if inputs is None else normalize_inputs(inputs)
    given = move_to_cpu(apply_record(plan.map.inputs, given))
    own = collect_figures(validation, test, metrics, objective)
    done = read_history(history)
    given_elsewhere = describe_given(metrics)
    notes = [*_describe_limits(plan.recipe), *([given_elsewhere] if given_elsewhere else [])]
    if done.epochs and done.cut is None:
        notes.append(UNPLACED)
    record = RunRecord(
        plan,
        (result.cuts,),
        result.verdicts,
        rounds=() if done.cut is None else (describe_cut(result, done.cut),),
        stages=done.stages,
        history=done.epochs,
        notes=tuple(notes),
        dense_trained=True,
        placed=done.cut is not None,
    )
    save_record(path, record, result, given, datasets, timing, own)
    return path


def save_record(
    path: Path,
    record: RunRecord,
    result: Result,
    inputs: Inputs,
    datasets: Datasets | None,
    timing: float,
    own: OwnFigures = NOTHING,
) -> None:
    """Write the folder of a run that is complete: it appears whole or not at all.

    Raises RunError where it cannot be written, VerificationError where a reloaded model computes something
    else.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    build = None if record.plan.recipe.model else lambda: copy_model(result.dense).cpu()
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_start(temporary, record.plan)
        save_weights(result.dense, temporary / run_folder.DENSE)
        check_reloads(result.dense, rebuild_dense(temporary, build), inputs, "dense model")
        complete_run(temporary, record, result.model, inputs, datasets, build, timing, own)
        temporary.rename(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _describe_limits(recipe: Recipe) -> Iterator[str]:
    """Notes on what a run saved from Python lacks."""
    if recipe.model is None:
        yield NEEDS_BUILDER
    if recipe.baselines:
        names = ", ".join(recipe.baseline_kinds)
        yield f"the baselines ({names}) were not made: only 'sparsify apply' trains them"


def _default_inputs(plan: Plan, datasets: Datasets | None) -> Inputs:
    if datasets is None and plan.map.inputs:
        return draw_from_record(plan.map.inputs)
    return example_inputs(plan.recipe, datasets)


def move_to_cpu(inputs: Inputs) -> Inputs:
    return map_tensors(inputs, lambda tensor: tensor.cpu())


def write_start(folder: Path, plan: Plan) -> None:
    """Write what is known before the first stage: the resolved recipe and the plan."""
    recipe = plan.recipe.model_copy(update={"search": None})
    files.write_bytes(folder / run_folder.RECIPE, dump(recipe).encode())
    files.write_bytes(folder / run_folder.PLAN, files.as_json(plan.to_json()))


def complete_run(
    folder: Path,
    record: RunRecord,
    model: nn.Module,
    inputs: Inputs,
    datasets: Datasets | None,
    build: Build | None,
    timing: float,
    own: OwnFigures = NOTHING,
) -> Report:
    """Save the cut model, reload both models, measure them, and write the report as the last file."""
    write_cuts(folder, record.cuts)
    save_weights(model, folder / run_folder.WEIGHTS)
    classes = datasets.classes if datasets is not None else 0
    models = ReloadedModels(
        folder=folder,
        dense=rebuild_dense(folder, build),
        cut=rebuild_cut(folder, build),
        baselines={made.kind: rebuild_baseline(folder, made.kind, build) for made in record.baselines},
        inputs=inputs,
        datasets=datasets,
        objective=own.objective or make_objective(record.plan.recipe.task, classes),
        own=own,
    )
    check_reloads(model, models.cut, inputs, "cut model")
    report = write_report(folder, evaluate_run(record, models, timing))
    shutil.rmtree(folder / run_folder.PARTS, ignore_errors=True)
    return report


def write_report(folder: Path, report: Report) -> Report:
    """Write report.md, report.html and report.json, which is the last file and holds the digests of all."""
    report = report.model_copy(update={"files": _digest_files(folder)})
    recipe = read_bytes(folder / run_folder.RECIPE).decode()
    files.write_bytes(folder / run_folder.PAGE, report_tables.to_markdown(report).encode())
    files.write_bytes(folder / run_folder.HTML, to_html(report, recipe).encode())
    # The two pages are new since, and the report holds their digests too.
    report = report.model_copy(update={"files": _digest_files(folder)})
    files.write_bytes(folder / run_folder.REPORT, (report.model_dump_json(indent=1) + "\n").encode())
    return report


def _digest_files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file of a complete run, except the report."""
    baselines = sorted((folder / run_folder.BASELINES).glob("*/*"))
    names = [*run_folder.SAVED_FILES, *(path.relative_to(folder).as_posix() for path in baselines)]
    digests = {}
    for name in names:
        if (folder / name).exists() and not name.endswith(run_folder.CHECKPOINT):
            digests[name] = run_folder.hash_file(folder / name)
    return digests


def rebuild_cut(folder: Path, build: Build | None = None) -> nn.Module:
    """Load the cut model from a folder that has no report yet."""
    model = read_cut_base(folder).build_structure(build)
    load_weights(model, folder / run_folder.WEIGHTS)
    return model.eval()


def rebuild_dense(folder: Path, build: Build | None = None) -> nn.Module:
    """Load the dense model from a folder that has no report yet."""
    model = read_base(folder).build_structure(build)
    load_weights(model, folder / run_folder.DENSE)
    return model.eval()


def rebuild_baseline(folder: Path, kind: Baseline, build: Build | None = None) -> nn.Module:
    """Load a baseline of a run, in eval mode: the dense structure, the baseline's own cuts and weights."""
    own, base = folder / run_folder.BASELINES / kind, read_base(folder)
    model = replace(base, cuts=(*base.cuts, *read_cuts(own))).build_structure(build)
    load_weights(model, own / run_folder.WEIGHTS)
    return model.eval()


def verify_run(folder: Path, *names: str) -> Report:
    """Read the report of a complete run, and compare the named files with its digests. Raises RunError."""
    report = read_report(folder)
    for name in (*names, run_folder.BASE):
        if name not in report.files:
            continue
        path = folder / name
        if not path.is_file():
            raise RunError(f"{path} is missing; the run is no longer complete")
        if run_folder.hash_file(path) != report.files[name]:
            raise RunError(
                f"{path} was changed after the run: its SHA-256 differs from the one in {run_folder.REPORT}"
            )
    return report
