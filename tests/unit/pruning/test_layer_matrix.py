"""A layer as a matrix: rows times columns are the layer's own outputs, for every kind of layer."""

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from sparsify.nn.cropped import crop_convolution, find_grids, select_positions
from sparsify.pruning.layer_matrix import (
    input_rows,
    is_product,
    output_rows,
    sample_places,
    set_weight,
    weight_matrix,
)


def crop(layer: nn.Conv2d) -> nn.Conv2d:
    """As a cut leaves a convolution whose first rows and last column of taps are dead."""
    live = torch.zeros_like(layer.weight)
    live[..., 2, :2] = 1
    kept = find_grids(live)
    layer.weight = nn.Parameter(select_positions(layer.weight.detach(), kept))
    crop_convolution(layer, kept)
    return layer


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (4, 6)),
    "linear on a sequence": (nn.Linear(6, 5), (4, 7, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), (3, 4, 6, 7)),
    "conv2d with stride, dilation and groups": (
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=2),
        (3, 4, 9, 6),
    ),
    "conv2d depthwise with a multiplier": (nn.Conv2d(4, 8, 3, groups=4, padding="same"), (3, 4, 6, 6)),
    "conv2d with reflected padding": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 5)),
    "conv2d without a bias": (nn.Conv2d(3, 4, 1, bias=False), (2, 3, 5, 5)),
    "conv2d with a smaller kernel": (crop(nn.Conv2d(3, 4, 3)), (2, 3, 6, 7)),
    "conv2d with a smaller kernel and reflected padding": (
        crop(nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect")),
        (2, 3, 6, 7),
    ),
    "conv3d": (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 4, 5, 4)),
    "transposed conv1d": (nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1), (2, 4, 5)),
    "transposed conv2d with groups": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 4, 5),
    ),
    "transposed conv2d with dilation": (nn.ConvTranspose2d(3, 2, 3, dilation=2), (2, 3, 4, 4)),
}


def bias_of(layer: nn.Module) -> Tensor | float:
    bias = layer._parameters.get("bias")
    return 0.0 if bias is None else bias.detach()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("count", [5, 10_000])
def test_rows_times_columns_are_the_outputs(name: str, count: int) -> None:
    layer, shape = LAYERS[name]
    assert is_product(layer)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    output = layer(x).detach()
    places = sample_places(layer, output, count, torch.Generator().manual_seed(1))
    rows = input_rows(layer, x, places)
    made = torch.einsum("rgc,gco->rgo", rows, weight_matrix(layer)).flatten(1) + bias_of(layer)
    assert torch.allclose(made, output_rows(layer, output, places), atol=1e-5)


@pytest.mark.parametrize("count", [2, 6, 10_000])
@pytest.mark.parametrize("name", LAYERS)
def test_examples_in_several_parts_are_sampled_alike(name: str, count: int) -> None:
    """Of 3 examples in 4 parts each, such as frames, no more places are taken than of 3 in one part."""
    layer, (_, *shape) = LAYERS[name]
    x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    output = layer(x).detach()
    places = sample_places(layer, output, count, torch.Generator().manual_seed(1), examples=3)
    rows, made = input_rows(layer, x, places), output_rows(layer, output, places)
    assert len(rows) == len(made) == places.count_rows(12) <= 3 * count and len(rows) % 3 == 0
    assert places.fit_batch(x) and not places.fit_batch(x[:9])
    product = torch.einsum("rgc,gco->rgo", rows, weight_matrix(layer)).flatten(1) + bias_of(layer)
    assert torch.allclose(product, made, atol=1e-5)
    assert places.parts is not None  # the same parts of each example, its rows together
    assert torch.equal(places.parts.reshape(3, -1) % 4, (places.parts.reshape(3, -1) % 4)[:1].expand(3, -1))
    assert torch.equal(places.parts // 4, torch.arange(3).repeat_interleave(len(places.parts) // 3))


@pytest.mark.parametrize("name", LAYERS)
def test_a_matrix_that_is_written_back_is_the_weight(name: str) -> None:
    layer, _ = LAYERS[name]
    before = layer.get_parameter("weight").detach().clone()
    matrix = weight_matrix(layer).clone()
    set_weight(layer, torch.zeros_like(matrix))
    assert not layer.get_parameter("weight").any()
    set_weight(layer, matrix)
    assert torch.equal(layer.get_parameter("weight"), before)


def test_a_layer_with_a_forward_put_on_it_is_no_product() -> None:
    layer, wrapped = nn.Linear(6, 5), nn.Linear(6, 5)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight.abs())  # type: ignore[method-assign]
    add_hook_to_module(wrapped, ModelHook())  # Accelerate's, which calls the layer as it is
    assert not is_product(layer) and is_product(wrapped)


def test_a_subclass_with_a_forward_of_its_own_is_no_product() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    class Named(nn.Linear):
        pass

    class Standardized(nn.Conv2d):
        def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)

    assert not is_product(Doubled(3, 3)) and not is_product(Standardized(3, 3, 3))
    assert is_product(Named(3, 3))
    assert not is_product(nn.BatchNorm2d(3))
