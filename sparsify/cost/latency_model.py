"""Predict the latency of a network of given widths on one target, from a table of its layers.

    ms = sum over layer classes of theta * milliseconds of the layers, by table
         + theta * elements written + theta * weights + theta

The thetas are fitted to the dense network and a few cut ones, timed whole. Between measured widths, a
layer's cost is interpolated along the staircase: outputs are rounded up to the next step, and widths that
are no multiple of four cost as much more as was measured. Pure; holds no tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsify_schemas.table import Point, Steps

Kind = Literal["convolution", "depthwise", "linear", "other"]
KINDS: tuple[Kind, ...] = ("convolution", "depthwise", "linear", "other")
UNIT = 4
"""widths that are no multiple of this leave the fast path of a processor's kernels"""
PER_MAC = 2e-8
"""milliseconds per MAC of work that no table has (recurrent layers): a guess that calibration corrects"""
RIDGE = 0.02
"""weight of a theta's distance from its prior, against the squared relative error of one network"""
Shapes = Mapping[str, tuple[int, ...]]
"""tensor -> its shape after the cut"""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Work:
    """One call of a layer, and the part of its cost that does not depend on its widths."""

    tensor: str
    """its weight"""
    kind: Kind
    key: str
    """the layer without its widths, such as 'conv 3x3 stride 1 pad 1 at 14x14'"""
    inputs: int
    outputs: int
    written: int
    """elements written per output channel or feature"""
    groups: int = 1
    group_outputs: int = 0
    """outputs of each group, where whole groups leave; else 0"""
    transposed: bool = False
    """inputs come first in the weight's shape"""
    macs: int = 0
    """of work that no table has, with the whole weight"""
    numel: int = 0
    """elements of that weight"""

    def widths(self, shapes: Shapes) -> tuple[int, int]:
        """(inputs, outputs) when its weight has the shape that it gets."""
        shape = shapes.get(self.tensor)
        if shape is None or len(shape) < 2 or self.kind == "other":
            return self.inputs, self.outputs
        if self.kind == "depthwise":
            return shape[0], shape[0]
        if self.group_outputs and self.transposed:
            return shape[0], shape[0] * self.groups // self.inputs * shape[1]
        if self.group_outputs:
            return shape[0] // self.group_outputs * shape[1], shape[0]
        rows, columns = (shape[1], shape[0]) if self.transposed else shape[:2]
        return (columns, rows * self.groups) if self.transposed else (columns * self.groups, rows)


