"""A layer as a matrix: its inputs and outputs at sampled places as rows, its weight as columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.opaque import is_scripted
from sparsify.graph.layer_types import is_transposed_linear
from sparsify.nn.cropped import CROPPED, pad_and_crop, read_padding

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTranspose = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

_PLAIN_FORWARDS = {
    kind.forward
    for kind in (
        nn.Linear,
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
    )
}
"""a subclass with a forward of its own may do something else with its weight"""
_CONVOLVING = (*CROPPED, *CROPPED.values())
_KNOWN_CONVOLUTIONS = {kind._conv_forward for kind in _CONVOLVING}
"""what forward calls in a convolution: a subclass may do something else there, such as scale its weight"""


def is_product(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a weight of its own, as torch's convolutions and Linear layers
    do."""
    return _multiplies(module) and isinstance(module._parameters.get("weight"), nn.Parameter)


def is_product_of_computed(module: nn.Module) -> bool:
    """Whether a module is such a layer but for its weight, which other tensors are computed into: under
    weight_norm or spectral_norm, another parametrization, or a mask of torch.nn.utils.prune."""
    return _multiplies(module) and not isinstance(module._parameters.get("weight"), nn.Parameter)


def _multiplies(module: nn.Module) -> bool:
    if is_scripted(module):
        return False
    plain = find_forward(module) in _PLAIN_FORWARDS
    if isinstance(module, Conv):
        plain = plain and find_method(module, "_conv_forward") in _KNOWN_CONVOLUTIONS
    known = plain and isinstance(module, Conv | ConvTranspose | nn.Linear)
    return known or is_transposed_linear(module)


def find_forward(module: nn.Module) -> Any:
    """The function that a call of the module runs: that of its class, or one that was put on the module
    itself. Accelerate wraps the class's to move weights."""
    return find_method(module, "forward")


def find_method(module: nn.Module, name: str) -> Any:
    """The function of a method, that of the module's class or one that was put on the module itself."""
    own = vars(module).get(name)
    if own is None:
        return getattr(type(module), name, None)
    return getattr(getattr(own, "__wrapped__", own), "__func__", own)


@dataclass(frozen=True)
class Places:
    """Where the outputs of one call are sampled: the same places in every example.

    shape: of an output without batch and channels; index: numbers into that shape, flattened.
    parts: where each example comes in several parts along the batch, such as frames or windows, numbers of
    those that are sampled, as many of each example; None: all of them. batch: how many parts there are.
    """

    shape: tuple[int, ...]
    index: Tensor
    parts: Tensor | None = None
    batch: int | None = None

    def fit_batch(self, value: Tensor) -> bool:
        """Whether a tensor has a batch of the length that the parts were drawn from."""
        return self.parts is None or len(value) == self.batch

    def count_rows(self, batch: int) -> int:
        return (batch if self.parts is None else len(self.parts)) * len(self.index)


