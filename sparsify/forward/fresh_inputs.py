"""Random inputs of the same kind as given ones, and independent of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sparsify.errors import ModelError
from sparsify.forward.calls import (
    Call,
    Inputs,
    argument_name,
    batch_axes,
    list_calls,
    list_items,
    rebuild_value,
    simplify_inputs,
    tensors_by_path,
)
from sparsify.forward.recorded_calls import Argument, RecordedCall, RecordedTensor

Kind = Literal["normal", "uniform", "integers", "flags", "mask", "padding", "lengths", "kept"]


@dataclass(frozen=True)
class Draw:
    """How the values of a tensor are drawn.

    normal: low is the mean, high the standard deviation.
    uniform: within [low, high].
    integers: low to high, both included.
    flags: booleans, with both values in every row.
    mask: true for a first part of each row, of any length from one on, and for all of the first row.
        A square mask has a false in every row.
    padding: the opposite of a mask.
    lengths: 1 to high, the largest first.
    kept: as given.
    """

    kind: Kind
    low: float = 0.0
    high: float = 1.0


def seed_generators(seed: int) -> None:
    """Seed the default generator of the CPU, and that of the accelerator if there is one.

    Without an accelerator, `torch.manual_seed` records the call stack for each absent kind of device: that
    takes milliseconds, and the memory is never released.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def redraw(inputs: Inputs, seed: int, batch: int | None = None) -> Inputs:
    """Random inputs of the same kinds, shapes and types as the given ones, independent of their values.

    Floating-point values have the given mean and spread: normal if some given values are negative, else
    uniform between their minimum and maximum. Integers are uniform over the vocabulary if the call knows
    it, else between the given minimum and maximum. Masks are mixed, lengths valid. Values that are no
    tensors stay as they are.

    batch: number of examples; by default as many as were given.
    """
    generator = torch.Generator().manual_seed(seed)
    calls = list_calls(inputs)
    made = tuple(_redraw_call(each, generator, batch) for each in calls)
    return made if calls is inputs else made[0].inputs


def redraw_tensors(inputs: Inputs, seed: int, paths: Sequence[Collection[str]]) -> Inputs:
    """The inputs with some tensors redrawn; paths: for each call, those of its tensors to redraw."""
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(list_calls(inputs), paths, strict=True)
    return tuple(_redraw_call(each, generator, None, own) for each, own in pairs)


def _redraw_call(
    each: Call, generator: torch.Generator, batch: int | None, only: Collection[str] | None = None
) -> Call:
    axes, draws = batch_axes(each), choose_draws(each)

    def new(path: str, tensor: Tensor) -> Tensor:
        if only is not None and path not in only:
            return tensor
        shape, axis = list(tensor.shape), None if each.fixed else axes[path]
        if batch is not None and axis is not None:
            shape[axis] = batch
        if draws[path].kind == "kept" and axis is None:
            return tensor.clone()
        if draws[path].kind == "kept":
            turn = torch.arange(shape[axis or 0], device=tensor.device) % tensor.shape[axis or 0]
            return tensor.index_select(axis or 0, turn)
        drawn = draw_tensor(draws[path], tuple(shape), tensor.dtype, generator)
        return drawn.to(tensor.device)

    return replace(each, inputs=rebuild_value(each.inputs, new), batch=axes)


def choose_draws(each: Call) -> dict[str, Draw]:
    """Path -> how each tensor of a call is redrawn."""
    found = tensors_by_path(each)
    axes = batch_axes(each)
    made = {}
    for path, tensor in found.items():
        name = argument_name(each, path).lower()
        if tensor.is_nested or tensor.layout is not torch.strided:
            made[path] = Draw("kept")
        elif tensor.dtype is torch.bool or _is_mask_of_numbers(name, tensor):
            made[path] = _choose_flag_draw(name)
        elif tensor.is_floating_point() or tensor.is_complex():
            made[path] = _choose_float_draw(tensor)
        elif name.rpartition(".")[2].endswith("offsets"):
            made[path] = Draw("kept")  # where each bag of an EmbeddingBag begins
        elif names_lengths(name):
            longest = _count_steps(found, axes, path)
            largest = int(tensor.max()) if tensor.numel() and not tensor.is_meta else 1
            made[path] = Draw("lengths", 1, max(1, longest if longest and longest >= largest else largest))
        else:
            made[path] = _choose_integer_draw(tensor, each.vocabularies.get(path))
    return made


