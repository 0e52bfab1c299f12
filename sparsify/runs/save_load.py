"""Models in run folders: saved without pickle, rebuilt bit for bit from a builder, a log of cuts and the weights."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError
from torch import nn

from sparsify import files
from sparsify.data import Datasets, example_inputs
from sparsify.errors import RunError, first_line
from sparsify.files import read
from sparsify.forward.calls import Call, Inputs, map_tensors, normalize_inputs
from sparsify.forward.copies import copy_model
from sparsify.forward.input_records import apply_record, draw_from_record, read_record
from sparsify.forward.recorded_calls import RecordedCall
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.modelfile import build_model
from sparsify.modelfile.weights import load_weights, save_weights
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import dump
from sparsify.reporting import report_tables
from sparsify.reporting.html import to_html
from sparsify.runs import run_folder
from sparsify.runs.evaluate import Work, assess, check_reloads
from sparsify_schemas.cuts import Cuts, Rounds
from sparsify_schemas.model import Model
from sparsify_schemas.recipe import Baseline
from sparsify_schemas.report import Report

Build = Callable[[], nn.Module]
TIMING = 3.0
"""seconds spent on timing each target"""
UNBUILT = "the recipe has no `model:`, so the run loads only with a builder: load_run(folder, build=...)"


@dataclass(frozen=True)
class Base:
    """How the structure of a run's dense model comes about: a builder, then the cuts of earlier runs, in order."""

    model: Model | None = None
    cuts: tuple[Cuts, ...] = ()

    def structure(self, build: Build | None = None) -> nn.Module:
        """The dense model with whatever weights its builder gives it. Raises RunError without a builder."""
        with torch.random.fork_rng(devices=[]):
            if build is not None:
                model = build()
            elif self.model is not None:
                model = build_model(self.model)
            else:
                raise RunError(
                    "the run does not say how its model is built, as its recipe has no `model:`; pass load_run(folder, build=callable)"
                )
        for cuts in self.cuts:
            model = replay_cuts(model, cuts)
        return model

    def body(self) -> dict[str, Any]:
        """As JSON, which `of` reads."""
        return {
            "model": self.model and self.model.model_dump(mode="json"),
            "cuts": [c.model_dump(mode="json") for c in self.cuts],
        }

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """Raises ValueError, KeyError or TypeError when it is no such body."""
        model = Model.model_validate(body["model"]) if body["model"] else None
        return cls(model, tuple(Cuts.model_validate(c) for c in body["cuts"]))

    def write(self, folder: Path) -> None:
        files.write(folder / run_folder.BASE, files.as_json(self.body()))


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
    checked(path, run_folder.RECIPE, run_folder.CUTS, run_folder.WEIGHTS)
    return rebuilt(path, build)


def load_dense(folder: str | Path, *, build: Build | None = None) -> nn.Module:
    """The dense model that a complete run compares with, in eval mode. As `load_run`."""
    path = Path(folder)
    checked(path, run_folder.RECIPE, run_folder.DENSE)
    return rebuilt_dense(path, build)


