"""The models that train stages learn from, where a recipe names files."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import modelfile
from sparsify.data import Datasets
from sparsify.errors import DataError, ModelError, RecipeError, RunError, TrainingError
from sparsify.forward.copies import copy_model
from sparsify.objective.objective import Objective, find_judged, predict
from sparsify.recipe import Loaded
from sparsify.runs import run_folder
from sparsify.runs.save_load import load_dense, load_run
from sparsify.runs.source_digests import list_teachers
from sparsify.training.features import FeaturePairs
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.stage import Distill, Train, goal


def read_teachers(
    loaded: Loaded, allow: Sequence[str], model: nn.Module, datasets: Datasets, objective: Objective
) -> dict[str, nn.Module]:
    """Path -> model of each teacher that a train stage names, each tried with two training examples.

    Raises RecipeError where a file cannot be read, or where a teacher's outputs are of another form than the
    model's; and so are those of the layers that a stage before any cut compares.
    """
    found: dict[str, nn.Module] = {}
    problems = []
    for key, path in list_teachers(loaded.recipe):
        index = int(key.split(".")[1])
        stage = loaded.recipe.stages[index]
        assert isinstance(stage, Train) and stage.distill is not None
        is_dense = all(goal(each) is None for each in loaded.recipe.stages[: index + 1])
        try:
            if path not in found:
                found[path] = _read_teacher(Path(path), loaded.recipe, allow)
            _try_teacher(found[path], path, stage.distill, model, datasets, objective, is_dense)
        except (ModelError, RunError, RecipeError, TrainingError, DataError) as error:
            problems.append(loaded.positions.problem(key, str(error)))
    if problems:
        raise RecipeError(problems)
    return found


def _read_teacher(path: Path, recipe: Recipe, allow: Sequence[str]) -> nn.Module:
    """As `apply` reads a model file; the cut or the dense model of a run, built as that says."""
    if not path.exists():
        raise ModelError(
            f"there is no file {path}; name weights, a whole model or the folder of a run, or 'dense'"
        )
    if path.is_dir():
        return load_run(path)
    if (path.parent / run_folder.REPORT).exists() and path.name in (run_folder.DENSE, run_folder.WEIGHTS):
        return load_dense(path.parent) if path.name == run_folder.DENSE else load_run(path.parent)
    return modelfile.read_model(path, recipe, allow=allow)


def _try_teacher(
    teacher: nn.Module,
    path: str,
    distill: Distill,
    model: nn.Module,
    datasets: Datasets,
    objective: Objective,
    is_dense: bool,
) -> None:
    """Call both with two examples. Raises TrainingError and DataError.

    is_dense: whether the stage trains the dense model, whose layers have the widths that they have now.
    """
    examples = datasets.train[:2]
    if not len(examples):
        return
    inputs, targets = examples.batch()
    copies = [copy_model(each).cpu().eval() for each in (teacher, model)]
    pairs = None if distill.features is None else FeaturePairs(copies[1], copies[0], distill.features)
    forms, recorded = [], nullcontext() if pairs is None else pairs.record()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), recorded:
        for each, whose in zip(copies, (f"teacher {path}: ", ""), strict=True):
            found = predict(objective, each, inputs, targets, whose)
            forms.append(_find_form(objective, find_judged(objective, found, whose)))
    if distill.weight and forms[0] != forms[1]:
        raise TrainingError(
            f"the teacher {path} returns {forms[0]} for each example and the model {forms[1]}; name a "
            "teacher with outputs of the same form"
        )
    if pairs is not None and is_dense:
        pairs.pairs()


def _find_form(objective: Objective, outputs: Any) -> str:
    """The form of a prediction, as far as a teacher's must be the same."""
    if not isinstance(outputs, Tensor):
        return f"a {type(outputs).__name__}"
    kind = objective.task.kind
    if kind == "segmentation":  # in the size of the targets
        return f"{outputs.shape[1]} channels" if outputs.dim() == 4 else "no image"
    shape = tuple(outputs.shape[1:]) or ((1,) if kind == "regression" else ())
    return f"a tensor of shape {shape}"
