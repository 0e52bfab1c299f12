"""Labels: one number per index of every dimension of every parameter and buffer, and which of them must leave together.

Labels are joined by edges while the model runs; connected components, computed once at the end, are the units that can
only leave as a whole. Source: the idea is that of dependency graphs (Fang et al., arXiv:2301.12900), carried from
layers to single indices.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """One dimension of one tensor: its labels are first, first + 1, ..., first + size - 1."""

    tensor: str
    dim: int
    first: int
    size: int


class Labels:
    """Allocates labels and collects what is learnt about them. Label 0 belongs to what no cut may touch."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.count = 1
        self._edges: list[Ints] = []
        self._fixed: list[tuple[Ints, str]] = []
        self.consumed: set[tuple[str, int]] = set()
        """(tensor, dimension) that a product sums over: a consumer's input side"""
        self.produced: set[tuple[str, int]] = set()
        """(tensor, dimension) that a product's result has: a producer's outputs"""
        self.used: set[str] = set()
        """tensors that took part in the forward call"""
        self._statistics: list[Ints] = []
        self._rectangles: list[Ints] = []
        self.shapes: list[tuple[str, Ints]] = []
        """(module, labels along a dimension) of every reshape and split that ran in it"""

    def new(self, tensor: str, dim: int, size: int) -> Axis:
        axis = Axis(tensor, dim, self.count, size)
        self.axes.append(axis)
        self.count += size
        return axis

    def join(self, a: Ints, b: Ints) -> None:
        """Labels at the same place of a and b leave together."""
        a, b = a.ravel(), b.ravel()
        differ = a != b
        # one integer a pair, so that repeats are found by an ordinary sort; labels stay below 2^31
        pairs = (np.minimum(a, b)[differ] << 32) | np.maximum(a, b)[differ]
        if len(pairs) and not (pairs[1:] > pairs[:-1]).all():
            pairs = np.unique(pairs)
        if len(pairs):
            self._edges.append(np.stack([pairs >> 32, pairs & 0xFFFFFFFF], 1))

    def fix(self, labels: Ints, reason: str) -> None:
        """These labels must stay, and why."""
        labels = np.unique(labels)
        labels = labels[labels != 0]
        if len(labels):
            self._fixed.append((labels, reason))

    def statistics(self, labels: Ints) -> None:
        """A statistic (of a normalisation, a mean) is taken over these labels."""
        self._statistics.append(np.unique(labels))

    def rectangle(self, labels: Ints) -> None:
        """Labels that lie in a tensor along several dimensions: what remains must be a rectangle again."""
        self._rectangles.append(labels)

    def sized(self, module: str, labels: Ints) -> None:
        """A module wrote down the length of this dimension."""
        self.shapes.append((module, labels))

    def classes(self) -> Ints:
        """The class of every label: the smallest label that it must leave together with.

        Where one dimension was taken apart into several (heads and their features, blocks and positions in them),
        whole rows or whole columns leave: along the one of them that gives the most units.
        """
        while True:
            classes = components(self.count, np.concatenate(self._edges) if self._edges else np.zeros((0, 2), np.int64))
            ties = [tie for labels in self._rectangles for tie in _straightened(classes[labels])]
            if not ties:
                return classes
            for a, b in ties:
                self.join(*np.broadcast_arrays(a, b))

    def reasons(self, classes: Ints) -> dict[int, str]:
        """Class -> why it must stay."""
        found: dict[int, str] = {}
        for labels, reason in self._fixed:
            for own in np.unique(classes[labels]).tolist():
                found.setdefault(own, reason)
        found.setdefault(int(classes[0]), "it is tied to something of fixed size")
        return found

    def with_statistics(self, classes: Ints) -> set[int]:
        """Classes over which a statistic is taken."""
        return {own for labels in self._statistics for own in np.unique(classes[labels[labels != 0]]).tolist()}


def _straightened(field: Ints) -> list[tuple[Ints, Ints]]:
    """What to join so that the classes vary along one dimension only; nothing where they do."""
    dims = [d for d in range(field.ndim) if (field != field.take([0], d)).any()]
    if len(dims) < 2:
        return []

    def units(d: int) -> int:
        return len(np.unique(field[tuple(slice(None) if e == d else 0 for e in range(field.ndim))]))

    keep = max(dims, key=units)
    return [(field, field.take([0], d)) for d in dims if d != keep]


def components(count: int, edges: Ints) -> Ints:
    """The smallest member of each node's connected component, by hooking and pointer jumping."""
    parent = np.arange(count, dtype=np.int64)
    a, b = edges[:, 0], edges[:, 1]
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
