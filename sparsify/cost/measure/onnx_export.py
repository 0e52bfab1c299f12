"""Export a model as a program of another runtime: torch.export, and ONNX made from it."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.cost.measure.tensor_names import name_inputs, name_outputs
from sparsify.cost.measure.tensor_program import make_tensor_program
from sparsify.errors import ModelError
from sparsify.forward.calls import Inputs, list_calls, tensors_by_path
from sparsify.forward.copies import copy_model

AxisNames = Mapping[str, Mapping[int, str]]
"""Path of an input -> axis -> name of the dimension that may have any size."""
_LIMIT = 2**31
"""bytes of one protobuf message"""
_FOREIGN = (
    # torch.export, copying what it made itself
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # torch.onnx, for several inputs with one batch dimension
    "# The axis name: .* will not be used, since it shares",
    # torch.export, for the weights that nn.LSTM lists
    r"The tensor attributes? .* (was|were) assigned during export",
)


@contextmanager
def silence_torch() -> Iterator[None]:
    """Suppress torch's log messages and warnings about its own export; errors still say what matters."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        for message in _FOREIGN:
            warnings.filterwarnings("ignore", message=message)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def export_program(
    model: nn.Module, traced: Inputs, other: Inputs, dynamic: AxisNames | None = None
) -> tuple[torch.export.ExportedProgram, Any]:
    """The model as a torch.export program, and the names of the dimensions of its inputs that may vary.

    traced, other: example inputs at two batch sizes; with equal sizes, the batch size is fixed. If they
    hold more than tensors, the program takes only the tensors, in order. dynamic: further dimensions that
    may vary. Raises ModelError.
    """
    own_tensors = tensors_by_path(list_calls(traced)[0])
    other_tensors = tensors_by_path(list_calls(other)[0])
    names = _name_axes(own_tensors, other_tensors, dynamic or {})
    model, traced = make_tensor_program(model, traced)
    args, kwargs = ((), dict(traced)) if isinstance(traced, Mapping) else (traced, {})
    try:
        # The batch is a dimension of its own. For the others torch finds out what they have to do with each
        # other: a named dimension would have to state that it is a multiple of 4, say, or is at least 8.
        batch = torch.export.Dim("batch")
        free = {
            path: {at: batch if name == _BATCH else _ANY for at, name in axes.items()}
            for path, axes in names.items()
        }
        shapes = _collect_shapes(model, args, kwargs, own_tensors, free)
        named = _collect_shapes(model, args, kwargs, own_tensors, names)
        with torch.no_grad(), redirect_stderr(StringIO()):  # on failure torch prints the graph so far
            frozen = copy_model(model).requires_grad_(False)
            made = torch.export.export(frozen, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ModelError(
            f"torch.export cannot follow the model with {_describe_axes(names)}: {short_reason(error)}"
        ) from error
    for module in made.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return made, named


_BATCH = "batch"
_ANY = torch.export.Dim.DYNAMIC


def _name_axes(own: Mapping[str, Tensor], other: Mapping[str, Tensor], dynamic: AxisNames) -> AxisNames:
    """The names of all dimensions that may vary: the batch is what differs between the two."""
    found: dict[str, dict[int, str]] = {}
    for (path, one), another in zip(own.items(), other.values(), strict=True):
        axes = {at: _BATCH for at in range(one.dim()) if one.shape[at] != another.shape[at]}
        axes |= dynamic.get(path, {})
        if axes:
            found[path] = axes
    return found


def _collect_shapes(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: Mapping[str, Tensor],
    axes: Mapping[str, Mapping[int, Any]],
) -> Any:
    """The form in which torch takes dimensions: nested like the arguments."""
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for path, entry in axes.items():
        shapes[tensors[path]] = dict(entry)
    return shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]


def _describe_axes(names: AxisNames) -> str:
    """'a batch of any size and any height, width'."""
    every = [name for axes in names.values() for name in axes.values()]
    others = ", ".join(dict.fromkeys(name for name in every if name != _BATCH))
    batch = "a batch of any size" if _BATCH in every else "these inputs"
    return f"{batch} and any {others}" if others else batch


def export_onnx(
    model: nn.Module,
    traced: Inputs,
    other: Inputs,
    *,
    optimize: bool = True,
    dynamic: AxisNames | None = None,
    opset: int | None = None,
) -> torch.onnx.ONNXProgram:
    """The model as ONNX for any batch size, or for that of `traced` if `other` has the same.

    Inputs and outputs have the names that the model's method and the keys of its result have.

    Args:
        model: The model.
        traced: Example inputs.
        other: Example inputs at another batch size.
        optimize: Whether the graph is simplified.
        dynamic: Further dimensions that may vary.
        opset: The version of the operators; torch chooses where it is left out.

    Raises:
        ModelError: ONNX cannot express the model, or not in this opset.
    """
    if sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())) >= _LIMIT:
        raise ModelError(
            "the model has 2 GiB of weights or more, which one ONNX file cannot hold; "
            "export it with --format pt2"
        )
    inputs, outputs = name_inputs(model, traced), name_outputs(model, traced)
    exported, named = export_program(model, traced, other, dynamic)
    try:
        made = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            dynamic_shapes=named,
            optimize=optimize,
            opset_version=opset,
        )
    except Exception as error:
        # torch.onnx wraps the cause in advice of its own.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ModelError(f"ONNX cannot express the model: {short_reason(cause)}; --format pt2 may") from error
    assert made is not None  # it is None only without dynamo
    written = made.model.opset_imports[""]
    if opset is not None and written != opset:
        # torch leaves the file as it is when the conversion fails, and only logs that.
        raise ModelError(
            f"the model cannot be written in opset {opset} of ONNX: the exporter stays at {written}; "
            "choose another --opset, or leave it out"
        )
    _rename_values(made.model.graph, inputs, outputs)
    return made


def _rename_values(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs of a graph their names; inner values that have one of them make way.

    A weight keeps its name, by which the file is found again; an input of the same name is then 'NAME.input'.
    """
    weights = set(graph.initializers)
    pairs = [*zip(graph.inputs, inputs, strict=False), *zip(graph.outputs, outputs, strict=False)]
    names = [f"{name}.input" if name in weights else name for _, name in pairs]
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}.inner"
    for (value, _), name in zip(pairs, names, strict=True):
        value.name = name


def short_reason(error: Exception) -> str:
    """The first two lines of an error by torch, or by OpenVINO after the place in its own code."""
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.startswith("Exception from ")
    ]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]