def save_run(
    result: Result,
    folder: str | Path,
    *,
    inputs: Inputs | Call | Sequence[Call] | None = None,
    datasets: Datasets | None = None,
    timing: float = TIMING,
) -> Path:
    """Save a cut model and its dense one as a run, measured as reloaded from disk.

    The folder appears whole or not at all.

    Args:
        result: As `cut` returns it. `result.model` may have been trained further.
        folder: The folder to make. It must not exist, or be empty.
        inputs: Example inputs, as in `make_plan`. Left out, they come from the data, or are drawn at random
            in the shapes of the plan's.
        datasets: What accuracy is measured on. Without them it stays unknown.
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
    path, recipe = Path(folder), result.plan.recipe
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError(f"{path} exists already; choose another folder")
    temporary = path.with_name(f".{path.name}.tmp")
    given = _on_cpu(
        apply_record(
            result.plan.map.inputs,
            _probes(result.plan, datasets) if inputs is None else normalize_inputs(inputs),
        )
    )
    notes: tuple[str, ...] = () if recipe.model else (UNBUILT,)
    if recipe.baselines:
        notes = (
            *notes,
            f"the baselines ({', '.join(recipe.baselines)}) were not made, as only 'sparsify apply' trains them",
        )
    work = Work(result.plan, (result.cuts,), result.verdicts, notes=notes)
    build = None if recipe.model else lambda: copy_model(result.dense).cpu()
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        begin(temporary, result.plan)
        save_weights(result.dense, temporary / run_folder.DENSE)
        check_reloads(result.dense, rebuilt_dense(temporary, build), given, "dense model")
        complete(temporary, work, result.model, given, datasets, build, timing)
        temporary.rename(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _probes(plan: Plan, datasets: Datasets | None) -> Inputs:
    return (
        draw_from_record(plan.map.inputs)
        if datasets is None and plan.map.inputs
        else example_inputs(plan.recipe, datasets)
    )


def _on_cpu(inputs: Inputs) -> Inputs:
    return map_tensors(inputs, lambda tensor: tensor.cpu())


def begin(folder: Path, plan: Plan) -> None:
    """Write what is known before anything is done: the resolved recipe and the plan."""
    files.write(folder / run_folder.RECIPE, dump(plan.recipe).encode())
    files.write(folder / run_folder.PLAN, files.as_json(plan.to_json()))


def complete(
    folder: Path,
    work: Work,
    model: nn.Module,
    inputs: Inputs,
    datasets: Datasets | None,
    build: Build | None,
    timing: float,
) -> Report:
    """Save the cut model, reload both models from disk, measure them, and write the report last of all."""
    write_cuts(folder, work.cuts)
    save_weights(model, folder / run_folder.WEIGHTS)
    dense, cut = rebuilt_dense(folder, build), rebuilt(folder, build)
    check_reloads(model, cut, inputs, "cut model")
    rivals = {rival.kind: rebuilt_baseline(folder, rival.kind, build) for rival in work.rivals}
    found = assess(work, folder, dense, cut, inputs, datasets, timing, rivals)
    found = found.model_copy(update={"files": _digests(folder)})
    files.write(folder / run_folder.PAGE, report_tables.to_markdown(found).encode())
    files.write(folder / run_folder.HTML, to_html(found, read(folder / run_folder.RECIPE).decode()).encode())
    found = found.model_copy(update={"files": _digests(folder)})
    files.write(folder / run_folder.REPORT, (found.model_dump_json(indent=1) + "\n").encode())
    shutil.rmtree(folder / run_folder.PARTS, ignore_errors=True)
    return found


def _digests(folder: Path) -> dict[str, str]:
    own = tuple(
        f"{run_folder.BASELINES}/{path.parent.name}/{path.name}"
        for path in sorted((folder / run_folder.BASELINES).glob("*/*"))
    )
    return {
        name: run_folder.sha256(folder / name)
        for name in (*run_folder.KEPT, *own)
        if (folder / name).exists() and not name.endswith(run_folder.CHECKPOINT)
    }


def rebuilt(folder: Path, build: Build | None = None) -> nn.Module:
    """As `load_run`, for a folder that has no report yet."""
    model = base_on(folder).structure(build)
    load_weights(model, folder / run_folder.WEIGHTS)
    return model.eval()


def rebuilt_dense(folder: Path, build: Build | None = None) -> nn.Module:
    """As `load_dense`, for a folder that has no report yet."""
    model = read_base(folder).structure(build)
    load_weights(model, folder / run_folder.DENSE)
    return model.eval()


def rebuilt_baseline(folder: Path, kind: Baseline, build: Build | None = None) -> nn.Module:
    """A baseline of the run in a folder, in eval mode: its dense structure, the baseline's own cuts and weights."""
    own, base = folder / run_folder.BASELINES / kind, read_base(folder)
    model = replace(base, cuts=(*base.cuts, *read_cuts(own))).structure(build)
    load_weights(model, own / run_folder.WEIGHTS)
    return model.eval()


def checked(folder: Path, *names: str) -> Report:
    """The report of a complete run, after comparing the named files with the digests in it. Raises RunError."""
    found = report_tables.read(folder)
    for name in (*names, run_folder.BASE):
        if name not in found.files:
            continue
        if not (folder / name).is_file():
            raise RunError(f"{folder / name} is missing; the run is no longer complete")
        if run_folder.sha256(folder / name) != found.files[name]:
            raise RunError(
                f"{folder / name} is not as the run left it: its SHA-256 differs from the one in {run_folder.REPORT}"
            )
    return found


def write_cuts(folder: Path, cuts: tuple[Cuts, ...]) -> None:
    """One cut as version 1 of the log; several as version 2, which a reader of version 1 refuses."""
    log = cuts[0] if len(cuts) == 1 else Rounds(rounds=cuts)
    files.write(folder / run_folder.CUTS, (log.model_dump_json(indent=1) + "\n").encode())


def read_cuts(folder: Path) -> tuple[Cuts, ...]:
    """The cut logs of a run, in order. Raises RunError."""
    path = folder / run_folder.CUTS
    body = read(path)
    try:
        return (
            Rounds.model_validate_json(body).rounds
            if _is_of_rounds(body)
            else (Cuts.model_validate_json(body),)
        )
    except ValidationError as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from None


def _is_of_rounds(body: bytes) -> bool:
    """Whether a cut log says that it is of version 2; what is no JSON at all is left to the reader of version 1."""
    try:
        return bool(json.loads(body)["version"] == 2)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def planned_calls(folder: Path) -> tuple[RecordedCall, ...]:
    """The calls that a run's plan was made with. Raises RunError."""
    path = folder / run_folder.PLAN
    try:
        return read_record(json.loads(read(path))["map"]["inputs"])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from None


def planned_inputs(folder: Path, batch: int | None = None, seed: int = 0) -> Inputs:
    """Random inputs of the shapes that a run's plan was made with. Raises RunError.

    batch: instead of the plan's, along the dimension of each tensor that counts examples.
    """
    path = folder / run_folder.PLAN
    try:
        return draw_from_record(planned_calls(folder), seed, batch)
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from None


def read_base(folder: Path) -> Base:
    """Where a run's dense model comes from: base.json after a run on a run, else the recipe's `model:`."""
    path = folder / run_folder.BASE
    if not path.exists():
        return Base(run_folder.read_recipe(folder).model)
    try:
        return Base.of(json.loads(read(path)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {first_line(error)}") from None


def base_on(run: Path) -> Base:
    """How the cut model of a run comes about: the base of a run on that run."""
    before = read_base(run)
    return replace(before, cuts=(*before.cuts, *read_cuts(run)))
