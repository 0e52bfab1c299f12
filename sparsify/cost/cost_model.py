"""What a model of given widths costs: MACs, parameters and bytes, latency, and peak memory.

MACs, parameters and bytes are exact; latency is predicted by the targets' latency models, peak memory from
the lifetimes of the tensors of an inference.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparsify.cost.latency_model import LatencyModel
from sparsify.graph.model_map import Coupled, Lifetimes, ModelMap, Product, Run, Span, Tensor
from sparsify_schemas.budget import Budget
from sparsify_schemas.units import Share

Counts = NDArray[np.int64]


class Costs:
    """MACs, parameters, bytes, `latency.<target>` and peak memory as a function of the removed units.

    A tensor keeps prod over dimensions of (size - removed indices) elements, none if it is removed with a
    residual branch. The MACs of a product shrink with each dimension that it runs over, and vanish with
    the branch that its module is in. MACs that belong to no product are constant: the prediction is never
    too low.
    """

    def __init__(self, model_map: ModelMap, clocks: Sequence[LatencyModel] = ()) -> None:
        self._clocks = tuple(clocks)
        self._tensors = model_map.tensors
        self._products = model_map.products or tuple(_make_products(model_map))
        self._fixed_macs = model_map.macs - sum(product.macs for product in self._products)
        self._lengths = lengths = _Lengths(model_map)
        self._places = []
        for tensor in model_map.tensors:
            self._places.append([lengths.place(*dim, of_tensor=True) for dim in _list_dims(tensor)])
        self._numels = _Volumes(self._places, lengths)
        self._itemsizes = np.array([tensor.itemsize for tensor in model_map.tensors], dtype=np.int64)
        self._parameters = np.array([tensor.parameter for tensor in model_map.tensors], dtype=np.int64)
        spaces = []
        for product in self._products:
            spaces.append([lengths.place(*dim) for dim in product.dims])
        self._spaces = _Volumes(spaces, lengths)
        dense = self._spaces.of(lengths.after_removing({}))
        self._each = np.array([product.macs for product in self._products]) / np.maximum(dense, 1.0)
        """MACs of each product for one combination of indices"""
        self._tensors_of, self._products_of = dict[str, Counts](), dict[str, Counts]()
        """residual branch -> the tensors, and the products, that leave with it"""
        for branch in model_map.branches:
            own = [place for place, tensor in enumerate(model_map.tensors) if tensor.name in branch.tensors]
            inside = [place for place, product in enumerate(self._products) if branch.holds(product.module)]
            self._tensors_of[branch.name] = np.array(own, dtype=np.int64)
            self._products_of[branch.name] = np.array(inside, dtype=np.int64)
        self._mixtures = model_map.mixtures
        lists = tuple(f"{name}." for mixture in model_map.mixtures for name in mixture.lists)
        self._inside = {}
        for group in model_map.coupled if lists else ():
            if all(name.startswith(lists) for name in group.layers):
                self._inside[group.name] = group.layers[0]
        self._products_of_experts = {}
        for mixture in model_map.mixtures:
            reached = mixture.group.layers
            inside = [place for place, product in enumerate(self._products) if product.module in reached]
            self._products_of_experts[mixture.name] = np.array(inside, dtype=np.int64)
        self._lives = None if model_map.lifetimes is None else _MemoryModel(model_map.lifetimes)

    def of(self, gone: Mapping[str, Sequence[int]], *, smooth: bool = False) -> dict[str, float]:
        """Costs with the listed units of each coupled group removed.

        Returns 'macs', 'params', 'bytes', and 'latency.<target>', 'peak_memory' if known.
        smooth: also count moments near the memory peak, as they become the peak once others have shrunk.
        For prices.
        """
        lengths = self._lengths.after_removing(gone)
        numels, computed = self._numels.of(lengths), lengths
        ignored = self._list_inside_experts(gone)
        if ignored:
            rest = {name: units for name, units in gone.items() if name not in ignored}
            computed = self._lengths.after_removing(rest)
        spent = self._each * self._spaces.of(computed)
        for name in self._tensors_of.keys() & gone.keys():
            if len(gone[name]):
                numels[self._tensors_of[name]] = 0.0
                spent[self._products_of[name]] = 0.0
        size = float(numels @ self._itemsizes)
        macs, params = self._fixed_macs + float(spent.sum()), float(numels @ self._parameters)
        macs -= sum(self._list_freed(gone, spent))
        found = {"macs": macs, "params": params, "bytes": size}
        if self._clocks:
            shapes = self.shapes(gone)
            found |= {latency_key(clock.target): clock.ms(shapes) for clock in self._clocks}
        return (
            found if self._lives is None else found | {"peak_memory": size + self._lives.peak(gone, smooth)}
        )

    def _list_inside_experts(self, gone: Mapping[str, Sequence[int]]) -> set[str]:
        """Groups inside experts that leave: others compute what these did, and it is not known how narrow
        they are."""
        found: set[str] = set()
        for mixture in self._mixtures:
            if mixture.lists and len(gone.get(mixture.name, ())):
                stay = set(range(mixture.group.width)).difference(gone[mixture.name])
                members = tuple(mixture.list_members(stay))
                found |= {name for name, layer in self._inside.items() if f"{layer}.".startswith(members)}
        return found

    def _list_freed(self, gone: Mapping[str, Sequence[int]], spent: NDArray[np.float64]) -> Iterator[float]:
        """MACs that leave with whole experts: fewer, where narrower layers have made these cheaper."""
        for mixture in self._mixtures:
            count = len(gone.get(mixture.name, ()))
            if count:
                own = self._products_of_experts[mixture.name]
                dense = float((self._each * self._spaces.of(self._lengths.after_removing({})))[own].sum())
                left = float(spent[own].sum()) / dense if dense else 1.0
                yield mixture.macs * count * left

    def shapes(self, gone: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Tensor -> its shape with the listed units removed; zero elements if it is removed as a whole."""
        lengths = self._lengths.after_removing(gone).tolist()
        found = {}
        for tensor, places in zip(self._tensors, self._places, strict=True):
            found[tensor.name] = tuple(lengths[place] for place in places)
        for name in self._tensors_of.keys() & gone.keys():
            for place in self._tensors_of[name].tolist() if len(gone[name]) else ():
                tensor = self._tensors[place]
                found[tensor.name] = (0,) * max(1, len(tensor.shape))
        return found

    def macs_per_weight(self) -> dict[str, float]:
        """Tensor -> MACs per element; tensors without MACs are left out."""
        sizes = {tensor.name: tensor.numel for tensor in self._tensors}
        found: defaultdict[str, float] = defaultdict(float)
        for product in self._products:
            if product.weight is not None and sizes.get(product.weight):
                found[product.weight] += product.macs / sizes[product.weight]
        return dict(found)

    @property
    def step(self) -> int:
        """The width step of the slowest staircase; 1 if no latency counts."""
        return max((max(c.steps.convolution, c.steps.linear) for c in self._clocks), default=1)

    @cached_property
    def dense(self) -> dict[str, float]:
        """The costs of the dense model; latencies as measured, if they were."""
        measured = {latency_key(c.target): c.dense_ms for c in self._clocks}
        return self.of({}) | {what: ms for what, ms in measured.items() if ms is not None}


