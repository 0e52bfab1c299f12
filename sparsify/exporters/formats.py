"""How a model is written to each format, and how the file is loaded again."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from sparsify.cost.measure.onnx_export import AxisNames, export_onnx, export_program, short_reason
from sparsify.cost.measure.onnx_quantize import quantise
from sparsify.errors import VerificationError
from sparsify.exporters import hugging_face, pruning_history
from sparsify.exporters.compare import Read, compute_outputs
from sparsify.forward.calls import Inputs
from sparsify.modelfile.weights import load_weights, save_weights
from sparsify.runs.model_base import Base, Build

Format = Literal["pt2", "onnx", "onnx-int8", "safetensors", "huggingface", "torch-pruning"]
Calibration = Sequence[Sequence[NDArray[Any]]]
"""Batches, each with an array for each input."""
CheckedBy = Literal["torch.export", "onnxruntime", "onnx.checker", "the rebuilt model", "from_pretrained"]


@dataclass(frozen=True)
class Trace:
    """How a model is traced."""

    inputs: Inputs
    """Example inputs."""
    other: Inputs
    """Example inputs at another batch size."""
    dynamic: AxisNames | None = None
    """Further dimensions that may vary."""
    opset: int | None = None
    """Version of ONNX's operators."""


def write(
    format: Format,
    model: nn.Module,
    own: hugging_face.Folder,
    trace: Trace,
    calibration: Calibration,
    path: Path,
) -> tuple[str, ...]:
    """Write the model. Returns notes. Raises ModelError when the format cannot express it.

    Args:
        own: The run, and how to rebuild the model's structure.
        trace: How the model is traced.
        calibration: Batches that the activation ranges of int8 are calibrated on.
    """
    match format:
        case "pt2":
            made, _ = export_program(model, trace.inputs, trace.other, trace.dynamic)
            # Into memory first: where a disk is full, torch's writer ends the process.
            content = io.BytesIO()
            torch.export.save(made, content)
            path.write_bytes(content.getbuffer())
        case "onnx":
            _make_onnx(model, trace).save(str(path), external_data=False)
        case "onnx-int8":
            floats = _make_onnx(model, trace).model_proto.SerializeToString()
            path.write_bytes(quantise(floats, calibration))
        case "safetensors":
            metadata = {key: json.dumps(value) for key, value in own.base.to_json().items()}
            save_weights(model, path, {"format": "pt", **metadata})
        case "torch-pruning":
            pruning_history.save_history(model, own.base, own.build, trace.inputs, path)
        case "huggingface":
            return hugging_face.save_pretrained(model, own, path)
        case _:
            assert_never(format)
    return ()


def _make_onnx(model: nn.Module, trace: Trace) -> torch.onnx.ONNXProgram:
    return export_onnx(model, trace.inputs, trace.other, dynamic=trace.dynamic, opset=trace.opset)


def make_reader(
    format: Format, model: nn.Module, own: hugging_face.Folder, path: Path
) -> tuple[CheckedBy, Read | None]:
    """What checks the file, and how to load it; None when it cannot run here. Raises VerificationError."""
    match format:
        case "pt2":
            return "torch.export", lambda: _load_program(path)
        case "onnx" | "onnx-int8" if find_spec("onnxruntime"):
            return "onnxruntime", lambda: _load_onnx(path)
        case "onnx" | "onnx-int8":
            _check_onnx(path)
            return "onnx.checker", None
        case "safetensors":
            return "the rebuilt model", lambda: _load_safetensors(path, own.build)
        case "torch-pruning":
            return "the rebuilt model", lambda: pruning_history.load_history(path, own.base, own.build)
        case "huggingface":
            return "from_pretrained", lambda: _load_pretrained(type(model), path)
        case _:
            assert_never(format)


def _load_program(path: Path) -> Callable[[Inputs], list[Tensor]]:
    with path.open("rb") as stream:
        program = torch.export.load(stream)
    return lambda inputs: compute_outputs(program.module(), inputs)


def _load_onnx(path: Path) -> Callable[[Inputs], list[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        given = inputs if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=True))
        outputs = session.run(None, {name: given[name].numpy() for name in names})
        return [torch.from_numpy(array) for array in outputs]

    return run


def _check_onnx(path: Path) -> None:
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise VerificationError(
            f"onnx.checker refuses the file, so it was not kept: {short_reason(error)}"
        ) from error


def _load_safetensors(path: Path, build: Build | None) -> Callable[[Inputs], list[Tensor]]:
    """Rebuild the model from the file alone, and from `build` where the recipe names no builder."""
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
    base = Base.from_json({key: json.loads(metadata[key]) for key in ("model", "cuts")})
    model = base.build_structure(build)
    load_weights(model, path)
    return lambda inputs: compute_outputs(model.eval(), inputs)


def _load_pretrained(kind: type[nn.Module], path: Path) -> Callable[[Inputs], list[Tensor]]:
    model = hugging_face.load_pretrained(kind, path)
    return lambda inputs: compute_outputs(model, inputs)
