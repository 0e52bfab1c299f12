"""Prepare a model to be called on a target: one forward call after the other on the same inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparsify.cost.measure.onnx_export import short_reason
from sparsify.cost.measure.onnx_inputs import list_entries
from sparsify.cost.measure.onnx_quantize import quantise
from sparsify.cost.measure.onnx_reuse import FREE_DIMS, Pattern, fill_pattern, make_pattern
from sparsify.cost.measure.tensor_program import make_tensor_program
from sparsify.errors import ModelError, SparsifyError
from sparsify.forward.calls import (
    Inputs,
    all_tensors,
    call_without_copies,
    flatten_value,
    list_calls,
    map_tensors,
    resize_batch,
)
from sparsify.forward.copies import copy_model
from sparsify_schemas.target import Cpu, Cuda, Target

TimedCall = Callable[[], object]
"""one forward call, complete when it returns"""
Array = NDArray[Any]


def make_shared_pattern(model: nn.Module, inputs: Inputs, target: Target) -> Pattern | None:
    """Export the model once, as a pattern for `prepare` of models with the same graph; None if PyTorch
    runs it.

    Raises ModelError if it cannot be exported.
    """
    if target.runtime not in ("onnxruntime", "openvino") or len(list_calls(inputs)) > 1:
        return None
    return make_pattern(*make_tensor_program(_move_to_cpu(model).eval(), resize_batch(inputs, target.batch)))


def prepare(model: nn.Module, inputs: Inputs, target: Target, like: Pattern | None = None) -> TimedCall:
    """Prepare a model to be called on a target, in eval mode; `model` itself does not change.

    ONNX Runtime and OpenVINO get the exported model, with a fixed batch size.
    like: pattern of a model that may have the same graph, which saves the export.
    Raises ModelError if the model cannot be exported, or the runtime cannot run what was exported.
    """
    match target.runtime:
        case "eager" | "compile":
            return _prepare_in_torch(model, resize_batch(inputs, target.batch), target)
        case "onnxruntime" | "openvino":
            assert isinstance(target, Cpu)
            if len(list_calls(inputs)) > 1:  # each is a program of its own
                each_alone = [prepare(model, (each,), target) for each in list_calls(inputs)]
                return lambda: [run() for run in each_alone]
            own, fed = make_tensor_program(_move_to_cpu(model).eval(), resize_batch(inputs, target.batch))
            file = None if like is None else _fill_shared_pattern(like, own, fed, target)
            if file is None:
                file = fill_pattern(make_pattern(own, fed), own)
                assert file is not None  # it is the model's own pattern
            return _prepare_exported(file, to_arrays(fed), target)
        case _:
            assert_never(target.runtime)


def _prepare_exported(file: bytes, inputs: Sequence[Array], target: Cpu) -> TimedCall:
    """The same for an exported model, called once."""
    try:
        run = prepare_onnx(file, inputs, target)
        run()
    except SparsifyError:
        raise
    except Exception as error:
        raise ModelError(f"{target.runtime} cannot run the exported model: {short_reason(error)}") from error
    return run


def prepare_onnx(file: bytes, inputs: Sequence[Array], target: Cpu) -> TimedCall:
    """Prepare an ONNX file for ONNX Runtime or OpenVINO, with the batch size of the inputs."""
    file = quantise(file, [inputs]) if target.dtype == "int8" else file
    return (
        _prepare_in_openvino(file, inputs, target)
        if target.runtime == "openvino"
        else _prepare_in_onnxruntime(file, inputs, target)
    )


def _fill_shared_pattern(like: Pattern, model: nn.Module, inputs: Inputs, target: Cpu) -> bytes | None:
    """The file made from another model's pattern, if it computes what the model does; else None."""
    files = (fill_pattern(like, model, free) for free in FREE_DIMS)
    return next(
        (file for file in files if file is not None and _computes_the_same(file, model, inputs, target)), None
    )


