"""Labels: one number per index of every dimension of every parameter and buffer, and which must go
together.

Labels are joined by edges while the model runs. The connected components, computed once at the end, are
the units that can only be removed as a whole. Source: dependency graphs (Fang et al., arXiv:2301.12900),
applied to single indices instead of layers.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsify.graph.trace.channel_groups import ChannelGroups, Joins, Leaving, Side, choose_sides
from sparsify.graph.trace.made_labels import GroupOutputs, MergedPlaces

Ints = NDArray[np.int64]

CREATED = ""
"""name of a tensor that the forward call makes: no slice of it is cut"""
TIED = "it is tied to something of fixed size"


@dataclass(frozen=True)
class Axis:
    """One dimension of one tensor: its labels are first, first + 1, ..., first + size - 1."""

    tensor: str
    dim: int
    first: int
    size: int


@dataclass(frozen=True)
class _Slices:
    """The slices that a module takes of one dimension."""

    labels: Ints
    reason: str
    blocks: list[tuple[Ints, Ints]]
    """what is joined where all of them are equal blocks"""
    lengths: set[int]
    """of the blocks, 0 for a slice that is none"""


class Labels:
    """Allocates labels and collects what is learnt about them. Label 0 belongs to what no cut may touch."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self._firsts: list[int] = []
        self.count = 1
        self._edges: list[tuple[Ints, Ints]] = []
        self._fixed: list[tuple[Ints, str]] = []
        self.consumed: set[tuple[str, int]] = set()
        """(tensor, dimension) that a product sums over: a consumer's input side"""
        self.produced: set[tuple[str, int]] = set()
        """(tensor, dimension) that a product's result has: a producer's outputs"""
        self.looked_up: set[tuple[str, int]] = set()
        """(tensor, dimension) that a looked-up row has: an embedding's outputs"""
        self.twins: dict[tuple[str, int], frozenset[tuple[str, int]]] = {}
        """(tensor, dimension) -> itself and those of parameters that it was added to or stacked with"""
        self.used: set[str] = set()
        """tensors that took part in the forward call"""
        self.ran: set[str] = set()
        """modules that ran in it"""
        self.evaluated: frozenset[str] = frozenset()
        """those of these tensors and modules that took part in eval mode"""
        self._statistics: list[tuple[Ints, frozenset[int]]] = []
        self._paired: list[Ints] = []
        self._rectangles: list[Ints] = []
        self._share_key: list[Ints] = []
        self._channel_groups: dict[tuple[str | bytes | None, ...], ChannelGroups] = {}
        self._slices: dict[tuple[str, bytes], _Slices] = {}
        self._doubts: list[tuple[Ints, str]] = []
        self.shapes: list[tuple[str, Ints]] = []
        """(module, labels along a dimension) of every reshape and split that ran in it"""
        self.parts: list[tuple[str, tuple[int, ...], int, Ints]] = []
        """(module, all lengths, number of the part, labels along it) of every part of a split in it"""
        self.made: list[GroupOutputs | MergedPlaces] = []
        """labels that the call makes and that leave with others"""
        self.named: list[Axis] = []
        """places of tensors without labels (a state of zeros), named as something met them"""
        self.given: list[tuple[str, int | str, int, Ints]] = []
        """(module, argument, dimension, labels along it) of tensors without labels that modules are given,
        where the dimension has met labels"""
        self.inputs: list[tuple[str, Ints]] = []
        """(module, labels along a dimension) of what was given to modules that hold a number as large"""
        self.group_counts: list[tuple[str, Ints]] = []
        """(module:attribute, a label of each group) of every number of channel groups"""

    def add_axis(self, tensor: str, dim: int, size: int) -> Axis:
        axis = Axis(tensor, dim, self.count, size)
        self.axes.append(axis)
        self._firsts.append(self.count)
        self.count += size
        return axis

    def axis_of(self, label: int) -> Axis | None:
        """The axis that a label belongs to; None for 0."""
        return self.axes[bisect_right(self._firsts, label) - 1] if label else None

    def join(self, a: Ints, b: Ints) -> None:
        """Labels at the same place of a and b are removed together. Both are read later: do not write into
        them."""
        self._edges += _make_edges([(a, b)])

    def fix(self, labels: Ints, reason: str) -> None:
        """These labels must stay, for this reason. They are read later: do not write into them."""
        self._fixed.append((labels, reason))

    def note_statistics(self, labels: Ints, over: frozenset[int] = frozenset()) -> None:
        """A statistic (of a normalisation, a mean) is taken over these labels.

        over: the dimensions that it is taken along, of several: it does not change where what leaves has
        all labels along them, as a whole head whose own places are normalised.
        """
        self._statistics.append((labels, over))

    def note_pair(self, labels: Ints) -> None:
        """A product of two computed tensors (queries and keys) sums over these labels."""
        self._paired.append(labels)

    def note_shared_key(self, labels: Ints) -> None:
        """Heads with these labels are multiplied by one key."""
        self._share_key.append(labels)

    def note_rectangle(self, labels: Ints) -> None:
        """These labels lie along several dimensions of a tensor: what is kept must be a rectangle again."""
        self._rectangles.append(labels)

    def note_channel_groups(self, own: ChannelGroups, counted_by: str | None = None) -> None:
        """These channels fall into groups; `module:attribute` holds how many, where a number does."""
        met = [part.tobytes() for pair in (*own.whole, *own.places) for part in pair]
        self._channel_groups.setdefault((counted_by, own.channels.tobytes(), *met), own)
        if counted_by is not None:
            self.group_counts.append((counted_by, own.channels[:, 0]))

    def doubt(self, labels: Ints, reason: str) -> None:
        """These labels may leave if a trial cut shows it; for this reason they stay otherwise."""
        self._doubts.append((labels, reason))

    def note_slice(self, module: str, labels: Ints, length: int, reason: str) -> None:
        """A module takes a slice of this dimension, which is one of equal blocks; length 0 if it is none.

        Whether the others that it takes are equal blocks too is known at the end.
        """
        own = self._slices.setdefault((module, labels.tobytes()), _Slices(labels, reason, [], set()))
        if length and length not in own.lengths:
            parts = labels.reshape(-1, length)
            own.blocks.append((parts, parts[:1]))
        own.lengths.add(length)

    def note_length(self, module: str, labels: Ints) -> None:
        """A module used the length of this dimension."""
        self.shapes.append((module, labels))

    def note_part(self, module: str, lengths: Sequence[int], number: int, labels: Ints) -> None:
        """A module split a dimension into parts of these lengths; these labels lie along one of them."""
        self.parts.append((module, tuple(lengths), number, labels))

    def find_classes(self, leaving: Leaving = "most units", on_other_sides: bool = False) -> Ints:
        """The class of every label: the smallest label that it must be removed with.

        If one dimension was split into several (heads and their features, blocks and positions in them),
        whole rows or whole columns are removed: along the dimension that gives the most units. So it is
        where channels fall into groups.

        on_other_sides: take the dimension that gives the second most, and of channel groups the other side.
        """
        self._take_blocks()
        self._take_sides(leaving, on_other_sides)
        return self._find_classes(self._edges, 1 if on_other_sides else 0)

    def find_joined(self) -> Ints:
        """The class of every label by what is joined so far, whichever side channel groups take."""
        return self._find_classes(self._edges)

    def _take_blocks(self) -> None:
        """Join the same places of equal blocks, for good, where units are left that can leave.

        Where none is, the slices may stand at places that follow the widths: of queries, and of fewer keys
        and values. A trial cut shows whether they do.
        """
        slices = list(self._slices.values())
        self._slices.clear()
        in_blocks = [own for own in slices if 0 not in own.lengths]
        apart = [own for own in slices if 0 in own.lengths]
        if in_blocks:
            edges = [pair for own in in_blocks for pair in own.blocks]
            side = self._describe_side(_make_edges(edges))
            for own in in_blocks:
                found = np.unique(side.classes[own.labels])
                if (~side.is_fixed[found]).sum() > 1:
                    self._edges += _make_edges(own.blocks)
                else:
                    apart.append(own)
        for own in apart:
            self.doubt(own.labels, own.reason)

    def _take_sides(self, leaving: Leaving, on_other_sides: bool) -> None:
        """Join channel groups on the side on which they leave, for good."""
        groups = list(self._channel_groups.values())
        self._channel_groups.clear()
        if not groups:
            return
        ways = [own.join_fixed() for own in groups]
        whole = _make_edges([pair for way in ways for pair in way[0]])
        places = _make_edges([pair for way in ways for pair in way[1]])
        spread = _make_edges([(field, field.flat[:1]) for field in self._rectangles])
        every = [*self._edges, *whole, *places, *spread]
        a, b = (np.concatenate(ends) for ends in zip(_NO_EDGE, *every, strict=True))
        free = (a != 0) & (b != 0)  # what must stay connects nothing
        touching = find_components(self.count, a[free], b[free])
        sides = self._describe_side(whole), self._describe_side(places)
        chosen = choose_sides(groups, touching, *sides, leaving=leaving)
        for own, is_chosen in zip(groups, chosen, strict=True):
            leaves_whole = is_chosen != on_other_sides
            self._edges += _make_edges(own.whole if leaves_whole else own.places)
            stays = own.stays[0 if leaves_whole else 1]
            if stays is not None:
                self.fix(stays, own.why_stays)
            if own.inside is not None and leaves_whole:
                self.fix(own.inside, "whole groups leave, and each has as many channels")
            if own.has_statistics and not leaves_whole:
                self.note_statistics(own.channels)

    def _describe_side(self, edges: Sequence[tuple[Ints, Ints]]) -> Side:
        classes = self._find_classes([*self._edges, *edges])
        return Side(classes, self.why_fixed(classes)[0] >= 0)

    def _find_classes(self, joins: Sequence[tuple[Ints, Ints]], rank: int = 0) -> Ints:
        """The class of every label where these are joined; rank: of the dimension along which units of a
        rectangle leave, 0 for that with the most."""
        number, edges = self._merge_axes(joins)
        (smallest,) = np.nonzero(np.diff(np.maximum.accumulate(number), prepend=-1))
        while True:
            a, b = (number[np.concatenate(ends)] for ends in zip(_NO_EDGE, *edges, strict=True))
            classes: Ints = smallest[find_components(len(smallest), a, b)[number]]
            ties = [tie for labels in self._rectangles for tie in _find_ties(classes[labels], rank)]
            if not ties:
                return classes
            edges += _make_edges(ties)

    def _merge_axes(self, joins: Sequence[tuple[Ints, Ints]]) -> tuple[Ints, list[tuple[Ints, Ints]]]:
        """(label -> node, ascending with the smallest label of each; the joins that are left).

        Most joins are of one whole axis with another (a layer's outputs and its normalisation): such
        labels share nodes from the start.
        """
        sizes = {axis.first: axis.size for axis in self.axes}
        root = {first: first for first in sizes}

        def found(first: int) -> int:
            while root[first] != first:
                root[first] = first = root[root[first]]
            return first

        left = []
        for a, b in joins:
            one, other = int(a[0]), int(b[0])
            if sizes.get(one) == sizes.get(other) == len(a) and _ascends_by_one(a) and _ascends_by_one(b):
                one, other = found(one), found(other)
                root[max(one, other)] = min(one, other)
            else:
                left.append((a, b))
        number, count = np.zeros(self.count, np.int64), 1
        for first, size in sizes.items():
            one = found(first)
            if one == first:
                number[first : first + size] = np.arange(count, count + size)
                count += size
            else:
                number[first : first + size] = number[one : one + size]
        return number, left

    def why_fixed(self, classes: Ints) -> tuple[Ints, list[str]]:
        """(index into the list or -1, for every class; reasons why a class must stay)."""
        found = list(dict.fromkeys(reason for _, reason in self._fixed))
        at = {reason: number for number, reason in enumerate(found)}
        places = np.full(self.count, -1)
        for labels, reason in self._fixed:
            own = classes[labels[labels != 0]]
            places[own[places[own] < 0]] = at[reason]
        if places[classes[0]] < 0:
            places[classes[0]] = len(found)
            found.append(TIED)
        return places, found

    def why_doubted(self, classes: Ints) -> dict[int, str]:
        """Class -> why it stays unless a trial cut shows that it may leave."""
        found: dict[int, str] = {}
        for labels, reason in self._doubts:
            for own in np.unique(classes[labels[labels != 0]]).tolist():
                found.setdefault(own, reason)
        return found

    def has_statistics(self, classes: Ints) -> NDArray[np.bool_]:
        """Whether a statistic is taken over each class and others, so that a cut changes it."""
        return self._mark_classes([_find_parted(*noted, classes) for noted in self._statistics], classes)

    def is_paired(self, classes: Ints) -> NDArray[np.bool_]:
        """Whether a product without a weight sums over each class."""
        return self._mark_classes(self._paired, classes)

    def shares_key(self, classes: Ints) -> NDArray[np.bool_]:
        """Whether each class is of heads that one key serves."""
        return self._mark_classes(self._share_key, classes)

    def _mark_classes(self, marked: Sequence[Ints], classes: Ints) -> NDArray[np.bool_]:
        found = np.zeros(self.count, dtype=bool)
        for labels in marked:
            found[classes[labels[labels != 0]]] = True
        return found


