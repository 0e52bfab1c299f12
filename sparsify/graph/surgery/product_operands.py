"""Read the operands of a product, and whether each index of an operand reaches the result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify.graph.broadcast_shapes import vector_shape


@dataclass(frozen=True)
class Operand:
    """One operand of a product; it may carry removed units along the summed dimension."""

    x: Tensor
    other: Tensor
    along: int
    """the summed dimension of x"""
    outputs_along: int
    """dimension of the result that comes from the other operand"""
    contribution: Callable[[Any, Tensor], Tensor]
    """(operator, tensor in place of x) -> the product without its bias"""
    live_columns: Callable[[], Tensor | None]
    """whether the other operand multiplies each index of the summed dimension by something other than zero"""

    def mark_live(self, shape: torch.Size) -> Tensor:
        """`live_columns`, laid along the summed dimension of a tensor of this shape."""
        columns = self.live_columns()
        if columns is None or columns.numel() != self.x.shape[self.along]:
            return torch.ones(shape, dtype=torch.bool)
        laid = columns.flatten().view(vector_shape(self.x.dim(), self.along))
        return laid.expand(shape)


@dataclass(frozen=True)
class ProductOperands:
    """The operands of a product."""

    sides: tuple[Operand, ...]
    bias: Tensor | None = None
    padded: bool = False


def read_operands(name: str, args: Any) -> ProductOperands | None:
    """Read the operands of a product; None for any other operator."""
    if name == "convolution":
        return _read_convolution(args)
    if name in ("mm", "bmm"):
        return _read_matrix_product(args[0], args[1], None)
    if name in ("addmm", "baddbmm"):
        return _read_matrix_product(args[1], args[2], args[0])
    if name == "linear":
        bias = args[2] if len(args) > 2 else None
        side = Operand(
            args[0], args[1], args[0].dim() - 1, -1,
            lambda func, x: func(x, args[1]), lambda: (args[1] != 0).any(0),
        )  # fmt: skip
        return ProductOperands((side,), bias)
    if name == "_trilinear" and list(args[6]) == [2, 3]:  # a bilinear layer
        left, right = (_read_bilinear(args, at) for at in (0, 2))
        return ProductOperands((left, right))
    if name == "mv":
        side = Operand(
            args[1], args[0], 0, 0, lambda func, x: func(args[0], x), lambda: (args[0] != 0).any(0)
        )
        return ProductOperands((side,))
    return None


def _read_bilinear(args: Any, at: int) -> Operand:
    """One input of a bilinear layer; the other operand is its second input."""

    def contribution(func: Any, masked: Tensor) -> Tensor:
        given = list(args)
        given[at] = masked
        made: Tensor = func(*given)
        return made

    x, other = args[at], args[2 - at]
    return Operand(x, other, x.dim() - 1, -1, contribution, lambda: None)


def _read_convolution(args: Any) -> ProductOperands:
    x, weight, bias, stride, padding, *rest = args
    transposed, groups = rest[1], rest[3]

    def contribution(func: Any, masked: Tensor) -> Tensor:
        made: Tensor = func(masked, weight, None, stride, padding, *rest)
        return made

    def live_columns() -> Tensor:
        live: Tensor = (weight != 0).flatten(2).any(2)
        by_group = live[:, None] if transposed else live.view(groups, -1, weight.shape[1])
        return by_group.any(-1).flatten() if transposed else by_group.any(1).flatten()

    side = Operand(x, weight, 1, 1, contribution, live_columns)
    # At the borders of a transposed convolution fewer kernel positions meet, as next to a padding.
    partial = any(padding)
    if transposed:
        output_padding = rest[2]
        partial = any(size > 1 for size in (*weight.shape[2:], *stride)) or any(output_padding)
    return ProductOperands((side,), bias, padded=partial)


def _read_matrix_product(a: Tensor, b: Tensor, bias: Tensor | None) -> ProductOperands:
    left = Operand(
        a, b, a.dim() - 1, -1,
        lambda _, x: torch.matmul(x, b), lambda: (b != 0).any(-1) if b.dim() == 2 else None,
    )  # fmt: skip
    right = Operand(
        b, a, b.dim() - 2, -2,
        lambda _, x: torch.matmul(a, x), lambda: (a != 0).any(-2) if a.dim() == 2 else None,
    )  # fmt: skip
    return ProductOperands((left, right), bias)


def bias_fits(bias: Tensor | None, side: Operand) -> bool:
    """Whether a bias has one element for every output that comes from the other operand."""
    if bias is None:
        return False
    return bias.dim() == 1 if side.outputs_along in (-1, 1) else bias.dim() == 2 and bias.shape[1] == 1
