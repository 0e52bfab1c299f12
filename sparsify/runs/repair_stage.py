"""The repair stage of a run, and the agreement with the dense model that is noted after a cut."""

import time
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from sparsify.errors import ModelError
from sparsify.events import Note, StageStarted
from sparsify.forward.calls import Inputs, as_arguments, map_tensors
from sparsify.forward.copies import copy_model
from sparsify.modelfile.weights import load_weights
from sparsify.nn.load_tensors import load_tensors
from sparsify.objective.objective import evaluate
from sparsify.pruning.repair.agreement import measure_agreement
from sparsify.pruning.repair.repair import (
    Repaired,
    held_out_of,
    merge_model,
    repair_model,
)
from sparsify.reporting.training_tables import describe_repair
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.run_folder import UNCUT
from sparsify.runs.save_load import rebuild_dense
from sparsify.runs.setup import Run
from sparsify.training.seeds import derive_seed
from sparsify_schemas.cuts import Operation, Zero
from sparsify_schemas.report import Agreement, RepairRow, StageRow
from sparsify_schemas.stage import Repair

COMPARED = 256
"""training examples on which a cut model is compared with the dense one"""


def repair_model_of_run(
    run: Run, stage: Repair, model: nn.Module, checkpoint: Checkpoint
) -> tuple[nn.Module, Checkpoint]:
    """Carry out a repair stage: refit the model in place, and write a checkpoint.

    Several processes refit by least squares or means together, each with its part of the examples; by other
    methods the main one does. All take its weights, so that they go on with the same bits.
    """
    started = time.perf_counter()
    run.listener(StageStarted(stage.name, "repair", 0, 0))
    together = run.accelerator.num_processes > 1 and stage.method in ("least_squares", "mean")
    processes = torch.distributed.group.WORLD if together else None
    found: RepairRow | None = None
    if together or run.accelerator.is_main_process:
        found = _repair_or_reason(run, stage, model, checkpoint, processes)
    repair = _broadcast_repair(run, model, found)
    validated = _validate(run, model)
    run.listener(Note(describe_repair(stage.name, repair)))
    row = StageRow(
        name=stage.name,
        kind="repair",
        seconds=time.perf_counter() - started,
        validation_metric=validated,
        agreement=repair.after,
        repair=repair,
    )
    checkpoint = _with_row(checkpoint, row, model)
    if run.accelerator.is_main_process:
        checkpoint.write(run.folder)
    run.accelerator.wait_for_everyone()
    return model, checkpoint


def _repair_or_reason(
    run: Run, stage: Repair, model: nn.Module, checkpoint: Checkpoint, processes: Any
) -> RepairRow:
    """The figures of the repair, or why there was none. Raises ModelError where it was required."""
    if not any(_removes(operation) for cuts in checkpoint.cuts for operation in cuts.operations):
        return _left_out(stage, "no cut removed anything")
    try:
        return repair_row(_repair(run, stage, model, checkpoint, processes))
    except ModelError as error:
        if stage.required:
            raise
        return _left_out(stage, str(error))


def _removes(operation: Operation) -> bool:
    return not isinstance(operation, Zero) or bool(operation.count)


def _left_out(stage: Repair, reason: str) -> RepairRow:
    return RepairRow(method=stage.method, examples=0, before=None, after=None, left_out=reason)


def _repair(run: Run, stage: Repair, model: nn.Module, checkpoint: Checkpoint, processes: Any) -> Repaired:
    dense, cuts, model_map = dense_of_run(run, model), checkpoint.cuts, run.plan.map
    found = None if run.datasets is None else _training_examples(run, checkpoint, stage.examples)
    if found is None and stage.method == "merge":
        return merge_model(dense, model, model_map, cuts)
    if found is None:  # a recipe without data was refused
        raise ModelError(
            f"'{stage.name}' needs inputs whose examples lie along one dimension, and the data give a list, "
            "such as one of images of different sizes; leave the repair out, or give inputs of one size"
        )
    inputs, count = found
    if processes is not None:
        inputs, count = _part_of(inputs, count, run.accelerator.process_index, run.accelerator.num_processes)
    seed = derive_seed(run.recipe.seed, checkpoint.stage, 0)
    return repair_model(
        dense,
        model,
        cuts,
        inputs,
        count,
        stage,
        seed,
        model_map,
        processes,
        run.listener,
        task=run.recipe.task,
    )


