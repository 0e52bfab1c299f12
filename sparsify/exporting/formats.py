"""What each format is: how a model is written to it, and who reads it back."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sparsify.artefact import Base, Build
from sparsify.errors import ModelError, VerificationError
from sparsify.exporting import hugging_face
from sparsify.exporting.comparing import Read, outputs, reason
from sparsify.graph import Inputs
from sparsify.measure import copied
from sparsify.weights import load_weights, save_weights, tensors

Format = Literal["pt2", "onnx", "safetensors", "huggingface"]
CheckedBy = Literal["torch.export", "onnxruntime", "onnx.checker", "the rebuilt model", "from_pretrained"]
_ONNX_LIMIT = 2**31
"""bytes of one protobuf message"""
_FOREIGN = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # torch.export, copying what it made itself
    "# The axis name: .* will not be used, since it shares",  # torch.onnx, of several inputs with one batch dimension
    r"The tensor attributes? .* (was|were) assigned during export",  # torch.export, of the weights that nn.LSTM lists
)


def write(format: Format, model: nn.Module, base: Base, traced: Inputs, other: Inputs, path: Path) -> None:
    """Write the model. Raises ModelError when the format cannot express it.

    base: how its structure comes about. traced, other: example inputs at two batch sizes.
    """
    match format:
        case "pt2":
            program, _ = _program(model, traced, other)
            with path.open("wb") as stream:  # given a name, torch wants it to end in .pt2
                torch.export.save(program, stream)
        case "onnx":
            _write_onnx(model, traced, other, path)
        case "safetensors":
            metadata = {key: json.dumps(value) for key, value in base.body().items()}
            save_weights(model, path, {"format": "pt", **metadata})
        case "huggingface":
            hugging_face.save(model, path)
        case _:
            assert_never(format)


def reader(format: Format, model: nn.Module, path: Path, build: Build | None) -> tuple[CheckedBy, Read | None]:
    """Who reads the file back, and how it is loaded; None when it cannot be run here. Raises VerificationError."""
    match format:
        case "pt2":
            return "torch.export", lambda: _reloaded(path)
        case "onnx" if find_spec("onnxruntime"):
            return "onnxruntime", lambda: _session(path)
        case "onnx":
            _check_onnx(path)
            return "onnx.checker", None
        case "safetensors":
            return "the rebuilt model", lambda: _rebuilt(path, build)
        case "huggingface":
            return "from_pretrained", lambda: _pretrained(type(model), path)
        case _:
            assert_never(format)


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's log messages and warnings about its own doings; what matters of them is in its errors."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        for message in _FOREIGN:
            warnings.filterwarnings("ignore", message=message)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def _program(model: nn.Module, traced: Inputs, other: Inputs) -> tuple[torch.export.ExportedProgram, Any]:
    """The model as a torch.export program, and which dimensions of its inputs are the batch."""
    batch, shapes = torch.export.Dim("batch"), torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    args, kwargs = ((), dict(traced)) if isinstance(traced, Mapping) else (traced, {})
    for one, another in zip(_values(traced), _values(other), strict=True):
        if one.shape != another.shape:
            shapes[one] = {0: batch}
    try:
        dynamic = shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]
        with torch.no_grad(), redirect_stderr(StringIO()):  # on failure torch prints the graph so far
            frozen = copied(model).requires_grad_(False)
            program = torch.export.export(frozen, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise ModelError(f"torch.export cannot follow the model with a batch of any size: {reason(error)}") from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program, dynamic


def _reloaded(path: Path) -> Callable[[Inputs], list[Tensor]]:
    with path.open("rb") as stream:
        program = torch.export.load(stream)
    return lambda inputs: outputs(program.module(), inputs)


def _write_onnx(model: nn.Module, traced: Inputs, other: Inputs, path: Path) -> None:
    if sum(t.numel() * t.element_size() for t in tensors(model).values()) >= _ONNX_LIMIT:
        raise ModelError("the model has 2 GiB of weights or more, which one ONNX file cannot hold; export it with --format pt2")
    program, dynamic = _program(model, traced, other)
    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=dynamic)
    except Exception as error:
        raise ModelError(f"ONNX cannot express the model: {reason(error)}; --format pt2 may") from error
    assert made is not None  # it is None only without dynamo
    made.save(str(path), external_data=False)


def _session(path: Path) -> Callable[[Inputs], list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        given = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        return [torch.from_numpy(array) for array in session.run(None, {name: given[name].numpy() for name in names})]

    return run


def _check_onnx(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise VerificationError(f"onnx.checker refuses the file that was made, so it was not kept: {reason(error)}") from error


def _rebuilt(path: Path, build: Build | None) -> Callable[[Inputs], list[Tensor]]:
    """The model from nothing but the file, and `build` where the recipe names no builder."""
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
    model = Base.of({key: json.loads(metadata[key]) for key in ("model", "cuts")}).structure(build)
    load_weights(model, path)
    return lambda inputs: outputs(model.eval(), inputs)


def _pretrained(kind: type[nn.Module], path: Path) -> Callable[[Inputs], list[Tensor]]:
    model = hugging_face.load(kind, path)
    return lambda inputs: outputs(model, inputs)


def _values(inputs: Inputs) -> list[Tensor]:
    return list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