@dataclass(frozen=True)
class Surface:
    """Cost of one layer by its widths: a + b in + c out + d in out, fitted to the measured points.

    The fit is multiplied by the measured/fitted ratio of the nearest points.
    """

    points: tuple[Point, ...]
    dense: tuple[int, int]
    steps: tuple[int, int]
    """of inputs and outputs"""

    @cached_property
    def _fit(self) -> tuple[Floats, Floats, Floats, dict[tuple[bool, bool], float]]:
        even = [p for p in self.points if self._is_aligned(p[0], p[1]) == (True, True)] or list(self.points)
        at = np.array([point[:2] for point in even], dtype=float)
        ms = np.maximum(np.array([point[2] for point in even]), 1e-6)
        basis = self._basis(at) / ms[:, None]
        ridge = 1e-4 * np.eye(4) / ms.max()
        wanted = np.append(np.ones(len(ms)), np.zeros(4))
        theta = np.linalg.lstsq(np.vstack([basis, ridge]), wanted, rcond=None)[0]
        left = ms / np.maximum(self._basis(at) @ theta, 0.2 * ms)
        dearer: dict[tuple[bool, bool], list[float]] = {}
        for inputs, outputs, found in self.points:
            kind = self._is_aligned(inputs, outputs)
            if kind != (True, True):
                dearer.setdefault(kind, []).append(
                    found / self._interpolate(*self._round_up(inputs, outputs), at, theta, left)
                )
        return at, theta, left, {kind: float(np.median(found)) for kind, found in dearer.items()}

    def ms(self, inputs: int, outputs: int) -> float:
        """Milliseconds at these widths."""
        at, theta, left, dearer = self._fit
        smooth = self._interpolate(*self._round_up(inputs, outputs), at, theta, left)
        return smooth * dearer.get(self._is_aligned(inputs, outputs), 1.0)

    def _is_aligned(self, inputs: int, outputs: int) -> tuple[bool, bool]:
        """Whether each width is a multiple of four, or was never cut: then the points include its cost."""
        return inputs % UNIT == 0 or inputs == self.dense[0], outputs % UNIT == 0 or outputs == self.dense[1]

    def _round_up(self, inputs: int, outputs: int) -> tuple[int, int]:
        """Round up to the next step; off the fast path, inputs are charged one by one."""
        steps = self.steps if self._is_aligned(inputs, outputs)[0] else (1, self.steps[1])
        up = [
            min(dense, ceil(width / step) * step)
            for width, step, dense in zip((inputs, outputs), steps, self.dense, strict=True)
        ]
        return up[0], up[1]

    def _basis(self, at: Floats) -> Floats:
        a, b = at[:, 0] / self.dense[0], at[:, 1] / self.dense[1]
        return np.stack([np.ones(len(at)), a, b, a * b], axis=1)

    def _interpolate(self, inputs: int, outputs: int, at: Floats, theta: Floats, left: Floats) -> float:
        here = np.array([[inputs, outputs]], dtype=float)
        apart = (((at - here) / np.array(self.dense)) ** 2).sum(1)
        nearest = int(apart.argmin())
        weight = 1 / (apart + 1e-9) ** 1.5
        plain = float((self._basis(here) @ theta)[0])
        floor = 0.2 * float((self._basis(at[nearest : nearest + 1]) @ theta)[0])
        return max(plain, floor, 1e-6) * float((weight * left).sum() / weight.sum())