class _Lengths:
    """The lengths of dimensions, as a function of the removed units."""

    def __init__(self, model_map: ModelMap) -> None:
        self._spans: dict[tuple[str, int], list[tuple[Coupled, Span]]] = defaultdict(list)
        for group in model_map.coupled:
            for part in group.slices:
                self._spans[part.tensor, part.dim] += ((group, span) for span in part.spans)
        self._of_experts: dict[tuple[str, int], list[tuple[Coupled, Span]]] = defaultdict(list)
        """of whole experts, which shorten tensors; their products are counted by the mixture"""
        for mixture in model_map.mixtures:
            for part in mixture.group.slices:
                found = ((mixture.group, span) for span in part.spans)
                self._of_experts[part.tensor, part.dim] += found
        self._known: dict[tuple[int, tuple[Run, ...], bool], int] = {}
        self._per_unit: dict[str, dict[int, Counts]] = defaultdict(dict)
        """coupled group -> index of a length -> by how much each of the group's units shortens it"""

    def place(self, length: int, runs: tuple[Run, ...], of_tensor: bool = False) -> int:
        """Index of the length of a dimension whose indices are removed as the runs say.

        of_tensor: it is a dimension of a tensor rather than of a product.
        """
        known = len(self._known)
        of_experts = of_tensor and any((run.tensor, run.dim) in self._of_experts for run in runs)
        place = self._known.setdefault((length, runs, of_experts), known)
        for run in runs if place == known else ():
            spans = [*self._spans.get((run.tensor, run.dim), ())]
            spans += self._of_experts.get((run.tensor, run.dim), ()) if of_experts else ()
            for group, span in spans:
                own = _count_per_unit(run, span, group.width)
                if own.any():
                    self._per_unit[group.name][place] = self._per_unit[group.name].get(place, 0) + own
        return place

    def after_removing(self, gone: Mapping[str, Sequence[int]]) -> Counts:
        """Every length with the listed units of each coupled group removed."""
        dense, even, uneven = self._rates
        lengths = dense.copy()
        for name, units in gone.items():
            if name in even:
                places, rates = even[name]
                lengths[places] -= rates * len(units)
            if name in uneven and len(units):
                places, each = uneven[name]
                lengths[places] -= each[:, np.fromiter(units, dtype=np.int64)].sum(axis=1)
        return np.maximum(lengths, 0)  # a channel of an expert may leave, and the expert too

    @cached_property
    def _rates(self) -> tuple[Counts, dict[str, tuple[Counts, Counts]], dict[str, tuple[Counts, Counts]]]:
        """The dense lengths; by coupled group, the lengths that any unit shortens equally, and those where
        units differ."""
        even, uneven = dict[str, tuple[Counts, Counts]](), dict[str, tuple[Counts, Counts]]()
        for name, own in self._per_unit.items():
            alike = {place: int(rates[0]) for place, rates in own.items() if (rates == rates[0]).all()}
            others = {place: rates for place, rates in own.items() if place not in alike}
            if alike:
                even[name] = np.array(list(alike)), np.array(list(alike.values()))
            if others:
                uneven[name] = np.array(list(others)), np.stack(list(others.values()))
        return np.array([length for length, _, _ in self._known], dtype=np.int64), even, uneven


