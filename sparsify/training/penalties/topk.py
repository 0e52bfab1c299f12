"""Which values are among the largest or the smallest:
a threshold from two histograms of the numbers' bits, without a sort.

The values may be spread over processes (FSDP): counts add up, so all see the same threshold.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sparsify.distributed import add_over_processes, local_part, sum_before
from sparsify.graph.group_index import Layout

_HIGH = 1 << 15

Portions = tuple[tuple[int, Any], ...]
"""lengths of successive pieces of a vector, each with the processes over which the piece is
spread; None for one that all have"""


def list_portions(layouts: Iterable[Layout], parameters: Mapping[str, Tensor]) -> Portions:
    """Of all weights of some layouts, flat and one tensor after the other."""
    owners = {part.name: part.processes for layout in layouts for part in layout.parts}
    return tuple((local_part(parameters[name]).numel(), processes) for name, processes in owners.items())


def kth_largest(values: Tensor, k: int, among: Portions = ()) -> Tensor:
    """The k-th largest of values >= 0 (float32, one dimension), 1 <= k <= n;
    of those of all processes together.

    The bits of such numbers, read as integers, have the order of the numbers.
    Their upper 15 bits are counted first, then the lower 16 in the bucket that holds the k-th.
    """
    bucket, rank = _find_bucket(sum_over_processes(values, among, _upper_bits), k)
    digit, _ = _find_bucket(sum_over_processes(values, among, lambda own: _lower_bits(own, bucket)), rank)
    return torch.tensor((bucket << 16) | digit, dtype=torch.int32, device=values.device).view(torch.float32)


def flag_lowest(weights: Sequence[Tensor], share: float, among: Portions = ()) -> Tensor:
    """Whether each single weight is among the smallest |w| of all, flat in the order of the
    tensors: so large a share, rounded.

    Of those that are equal the first go. among: one portion for each tensor; left out where all are whole.
    """
    magnitudes = torch.cat([w.detach().abs().flatten().float() for w in weights])
    total = int(sum_over_processes(magnitudes, among, lambda own: torch.tensor(len(own), device=own.device)))
    wanted = int(total * share + 0.5)
    if not wanted:
        return torch.zeros_like(magnitudes, dtype=torch.bool)
    threshold = kth_largest(magnitudes, total - wanted + 1, among)
    flags, equal = magnitudes < threshold, magnitudes == threshold
    return flags | _take_first(
        equal, wanted - int(sum_over_processes(flags, among, torch.count_nonzero)), among
    )


def sum_over_processes(values: Tensor, among: Portions, how: Callable[[Tensor], Tensor]) -> Tensor:
    """how(values), a number or a histogram, added up over all processes. All of them must call."""
    lengths, owners = [], []
    for processes, pieces in groupby(among or [(len(values), None)], key=lambda piece: piece[1]):
        lengths.append(sum(length for length, _ in pieces))
        owners.append(processes)
    totals = []
    for part, processes in zip(torch.split(values, lengths), owners, strict=True):
        totals.append(add_over_processes(how(part), processes))
    return totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)


def _upper_bits(values: Tensor) -> Tensor:
    return torch.bincount(values.view(torch.int16)[1::2], minlength=_HIGH)  # the high halves, without a copy


def _lower_bits(values: Tensor, bucket: int) -> Tensor:
    chosen = values[values.view(torch.int16)[1::2] == bucket]
    return torch.bincount(chosen.view(torch.int32) & 0xFFFF, minlength=1 << 16)


def _find_bucket(counts: Tensor, k: int) -> tuple[int, int]:
    """The bucket of the k-th largest, and its rank among those in the bucket."""
    from_above = counts.flip(0).cumsum(0)
    at = int((from_above < k).sum())
    above = int(from_above[at - 1]) if at else 0
    return len(counts) - 1 - at, k - above


def _take_first(flags: Tensor, wanted: int, among: Portions) -> Tensor:
    """So many of the flags, the first: tensor after tensor, and within one in the order of the processes."""
    if wanted >= int(sum_over_processes(flags, among, torch.count_nonzero)):
        return flags
    found = []
    among = among or ((len(flags), None),)
    parts = torch.split(flags, [length for length, _ in among])
    for own, (_, processes) in zip(parts, among, strict=True):
        earlier, everywhere = sum_before(int(own.sum()), processes)
        found.append(own & (own.cumsum(0) <= wanted - earlier))
        wanted -= everywhere
    return torch.cat(found)