def sample_places(
    module: nn.Module, output: Tensor, count: int, generator: torch.Generator, examples: int | None = None
) -> Places:
    """Draw `count` places of an output, all of them where there are no more.

    Args:
        module: a layer for which `is_product` holds.
        output: [batch, channels, *places] of a convolution, [batch, *places, features] of a Linear layer.
        examples: how many the batch is of. `count` is that of each, over all its parts.
    """
    shape = tuple(output.shape[1:-1] if _is_linear(module) else output.shape[2:])
    every = prod(shape)
    each = 1 if not examples or len(output) % examples else len(output) // examples
    if each == 1:
        return Places(shape, _draw(every, count, generator).to(output.device))
    # Parts first: places of one image or window say less than the same number from several.
    chosen = _draw(each, count, generator)
    index = _draw(every, max(1, count // len(chosen)), generator)
    parts = (torch.arange(0, len(output), each)[:, None] + chosen).flatten()
    return Places(shape, index.to(output.device), parts.to(output.device), len(output))


def _draw(every: int, count: int, generator: torch.Generator) -> Tensor:
    """Different numbers below `every`, all of them in order where there are no more than `count`."""
    return torch.randperm(every, generator=generator)[:count] if count < every else torch.arange(every)


def _take_parts(value: Tensor, places: Places) -> Tensor:
    return value if places.parts is None else value[places.parts]


def output_rows(module: nn.Module, output: Tensor, places: Places) -> Tensor:
    """Outputs at the places: [rows, channels], examples first."""
    output = _take_parts(output, places)
    if _is_linear(module):
        return _lay_out_places(output)[:, places.index].flatten(0, 1)
    flat = output.flatten(2) if places.shape else output[:, :, None]
    return flat[:, :, places.index].transpose(1, 2).reshape(-1, output.shape[1])


def move_channels_last(module: nn.Module, output: Tensor) -> Tensor:
    """Outputs of a layer, or one number for each, as [batch, *places, channels]."""
    return output if _is_linear(module) else output.movedim(1, -1)


def weight_rows(module: nn.Module, weights: Tensor, places: Places) -> Tensor:
    """Numbers of [batch, *places] at the places: [rows], in the order of `output_rows`."""
    laid_out = weights[..., None] if _is_linear(module) else weights[:, None]
    return output_rows(module, laid_out, places)[:, 0]


def input_rows(module: nn.Module, value: Tensor, places: Places) -> Tensor:
    """What the outputs at the places are computed from: [rows, groups, columns], examples first."""
    value = _take_parts(value, places)
    if _is_linear(module):
        return _lay_out_places(value)[:, places.index].flatten(0, 1)[:, None]
    if isinstance(module, Conv):
        value = pad_and_crop(value, *read_padding(module))
        index, inside = _read_by_convolution(module, value.shape[2:], places), None
    else:
        assert isinstance(module, ConvTranspose)
        index, inside = _read_by_transposed(module, value.shape[2:], places)
    patches = value.flatten(2)[:, :, index]  # [batch, channels, places, taps]
    if inside is not None:
        patches = patches * inside.to(patches.dtype)
    batch, channels, count, taps = patches.shape
    rows = patches.permute(0, 2, 1, 3).reshape(batch * count, module.groups, channels // module.groups * taps)
    return rows


def _lay_out_places(value: Tensor) -> Tensor:
    """[batch, *places, features] -> [batch, places, features], also of no example at all."""
    return value.reshape(value.shape[0], prod(value.shape[1:-1]), value.shape[-1])


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight as [groups, columns, outputs], in the order of `input_rows`."""
    weight = module.get_parameter("weight").detach()
    if is_transposed_linear(module):
        return weight[None]
    if isinstance(module, nn.Linear):
        return weight.T[None]
    if isinstance(module, ConvTranspose):
        taps = weight.flatten(2)  # [inputs, outputs / groups, taps]
        grouped = taps.reshape(module.groups, -1, taps.shape[1], taps.shape[2])
        return grouped.permute(0, 1, 3, 2).reshape(module.groups, -1, taps.shape[1])
    assert isinstance(module, Conv)
    flat = weight.flatten(1)
    return flat.reshape(module.groups, -1, flat.shape[1]).transpose(1, 2)


def set_weight(module: nn.Module, matrix: Tensor) -> None:
    """Write a matrix of the form of `weight_matrix` into the layer."""
    weight = module.get_parameter("weight")
    if is_transposed_linear(module):
        value = matrix[0]
    elif isinstance(module, nn.Linear):
        value = matrix[0].T
    elif isinstance(module, ConvTranspose):
        outputs, taps = weight.shape[1], prod(weight.shape[2:])
        value = matrix.reshape(module.groups, -1, taps, outputs).permute(0, 1, 3, 2)
    else:
        value = matrix.transpose(1, 2)
    with torch.no_grad():
        weight.copy_(value.reshape(weight.shape).to(weight.dtype))


def groups_of(module: nn.Module) -> int:
    return module.groups if isinstance(module, Conv | ConvTranspose) else 1


def _is_linear(module: nn.Module) -> bool:
    return not isinstance(module, Conv | ConvTranspose)


def _coordinates(places: Places) -> list[Tensor]:
    """The places' coordinates, a tensor for each dimension."""
    rest, found = places.index, []
    for length in reversed(places.shape):
        found.append(rest % length)
        rest = rest // length
    return found[::-1]


def _read_by_convolution(module: Conv, shape: Sequence[int], places: Places) -> Tensor:
    """Flat numbers into a padded input of this shape: [places, taps]."""
    each = []
    for axis, at in enumerate(_coordinates(places)):
        taps = torch.arange(module.kernel_size[axis], device=at.device) * module.dilation[axis]
        each.append(at[:, None] * module.stride[axis] + taps)
    return _combined(each, shape)


def _read_by_transposed(module: ConvTranspose, shape: Sequence[int], places: Places) -> tuple[Tensor, Tensor]:
    """Flat numbers into the input, [places, taps], and which of them exist: output = input * stride - padding
    + tap."""
    each, inside = [], []
    for axis, at in enumerate(_coordinates(places)):
        taps = torch.arange(module.kernel_size[axis], device=at.device) * module.dilation[axis]
        padding = module.padding[axis]
        assert isinstance(padding, int)
        shifted = at[:, None] + padding - taps
        number = torch.div(shifted, module.stride[axis], rounding_mode="floor")
        whole = shifted % module.stride[axis] == 0
        each.append(number.clamp(0, shape[axis] - 1))
        inside.append(whole & (number >= 0) & (number < shape[axis]))
    exists = _spread(inside, torch.logical_and)
    return _combined(each, shape), exists


def _combined(each: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """One flat number from a number for each dimension: of each, [places, taps of that dimension]."""
    scaled = [number * prod(shape[axis + 1 :]) for axis, number in enumerate(each)]
    return _spread(scaled, torch.add)


def _spread(each: Sequence[Tensor], join: Any) -> Tensor:
    """Every combination of the taps of all dimensions: [places, product of taps], the last dimension
    fastest."""
    made = each[0]
    for following in each[1:]:
        made = join(made[:, :, None], following[:, None, :]).flatten(1)
    return made
