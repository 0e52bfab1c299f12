"""Random inputs of the same kind as given ones, and independent of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sparsify.forward.calls import (
    Call,
    Inputs,
    argument_name,
    batch_axes,
    list_calls,
    rebuild_value,
    tensors_by_path,
)

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
