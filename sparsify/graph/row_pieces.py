"""Tensors in pieces that fit the cache of a processor, so that several operations read memory once."""

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 18
"""elements of a piece: what one operation leaves is then still in the cache for the next"""


def split_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several tensors of one shape, views that can be written into.

    All rows at once on other devices than a processor, where a piece is no faster.
    """
    first = tensors[0]
    if first.device.type != "cpu" or not first.dim() or first.numel() <= PIECE:
        yield tensors
        return
    rows = max(1, PIECE // first[0].numel())
    yield from zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


_SPARE = threading.local()


def borrow_memory(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for one piece, in a tensor's shape, until this thread borrows some of that type again.

    On a processor it is the same each time: to get so much memory anew takes longer than to fill it.
    """
    dtype = dtype or like.dtype
    if like.device.type != "cpu" or like.numel() > 2 * PIECE:
        return torch.empty(like.shape, dtype=dtype, device=like.device)
    kept: dict[Any, Tensor] = _SPARE.__dict__
    if dtype not in kept:
        kept[dtype] = torch.empty(2 * PIECE, dtype=dtype)
    return kept[dtype][: like.numel()].view(like.shape)


def convert_flags(flags: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where a piece of flags is true, else 0, in borrowed memory."""
    return borrow_memory(flags, dtype).copy_(flags.view(torch.uint8))


def set_to_zero(tensor: Tensor, flags: Tensor) -> None:
    """tensor <- 0 where the flags are true; flags: bool, of the same shape.

    As `masked_fill_`, which takes ten times as long on a processor; an infinity becomes nan.
    """
    for values, gone in split_rows(tensor, flags):
        values.addcmul_(values, convert_flags(gone, values.dtype), value=-1)  # x - x is 0, never -0


def sum_products(one: Tensor, other: Tensor, rows: bool, columns: bool) -> tuple[Tensor, Tensor]:
    """Sums of one * other over all dimensions but the first, and over the first: ([n], [all others]).

    Both are contiguous, of one shape and type, with two dimensions or more. What is not asked for is empty.
    """
    flat = one.view(one.shape[0], -1), other.view(one.shape[0], -1)
    by_row = flat[0].new_empty(len(flat[0]) if rows else 0)
    by_column = flat[0].new_zeros(flat[0].shape[1] if columns else 0)
    first = 0
    for left, right in split_rows(*flat):
        product = torch.mul(left, right, out=borrow_memory(left))
        if rows:
            torch.sum(product, 1, out=by_row[first : first + len(product)])
        if columns:
            by_column += product.sum(0)
        first += len(product)
    return by_row, by_column
