"""What a model of given widths costs: MACs, parameters, bytes, exact for layers whose work is proportional to their weight;
milliseconds on targets, as their clocks predict them; and peak memory, from the lives of the tensors that an inference makes."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from sparsify.clock import Clock
from sparsify.plan import Lifetimes, ModelMap
from sparsify_schemas.budget import Budget
from sparsify_schemas.units import Share

Counts = NDArray[np.int64]


class Costs:
    """MACs, parameters, bytes, `latency.<target>` and peak memory as a function of which units are gone.

    A tensor keeps prod over dimensions of (size - indices gone) elements, none when it leaves with a residual branch. A
    layer's MACs shrink with its weight; MACs of functional operations outside layers go with the residual branch that
    they are in, and are otherwise taken as constant, so the prediction is never below the truth there.
    """

    def __init__(self, map: ModelMap, clocks: Sequence[Clock] = ()) -> None:
        self._clocks = tuple(clocks)
        self._tensors = map.tensors
        # A weight that an earlier layer owns (tied) is no tensor of its own: the MACs of its second layer count as constant.
        owned = {tensor.name for tensor in map.tensors}
        self._macs = {name: macs for name, macs in _by_weight(map) if name in owned}
        self._fixed_macs = map.macs - sum(self._macs.values())
        self._whole: dict[str, list[str]] = defaultdict(list)
        """tensor -> residual branches that it leaves with"""
        self._inside: dict[str, float] = {}
        """residual branch -> MACs in it that are no layer's"""
        for branch in map.branches:
            self._inside[branch.name] = branch.macs - sum(self._macs.get(tensor, 0) for tensor in branch.tensors)
            for tensor in branch.tensors:
                self._whole[tensor].append(branch.name)
        self._lives = None if map.lifetimes is None else _Lives(map.lifetimes)
        # tensor -> dimension -> (coupled group, indices per unit)
        self._reach: dict[str, dict[int, list[tuple[str, Counts]]]] = defaultdict(lambda: defaultdict(list))
        for group in map.coupled:
            for part in group.slices:
                per_unit = np.zeros(group.width, dtype=np.int64)
                for span in part.spans:
                    per_unit[span.unit : span.unit + span.units] += span.repeat
                self._reach[part.tensor][part.dim].append((group.name, per_unit))

    def of(self, gone: Mapping[str, Sequence[int]], *, smooth: bool = False) -> dict[str, float]:
        """{'macs', 'params', 'bytes', 'latency.<target>', 'peak_memory'} with the listed units of each coupled group removed.

        smooth: moments near the peak of memory count too, as they are the peak once others have shrunk: for prices.
        """
        shapes = self.shapes(gone)
        macs, params, size = float(self._fixed_macs), 0.0, 0.0
        macs -= sum(inside for name, inside in self._inside.items() if len(gone.get(name, ())))
        for tensor in self._tensors:
            kept = prod(shapes[tensor.name])
            size += kept * tensor.itemsize
            if tensor.parameter:
                params += kept
            if tensor.name in self._macs and tensor.numel:
                macs += self._macs[tensor.name] * kept / tensor.numel
        found = {"macs": macs, "params": params, "bytes": size, **{latency(c.target): c.ms(shapes) for c in self._clocks}}
        return found if self._lives is None else found | {"peak_memory": size + self._lives.most(gone, smooth)}

    def shapes(self, gone: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Tensor -> its shape with the listed units of each coupled group removed; of no elements where it leaves as a whole."""
        removed = {name: np.fromiter(units, dtype=np.int64) for name, units in gone.items() if len(units)}
        found = {}
        for tensor in self._tensors:
            if any(name in removed for name in self._whole.get(tensor.name, ())):
                found[tensor.name] = (0,) * max(1, len(tensor.shape))
                continue
            reach = self._reach.get(tensor.name, {})
            found[tensor.name] = tuple(
                length - sum(int(per_unit[removed[name]].sum()) for name, per_unit in reach.get(dim, ()) if name in removed)
                for dim, length in enumerate(tensor.shape)
            )
        return found

    def macs_per_weight(self) -> dict[str, float]:
        """Tensor -> MACs that go with one of its elements; those that take none are left out."""
        sizes = {tensor.name: tensor.numel for tensor in self._tensors}
        return {name: macs / sizes[name] for name, macs in self._macs.items() if sizes[name]}

    @property
    def step(self) -> int:
        """The widths that the slowest staircase rewards; 1 where no latency counts."""
        return max((max(c.steps.convolution, c.steps.linear) for c in self._clocks), default=1)

    @cached_property
    def dense(self) -> dict[str, float]:
        """The costs of the model as it is; its milliseconds as measured, where they were."""
        measured = {latency(c.target): c.dense_ms for c in self._clocks}
        return self.of({}) | {what: ms for what, ms in measured.items() if ms is not None}


class _Lives:
    """Bytes alive at each operator, as a function of how many units are gone."""

    def __init__(self, lifetimes: Lifetimes) -> None:
        lives = lifetimes.lives
        self._inputs = lifetimes.inputs
        self._bytes = np.array([life.bytes for life in lives], dtype=np.float64)
        self._born = np.array([life.born for life in lives], dtype=np.int64)
        self._dies = np.array([life.dies for life in lives], dtype=np.int64)
        slopes: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, life in enumerate(lives):
            for name, per_unit in life.per_unit:
                slopes[name].append((place, per_unit))
        self._slopes = {name: (np.array([p for p, _ in own]), np.array([s for _, s in own])) for name, own in slopes.items()}

    def most(self, gone: Mapping[str, Sequence[int]], smooth: bool) -> float:
        """At the peak, inputs included; smooth: the 8-norm over the operators in place of their maximum."""
        sizes = self._bytes.copy()
        for name, (places, per_unit) in self._slopes.items():
            sizes[places] -= per_unit * len(gone.get(name, ()))
        change = np.zeros(int(self._dies.max(initial=0)) + 1)
        np.add.at(change, self._born, sizes)
        np.add.at(change, self._dies, -sizes)
        alive = np.maximum(change.cumsum(), 0.0)
        return self._inputs + float((alive**8).mean() ** 0.125 if smooth else alive.max(initial=0.0))


def latency(target: str) -> str:
    """How a target's milliseconds are called among the costs."""
    return f"latency.{target}"


def _by_weight(map: ModelMap) -> Iterable[tuple[str, float]]:
    """(weight, MACs that are proportional to it)."""
    macs, shapes = {layer.name: layer.macs for layer in map.layers}, {t.name: t.shape for t in map.tensors}
    for layer in map.layers:
        yield from ((name, layer.macs) for name in layer.weights)
        out = f"{layer.name}.out_proj"
        if f"{layer.name}.in_proj_weight" in shapes and macs.get(out):
            yield f"{layer.name}.in_proj_weight", _projections(layer.macs, macs[out], *shapes[f"{out}.weight"])


def _projections(spent: float, out: float, width: int, inner: int) -> float:
    """MACs of an attention's packed projections, of what it spends besides its output projection, from the latter's.

    With T queries and S keys: out = T I E; spent = T I E + 2 S I E + 2 T S I, the last of which are products of activations.
    """
    queries = out / (inner * width)
    keys = max(spent - out, 0.0) / (2 * inner * (width + queries))
    return out + 2 * keys * inner * width


def limits(budget: Budget, dense: Mapping[str, float]) -> dict[str, float]:
    """The budget in absolute numbers; latencies only of targets that `dense` knows."""
    found: dict[str, float] = {}
    for what in ("macs", "params", "bytes", "peak_memory"):
        limit = getattr(budget, what)
        if limit is not None and what in dense:
            found[what] = limit.fraction * dense[what] if isinstance(limit, Share) else limit.count
    for target, wish in budget.latency.items():
        what = latency(target)
        if what in dense:
            found[what] = wish.fraction * dense[what] if isinstance(wish, Share) else wish.milliseconds
    if budget.accuracy_drop is not None and not found:
        found["macs"] = dense["macs"]  # what the depth of a cut is counted in
    return found