_NO_EDGE = (np.zeros(0, np.int64), np.zeros(0, np.int64))


def _make_edges(joins: Joins) -> list[tuple[Ints, Ints]]:
    """Joins as flat arrays of one length; none of nothing."""
    edges = []
    for a, b in joins:
        if a.size and b.size and a.shape == b.shape:
            edges.append((a.ravel(), b.ravel()))
        elif a.size and b.size:
            one, other = np.broadcast_arrays(a, b)
            edges.append(_remove_duplicates(one.ravel(), other.ravel()))
    return edges


def _ascends_by_one(labels: Ints) -> bool:
    return int(labels[-1]) - int(labels[0]) == len(labels) - 1 and bool((labels[1:] > labels[:-1]).all())


def _remove_duplicates(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Each pair once."""
    pairs = np.sort(a << 32 | b)  # one integer a pair; labels stay below 2^31
    pairs = pairs[np.concatenate(([True], pairs[1:] != pairs[:-1]))]
    return pairs >> 32, pairs & 0xFFFFFFFF


def _find_parted(labels: Ints, over: frozenset[int], classes: Ints) -> Ints:
    """Those labels whose class does not leave with all labels along the given dimensions; all without any."""
    if not over:
        return labels
    found = classes[labels]
    is_parted = np.zeros(found.shape, bool)
    for d in over:
        is_parted |= (found != found.take([0], d)).any(d, keepdims=True)
    spread = is_parted.any(tuple(over), keepdims=True)
    return labels[np.broadcast_to(spread, labels.shape)]


def _find_ties(field: Ints, rank: int) -> list[tuple[Ints, Ints]]:
    """What to join so that the classes vary along one dimension only; nothing if they do."""
    dims = [d for d in range(field.ndim) if (field != field.take([0], d)).any()]
    if len(dims) < 2:
        return []

    def units(d: int) -> int:
        at: list[int | slice] = [0] * field.ndim
        at[d] = slice(None)
        return len(np.unique(field[tuple(at)]))

    keep = sorted(dims, key=units, reverse=True)[rank]
    return [(field, field.take([0], d)) for d in dims if d != keep]


def find_components(count: int, a: Ints, b: Ints) -> Ints:
    """The smallest member of each node's connected component, by hooking and pointer jumping."""
    parent = np.arange(count, dtype=np.int64)
    while len(a):
        low, high = np.minimum(parent[a], parent[b]), np.maximum(parent[a], parent[b])
        open_ = low != high
        if not open_.any():
            break
        a, b = a[open_], b[open_]
        np.minimum.at(parent, high[open_], low[open_])
        while True:
            up = parent[parent]
            if (up == parent).all():
                break
            parent = up
    return parent