def _computes_the_same(file: bytes, model: nn.Module, inputs: Inputs, target: Cpu) -> bool:
    """Whether a file, in float32, gives the model's outputs up to rounding."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = [
            t.numpy()
            for _, t in flatten_value(call_without_copies(copy_model(model), inputs))
            if isinstance(t, Tensor)
        ]
    try:
        found: Any = prepare_onnx(file, to_arrays(inputs), target.model_copy(update={"dtype": "float32"}))()
    except Exception:  # such as shapes that the pattern fixed and that do not fit: then it is exported anew
        return False
    got = list(found.values()) if isinstance(found, Mapping) else found
    shapes = [array.shape for array in expected]
    if shapes != [array.shape for array in got]:
        return False
    return all(map(_is_close, expected, got))


def _is_close(a: Array, b: Array) -> bool:
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-3 * float(np.abs(a).max(initial=0.0)), equal_nan=True))


@contextmanager
def use_threads(target: Target) -> Iterator[None]:
    """Use as many PyTorch threads as the target asks for; exported models have their own threads."""
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


def _prepare_in_torch(model: nn.Module, inputs: Inputs, target: Target) -> TimedCall:
    device = _device(target)
    plain = device.type == "cpu" and target.dtype == "float32" and target.layout == "contiguous"
    own = _move_to_cpu(model) if plain else copy_model(model).to(device)
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

    fed = map_tensors(inputs, fit)
    if target.runtime == "compile":
        frozen = copy_model(own).eval().requires_grad_(False)
        own = torch.compile(frozen, options={"freezing": True})  # type: ignore[assignment]
    if device.type == "cuda":
        return lambda: _call_and_wait(own, fed)
    return lambda: call_without_copies(own, fed)


def _call_and_wait(model: nn.Module, inputs: Inputs) -> None:
    call_without_copies(model, inputs)
    torch.cuda.synchronize()


def _move_to_cpu(model: nn.Module) -> nn.Module:
    elsewhere = any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers()))
    return copy_model(model).cpu() if elsewhere else model


def to_arrays(inputs: Inputs) -> list[Array]:
    """The tensors as numpy arrays, in order."""
    return [x.detach().numpy() for x in all_tensors(inputs)]


def _prepare_in_onnxruntime(file: bytes, inputs: Sequence[Array], target: Cpu) -> TimedCall:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target.threads, 1
    options.log_severity_level = 4  # what goes wrong is in the exception
    for symbol, length in _read_free_lengths(file, inputs).items():
        options.add_free_dimension_override_by_name(symbol, length)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    fed = dict(zip((entry.name for entry in session.get_inputs()), inputs, strict=True))
    return lambda: session.run(None, fed)


@cache
def _load_openvino() -> Any:
    """OpenVINO's core, which lives as long as the process.

    Its plugin for processors gives the thread that first compiles a model another stack for signals. A core
    that is destroyed in another thread, as the garbage collector may do, frees that stack while it is in use:
    the next signal with a handler, such as that of a data loader's worker that ends, would kill the process.
    """
    import openvino

    return openvino.Core()


def _prepare_in_openvino(file: bytes, inputs: Sequence[Array], target: Cpu) -> TimedCall:
    import openvino

    core = _load_openvino()
    model = core.read_model(file)
    model.reshape({port: list(x.shape) for port, x in zip(model.inputs, inputs, strict=True)})
    # Without the hint OpenVINO silently computes in bf16 wherever it can.
    precision = "bf16" if target.dtype == "bf16" else "f32"
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": target.threads,
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    for at, x in enumerate(inputs):
        # np.ascontiguousarray turns a single number into a row, hence the reshape.
        tensor = openvino.Tensor(np.ascontiguousarray(x).reshape(x.shape))
        request.set_input_tensor(at, tensor)
    run: TimedCall = request.infer
    return run


def _read_free_lengths(file: bytes, inputs: Sequence[Array]) -> dict[str, int]:
    """Lengths that the inputs have in dimensions which the file leaves open, by symbol."""
    pairs = (
        (size, length)
        for entry, x in zip(list_entries(file), inputs, strict=True)
        for size, length in zip(entry.sizes, x.shape, strict=False)
    )
    return {size: length for size, length in pairs if isinstance(size, str) and size}
