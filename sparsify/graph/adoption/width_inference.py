"""Which widths a state dict was cut to, from the shapes of its tensors alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparsify.errors import ModelError
from sparsify.formatting.numbers import count_noun
from sparsify.graph.model_map import Coupled, ModelMap, Slice

Shapes = Mapping[str, Sequence[int]]
"""tensor -> its shape in the file"""


@dataclass(frozen=True)
class _Dimension:
    """What one dimension of one tensor says: sum of cost times units lost, over groups, is `lost`."""

    tensor: str
    dim: int
    dense: int
    found: int
    costs: Mapping[str, int]
    """coupled group -> indices of this dimension that each of its units holds"""

    @property
    def lost(self) -> int:
        return self.dense - self.found

    @property
    def place(self) -> str:
        layer = self.tensor.rpartition(".")[0] or self.tensor
        return f"'{layer}': dimension {self.dim} of '{self.tensor}' has {self.found} of {self.dense}"


def infer_widths(model_map: ModelMap, shapes: Shapes) -> dict[str, int]:
    """How many units of each coupled group a state dict has kept.

    A tensor's dimension is shorter by the sum, over the groups that reach it, of the units lost times the
    indices that each unit holds. These equations are solved one by one: where all but one group of a
    dimension are known, so is that one.

    Args:
        model_map: Of the dense model.
        shapes: Of the tensors in the file, by their names in the dense model.

    Returns:
        Coupled group -> units kept, for each group that lost some.

    Raises:
        ModelError: The shapes are not those of a cut of this model. The message names each layer that does
            not fit.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 2))
        >>> model_map = build_map(model, (torch.randn(1, 4),), {})
        >>> infer_widths(model_map, {"0.weight": (8, 4), "0.bias": (8,), "1.weight": (2, 8), "1.bias": (2,)})
        {'0': 8}
    """
    dimensions = list(_list_dimensions(model_map, shapes))
    faults = list(_list_misfits(dimensions))
    lost = _solve(dimensions)
    faults += _list_contradictions(model_map, dimensions, lost)
    if faults:
        raise ModelError(_describe_faults(faults))
    return {name: model_map.by_name[name].width - count for name, count in lost.items() if count}


def _list_dimensions(model_map: ModelMap, shapes: Shapes) -> Iterator[_Dimension]:
    for tensor in model_map.tensors:
        found = shapes.get(tensor.name)
        if found is None:
            continue
        if len(found) != len(tensor.shape):
            raise ModelError(
                f"'{tensor.name}' has {count_noun(len(found), 'dimension')} in the file and "
                f"{len(tensor.shape)} in the dense model; it is not a cut of this model"
            )
        for dim, (dense, now) in enumerate(zip(tensor.shape, found, strict=True)):
            there = model_map.slices_at.get((tensor.name, dim), ())
            costs = {group.name: _count_held(part, group) for group, part in there}
            yield _Dimension(tensor.name, dim, dense, now, costs)


def _count_held(part: Slice, group: Coupled) -> int:
    """Indices of a slice that each unit of the group holds."""
    return sum(span.units * span.repeat for span in part.spans) // group.width


def _list_misfits(dimensions: Iterable[_Dimension]) -> Iterator[str]:
    for each in dimensions:
        if each.lost < 0:
            yield f"{each.place}: it is wider than the dense model"
        elif each.lost and not each.costs:
            yield f"{each.place}, and no unit of the model holds a part of it"


def _solve(dimensions: Sequence[_Dimension]) -> dict[str, int]:
    """Coupled group -> units lost, as far as the dimensions tell."""
    lost: dict[str, int] = {}
    waiting = [each for each in dimensions if each.costs and each.lost >= 0]
    while True:
        left = []
        for each in waiting:
            unknown = [name for name in each.costs if name not in lost]
            if len(unknown) > 1:
                left.append(each)
                continue
            if unknown:
                (name,) = unknown
                rest = each.lost - _sum_lost(each, lost)
                lost[name] = max(rest, 0) // each.costs[name]
        if len(left) == len(waiting):
            return lost
        waiting = left


def _sum_lost(each: _Dimension, lost: Mapping[str, int]) -> int:
    return sum(cost * lost.get(name, 0) for name, cost in each.costs.items())


def _list_contradictions(
    model_map: ModelMap, dimensions: Iterable[_Dimension], lost: Mapping[str, int]
) -> Iterator[str]:
    """Dimensions that the widths found do not explain, and groups that may not be cut."""
    for each in dimensions:
        unknown = [name for name in each.costs if name not in lost]
        if each.lost < 0 or not each.costs:
            continue
        if unknown and each.lost:
            names = " and ".join(f"'{name}'" for name in unknown)
            yield f"{each.place}, and how much of it belongs to {names} cannot be told"
        elif not unknown and _sum_lost(each, lost) != each.lost:
            whole = {name: cost for name, cost in each.costs.items() if cost > 1}
            why = "the layers that are coupled with it kept other widths"
            (first, *others) = (model_map.by_name[name] for name in each.costs)
            if not others and first.protected:
                why = first.protected
            elif not others and each.lost % whole.get(first.name, 1):
                why = f"units of '{first.name}' hold {whole[first.name]} each, and leave as a whole"
            yield f"{each.place}: {why}"
    for name, count in lost.items():
        group = model_map.by_name[name]
        if count and group.protected:
            yield f"'{name}' has {group.width - count} of {group.width} units, and {group.protected}"
        elif count >= group.width:
            yield f"'{name}' has none of {group.width} units"


_SHOWN = 8


def _describe_faults(faults: Sequence[str]) -> str:
    shown = [f"- {fault}" for fault in dict.fromkeys(faults)]
    more = len(shown) - _SHOWN
    listed = "\n".join(shown[:_SHOWN]) + (f"\n- and {more} more" if more > 0 else "")
    return f"the file is not a cut of the dense model that can be told:\n{listed}"
