"""Cropped kernels and gathered columns compute what the layer with zeros did."""

import random
from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsify.errors import RunError
from sparsify.graph.surgery.compact_layers import compact_layers
from sparsify.graph.surgery.operations import to_ranges
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.nn import cropped as cropped_layers
from sparsify.nn import gathered
from sparsify_schemas.cuts import Crop, Cuts, Gather

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def drawn(rng: random.Random, dims: int) -> tuple[nn.Module, Tensor]:
    """A convolution of any kind, and an input that it takes."""
    mode = rng.choice(["zeros", "zeros", "reflect", "circular", "replicate"])
    kernel = [rng.randint(1, 5 if dims < 3 else 3) for _ in range(dims)]
    dilation = [rng.randint(1, 3 if dims < 3 else 2) for _ in range(dims)]
    stride: Any = [rng.randint(1, 3) for _ in range(dims)]
    padding: Any = [rng.randint(0, 4) for _ in range(dims)]
    if rng.random() < 0.25:
        padding, stride = rng.choice([("same", 1), ("valid", stride)])
    groups = rng.choice([1, 1, 1, 2, 4])
    conv = CONVS[dims](
        4,
        4 * rng.randint(1, 2),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        rng.random() < 0.5,
        mode,
        dtype=torch.float64,
    )
    sizes = [max(5, (k - 1) * d + 1) + rng.randint(0, 4) for k, d in zip(kernel, dilation, strict=True)]
    if mode == "zeros" and isinstance(padding, list):  # maps smaller than the kernel
        sizes = (
            [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
            if rng.random() < 0.4
            else sizes
        )
    return conv, torch.randn(2, 4, *sizes, dtype=torch.float64)


def cropping_of(name: str, conv: nn.Module) -> Crop:
    assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return Crop(module=name, kernel=tuple(conv.kernel_size), grids=cropped_layers.find_grids(conv.weight))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("seed", range(40))
def test_crop_and_gather_are_exact(seed: int) -> None:
    """Random kernels, strides, dilations, paddings, modes and groups in one to three dimensions."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for dims in (1, 2, 3):
        conv, x = drawn(rng, dims)
        live = torch.rand(conv.weight.shape[2:]) < rng.choice([0.2, 0.5, 0.9])
        shapes = torch.rand(conv.weight.shape[1:]) < rng.choice([0.3, 1.0])
        with torch.no_grad():
            conv.weight.mul_(live * shapes)
            wanted = conv(x)
            model = nn.Sequential(conv)
            cropped = deepcopy(model)
            compact_layers(cropped, [cropping_of("0", conv)])
            torch.testing.assert_close(cropped(x), wanted, rtol=1e-12, atol=1e-12)
            assert cropped[0].weight.numel() <= conv.weight.numel()
            if conv.groups == 1:
                weight = cropped[0].weight
                op = Gather(
                    module="0", size=weight[0].numel(), keep=to_ranges(gathered.find_live_columns(weight))
                )
                compact_layers(cropped, [op])
                torch.testing.assert_close(cropped(x), wanted, rtol=1e-12, atol=1e-12)
                assert set(cropped.state_dict()) == set(model.state_dict())
                assert len(cropped[0].offsets) <= weight[0, 0].numel(), (
                    "one slice of the input for each kernel position"
                )


@pytest.mark.parametrize(
    ("live", "padding", "kernel", "wanted", "dilation", "kind"),
    [
        ([(1, 1)], 1, 3, (1, 1), (1, 1), "Conv2d"),
        ([(0, 0), (0, 2), (2, 0), (2, 2)], 1, 3, (2, 2), (2, 2), "Conv2d"),
        ([(1, 0), (1, 2)], 1, 3, (1, 2), (1, 2), "Conv2d"),
        ([(0, 0), (1, 1)], 1, 3, (2, 2), (1, 1), "CroppedConv2d"),
        ([(i, j) for i in (1, 2, 3) for j in (1, 2, 3)], 2, 5, (3, 3), (1, 1), "Conv2d"),
        ([(4, 4)], 2, 5, (1, 1), (1, 1), "CroppedConv2d"),
    ],
)
def test_the_smallest_regular_kernel(
    live: list[tuple[int, int]], padding: int, kernel: int, wanted: Any, dilation: Any, kind: str
) -> None:
    """A symmetric result stays an ordinary convolution."""
    conv = nn.Conv2d(3, 4, kernel, padding=padding)
    mask = torch.zeros(kernel, kernel)
    for place in live:
        mask[place] = 1
    with torch.no_grad():
        conv.weight.mul_(mask)
    model = nn.Sequential(conv)
    x = torch.randn(2, 3, 7, 7)
    before = model(x)
    compact_layers(model, [cropping_of("0", conv)])
    assert (model[0].kernel_size, model[0].dilation, type(model[0]).__name__) == (wanted, dilation, kind)
    torch.testing.assert_close(model(x), before)


def test_a_map_smaller_than_its_crop() -> None:
    """The only live position of a 5x5 kernel looks beyond a map of one pixel: the result is the bias."""
    model = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2))
    with torch.no_grad():
        model[0].weight.zero_()[..., 4, 4] = 1
    before = model(torch.ones(1, 1, 1, 1))
    compact_layers(model, [cropping_of("0", model[0])])
    assert torch.equal(model(torch.ones(1, 1, 1, 1)), before)


def test_linear_layers_gather() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(3, 6)
    with torch.no_grad():
        model[0].weight[:, [0, 3]] = 0
    before = model(x)
    compact_layers(model, [Gather(module="0", size=6, keep=((1, 3), (4, 6)))])
    torch.testing.assert_close(model(x), before)
    assert model[0].weight.shape == (4, 4) and model[0].weight.requires_grad


NET = nn.Sequential(
    nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2), nn.Conv2d(2, 2, 3, groups=2), nn.ReLU()
)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (
            Crop(module="9", kernel=(3, 3), grids=((0, 1, 2), (0, 1, 2))),
            (
                "the cut log crops the kernel of '9', which this model does not have; was "
                "it built by the same recipe?"
            ),
        ),
        (
            Crop(module="2", kernel=(3, 3), grids=((0, 1, 2), (0, 1, 2))),
            "the cut log crops the kernel of '2', which is a Linear, not a plain convolution",
        ),
        (
            Crop(module="0", kernel=(5, 5), grids=((0, 1, 2), (0, 1, 2))),
            "the cut log expects '0' to have a kernel of 5x5, this model has 3x3",
        ),
        (
            Crop(module="0", kernel=(3, 3), grids=((0, 2, 3), (0, 1, 2))),
            "the cut log keeps kernel positions of '0' that lie beyond its 3x3",
        ),
        (
            Crop(module="0", kernel=(3, 3), grids=((0, 1, 2),)),
            "the cut log keeps kernel positions of '0' that lie beyond its 3x3",
        ),
        (
            Gather(module="3", size=9, keep=((0, 2),)),
            (
                "the cut log gathers columns of '3', which is neither a plain Linear "
                "layer nor a plain convolution without groups"
            ),
        ),
        (
            Gather(module="0", size=9, keep=((0, 2),)),
            "the cut log expects '0' to have 9 columns, this model has 18",
        ),
        (
            Gather(module="0", size=18, keep=((5, 19),)),
            "the cut log keeps columns of '0' that are out of order or beyond its 18",
        ),
        (
            Gather(module="0", size=18, keep=((5, 7), (2, 3))),
            "the cut log keeps columns of '0' that are out of order or beyond its 18",
        ),
        (
            Gather(module="0", size=18, keep=()),
            "the cut log keeps columns of '0' that are out of order or beyond its 18",
        ),
    ],
)
def test_a_log_that_does_not_fit_is_refused(op: Crop | Gather, message: str) -> None:
    with pytest.raises(RunError) as caught:
        replay_cuts(NET, Cuts(plan="p", operations=(op,)))
    assert str(caught.value) == message


def test_every_dimension_of_a_kernel() -> None:
    """grids against a search over all subsets of a small kernel."""
    for live in product((0, 1), repeat=5):
        weight = torch.tensor(live, dtype=torch.float32).view(1, 1, 5)
        first, step, count = cropped_layers.find_grids(weight)[0]
        kept = {first + step * i for i in range(count)}
        places = {i for i, v in enumerate(live) if v}
        assert places <= kept and max(kept) < 5
        if len(places) > 1:
            assert {min(places), max(places)} <= kept
            finer = [s for s in range(step + 1, 5) if all((p - min(places)) % s == 0 for p in places)]
            assert not finer
