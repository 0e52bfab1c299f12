"""From labels to coupled groups: units that leave as a whole, put together where they reach the same slices."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sparsify.graph.labels import Axis, Ints, Labels
from sparsify.plan import Coupled, Slice, Span

Reach = tuple[tuple[int, int], ...]
"""(axis number, indices of it) that a unit reaches"""


Written = tuple[str, Ints]
"""(module:attribute, labels of the dimension whose length it holds)"""


def coupled_groups(labels: Labels, producers: Mapping[tuple[str, int], str], written: Sequence[Written] = ()) -> Iterable[Coupled]:
    """One Coupled per set of units of one kind, in the order of the model's layers.

    producers: (tensor, dimension) of every layer's outputs -> the layer's name. A group is named after the first of
    them that it reaches; a second group of the same first layer gets a number. written: attributes that hold a length.
    """
    classes = labels.classes()
    reasons, statistics = labels.reasons(classes), labels.with_statistics(classes)
    of_axis = [classes[a.first : a.first + a.size] for a in labels.axes]
    reach: dict[int, dict[int, int]] = defaultdict(dict)
    for number, own in enumerate(of_axis):
        members, counts = np.unique(own, return_counts=True)
        for member, count in zip(members.tolist(), counts.tolist(), strict=True):
            reach[member][number] = count
    kinds: dict[tuple[Reach, str | None, bool], list[int]] = defaultdict(list)
    for member, reached in sorted(reach.items()):
        if any((labels.axes[n].tensor, labels.axes[n].dim) in producers for n in reached):
            kinds[tuple(sorted(reached.items())), reasons.get(member), member in statistics].append(member)
    lengths = _unambiguous([(name, classes[own]) for name, own in written])
    yield from _named(kinds, labels, of_axis, producers, lengths)


def _unambiguous(written: Sequence[Written]) -> list[Written]:
    """Attributes whose length can change, where only one dimension explains them."""
    found: dict[str, list[Ints]] = defaultdict(list)
    for name, own in written:
        if len(np.unique(own)) > 1 and not any(np.array_equal(own, other) for other in found[name]):
            found[name].append(own)
    return [(name, dims[0]) for name, dims in found.items() if len(dims) == 1]


def _named(
    kinds: Mapping[tuple[Reach, str | None, bool], list[int]],
    labels: Labels,
    of_axis: list[Ints],
    producers: Mapping[tuple[str, int], str],
    lengths: Sequence[Written],
) -> Iterable[Coupled]:
    taken: dict[str, int] = defaultdict(int)
    order = {made: i for i, made in enumerate(producers)}
    for (reached, reason, statistics), members in kinds.items():
        axes = [labels.axes[number] for number, _ in reached]
        name = producers[min(((a.tensor, a.dim) for a in axes if (a.tensor, a.dim) in producers), key=order.__getitem__)]
        taken[name] += 1
        units = np.array(members)
        slices = tuple(_slice(labels.axes[number], of_axis[number], units, labels) for number, _ in reached)
        sizes = tuple(s for attribute, own in lengths if (s := _length(attribute, own, units)).spans)
        called = name if taken[name] == 1 else f"{name}#{taken[name]}"
        yield Coupled(called, len(members), slices + sizes, statistics, _protected(reason, len(members), slices, labels))


def _protected(reason: str | None, units: int, slices: tuple[Slice, ...], labels: Labels) -> str | None:
    if not any(s.tensor in labels.used for s in slices):
        return "takes no part in a forward call with these inputs"
    if reason is not None:
        return reason
    if units == 1:
        return "its channels can only leave all together"
    return None


def _slice(axis: Axis, classes: Ints, units: Ints, labels: Labels) -> Slice:
    role = "in" if (axis.tensor, axis.dim) in labels.consumed else "out"
    return Slice(axis.tensor, axis.dim, role, spans(*_members(classes, units)))


def _length(attribute: str, classes: Ints, units: Ints) -> Slice:
    return Slice(attribute, 0, "size", spans(*_members(classes, units)))


def _members(classes: Ints, units: Ints) -> tuple[Ints, Ints]:
    """Places whose class is one of `units` (ascending), and which one it is."""
    at = np.minimum(np.searchsorted(units, classes), len(units) - 1)
    (places,) = np.nonzero(units[at] == classes)
    return places, at[places]


def spans(places: Ints, units: Ints) -> tuple[Span, ...]:
    """Compress places (ascending) and their units: runs of one unit, then runs of such runs."""
    if not len(places):
        return ()
    breaks = (np.diff(places) != 1) | (np.diff(units) != 0)
    first = np.concatenate(([0], np.nonzero(breaks)[0] + 1))
    start, unit, length = places[first], units[first], np.diff(np.concatenate((first, [len(places)])))
    joins = (length[1:] == length[:-1]) & (unit[1:] == unit[:-1] + 1) & (start[1:] == start[:-1] + length[:-1])
    head = np.concatenate(([0], np.nonzero(~joins)[0] + 1))
    counts = np.diff(np.concatenate((head, [len(start)])))
    rows = zip(start[head].tolist(), unit[head].tolist(), counts.tolist(), length[head].tolist(), strict=True)
    return tuple(Span(*row) for row in rows)