@dataclass(frozen=True)
class TimedNetwork:
    """A whole network: the regressors of the latency model, and its measured milliseconds."""

    sums: tuple[float, ...]
    ms: float


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """The latency model of one network on one target."""

    target: str
    """its name in the recipe"""
    works: tuple[Work, ...]
    surfaces: Mapping[tuple[str, int, int], Surface]
    """by layer and its dense widths"""
    steps: Steps
    networks: tuple[TimedNetwork, ...] = ()
    """the dense network first, then cut ones, timed whole; without any, the sum of the layers is the
    prediction"""
    seen: tuple[tuple[float, float], ...] = ()
    """(predicted, measured) of networks that a closed loop chose and timed; predictions are corrected to
    match them"""
    measured: bool = True
    """false if the target is another machine, of which only a table is known"""

    def sums(self, shapes: Shapes) -> tuple[float, ...]:
        """The regressors: milliseconds of layers by class, millions of elements written, millions of
        weights, one."""
        spent = dict.fromkeys(KINDS, 0.0)
        written = weights = 0.0
        for work in self.works:
            if 0 in shapes.get(work.tensor, ()):
                continue  # it left with a residual branch
            inputs, outputs = work.widths(shapes)
            spent[work.kind] += self._ms(work, inputs, outputs, shapes)
            written += work.written * outputs
            weights += prod(shapes.get(work.tensor, ()))
        return (*spent.values(), written / 1e6, weights / 1e6, 1.0)

    def ms(self, shapes: Shapes) -> float:
        """Milliseconds of a forward call."""
        return self._correct(self._predict(shapes))

    @property
    def dense_ms(self) -> float | None:
        """The dense network as measured; None if it was not."""
        return self.networks[0].ms if self.networks else None

    @cached_property
    def thetas(self) -> Floats:
        """One per regressor, fitted to the networks; undetermined ones keep the scale of the dense
        network."""
        return fit_thetas(self.networks)

    def by_layer(self, shapes: Shapes) -> dict[str, float]:
        """Layer -> its part of the milliseconds that `ms` predicts; under '' what belongs to no layer."""
        by_kind = dict(zip(KINDS, self.thetas, strict=False))
        per_written, per_weight, rest = (float(theta) for theta in self.thetas[len(KINDS) :])
        found = {"": rest}
        for work in self.works:
            layer = work.tensor.rpartition(".")[0]
            spent = 0.0
            if 0 not in shapes.get(work.tensor, ()):
                inputs, outputs = work.widths(shapes)
                spent = float(by_kind[work.kind]) * self._ms(work, inputs, outputs, shapes)
                spent += (
                    per_written * work.written * outputs + per_weight * prod(shapes.get(work.tensor, ()))
                ) / 1e6
            found[layer] = found.get(layer, 0.0) + spent
        scale = self.ms(shapes) / self._predict(shapes)
        return {layer: scale * spent for layer, spent in found.items()}

    def with_measurement(self, shapes: Shapes, measured: float) -> "LatencyModel":
        """A latency model that is exact for a network that was timed."""
        return replace(self, seen=(*self.seen, (self._predict(shapes), measured)))

    def _predict(self, shapes: Shapes) -> float:
        return float(max(np.dot(self.thetas, self.sums(shapes)), 1e-6))

    def _correct(self, ms: float) -> float:
        """Piecewise linear and never decreasing, through zero, the measured networks and the dense
        network."""
        if not self.seen:
            return ms
        dense = [(max(float(np.dot(self.thetas, n.sums)), 1e-6), n.ms) for n in self.networks[:1]]
        known = sorted([(0.0, 0.0), *self.seen, *dense])
        before, after = np.array(known)[:, 0], np.maximum.accumulate(np.array(known)[:, 1])
        return float(np.interp(ms, before, after)) if ms <= before[-1] else float(after[-1] * ms / before[-1])

    def _ms(self, work: Work, inputs: int, outputs: int, shapes: Shapes) -> float:
        if work.kind == "other":
            return (
                work.macs * PER_MAC * (prod(shapes.get(work.tensor, ())) / work.numel if work.numel else 1.0)
            )
        return self.surfaces[work.key, work.inputs, work.outputs].ms(inputs, outputs)


def fit_thetas(networks: Sequence[TimedNetwork]) -> Floats:
    """Fit thetas that minimise the squared relative errors, drawn towards one scale for all layers.

    Exact for a single network. The dense network counts like any other: if it were exact, every prediction
    would carry the error of its one timing (over 32 runs of `tests/benchmarks/latency_model.py` the median
    error was 3.0 % instead of 2.7 %).
    """
    count = len(networks[0].sums) if networks else len(KINDS) + 3
    layers = np.array([i < len(KINDS) for i in range(count)], dtype=float)
    if not networks:
        return layers
    x = np.array([network.sums for network in networks])
    y = np.array([network.ms for network in networks])
    total = float(x[0] @ layers)
    prior = layers * (y[0] / total) if total else np.eye(count)[-1] * y[0]
    reach = np.maximum(np.abs(x[0]), 1e-9) / y[0]
    rows = np.vstack([x / y[:, None], np.sqrt(RIDGE) * np.diag(reach)])
    wanted = np.append(np.ones(len(y)), np.sqrt(RIDGE) * reach * prior)
    theta: Floats = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return theta


def choose_widths(dense: int, step: int, cuttable: bool) -> tuple[int, ...]:
    """The widths at which a layer is measured: the dense one, and steps near 3/4, 1/2, 1/4 and 1/8 of it."""
    parts = (0.125, 0.25, 0.5, 0.75) if cuttable and dense > 1 else ()
    return tuple(sorted({min(dense, ceil(dense * part / step) * step) for part in parts} | {dense}))
