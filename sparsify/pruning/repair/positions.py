"""Positions of sequences, at which the outputs of attentions and recurrent layers are sampled."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Numbers of the positions that are sampled in sequences of one length."""

    length: int
    index: Tensor


def draw_positions(value: Tensor, count: int, generator: torch.Generator) -> Positions:
    """Draw `count` positions of [examples, positions, features], all of them where there are no more."""
    length = value.shape[1]
    index = torch.randperm(length, generator=generator)[:count] if count < length else torch.arange(length)
    return Positions(length, index.to(value.device))


def rows_at(value: Tensor, positions: Positions) -> Tensor:
    """[examples, positions, features] -> [rows, features], examples first; no rows where sequences are of
    another length."""
    if value.shape[1] != positions.length:
        return value.new_zeros(0, value.shape[2])
    return value[:, positions.index].flatten(0, 1)


def keep_columns(rows: Tensor, stay: Tensor | None) -> Tensor:
    """The features that stay; None: all of them."""
    return rows if stay is None else rows[:, stay.to(rows.device)]