def _count_per_unit(run: Run, span: Span, width: int) -> Counts:
    """How many indices of a run are removed with each unit of a coupled group, by one of its spans."""
    found = np.zeros(width, dtype=np.int64)
    start, end = max(run.start, span.start), min(run.start + run.count, span.start + span.units * span.repeat)
    if (start, end) == (span.start, span.start + span.units * span.repeat):
        found[span.unit : span.unit + span.units] = span.repeat * run.times
    elif start < end:
        units = span.unit + (np.arange(start, end) - span.start) // span.repeat
        np.add.at(found, units, run.times)
    return found


class _Volumes:
    """Products of lengths: one for each list of lengths, 1 for an empty list."""

    def __init__(self, places: Sequence[Sequence[int]], lengths: _Lengths) -> None:
        one = lengths.place(1, ())
        filled = [own or (one,) for own in places]
        self._places = np.array([place for own in filled for place in own], dtype=np.int64)
        self._starts = np.cumsum([0, *map(len, filled[:-1])]) if filled else np.zeros(0, dtype=np.int64)

    def of(self, lengths: Counts) -> NDArray[np.float64]:
        """Exact up to 2^53."""
        if not len(self._starts):
            return np.zeros(0)
        factors = lengths[self._places].astype(np.float64)
        found: NDArray[np.float64] = np.multiply.reduceat(factors, self._starts)
        return found


class _MemoryModel:
    """Bytes alive at each operator, as a function of the number of removed units."""

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
        self._slopes = {}
        for name, own in slopes.items():
            places, per_units = zip(*own, strict=True)
            self._slopes[name] = np.array(places), np.array(per_units)

    def peak(self, gone: Mapping[str, Sequence[int]], smooth: bool) -> float:
        """Bytes at the peak, inputs included; smooth: the 8-norm over the operators instead of their
        maximum."""
        sizes = self._bytes.copy()
        for name, (places, per_unit) in self._slopes.items():
            sizes[places] -= per_unit * len(gone.get(name, ()))
        change = np.zeros(int(self._dies.max(initial=0)) + 1)
        np.add.at(change, self._born, sizes)
        np.add.at(change, self._dies, -sizes)
        alive = np.maximum(change.cumsum(), 0.0)
        return self._inputs + float((alive**8).mean() ** 0.125 if smooth else alive.max(initial=0.0))


def latency_key(target: str) -> str:
    """Name of a target's latency among the costs."""
    return f"latency.{target}"


def _list_dims(tensor: Tensor) -> Iterator[tuple[int, tuple[Run, ...]]]:
    """The dimensions of a tensor, as those of a product."""
    for dim, size in enumerate(tensor.shape):
        yield size, (Run(tensor.name, dim, 0, size),)


def _make_products(model_map: ModelMap) -> Iterator[Product]:
    """Products of a map that has none: a layer's MACs go with its weight, unless an earlier layer owns it."""
    owned = {tensor.name: tensor for tensor in model_map.tensors}
    for layer in model_map.layers:
        for name in layer.weights:
            if name in owned:
                yield Product(layer.name, layer.macs, tuple(_list_dims(owned[name])), name)


def absolute_limits(budget: Budget, dense: Mapping[str, float]) -> dict[str, float]:
    """The budget in absolute numbers; latencies only of targets that `dense` has."""
    found: dict[str, float] = {}
    for what in ("macs", "params", "bytes", "peak_memory"):
        limit = getattr(budget, what)
        if limit is not None and what in dense:
            found[what] = limit.fraction * dense[what] if isinstance(limit, Share) else limit.count
    for target, wish in budget.latency.items():
        what = latency_key(target)
        if what in dense:
            found[what] = wish.fraction * dense[what] if isinstance(wish, Share) else wish.milliseconds
    if budget.accuracy_drop is not None and not found:
        found["macs"] = dense["macs"]  # what the depth of a cut is counted in
    return found
