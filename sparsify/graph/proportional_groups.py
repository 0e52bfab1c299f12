"""Groups that can only be cut in proportion: a stream of C channels and heads of C // heads features each, or
layers beside it that are as wide.

Some networks compute the size of a head from the width of the stream (Swin, MaxViT). Then a stream that
loses channels must lose heads in the same proportion, and the reverse. In the bundled group, one unit is a
head of every such layer together with its share of the stream's channels. Others give a layer's outputs the
stream's shape (the convolutions that shorten keys and values in Segformer and PVT): one unit is then a
channel of the stream together with one of every such layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import gcd

import numpy as np

from sparsify.graph.coupled_groups import compress_spans
from sparsify.graph.model_map import Coupled, Given, Slice, Span


def bundle_groups(groups: Sequence[Coupled]) -> Iterable[tuple[Coupled, tuple[str, ...]]]:
    """For every stream with heads or layers that could be cut in proportion: (the bundled group, the names
    that it replaces)."""
    yield from _bundle_heads(groups)
    yield from _bundle_layers(groups)


def _bundle_heads(groups: Sequence[Coupled]) -> Iterator[tuple[Coupled, tuple[str, ...]]]:
    heads = [group for group in groups if has_several_features(group)]
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
            yield _bundle(stream, beside, width)


def _bundle_layers(groups: Sequence[Coupled]) -> Iterator[tuple[Coupled, tuple[str, ...]]]:
    """The stream is what most layers share: it comes first, with every layer as wide that reads it."""
    plain = [group for group in groups if not has_several_features(group)]
    for stream in sorted(plain, key=lambda group: -len(group.slices)):
        beside = []
        for other in plain:
            reads = _tensor_names(other) & _tensor_names(stream)
            if other is not stream and other.width == stream.width and reads:
                beside.append(other)
        if beside:
            first, *others = (group for group in plain if group is stream or group in beside)
            yield _bundle(first, others, stream.width)  # named after the first layer of all


def _bundle(stream: Coupled, beside: Sequence[Coupled], width: int) -> tuple[Coupled, tuple[str, ...]]:
    bound = (stream, *beside)
    parts = tuple(_coarsen_slice(part, group.width // width) for group in bound for part in group.slices)
    stated = tuple(_coarsen_slice(part, group.width // width) for group in bound for part in group.settings)
    given = tuple(_coarsen_given(one, group.width // width) for group in bound for one in group.given)
    statistics = any(group.statistics for group in bound)
    paired = any(group.paired for group in bound)
    doubt = next((group.doubt for group in bound if group.doubt), None)
    bundle = replace(
        stream,
        width=width,
        slices=parts,
        statistics=statistics,
        paired=paired,
        doubt=doubt,
        settings=stated,
        given=given,
    )
    return bundle, tuple(group.name for group in bound)


def has_several_features(group: Coupled) -> bool:
    """Whether one unit is several neighbouring outputs of a layer, as a head is."""
    spans = [span for part in group.slices if part.role == "out" for span in part.spans]
    return any(span.repeat > 1 for span in spans)


def _tensor_names(group: Coupled) -> set[str]:
    return {part.tensor for part in group.slices if part.role != "size"}


def _coarsen_slice(part: Slice, times: int) -> Slice:
    """The same places, with `times` units merged into one."""
    return replace(part, spans=_coarsen_spans(part.spans, times))


def _coarsen_given(given: Given, times: int) -> Given:
    return replace(given, spans=_coarsen_spans(given.spans, times))


def _coarsen_spans(spans: Sequence[Span], times: int) -> tuple[Span, ...]:
    places = [np.arange(span.start, span.start + span.units * span.repeat) for span in spans]
    units = [np.repeat(np.arange(span.unit, span.unit + span.units), span.repeat) for span in spans]
    found, order = np.concatenate(units) // times, np.argsort(np.concatenate(places))
    return compress_spans(np.concatenate(places)[order], found[order])
