"""Which values are among the largest: a threshold from two histograms of the numbers' bits, without a sort."""

import torch
from torch import Tensor

_HIGH = 1 << 15


def kth_largest(values: Tensor, k: int) -> Tensor:
    """The k-th largest of values >= 0 (float32, one dimension), 1 <= k <= n.

    The bits of such numbers, read as integers, have the order of the numbers. Their upper 15 bits are counted first, then
    the lower 16 in the bucket that holds the k-th; counts add up, where the values lie on several machines.
    """
    upper = values.view(torch.int16)[1::2]  # the high halves, without a copy
    counts = torch.bincount(upper, minlength=_HIGH)
    bucket, rank = _bucket(counts, k)
    lower = values[upper == bucket].view(torch.int32) & 0xFFFF
    digit, _ = _bucket(torch.bincount(lower, minlength=1 << 16), rank)
    return torch.tensor((bucket << 16) | digit, dtype=torch.int32, device=values.device).view(torch.float32)


def _bucket(counts: Tensor, k: int) -> tuple[int, int]:
    """The bucket of the k-th largest, and its rank among those in the bucket."""
    from_above = counts.flip(0).cumsum(0)
    at = int((from_above < k).sum())
    above = int(from_above[at - 1]) if at else 0
    return len(counts) - 1 - at, k - above
