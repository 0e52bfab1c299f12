"""Rules with keep.uniform: as many units out of every group."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import ceil

from sparsify.pruning.planning.candidates import (
    Candidate,
)


def make_uniform(groups: Sequence[Candidate], amounts: Mapping[str, int], more: int = 0) -> dict[str, int]:
    """The same number, on average as many and `more`, out of every group of a rule with `keep.uniform`."""
    found = dict(amounts)
    for rule in {c.rule for c in groups if c.keep.uniform}:
        own = [c for c in groups if c.rule == rule]
        share = ceil(sum(len(c.gone(amounts[c.name])) for c in own) / len(own))
        least = min(c.dead for c in own)
        found |= {c.name: min(max(share + more, least), len(c.order)) for c in own}
    return found


def search_uniform(
    free: Sequence[Candidate], amounts: dict[str, int], fits: Callable[[Mapping[str, int]], bool]
) -> dict[str, int]:
    """Uniform numbers about these, the fewest with which every budget holds."""
    widest = max((len(c.order) for c in free if c.keep.uniform), default=0)
    fewest = bisect_left(
        range(-widest, widest), True, key=lambda more: fits(make_uniform(free, amounts, more))
    )
    return make_uniform(free, amounts, fewest - widest)
