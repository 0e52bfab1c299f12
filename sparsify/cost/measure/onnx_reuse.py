"""Make the ONNX file of a network from that of another one with the same graph, by replacing its weights.

torch.onnx takes many seconds to export a network, and a cut only changes the weights. This is checked: a
file whose weights have other names, that does not run, or that computes something else is not used.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsify.cost.measure.onnx_export import export_onnx, silence_torch
from sparsify.errors import ModelError
from sparsify.forward.call_model import every_tensor
from sparsify.forward.calls import Inputs

if TYPE_CHECKING:
    from onnx import ModelProto


FREE_DIMS = (-1, -2)
"""the dimension that may also differ in a constant shape of four dimensions or more: size or number of
heads"""
_FOLLOWS = "follows_from_the_weights"


@dataclass(frozen=True, eq=False)
class Pattern:
    """A network as ONNX before any optimisation, with each weight under its own name."""

    file: "ModelProto"
    stored: frozenset[str]
    """names of its parameters and buffers"""


def make_pattern(model: nn.Module, inputs: Inputs) -> Pattern:
    """The network as ONNX, for inputs of this batch size. Raises ModelError if ONNX cannot express it, or if
    its numbers are of a type that arrays do not have."""
    for value in (*_stored_tensors(model).values(), *every_tensor(inputs)):
        if not _is_array_type(value.dtype):
            name = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"numbers in {name} cannot be exchanged with it; convert the model by model.float()"
            )
    with silence_torch():
        proto = export_onnx(model, inputs, inputs, optimize=False).model_proto
    del proto.graph.value_info[:]  # shapes in between, which other weights change
    return Pattern(proto, frozenset(_stored_tensors(model)))


@cache
def _is_array_type(dtype: torch.dtype) -> bool:
    """Whether NumPy has a type: it has none for bfloat16 and the types of 8 bits."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


def fill_pattern(like: Pattern, model: nn.Module, free: int = -1) -> bytes | None:
    """The file with this model's weights, optimised as an export is; None if the model has other weights.

    free: dimension of constant shapes that may hold something other than a weight's width; see
    `FREE_DIMS`.
    """
    import onnx_ir
    from onnx import numpy_helper

    own = _stored_tensors(model)
    if own.keys() != like.stored:
        return None
    proto = type(like.file)()
    proto.CopyFrom(like.file)
    changed: set[int] = set()
    for entry in proto.graph.initializer:
        if entry.name in own:
            changed.update(
                before for before, now in zip(entry.dims, own[entry.name].shape, strict=True) if before != now
            )
            entry.CopyFrom(
                numpy_helper.from_array(own[entry.name].detach().cpu().contiguous().numpy(), entry.name)
            )
    if changed:
        _free_shapes(proto, changed, free)
        _set_groups(
            proto, {entry.name: entry.dims[0] for entry in like.file.graph.initializer if len(entry.dims) > 2}
        )
    with silence_torch():
        program = torch.onnx.ONNXProgram(onnx_ir.from_proto(proto), None)
        program.optimize()
        file: bytes = program.model_proto.SerializeToString()
    return file


def _free_shapes(proto: "ModelProto", changed: Collection[int], free: int) -> None:
    """Write -1 for widths in the shapes of reshapes, so that they follow from the weights.

    torch.onnx concatenates such a shape from one constant for each dimension. changed: widths that
    changed.
    """
    from onnx import helper

    made = {name: node for node in proto.graph.node for name in node.output}
    for shape in {node.input[1] for node in proto.graph.node if node.op_type == "Reshape"}:
        parts = made[shape].input if shape in made and made[shape].op_type == "Concat" else ()
        written = []
        for name in parts:
            is_constant = name in made and made[name].op_type == "Constant"
            written.append(made[name].attribute[0].ints[0] if is_constant else 0)
        widths = [at for at, size in enumerate(written) if at and size in changed]
        if widths or len(written) > 3:
            made[shape].input[widths[-1] if widths else free] = _FOLLOWS
    proto.graph.node.insert(0, helper.make_node("Constant", [], [_FOLLOWS], value_ints=[-1]))


def _set_groups(proto: "ModelProto", before: Mapping[str, int]) -> None:
    """Give depthwise convolutions as many groups as channels. before: the channels that the pattern had."""
    now = {entry.name: entry.dims[0] for entry in proto.graph.initializer if entry.dims}
    for node in proto.graph.node:
        for attribute in node.attribute if node.op_type == "Conv" else ():
            if attribute.name == "group" and attribute.i == before.get(node.input[1]) != 1:
                attribute.i = now[node.input[1]]


def _stored_tensors(model: nn.Module) -> Mapping[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
