"""Groups that keep equal widths: as many units out of each."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import ceil

from sparsify.pruning.planning.candidates import (
    Candidate,
)


def make_uniform(groups: Sequence[Candidate], amounts: Mapping[str, int], more: int = 0) -> dict[str, int]:
    """The same number, on average as many and `more`, out of every group of a set with equal widths."""
    found = dict(amounts)
    for together in {c.equal for c in groups if c.equal is not None}:
        own = [c for c in groups if c.equal == together]
        share = ceil(sum(len(c.gone(amounts[c.name])) for c in own) / len(own))
        least = min(c.dead for c in own)
        found |= {c.name: min(max(share + more, least), len(c.order)) for c in own}
    return found


def search_uniform(
    free: Sequence[Candidate], amounts: dict[str, int], fits: Callable[[Mapping[str, int]], bool]
) -> dict[str, int]:
    """Uniform numbers about these, the fewest with which every budget holds."""
    widest = max((len(c.order) for c in free if c.equal is not None), default=0)
    fewest = bisect_left(
        range(-widest, widest), True, key=lambda more: fits(make_uniform(free, amounts, more))
    )
    return make_uniform(free, amounts, fewest - widest)