def names_lengths(name: str) -> bool:
    """Whether a name says that the numbers are lengths of sequences."""
    last = name.rpartition(".")[2]
    return last in ("length", "lengths", "lens") or last.endswith(("_length", "_lengths", "_lens"))


def _count_steps(found: Mapping[str, Tensor], axes: Mapping[str, int | None], path: str) -> int | None:
    """Length of the sequences, from the first tensor with a batch axis: the other one of its first two
    dimensions."""
    for other, tensor in found.items():
        if other != path and tensor.dim() >= 2 and axes[other] in (0, 1):
            return tensor.shape[1 - (axes[other] or 0)]
    return None


def _is_mask_of_numbers(name: str, tensor: Tensor) -> bool:
    """Whether numbers stand for booleans."""
    if "mask" not in name or tensor.is_meta or not tensor.numel() or tensor.is_complex():
        return False
    return bool(((tensor == 0) | (tensor == 1)).all())


def _choose_flag_draw(name: str) -> Draw:
    if "mask" not in name:
        return Draw("flags")
    return Draw("padding" if "padding" in name else "mask")


def _choose_float_draw(tensor: Tensor) -> Draw:
    if tensor.is_meta or tensor.is_complex() or not tensor.numel():
        return Draw("normal")
    value = tensor.detach().double()
    if not bool(value.isfinite().all()):
        # Such as a mask of minus infinities: a random one would mask whole rows.
        return Draw("kept")
    low, high = float(value.min()), float(value.max())
    if low == high == 0:
        return Draw("normal")  # zeros stand for data of unknown range
    if low == high:
        return Draw("uniform", min(low / 2, low * 1.5), max(low / 2, low * 1.5))
    if low < 0:
        return Draw("normal", float(value.mean()), float(value.std()))
    return Draw("uniform", low, high)


def _choose_integer_draw(tensor: Tensor, vocabulary: int | None) -> Draw:
    if vocabulary is not None:
        return Draw("integers", 0, vocabulary - 1)
    if tensor.is_meta or not tensor.numel():
        return Draw("integers", 0, 1)
    return Draw("integers", int(tensor.min()), int(tensor.max()))


def draw_tensor(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Draw values of a shape and type."""
    match draw.kind:
        case "normal" | "kept" if dtype.is_complex:
            return torch.randn(shape, generator=generator, dtype=torch.complex64).to(dtype)
        case "kept" if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        case "normal" | "kept":
            return (draw.low + draw.high * torch.randn(shape, generator=generator)).to(dtype)
        case "uniform":
            return (draw.low + (draw.high - draw.low) * torch.rand(shape, generator=generator)).to(dtype)
        case "integers":
            return torch.randint(int(draw.low), int(draw.high) + 1, shape, generator=generator).to(dtype)
        case "lengths":
            return _draw_lengths(int(draw.high), shape, generator).to(dtype)
        case "flags":
            return _draw_flags(shape, generator).to(dtype)
        case "mask":
            return _draw_mask(shape, generator).to(dtype)
        case "padding":
            return (~_draw_mask(shape, generator)).to(dtype)


def _draw_lengths(longest: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Descending along the first dimension, as packed sequences are by default; the first is the largest."""
    drawn = torch.randint(1, longest + 1, shape, generator=generator)
    if not drawn.dim():
        return torch.tensor(longest)
    drawn[0] = longest
    return drawn.sort(0, descending=True).values


def _draw_flags(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random booleans; every row of two or more has both values."""
    drawn = torch.rand(shape, generator=generator) < 0.5
    if drawn.dim() and drawn.numel():
        places = torch.rand(shape, generator=generator).argsort(-1)
        if shape[-1] > 1:
            drawn.scatter_(-1, places[..., 1:2], value=False)
        drawn.scatter_(-1, places[..., :1], value=True)
    return drawn


def _draw_mask(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """True for the first positions of every row.

    In a square mask of two dimensions (which position attends to which) true may mean either, so every row
    has both.
    """
    if not shape:
        return torch.tensor(True)
    square = len(shape) == 2 and shape[0] == shape[1] > 1
    longest = shape[-1] - 1 if square else shape[-1]
    ends = torch.randint(1, max(longest, 1) + 1, (*shape[:-1], 1), generator=generator)
    if not square and ends.numel():
        ends.view(-1)[0] = max(longest, 1)
    return torch.arange(shape[-1]) < ends


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
