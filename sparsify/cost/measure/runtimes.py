"""How a model is called on a target: prepared once, then one forward call after the other on the same inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsify.cost.measure.onnx_inputs import entries
from sparsify.cost.measure.onnx_quantize import quantised
from sparsify.cost.measure.onnx_reuse import OPEN, Pattern, filled, pattern
from sparsify.cost.measure.tensor_program import entered
from sparsify.forward.calls import Inputs, all_tensors, call, calls_of, changed, flattened, with_batch
from sparsify.forward.copies import copied
from sparsify_schemas.target import Cpu, Cuda, Target

TimedCall = Callable[[], object]
"""one forward call, done when it returns"""
Array = NDArray[Any]


def pattern_of(model: nn.Module, inputs: Inputs, target: Target) -> Pattern | None:
    """The model followed once, for it and networks of the same graph to be `prepared` by; None where PyTorch runs it.

    Raises ModelError when it cannot be exported.
    """
    if target.runtime not in ("onnxruntime", "openvino") or len(calls_of(inputs)) > 1:
        return None
    return pattern(*entered(_on_cpu(model).eval(), with_batch(inputs, target.batch)))


def prepared(model: nn.Module, inputs: Inputs, target: Target, like: Pattern | None = None) -> TimedCall:
    """The model ready to be called on a target, in eval mode; `model` itself stays as it is.

    ONNX Runtime and OpenVINO get the model as exported, its batch fixed. like: of a network whose graph it may share, which
    saves the exporting. Raises ModelError when it cannot be exported.
    """
    match target.runtime:
        case "eager" | "compile":
            return _in_torch(model, with_batch(inputs, target.batch), target)
        case "onnxruntime" | "openvino":
            assert isinstance(target, Cpu)
            if len(calls_of(inputs)) > 1:  # each is a program of its own
                each_alone = [prepared(model, (each,), target) for each in calls_of(inputs)]
                return lambda: [run() for run in each_alone]
            own, fed = entered(_on_cpu(model).eval(), with_batch(inputs, target.batch))
            file = None if like is None else _alike(like, own, fed, target)
            if file is None:
                file = filled(pattern(own, fed), own)
                assert file is not None  # it is the model's own pattern
            return prepared_onnx(file, arrays(fed), target)
        case _:
            assert_never(target.runtime)


def prepared_onnx(file: bytes, inputs: Sequence[Array], target: Cpu) -> TimedCall:
    """An ONNX file ready to be called on ONNX Runtime or OpenVINO, its batch fixed to that of the inputs."""
    file = quantised(file, [inputs]) if target.dtype == "int8" else file
    return (
        _in_openvino(file, inputs, target)
        if target.runtime == "openvino"
        else _in_onnxruntime(file, inputs, target)
    )


def _alike(like: Pattern, model: nn.Module, inputs: Inputs, target: Cpu) -> bytes | None:
    """The file by another network's pattern that computes what the model does; None where none does."""
    files = (filled(like, model, free) for free in OPEN)
    return next((file for file in files if file is not None and _computes(file, model, inputs, target)), None)


def _computes(file: bytes, model: nn.Module, inputs: Inputs, target: Cpu) -> bool:
    """Whether a file, in float32, gives the model's outputs but for rounding."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = [t.numpy() for _, t in flattened(call(copied(model), inputs)) if isinstance(t, Tensor)]
    try:
        found: Any = prepared_onnx(file, arrays(inputs), target.model_copy(update={"dtype": "float32"}))()
    except Exception:  # such as shapes that the pattern fixed and that do not fit: then it is exported anew
        return False
    got = list(found.values()) if isinstance(found, Mapping) else found
    return [a.shape for a in expected] == [b.shape for b in got] and all(
        _near(a, b) for a, b in zip(expected, got, strict=True)
    )


def _near(a: Array, b: Array) -> bool:
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-3 * float(np.abs(a).max(initial=0.0)), equal_nan=True))


@contextmanager
def threads(target: Target) -> Iterator[None]:
    """PyTorch's threads as the target wants them, as they were afterwards; exported models have threads of their own."""
    before = torch.get_num_threads()
    if isinstance(target, Cpu):
        torch.set_num_threads(target.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(target: Target) -> torch.device:
    match target:
        case Cpu():
            return torch.device("cpu")
        case Cuda():
            return torch.device("cuda")
        case _:
            assert_never(target)


def _in_torch(model: nn.Module, inputs: Inputs, target: Target) -> TimedCall:
    device = _device(target)
    plain = device.type == "cpu" and target.dtype == "float32" and target.layout == "contiguous"
    own = _on_cpu(model) if plain else copied(model).to(device)
    if target.dtype == "bf16":
        own = own.to(torch.bfloat16)
    if target.layout == "channels_last":
        own = own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def fit(x: Tensor) -> Tensor:
        x = x.to(device, torch.bfloat16 if target.dtype == "bf16" and x.is_floating_point() else x.dtype)
        return (
            x.contiguous(memory_format=torch.channels_last)
            if x.dim() == 4 and target.layout == "channels_last"
            else x
        )

    fed = changed(inputs, fit)
    if target.runtime == "compile":
        own = torch.compile(copied(own).eval().requires_grad_(False), options={"freezing": True})  # type: ignore[assignment]
    if device.type == "cuda":
        return lambda: _waited_for(own, fed)
    return lambda: call(own, fed)


def _waited_for(model: nn.Module, inputs: Inputs) -> None:
    call(model, inputs)
    torch.cuda.synchronize()


def _on_cpu(model: nn.Module) -> nn.Module:
    elsewhere = any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers()))
    return copied(model).cpu() if elsewhere else model


def arrays(inputs: Inputs) -> list[Array]:
    """The tensors as numpy has them, in order."""
    return [x.detach().numpy() for x in all_tensors(inputs)]


def _in_onnxruntime(file: bytes, inputs: Sequence[Array], target: Cpu) -> TimedCall:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target.threads, 1
    options.log_severity_level = 4  # what goes wrong is in the exception
    for symbol, length in _open(file, inputs).items():
        options.add_free_dimension_override_by_name(symbol, length)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    fed = dict(zip((entry.name for entry in session.get_inputs()), inputs, strict=True))
    return lambda: session.run(None, fed)


def _in_openvino(file: bytes, inputs: Sequence[Array], target: Cpu) -> TimedCall:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({port: list(x.shape) for port, x in zip(model.inputs, inputs, strict=True)})
    precision = (
        "bf16" if target.dtype == "bf16" else "f32"
    )  # without the hint it silently computes in bf16 where it can
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": target.threads,
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    for at, x in enumerate(inputs):
        request.set_input_tensor(
            at, openvino.Tensor(np.ascontiguousarray(x).reshape(x.shape))
        )  # of a single number it makes a row
    run: TimedCall = request.infer
    return run


def _open(file: bytes, inputs: Sequence[Array]) -> dict[str, int]:
    """The length that the inputs give to each dimension which the file leaves open."""
    pairs = (
        (size, length)
        for entry, x in zip(entries(file), inputs, strict=True)
        for size, length in zip(entry.sizes, x.shape, strict=False)
    )
    return {size: length for size, length in pairs if isinstance(size, str) and size}
