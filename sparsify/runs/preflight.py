"""Checks before the first epoch: the recipe has the data that its criteria need, its train stages fit model
and data, and every target runs the model."""

from collections.abc import Mapping

import torch
from torch import nn

from sparsify.cost.measure.onnx_quantize import quantise
from sparsify.cost.measure.runtimes import make_shared_pattern, prepare, prepare_onnx, to_arrays
from sparsify.data import Datasets
from sparsify.errors import ModelError, RecipeError, TargetError
from sparsify.formatting.numbers import format_size
from sparsify.forward.calls import Inputs, resize_batch
from sparsify.forward.copies import copy_model
from sparsify.forward.free_memory import read_free_memory
from sparsify.forward.trial_calls import eval_mode
from sparsify.objective.objective import Objective
from sparsify.pruning.repair.batch_norm import why_not_reestimated
from sparsify.pruning.repair.memory import COPIES, affordable_examples
from sparsify.recipe import Loaded
from sparsify.runs.int8 import export_onnx_bytes, select_int8
from sparsify.training.features import why_not_compared
from sparsify.training.layout import why_not_in_layout
from sparsify.training.mixing import why_unmixable
from sparsify.training.recompute import why_not_recomputed
from sparsify_schemas.stage import Repair, Train
from sparsify_schemas.target import Cpu, Target

_SMALL = 1024
"""a batch up to this is not looked at"""
_EXPORTED = ("onnxruntime", "openvino")


def check_data(loaded: Loaded) -> None:
    """Refuse a recipe without data whose criteria look at training batches. Raises RecipeError.

    In a loop of one's own `sparsify.cut` is given the batches, and the recipe needs no data.
    """
    if loaded.recipe.data is not None:
        return
    problems = []
    for index, rule in enumerate(loaded.recipe.rules):
        if rule.criterion.count_batches():
            message = f"criterion '{rule.criterion.kind}' needs 'data': it looks at training batches"
            hint = "add 'data' to the recipe, or pass batches to sparsify.cut in a loop of your own"
            problems.append(loaded.positions.problem(f"rules.{index}.criterion", message, hint))
    if problems:
        raise RecipeError(problems)


def check_stages(loaded: Loaded, model: nn.Module, datasets: Datasets, objective: Objective) -> None:
    """Refuse what train and repair stages ask of a model or of data that do not have it.

    Raises RecipeError.
    """
    problems = []
    for index, stage in enumerate(loaded.recipe.stages):
        if isinstance(stage, Repair) and stage.method == "batch_norm":
            why = why_not_reestimated(model)
            if why is not None:
                problems.append(loaded.positions.problem(f"stages.{index}.method", why))
        if not isinstance(stage, Train):
            continue
        found = [
            why_unmixable(stage, datasets.train),
            ("recompute_activations", why_not_recomputed(model)) if stage.recompute_activations else None,
            ("layout", why_not_in_layout(model, stage.layout, datasets.train, objective)),
        ]
        if stage.distill is not None and stage.distill.features is not None:
            why = why_not_compared(model, stage.distill.features, datasets.train, objective)
            found.append(("distill.features", why))
        for key, why in filter(None, found):
            if why is not None:
                problems.append(loaded.positions.problem(f"stages.{index}.{key}", why))
    if problems:
        raise RecipeError(problems)


def check_batches(model: nn.Module, inputs: Inputs, targets: Mapping[str, Target]) -> None:
    """Refuse batches that do not fit into memory, as far as one example tells. Raises TargetError."""
    free = read_free_memory()
    for name, target in targets.items():
        if target.batch <= _SMALL or free is None or not isinstance(target, Cpu) or target.table is not None:
            continue
        # Timing holds the input and the output of a module once, and not in copies.
        fitting = affordable_examples(copy_model(model).eval(), inputs, target.batch, COPIES * free)
        if fitting < target.batch:
            raise TargetError(
                f"target '{name}' has batch {target.batch:,}, and about {fitting:,} examples fit into the "
                f"{format_size(free)} of memory that are free; set a smaller batch"
            )


def check_targets(model: nn.Module, inputs: Inputs, targets: Mapping[str, Target]) -> None:
    """Export the model for every ONNX target and run it there once, as the report does at the end.

    Raises ModelError, which names the target.
    """
    int8_targets = select_int8(targets)
    for name, target in targets.items():
        if not isinstance(target, Cpu) or target.table is not None or target.runtime not in _EXPORTED:
            continue
        try:
            with torch.random.fork_rng(devices=[]), eval_mode(model):
                if name in int8_targets:
                    _run_int8(model, inputs, target)
                else:
                    prepare(model, inputs, target, make_shared_pattern(model, inputs, target))()
        except Exception as error:  # each runtime raises its own errors for a model that it cannot run
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"target '{name}' cannot run the model: {reason}; "
                "set its runtime to 'eager' or 'compile', or remove the target"
            ) from error


def _run_int8(model: nn.Module, inputs: Inputs, target: Cpu) -> None:
    """Quantize and run as the report does: its accuracies need a file that takes any batch."""
    file = quantise(export_onnx_bytes(model, inputs), [to_arrays(inputs)])
    prepare_onnx(file, to_arrays(resize_batch(inputs, target.batch)), target)()
