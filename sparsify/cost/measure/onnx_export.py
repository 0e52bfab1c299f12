"""Export a model as a program of another runtime: torch.export, and ONNX made from it."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import nn

from sparsify.cost.measure.tensor_program import make_tensor_program
from sparsify.errors import ModelError
from sparsify.forward.calls import Inputs, list_calls, tensors_by_path
from sparsify.forward.copies import copy_model

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
    model: nn.Module, traced: Inputs, other: Inputs
) -> tuple[torch.export.ExportedProgram, Any]:
    """The model as a torch.export program, and which dimensions of its inputs are the batch.

    traced, other: example inputs at two batch sizes; with equal sizes, the batch size is fixed. If they
    hold more than tensors, the program takes only the tensors, in order. Raises ModelError.
    """
    batch = torch.export.Dim("batch")
    shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    own_tensors = tensors_by_path(list_calls(traced)[0]).values()
    other_tensors = tensors_by_path(list_calls(other)[0]).values()
    pairs = list(zip(own_tensors, other_tensors, strict=True))
    model, traced = make_tensor_program(model, traced)
    args, kwargs = ((), dict(traced)) if isinstance(traced, Mapping) else (traced, {})
    varying = [one for one, another in pairs if one.shape != another.shape]
    for one, another in pairs:
        if one.shape != another.shape:
            shapes[one] = {at: batch for at in range(one.dim()) if one.shape[at] != another.shape[at]}
    try:
        dynamic = shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]
        with torch.no_grad(), redirect_stderr(StringIO()):  # on failure torch prints the graph so far
            frozen = copy_model(model).requires_grad_(False)
            made = torch.export.export(frozen, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        batches = "a batch of any size" if varying else "these inputs"
        raise ModelError(
            f"torch.export cannot follow the model with {batches}: {short_reason(error)}"
        ) from error
    for module in made.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return made, dynamic


def export_onnx(
    model: nn.Module, traced: Inputs, other: Inputs, *, optimize: bool = True
) -> torch.onnx.ONNXProgram:
    """The model as ONNX for any batch size, or for that of `traced` if `other` has the same.

    Raises ModelError if ONNX cannot express it.
    """
    if sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())) >= _LIMIT:
        raise ModelError(
            "the model has 2 GiB of weights or more, which one ONNX file cannot hold; "
            "export it with --format pt2"
        )
    exported, dynamic = export_program(model, traced, other)
    try:
        made = torch.onnx.export(
            exported, dynamo=True, verbose=False, dynamic_shapes=dynamic, optimize=optimize
        )
    except Exception as error:
        # torch.onnx wraps the cause in advice of its own.
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ModelError(f"ONNX cannot express the model: {short_reason(cause)}; --format pt2 may") from error
    assert made is not None  # it is None only without dynamo
    return made


def short_reason(error: Exception) -> str:
    """The first two lines of an error by torch, or by OpenVINO after the place in its own code."""
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.startswith("Exception from ")
    ]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:400]
