"""The inputs that an export is traced with, and those at which the file is compared with the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sparsify.cost.measure.onnx_export import AxisNames
from sparsify.errors import ModelError
from sparsify.exporters.compare import run_in_memory
from sparsify.exporters.dynamic_axes import (
    DynamicAxis,
    Requested,
    Sizes,
    axis_names,
    describe_sizes,
    find_dynamic_axes,
    sizes_of,
)
from sparsify.exporters.formats import Format
from sparsify.forward.calls import (
    Inputs,
    add_argument_names,
    all_tensors,
    count_examples,
    list_calls,
    simplify_inputs,
)
from sparsify.runs.planned_calls import draw_planned_inputs, read_planned_calls

BATCHES = (1, 5)
"""Batch sizes at which the file is compared with the model; another one is traced."""
TRACED_FORMATS: tuple[Format, ...] = ("pt2", "onnx", "onnx-int8")
"""Formats that hold one traced call."""
_TRACED = (2, 3)
"""The batch size that is traced, and another one that shows which dimensions are the batch."""


@dataclass(frozen=True)
class Probes:
    """The inputs that an export is traced and compared with."""

    traced: Inputs
    other: Inputs
    """At another batch size; in the same shapes where the batch is fixed."""
    compared: Mapping[str, Inputs]
    """By size: 'batch 1', 'batch 1, height 9'; 'the planned shapes' where nothing counts examples."""
    batches: tuple[int, ...]
    """The batch sizes compared."""
    fixed: bool
    """Whether the batch size is that of the plan's inputs."""
    axes: tuple[DynamicAxis, ...] = ()
    """Axes besides the batch that the file leaves open."""
    names: AxisNames | None = None
    """Their names."""


def make_probes(
    folder: Path, model: nn.Module, format: Format, fixed: bool, dynamic: Requested
) -> tuple[Probes, tuple[str, ...]]:
    """The inputs and notes on them. They are fixed where the model takes no other batch size."""
    own = read_planned_calls(folder)
    notes: tuple[str, ...] = ()
    if format in TRACED_FORMATS and len(own) > 1:
        notes = (f"the file holds the first of {len(own)} calls, {own[0].method}",)
    axes = find_dynamic_axes(model, own[0], dynamic) if dynamic else ()
    needs = tuple(
        f"{axis.name} must be a multiple of {axis.multiple_of}" for axis in axes if axis.multiple_of > 1
    )
    notes = (*notes, *needs)
    if fixed or not _can_vary(folder, format):
        return make_fixed_probes(folder, model, format, axes), notes
    try:
        for batch in BATCHES:
            run_in_memory(model, _draw_inputs(folder, format, batch))
    except ModelError as error:
        narrower = make_fixed_probes(folder, model, format, axes)
        # A model that does not take these either cannot be exported.
        run_in_memory(model, next(iter(narrower.compared.values())))
        if format not in TRACED_FORMATS:
            return narrower, notes
        return narrower, (*notes, f"the file takes {describe_limit(narrower)}: {error}")
    traced, other = (_draw_inputs(folder, format, batch) for batch in _TRACED)
    compared = {f"batch {batch}": _draw_inputs(folder, format, batch) for batch in BATCHES}
    first = add_argument_names(model, traced)[0]
    for index, batch in enumerate(BATCHES if axes else ()):
        sizes = sizes_of(first, axes, index)
        compared[f"batch {batch}, {describe_sizes(axes, index)}"] = _draw_inputs(
            folder, format, batch, 0, sizes
        )
    return Probes(traced, other, compared, BATCHES, False, axes, axis_names(first, axes)), notes


def make_fixed_probes(
    folder: Path, model: nn.Module, format: Format, axes: tuple[DynamicAxis, ...] = ()
) -> Probes:
    """The inputs for a file that takes one batch size, and other sizes along these axes only."""
    traced, other, planned = (_draw_inputs(folder, format, None, seed) for seed in range(3))
    batch = count_examples(list_calls(planned)[0])
    label = "the planned shapes" if batch is None else f"batch {batch}"
    compared = {label: planned}
    first = add_argument_names(model, traced)[0]
    for index in range(2 if axes else 0):
        sizes = sizes_of(first, axes, index)
        compared[f"{label}, {describe_sizes(axes, index)}"] = _draw_inputs(folder, format, None, 2, sizes)
    batches = () if batch is None else (batch,)
    return Probes(traced, other, compared, batches, True, axes, axis_names(first, axes))


def describe_limit(probes: Probes) -> str:
    """What a file for fixed probes takes: 'inputs of 2x6 and nothing else'."""
    if probes.axes:
        return f"{next(iter(probes.compared))} and no other"
    shapes = ["x".join(map(str, tensor.shape)) or "one number" for tensor in all_tensors(probes.traced)]
    return f"inputs of {', '.join(shapes)} and nothing else"


def _draw_inputs(
    folder: Path, format: Format, batch: int | None, seed: int = 0, sizes: Sizes | None = None
) -> Inputs:
    """Random inputs in the shapes of the plan; only its first call for a file that holds one."""
    inputs = draw_planned_inputs(folder, batch, seed, sizes)
    return simplify_inputs((list_calls(inputs)[0],)) if format in TRACED_FORMATS else inputs


def _can_vary(folder: Path, format: Format) -> bool:
    return any(call.varies for call in list_calls(_draw_inputs(folder, format, None)))
