"""Record how a model was called, without the values, and draw inputs from such a record."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from sparsify.errors import ModelError
from sparsify.forward.calls import (
    Call,
    Inputs,
    batch_axes,
    list_calls,
    list_items,
    simplify_inputs,
    tensors_by_path,
)
from sparsify.forward.fresh_inputs import Draw, Kind, choose_draws, draw_tensor
from sparsify.forward.recorded_calls import Argument, RecordedCall, RecordedTensor


def record_calls(inputs: Inputs) -> tuple[RecordedCall, ...]:
    """The calls in a form that `draw_from_record` can draw again."""
    return tuple(_record_call(each) for each in list_calls(inputs))


def _record_call(each: Call) -> RecordedCall:
    axes, draws = batch_axes(each), choose_draws(each)

    def described(name: str | None, value: Any, path: str) -> Argument:
        if isinstance(value, Tensor):
            draw = draws[path]
            dtype = str(value.dtype).removeprefix("torch.")
            return Argument(
                name,
                "tensor",
                RecordedTensor(tuple(value.shape), dtype, draw.kind, draw.low, draw.high, axes[path]),
            )
        if isinstance(value, Mapping):
            inner = tuple(described(str(key), item, f"{path}.{key}") for key, item in value.items())
            return Argument(name, "mapping", items=inner)
        if type(value) in (list, tuple):
            inner = tuple(described(None, item, f"{path}.{place}") for place, item in enumerate(value))
            return Argument(name, type(value).__name__, items=inner)
        if value is None or isinstance(value, bool | int | float | str):
            return Argument(name, "value", value=value)
        inner = tuple(described(key, item, f"{path}.{key}") for key, item in list_items(value))
        return Argument(name, "object", value=type(value).__name__, items=inner)

    if isinstance(each.inputs, Mapping):
        arguments = tuple(described(key, value, key) for key, value in each.inputs.items())
    else:
        arguments = tuple(described(None, value, str(place)) for place, value in enumerate(each.inputs))
    return RecordedCall(each.method, arguments, each.fixed)


def recorded_axes(called: RecordedCall) -> dict[str, tuple[int, int | None]]:
    """Path of each tensor -> (number of dimensions, the dimension that counts examples)."""
    found: dict[str, tuple[int, int | None]] = {}

    def enter(argument: Argument, path: str) -> None:
        if argument.tensor is not None:
            found[path] = len(argument.tensor.shape), argument.tensor.batch
        for place, item in enumerate(argument.items):
            enter(item, f"{path}.{item.name or place}")

    for place, argument in enumerate(called.arguments):
        enter(argument, argument.name or str(place))
    return found


def resize_record(called: RecordedCall, sizes: Mapping[str, Mapping[int, int]]) -> RecordedCall:
    """The record with other lengths of dimensions: path of a tensor -> dimension -> length."""

    def resized(argument: Argument, path: str) -> Argument:
        tensor = argument.tensor
        if tensor is not None and path in sizes:
            shape = tuple(sizes[path].get(at, length) for at, length in enumerate(tensor.shape))
            return replace(argument, tensor=replace(tensor, shape=shape))
        items = [resized(item, f"{path}.{item.name or place}") for place, item in enumerate(argument.items)]
        return replace(argument, items=tuple(items))

    arguments = [resized(one, one.name or str(place)) for place, one in enumerate(called.arguments)]
    return replace(called, arguments=tuple(arguments))


def draw_from_record(record: Iterable[RecordedCall], seed: int = 0, batch: int | None = None) -> Inputs:
    """Draw inputs from a record; `batch`: the number of examples, if something counts them.

    Raises ModelError if a call took an object that no record can hold.
    """
    generator = torch.Generator().manual_seed(seed)
    return simplify_inputs(tuple(_draw_call(called, generator, batch) for called in record))


def _draw_call(called: RecordedCall, generator: torch.Generator, batch: int | None) -> Call:
    axes: dict[str, int | None] = {}

    def value_of(argument: Argument, path: str) -> Any:
        if argument.tensor is not None:
            spec = argument.tensor
            axes[path] = spec.batch
            shape = list(spec.shape)
            axis = spec.batch
            if batch is not None and axis is not None and 0 <= axis < len(shape) and not called.fixed:
                shape[axis] = batch
            kind = next(k for k in get_args(Kind) if k == spec.kind)
            draw = Draw(kind, spec.low, spec.high)
            return draw_tensor(draw, tuple(shape), getattr(torch, spec.dtype), generator)
        match argument.form:
            case "mapping":
                return {item.name: value_of(item, f"{path}.{item.name}") for item in argument.items}
            case "list" | "tuple":
                inner = [value_of(item, f"{path}.{place}") for place, item in enumerate(argument.items)]
                return inner if argument.form == "list" else tuple(inner)
            case "value":
                return argument.value
        raise ModelError(f"a call takes a {argument.value}, which cannot be drawn at random; pass inputs")

    named = any(argument.name is not None for argument in called.arguments)
    made = {
        argument.name or str(at): value_of(argument, argument.name or str(at))
        for at, argument in enumerate(called.arguments)
    }
    return Call(called.method, made if named else tuple(made.values()), batch=axes, fixed=called.fixed)


def apply_record(record: Sequence[RecordedCall], inputs: Inputs) -> Inputs:
    """Add to the inputs what a record of the same calls says about their batch axes and fixed calls.

    Explicitly stated axes stay, and so do inputs that do not match the record.
    """
    calls = list_calls(inputs)
    if len(calls) != len(record):
        return inputs
    return simplify_inputs(
        tuple(_apply_recorded_call(called, each) for called, each in zip(record, calls, strict=True))
    )


def _apply_recorded_call(called: RecordedCall, each: Call) -> Call:
    known = recorded_axes(called)
    found = {path: tensor.dim() for path, tensor in tensors_by_path(each).items()}
    if called.method != each.method or found != {path: dims for path, (dims, _) in known.items()}:
        return each
    axes = {path: axis for path, (_, axis) in known.items()}
    return replace(each, batch=axes if each.batch == "first" else each.batch, fixed=called.fixed)


def read_record(written: Any) -> tuple[RecordedCall, ...]:
    """Read the record that `plan.json` holds.

    Earlier versions wrote (keyword or None, shape, element type) of each tensor of one call.
    Raises ValueError, LookupError or TypeError if the file is damaged.
    """
    if all(isinstance(entry, list) for entry in written):
        return (_read_earlier(written),)
    return tuple(
        RecordedCall(
            str(entry["method"]), tuple(map(_read_argument, entry["arguments"])), bool(entry["fixed"])
        )
        for entry in written
    )


def _read_earlier(written: Any) -> RecordedCall:
    first = written[0][1][:1]
    tensors = []
    for name, shape, dtype in written:
        whole = dtype == "bool" or dtype.startswith(("int", "uint"))
        axis = 0 if shape and shape[:1] == first else None
        drawn = RecordedTensor(
            _read_shape(shape), _read_dtype(dtype), "integers" if whole else "normal", 0.0, 1.0, axis
        )
        tensors.append(Argument(name, "tensor", drawn))
    return RecordedCall("forward", tuple(tensors))


def _read_argument(entry: Any) -> Argument:
    tensor = entry["tensor"]
    drawn = None
    if tensor is not None:
        batch, kind = tensor["batch"], tensor["kind"]
        if kind not in get_args(Kind) or not (batch is None or type(batch) is int):
            raise ValueError(f"no tensor can be drawn as {kind!r} with batch {batch!r}")
        shape, dtype = _read_shape(tensor["shape"]), _read_dtype(tensor["dtype"])
        drawn = RecordedTensor(shape, dtype, kind, float(tensor["low"]), float(tensor["high"]), batch)
    return Argument(
        entry["name"], entry["form"], drawn, entry["value"], tuple(map(_read_argument, entry["items"]))
    )


def _read_shape(shape: Any) -> tuple[int, ...]:
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{shape} is no shape")
    return tuple(shape)


def _read_dtype(dtype: Any) -> str:
    if not isinstance(getattr(torch, dtype), torch.dtype):
        raise TypeError(f"{dtype} is no element type")
    return str(dtype)
