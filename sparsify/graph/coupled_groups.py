"""From labels to coupled groups: units that are removed as a whole, grouped by the slices that they reach."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsify.graph.length_attributes import last_word, set_unlikely_aside
from sparsify.graph.model_map import Coupled, Given, Slice, Span
from sparsify.graph.surgery.width_names import Meaning, read_meaning
from sparsify.graph.trace.labels import CREATED, Axis, Ints, Labels


@dataclass(frozen=True)
class _Vector:
    """The classes along one dimension, and the numbers of the axes that have the same classes."""

    classes: Ints
    axes: tuple[int, ...]


LengthAttribute = tuple[str, Ints]
"""(module:attribute, labels of the dimension whose length it holds)"""


def find_coupled_groups(
    labels: Labels,
    classes: Ints,
    producers: Mapping[tuple[str, int], str],
    written: Sequence[LengthAttribute] = (),
    settings: Sequence[LengthAttribute] = (),
) -> Iterable[Coupled]:
    """Find one Coupled per set of units of one kind, in the order of the model's layers.

    Args:
        classes: classes of the labels.
        producers: (tensor, dimension) of every layer's outputs -> the layer's name. A group is named after
            the first of them that it reaches; a second group of the same first layer gets a number.
        written: attributes that hold a length. settings: numbers in configurations that may hold one.
    """
    axes = [axis for axis in labels.axes if axis.tensor != CREATED]
    vectors = _find_vectors(axes, classes)
    kinds, reaches = _find_kinds(labels.count, vectors)
    reasons, texts = labels.why_fixed(classes)
    statistics, paired = labels.has_statistics(classes), labels.is_paired(classes)
    doubts = labels.why_doubted(classes)
    held = _list_dims([(name, classes[own]) for name, own in written])
    lengths = _keep_unambiguous(held)
    stated = [*_keep_unambiguous(_list_dims([(name, classes[own]) for name, own in settings]))]
    stated += [(name, dim) for name, dims in held.items() if _may_be_one_of(name, dims) for dim in dims]
    shares_key = labels.shares_key(classes)
    given = list(_read_given(labels, classes))
    (members,) = np.nonzero(kinds)
    taken: dict[str, int] = defaultdict(int)
    order = {made: i for i, made in enumerate(producers)}
    marks = kinds[members] * (len(texts) + 1) + reasons[members] + 1
    marks = (marks * 2 + statistics[members]) * 2 + paired[members]
    for units in _split_by_mark(members, marks):
        unit = int(units[0])
        reached = sorted((axis, vector) for vector in reaches[kinds[unit]] for axis in vectors[vector].axes)
        name = _find_first_producer(producers, order, [axes[axis] for axis, _ in reached])
        if name is None:
            continue
        taken[name] += 1
        own = {
            vector: compress_spans(*_locate_units(vectors[vector].classes, units))
            for vector in reaches[kinds[unit]]
        }
        slices = tuple(_make_slice(axes[axis], own[vector], labels) for axis, vector in reached)
        sizes, aside = set_unlikely_aside(tuple(_list_sizes(lengths, units)), bool(shares_key[unit]))
        called = name if taken[name] == 1 else f"{name}#{taken[name]}"
        reason = texts[reasons[unit]] if reasons[unit] >= 0 else None
        yield Coupled(
            called,
            len(units),
            (*slices, *sizes),
            bool(statistics[unit]),
            _why_protected(reason, len(units), slices, labels),
            bool(paired[unit]),
            doubt=doubts.get(unit),
            settings=(*_list_once(_list_sizes(stated, units)), *aside),
            given=tuple(_list_given(given, units)),
        )


def _read_given(labels: Labels, classes: Ints) -> Iterator[tuple[Given, Ints]]:
    """What modules are given, without spans, and the classes of its places, each of which comes once."""
    seen = set()
    for module, argument, dim, own in labels.given:
        if (module, argument, dim, own.tobytes()) in seen:
            continue
        seen.add((module, argument, dim, own.tobytes()))
        found = classes[own]
        size = next(n for n in range(1, len(found) + 1) if _repeats(found, n))
        if size > 1:
            yield Given(module, argument, dim, size, ()), found[:size]


def _repeats(classes: Ints, size: int) -> bool:
    """Whether the first so many come again and again."""
    return len(classes) % size == 0 and bool((classes.reshape(-1, size) == classes[:size]).all())


def _list_given(given: Iterable[tuple[Given, Ints]], units: Ints) -> Iterable[Given]:
    """What modules are given for these units."""
    for one, own in given:
        held = compress_spans(*_locate_units(own, units))
        if held:
            yield replace(one, spans=held)


def _list_sizes(lengths: Iterable[LengthAttribute], units: Ints) -> Iterable[Slice]:
    """The attributes that hold the length of a dimension in which these units lie."""
    for attribute, dim in lengths:
        held = compress_spans(*_locate_units(dim, units))
        if held:
            yield Slice(attribute, 0, "size", held)


def _list_once(sizes: Iterable[Slice]) -> Iterable[Slice]:
    """The first of each attribute."""
    found: dict[str, Slice] = {}
    for size in sizes:
        found.setdefault(size.tensor, size)
    return found.values()


def _find_vectors(axes: Sequence[Axis], classes: Ints) -> list[_Vector]:
    found: dict[bytes, tuple[Ints, list[int]]] = {}
    for number, axis in enumerate(axes):
        own = classes[axis.first : axis.first + axis.size]
        found.setdefault(own.tobytes(), (own, []))[1].append(number)
    return [_Vector(own, tuple(numbers)) for own, numbers in found.values()]


def _find_kinds(count: int, vectors: Sequence[_Vector]) -> tuple[Ints, list[tuple[int, ...]]]:
    """(kind of every class, 0 if no axis has it; kind -> numbers of the vectors reached).

    Classes are of one kind if they lie in the same vectors, equally often in each: every vector splits the
    kinds again.
    """
    kinds = np.zeros(count, np.int64)
    reaches: list[tuple[int, ...]] = [()]
    for number, vector in enumerate(vectors):
        members, counts = _count_members(vector.classes)
        parts, which = np.unique(kinds[members] << 32 | counts, return_inverse=True)
        kinds[members] = len(reaches) + which
        reaches += [(*reaches[old], number) for old in (parts >> 32).tolist()]
    return kinds, reaches


def _count_members(classes: Ints) -> tuple[Ints, Ints]:
    """The members, ascending, and how often each occurs."""
    if (classes[1:] > classes[:-1]).all():
        return classes, np.ones_like(classes)
    members, counts = np.unique(classes, return_counts=True)
    return members, counts


def _split_by_mark(members: Ints, marks: Ints) -> Iterable[Ints]:
    """Members (ascending) with the same mark; the mark of the smallest member comes first."""
    _, first, which = np.unique(marks, return_index=True, return_inverse=True)
    order = np.argsort(which, kind="stable")
    parts = np.split(members[order], np.cumsum(np.bincount(which))[:-1])
    return (parts[i] for i in np.argsort(first).tolist())


def _find_first_producer(
    producers: Mapping[tuple[str, int], str], order: Mapping[tuple[str, int], int], axes: Sequence[Axis]
) -> str | None:
    """The first layer whose outputs lie along one of the axes."""
    made = [(a.tensor, a.dim) for a in axes if (a.tensor, a.dim) in producers]
    return producers[min(made, key=order.__getitem__)] if made else None


def _list_dims(written: Sequence[LengthAttribute]) -> dict[str, list[Ints]]:
    """Attribute -> the dimensions, of a length that can change, that explain its value."""
    found: dict[str, list[Ints]] = defaultdict(list)
    for name, own in written:
        if len(np.unique(own)) > 1 and not any(np.array_equal(own, other) for other in found[name]):
            found[name].append(own)
    return found


def _keep_unambiguous(found: Mapping[str, Sequence[Ints]]) -> list[LengthAttribute]:
    """Attributes that only one dimension explains."""
    return [(name, dims[0]) for name, dims in found.items() if len(dims) == 1]


def _may_be_one_of(name: str, dims: Sequence[Ints]) -> bool:
    """Whether a width is explained by several dimensions (the heads of the queries, and those that talking
    heads mix them into): trial cuts show which of them it is."""
    return len(dims) > 1 and read_meaning(last_word(name)) not in (Meaning.NEVER, Meaning.UNKNOWN)


def _why_protected(reason: str | None, units: int, slices: tuple[Slice, ...], labels: Labels) -> str | None:
    if not any(s.tensor in labels.used for s in slices):
        return "takes no part in a forward call with these inputs"
    if reason is not None:
        return reason
    if units == 1:
        return "its channels can only be removed all together"
    return None


def _make_slice(axis: Axis, own: tuple[Span, ...], labels: Labels) -> Slice:
    return Slice(axis.tensor, axis.dim, "in" if (axis.tensor, axis.dim) in labels.consumed else "out", own)


def _locate_units(classes: Ints, units: Ints) -> tuple[Ints, Ints]:
    """Places whose class is one of `units` (ascending), and the number of that unit."""
    at = np.minimum(np.searchsorted(units, classes), len(units) - 1)
    (places,) = np.nonzero(units[at] == classes)
    return places, at[places]


def compress_spans(places: Ints, units: Ints) -> tuple[Span, ...]:
    """Compress places (ascending) and their units into runs of one unit, then into runs of such runs."""
    if not len(places):
        return ()
    breaks = (np.diff(places) != 1) | (np.diff(units) != 0)
    first = np.concatenate(([0], np.nonzero(breaks)[0] + 1))
    start, unit, length = places[first], units[first], np.diff(np.concatenate((first, [len(places)])))
    joins = (
        (length[1:] == length[:-1]) & (unit[1:] == unit[:-1] + 1) & (start[1:] == start[:-1] + length[:-1])
    )
    head = np.concatenate(([0], np.nonzero(~joins)[0] + 1))
    counts = np.diff(np.concatenate((head, [len(start)])))
    rows = zip(start[head].tolist(), unit[head].tolist(), counts.tolist(), length[head].tolist(), strict=True)
    return tuple(Span(*row) for row in rows)
