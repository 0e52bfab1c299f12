"""Tensors in pieces: the same results as on whole tensors."""

import pytest
import torch
from torch import Tensor

from sparsify.graph.group_index import Axis, Layout, Part, add_scaled, scale
from sparsify.graph.row_pieces import PIECE, set_to_zero, split_rows, sum_products

SHAPES = [(3,), (4, 5), (PIECE // 64 + 3, 70), (70, 33, 12, 11), (2, PIECE)]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_are_all_rows_in_order_and_can_be_written_into(shape: tuple[int, ...]) -> None:
    one, other = draw(shape, 0), draw(shape, 1)
    pieces = list(split_rows(one, other))
    assert torch.equal(torch.cat([piece for piece, _ in pieces]), one)
    assert torch.equal(torch.cat([piece for _, piece in pieces]), other)
    assert len(pieces) == 1 or max(piece.numel() for piece, _ in pieces) <= max(PIECE, one[0].numel())
    for piece, _ in pieces:
        piece.fill_(2.0)
    assert bool((one == 2.0).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_flagged_elements_become_a_positive_zero(shape: tuple[int, ...]) -> None:
    values, flags = draw(shape, 0), draw(shape, 1) < 0
    wanted = values.masked_fill(flags, 0.0)
    set_to_zero(values, flags)
    assert torch.equal(values, wanted)
    assert not bool(torch.signbit(values[flags]).any())


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_sums_of_products(shape: tuple[int, ...]) -> None:
    one, other = draw(shape, 0), draw(shape, 1)
    product = one.double() * other.double()
    rows, columns = sum_products(one, other, True, True)
    torch.testing.assert_close(rows.double(), product.flatten(1).sum(1), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(columns.double(), product.sum(0).flatten(), rtol=1e-5, atol=1e-3)
    assert not sum_products(one, other, False, True)[0].numel()
    assert not sum_products(one, other, True, False)[1].numel()


def test_groups_along_every_dimension_of_a_large_weight() -> None:
    """Rows, input channels and kernel places: each slot's sum from the definition."""
    shape = (40, 30, 15, 15)
    one, other = draw(shape, 0), draw(shape, 1)
    axes = tuple(
        Axis((dim,), torch.arange(first, first + shape[dim]), None)
        for dim, first in ((0, 0), (1, 40), (3, 70))
    )
    layout = Layout((Part("w", axes),), (("w", 0, 85),), 85)
    found = layout.reduce_products(lambda _name: (one, other))
    product = one.double() * other.double()
    wanted = [product.sum((1, 2, 3)), product.sum((0, 2, 3)), product.sum((0, 1, 2)), torch.zeros(1)]
    assert one.numel() > PIECE
    torch.testing.assert_close(found.double(), torch.cat(wanted).double(), rtol=1e-5, atol=1e-3)
    transposed = layout.reduce_products(
        lambda _name: (one.transpose(2, 3).contiguous().transpose(2, 3), other)
    )
    torch.testing.assert_close(transposed, found, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2), (40, 30, 15, 15)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_factors_of_several_axes_multiply_and_add(shape: tuple[int, ...], contiguous: bool) -> None:
    """By the definition: each element with the factors of its row and of its column."""
    axes = (
        Axis((1,), torch.arange(shape[0], shape[0] + shape[1]), None),
        Axis((0,), torch.arange(shape[0]), None),
    )
    factors = draw((shape[0] + shape[1] + 1,), 2)
    weight, target = draw(shape, 0), draw(shape, 1)
    if not contiguous:
        weight, target = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (weight, target))
    ones = [1] * (len(shape) - 2)
    rows = factors[: shape[0]].view(-1, 1, *ones)
    columns = factors[shape[0] : -1].view(1, -1, *ones)
    added = target.double() + weight.double() * rows + weight.double() * columns
    scaled = weight.double() * rows * columns
    add_scaled(target, weight, axes, factors)
    scale(weight, axes, factors)
    torch.testing.assert_close(target.double(), added, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.double(), scaled, rtol=1e-5, atol=1e-5)
