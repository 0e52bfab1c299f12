"""Groups that can only be cut in proportion: a stream of C channels and heads of C // heads features each.

Some networks compute the size of a head from the width of the stream (Swin, MaxViT). Then a stream that
loses channels must lose heads in the same proportion, and the reverse. In the bundled group, one unit is a
head of every such layer together with its share of the stream's channels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import gcd

import numpy as np

from sparsify.graph.coupled_groups import compress_spans
from sparsify.graph.model_map import Coupled, Slice


def bundle_groups(groups: Sequence[Coupled]) -> Iterable[tuple[Coupled, tuple[str, ...]]]:
    """For every stream with heads that could be cut in proportion: (the bundled group, the names that it
    replaces)."""
    heads = [group for group in groups if _has_several_features(group)]
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
            statistics = any(group.statistics for group in bound)
            paired = any(group.paired for group in bound)
            bundle = replace(stream, width=width, slices=parts, statistics=statistics, paired=paired)
            yield bundle, tuple(group.name for group in bound)


def _has_several_features(group: Coupled) -> bool:
    """Whether one unit is several neighbouring outputs of a layer, as a head is."""
    spans = [span for part in group.slices if part.role == "out" for span in part.spans]
    return any(span.repeat > 1 for span in spans)


def _tensor_names(group: Coupled) -> set[str]:
    return {part.tensor for part in group.slices if part.role != "size"}


def _coarsen_slice(part: Slice, times: int) -> Slice:
    """The same places, with `times` units merged into one."""
    places = [np.arange(span.start, span.start + span.units * span.repeat) for span in part.spans]
    units = [np.repeat(np.arange(span.unit, span.unit + span.units), span.repeat) for span in part.spans]
    found, order = np.concatenate(units) // times, np.argsort(np.concatenate(places))
    return replace(part, spans=compress_spans(np.concatenate(places)[order], found[order]))
