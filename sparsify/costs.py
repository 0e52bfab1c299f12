"""What a model of given widths costs: MACs, parameters, bytes; exact for layers whose work is proportional to their weight."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparsify.plan import ModelMap
from sparsify_schemas.budget import Budget
from sparsify_schemas.units import Share

Counts = NDArray[np.int64]


class Costs:
    """MACs, parameters and bytes as a function of which units are gone.

    A tensor keeps prod over dimensions of (size - indices gone) elements, none when it leaves with a residual branch. A
    layer's MACs shrink with its weight; MACs of functional operations outside layers go with the residual branch that
    they are in, and are otherwise taken as constant, so the prediction is never below the truth there.
    """

    def __init__(self, map: ModelMap) -> None:
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
        # tensor -> dimension -> (coupled group, indices per unit)
        self._reach: dict[str, dict[int, list[tuple[str, Counts]]]] = defaultdict(lambda: defaultdict(list))
        for group in map.coupled:
            for part in group.slices:
                per_unit = np.zeros(group.width, dtype=np.int64)
                for span in part.spans:
                    per_unit[span.unit : span.unit + span.units] += span.repeat
                self._reach[part.tensor][part.dim].append((group.name, per_unit))

    def of(self, gone: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """{'macs', 'params', 'bytes'} with the listed units of each coupled group removed."""
        removed = {name: np.fromiter(units, dtype=np.int64) for name, units in gone.items() if len(units)}
        macs, params, size = float(self._fixed_macs), 0.0, 0.0
        macs -= sum(inside for name, inside in self._inside.items() if name in removed)
        for tensor in self._tensors:
            if any(name in removed for name in self._whole.get(tensor.name, ())):
                continue
            kept = 1
            for dim, length in enumerate(tensor.shape):
                reach = self._reach[tensor.name][dim] if tensor.name in self._reach else ()
                kept *= length - sum(int(per_unit[removed[name]].sum()) for name, per_unit in reach if name in removed)
            size += kept * tensor.itemsize
            if tensor.parameter:
                params += kept
            if tensor.name in self._macs and tensor.numel:
                macs += self._macs[tensor.name] * kept / tensor.numel
        return {"macs": macs, "params": params, "bytes": size}

    @cached_property
    def dense(self) -> dict[str, float]:
        """The costs of the model as it is."""
        return self.of({})


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
    """The budget in absolute numbers."""
    found = {}
    for what in ("macs", "params", "bytes"):
        limit = getattr(budget, what)
        if limit is not None:
            found[what] = limit.fraction * dense[what] if isinstance(limit, Share) else limit.count
    return found
