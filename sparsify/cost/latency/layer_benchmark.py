"""Time single layers: small models of one layer, run as the target runs the whole network.

For ONNX Runtime and OpenVINO, a model has several copies of the layer on one input, and their outputs are
reduced at once. This makes memory reordering at the edges of so small a model, and the cost of a call,
almost vanish. With one thread, processor time is measured, and the fast ones of many calls count, which a
busy machine disturbs least.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sparsify.cost.latency.layer_geometry import Geometry
from sparsify.cost.measure.runtimes import TimedCall, prepare, prepare_onnx, use_threads
from sparsify.cost.measure.timing import choose_clock, time_interleaved
from sparsify_schemas.target import Cpu, Cuda, Target

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

FAST_QUANTILE = 0.25
"""quantile of a layer's or network's timings that counts: disturbances only slow down"""
SECONDS = 0.02
"""time spent on one layer at one width"""
_WEIGHTS = 2**19
"""number of weights up to which a model has several copies of a layer"""
_MODULES = {
    (1, False): nn.Conv1d, (2, False): nn.Conv2d, (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d, (2, True): nn.ConvTranspose2d, (3, True): nn.ConvTranspose3d,
}  # fmt: skip


def time_layers(
    layers: Sequence[tuple[Geometry, int, int]], target: Target, seconds: float = SECONDS
) -> list[float]:
    """Milliseconds of each (geometry, inputs, outputs), timed interleaved for `seconds` each."""
    with use_threads(target), torch.inference_mode():
        made = [prepare_layer(geometry, inputs, outputs, target) for geometry, inputs, outputs in layers]
        calls = [call for call, _ in made]
        floor = _prepare_empty_call(target)
        if floor is not None:
            calls.append(floor)
        rng, clock = np.random.default_rng(0), choose_clock(target)
        rounds = time_interleaved(calls, seconds * len(made), rng, clock)
    best = np.quantile(rounds, FAST_QUANTILE, axis=0) * 1e3
    nothing = float(best[-1]) if floor else 0.0
    return [
        max(float(ms) - nothing, float(ms) * 0.05) / copies
        for ms, (_, copies) in zip(best, made, strict=False)
    ]


def prepare_layer(geometry: Geometry, inputs: int, outputs: int, target: Target) -> tuple[TimedCall, int]:
    """A layer ready to be called, and how many times one call runs it."""
    if isinstance(target, Cpu) and target.runtime in ("onnxruntime", "openvino"):
        copies = _count_copies(geometry, inputs, outputs)
        x = np.random.default_rng(0).standard_normal(
            _input_shape(geometry, inputs, target.batch), dtype=np.float32
        )
        return prepare_onnx(_make_onnx(geometry, inputs, outputs, copies, x.shape), [x], target), copies
    # torch.compile takes seconds for each layer.
    eager = target.model_copy(update={"runtime": "eager", "table": None})
    assert isinstance(eager, Cpu | Cuda)
    return prepare(
        _make_module(geometry, inputs, outputs).eval(),
        (torch.randn(_input_shape(geometry, inputs, target.batch)),),
        eager,
    ), 1


def _count_copies(geometry: Geometry, inputs: int, outputs: int) -> int:
    groups = 1 if geometry.depthwise else geometry.count_groups(inputs)
    weights = outputs * max(1, inputs // groups) * prod(geometry.kernel)
    if geometry.depthwise or weights <= _WEIGHTS // 8:
        return 8
    if weights <= _WEIGHTS:
        return 4
    return 2 if weights <= 4 * _WEIGHTS else 1


def _prepare_empty_call(target: Target) -> TimedCall | None:
    """A call that computes nothing; None in PyTorch, where every layer of a network pays for its call."""
    if not isinstance(target, Cpu) or target.runtime not in ("onnxruntime", "openvino"):
        return None
    from onnx import TensorProto, helper

    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    returned = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", [taken], [returned])
    return prepare_onnx(
        _make_onnx_model(graph).SerializeToString(), [np.zeros((1, 4), np.float32)], _with_float32(target)
    )


def _with_float32(target: Cpu) -> Cpu:
    """The target in float32, since a model without weights has nothing to quantise."""
    return target.model_copy(update={"dtype": "float32"}) if target.dtype == "int8" else target


def _input_shape(geometry: Geometry, inputs: int, batch: int) -> tuple[int, ...]:
    if geometry.size:
        return (batch, inputs, *geometry.size)
    return (batch, inputs) if geometry.rows == 1 else (batch, geometry.rows, inputs)


def _make_module(geometry: Geometry, inputs: int, outputs: int) -> nn.Module:
    if not geometry.size:
        return nn.Linear(inputs, outputs)
    groups = geometry.count_groups(inputs)
    kind = _MODULES[len(geometry.size), geometry.transposed]
    made: nn.Module = kind(
        inputs,
        outputs,
        geometry.kernel,
        geometry.stride,
        geometry.padding,
        groups=groups,
        dilation=geometry.dilation,
    )
    return made


def _make_onnx(geometry: Geometry, inputs: int, outputs: int, copies: int, shape: tuple[int, ...]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, results = [], [], []
    for i in range(copies):
        groups = geometry.count_groups(inputs)
        if not geometry.size:
            per_group = (inputs, outputs)
        elif geometry.transposed:
            per_group = (inputs, outputs // groups)
        else:
            per_group = (outputs, inputs // groups)
        scale = np.float32(np.sqrt(max(1, inputs)))
        w = rng.standard_normal((*per_group, *geometry.kernel), dtype=np.float32) / scale
        weights += [
            numpy_helper.from_array(w, f"w{i}"),
            numpy_helper.from_array(rng.standard_normal(outputs, dtype=np.float32), f"b{i}"),
        ]
        if geometry.size:
            pads = [*geometry.padding, *geometry.padding]
            given: dict[str, Any] = {
                "kernel_shape": geometry.kernel,
                "strides": geometry.stride,
                "pads": pads,
                "dilations": geometry.dilation,
                "group": groups,
            }
            nodes += [
                helper.make_node(
                    "ConvTranspose" if geometry.transposed else "Conv",
                    ["x", f"w{i}", f"b{i}"],
                    [f"c{i}"],
                    **given,
                ),
                helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
                helper.make_node("GlobalAveragePool", [f"r{i}"], [f"y{i}"]),
            ]
        elif len(shape) == 2:
            nodes.append(helper.make_node("Gemm", ["x", f"w{i}", f"b{i}"], [f"y{i}"]))
        else:
            nodes += [
                helper.make_node("MatMul", ["x", f"w{i}"], [f"m{i}"]),
                helper.make_node("Add", [f"m{i}", f"b{i}"], [f"y{i}"]),
            ]
        results.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None))
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], results, weights
    )
    file: bytes = _make_onnx_model(graph).SerializeToString()
    return file


def _make_onnx_model(graph: "GraphProto") -> "ModelProto":
    from onnx import helper

    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