def _part_of(inputs: Inputs, examples: int, process: int, processes: int) -> tuple[Inputs, int]:
    """Every nth example for a process, so that all together hold out those that one process would."""
    fitted = examples - held_out_of(examples)
    index = [*range(fitted)[process::processes], *range(fitted, examples)[process::processes]]
    part = map_tensors(
        inputs, lambda value: value[index] if value.dim() and len(value) == examples else value
    )
    return part, len(index)


def agreement_after_cut(
    run: Run, dense: nn.Module, model: nn.Module, checkpoint: Checkpoint
) -> Agreement | None:
    """How far the cut model's outputs follow those of the dense model.

    None without data, where a batch of inputs is a list, such as one of images of different sizes, or where
    outputs cannot be compared by example.
    """
    found = None if run.datasets is None else _training_examples(run, checkpoint, COMPARED)
    if found is None:
        return None
    try:
        return measure_agreement(dense, model, *found, classes=_names_classes(run))
    except ModelError:
        return None


def _names_classes(run: Run) -> bool:
    return run.recipe.task.kind == "classification"


def dense_of_run(run: Run, model: nn.Module) -> nn.Module:
    """The model as the first cut found it, on the device of `model`."""
    dense = rebuild_dense(run.folder, run.build) if run.state.from_scratch else run.dense
    if (run.folder / UNCUT).exists():
        dense = copy_model(dense)
        load_weights(dense, run.folder / UNCUT)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return dense.to(device).eval()


def _training_examples(run: Run, checkpoint: Checkpoint, count: int) -> tuple[Inputs, int] | None:
    """Unlabelled training examples as they are, drawn by the run's seed; None where inputs are lists.

    All come in one batch, so that sequences are padded to one length.
    """
    assert run.datasets is not None
    seed = derive_seed(run.recipe.seed, checkpoint.stage, 0)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(run.datasets.train), generator=generator)[:count]
    drawn = run.datasets.train[order].ready()
    if isinstance(drawn, list):
        return None
    return as_arguments(drawn), len(order)


def _broadcast_repair(run: Run, model: nn.Module, found: RepairRow | None) -> RepairRow:
    """Give every process the weights and the figures of the main process."""
    rows: list[RepairRow | None] = [found]
    if run.accelerator.num_processes > 1:
        weights = [{name: value.cpu() for name, value in model.state_dict().items()}]
        broadcast_object_list(rows)
        broadcast_object_list(weights)
        load_tensors(model, weights[0])
    row = rows[0]
    assert row is not None
    return row


def repair_row(repaired: Repaired) -> RepairRow:
    """The figures of a repair, as the report keeps them."""
    return RepairRow(
        method=repaired.method,
        examples=repaired.examples,
        before=repaired.before,
        after=repaired.after,
        reverted=repaired.reverted,
        weighed=repaired.weighed,
        layers=repaired.layers,
    )


def _validate(run: Run, model: nn.Module) -> float | None:
    if run.datasets is None or not len(run.datasets.validation):
        return None
    return evaluate(model, run.datasets.validation, run.objective).deciding


def _with_row(checkpoint: Checkpoint, row: StageRow, model: nn.Module) -> Checkpoint:
    return replace(
        checkpoint,
        stage=checkpoint.stage + 1,
        weights=model.state_dict(),
        stage_state=None,
        stages=(*checkpoint.stages, row),
    )
