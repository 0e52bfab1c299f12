"""Groups that can only be cut in step: a stream of C channels beside heads of C // heads features each.

Where a network computes the size of a head from the width of its stream (Swin, MaxViT), a stream that loses channels needs
heads that leave in the same proportion, and heads that leave need a stream that follows. Bound into one group, a unit is
one head of every such layer together with its share of the stream's channels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import gcd

import numpy as np

from sparsify.graph.coupled_groups import compress_spans
from sparsify.graph.model_map import Coupled, Slice


def bundle_groups(groups: Sequence[Coupled]) -> Iterable[tuple[Coupled, tuple[str, ...]]]:
    """(one group, the names of those that it would take the place of), for every stream with heads that could go in step."""
    heads = [
        group
        for group in groups
        if any(span.repeat > 1 for part in group.slices if part.role == "out" for span in part.spans)
    ]
    for stream in groups:
        beside = [
            h
            for h in heads
            if h.width < stream.width
            and stream.width % h.width == 0
            and _tensor_names(h) & _tensor_names(stream)
        ]
        width = gcd(*(h.width for h in beside))
        if width > 1:
            bound = (stream, *beside)
            parts = tuple(
                _coarsen_slice(part, group.width // width) for group in bound for part in group.slices
            )
            yield (
                replace(
                    stream,
                    width=width,
                    slices=parts,
                    statistics=any(g.statistics for g in bound),
                    paired=any(g.paired for g in bound),
                ),
                tuple(g.name for g in bound),
            )


def _tensor_names(group: Coupled) -> set[str]:
    return {part.tensor for part in group.slices if part.role != "size"}


def _coarsen_slice(part: Slice, times: int) -> Slice:
    """The same places, as many units at a time as one."""
    places = [np.arange(span.start, span.start + span.units * span.repeat) for span in part.spans]
    units = [np.repeat(np.arange(span.unit, span.unit + span.units), span.repeat) for span in part.spans]
    found, order = np.concatenate(units) // times, np.argsort(np.concatenate(places))
    return replace(part, spans=compress_spans(np.concatenate(places)[order], found[order]))
