"""Read an ONNX file: its content and its inputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparsify.errors import ModelError, first_line

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto


@dataclass(frozen=True)
class Entry:
    """One input."""

    name: str
    sizes: tuple[int | str, ...]
    """size of each dimension; for an open dimension its symbol, which may be empty"""
    dtype: str | None
    """torch's name of the type; None for types that numpy does not have"""


def read_onnx(path: Path) -> bytes:
    """The file, including weights in files beside it. Raises ModelError if it is no valid ONNX file."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
        content: bytes = onnx.load(path).SerializeToString()
    except Exception as error:
        raise ModelError(f"{path} cannot be read as an ONNX file: {first_line(error)}") from None
    return content


def list_entries(content: bytes) -> tuple[Entry, ...]:
    """The inputs in order, without weights, which old files list among them."""
    import onnx

    graph = onnx.ModelProto.FromString(content).graph
    stored = {tensor.name for tensor in graph.initializer}
    return tuple(_read_entry(given) for given in graph.input if given.name not in stored)


def is_quantised(model: "ModelProto") -> bool:
    """Whether the model computes anything in integers."""
    return any(
        "QuantizeLinear" in node.op_type
        or node.op_type.startswith("QLinear")
        or node.op_type.endswith("Integer")
        for node in model.graph.node
    )


def _read_entry(given: "ValueInfoProto") -> Entry:
    tensor = given.type.tensor_type
    sizes = tuple(dim.dim_value or dim.dim_param for dim in tensor.shape.dim)
    return Entry(
        given.name, sizes, _torch_dtype(tensor.elem_type) if given.type.HasField("tensor_type") else None
    )


def _torch_dtype(kind: int) -> str | None:
    import onnx

    try:
        return str(torch.from_numpy(onnx.helper.tensor_dtype_to_np_dtype(kind).type(0).reshape(1)).dtype)[6:]
    except (TypeError, AttributeError, KeyError):  # text, bf16 and smaller, and what is not defined
        return None
