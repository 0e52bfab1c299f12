"""Indices that belong to units, and ranges of indices as a log writes them."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from sparsify.graph.model_map import Span
from sparsify.graph.trace.labels import Ints
from sparsify_schemas.cuts import Range

Keep = Mapping[str, Sequence[int]]
"""coupled group -> kept units, ascending"""


def to_ranges(indices: Sequence[int] | Ints) -> tuple[Range, ...]:
    """Convert ascending indices to half-open ranges: 0 1 2 5 -> (0, 3) (5, 6)."""
    own = np.asarray(indices, np.int64)
    if not len(own):
        return ()
    (breaks,) = np.nonzero(np.diff(own) != 1)
    firsts = own[np.concatenate(([0], breaks + 1))]
    lasts = own[np.concatenate((breaks, [len(own) - 1]))]
    return tuple(zip(firsts.tolist(), (lasts + 1).tolist(), strict=True))


def to_indices(keep: Iterable[Range]) -> torch.Tensor:
    """The inverse of `to_ranges`."""
    return torch.tensor([i for a, b in keep for i in range(a, b)], dtype=torch.int64)


def indices_of_units(spans: Iterable[Span], units: Ints) -> Ints:
    """Indices that belong to the given units (ascending) by these spans, ascending."""
    found = [np.zeros(0, np.int64)]
    for span in spans:
        low, high = np.searchsorted(units, (span.unit, span.unit + span.units))
        firsts = span.start + (units[low:high] - span.unit) * span.repeat
        found.append(firsts if span.repeat == 1 else (firsts[:, None] + np.arange(span.repeat)).ravel())
    return np.concatenate(found)
