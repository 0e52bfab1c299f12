"""The units that a model cut elsewhere kept, and what the report says of how they were told."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.formatting.numbers import count_noun, format_share, list_few
from sparsify.graph.adoption.unit_matching import Match
from sparsify.graph.model_map import Slice
from sparsify.pruning.planning.plan import Plan

HISTORY = "the pruning history"
"""what tells the units, for notes"""


@dataclass(frozen=True)
class KeptUnits:
    """The units that stayed."""

    keep: Mapping[str, list[int]]
    """coupled group -> units, ascending"""
    matches: Mapping[str, Match]
    """how they were found in the weights; empty where the history says it, or only their numbers are known"""
    told_by: str
    refused: str = ""
    """why a history that the file holds was not used"""

    @property
    def is_certain(self) -> bool:
        """Whether a history or equal rows tell them."""
        exact = bool(self.matches) and all(match.exact for match in self.matches.values())
        return exact or self.told_by == HISTORY

    @property
    def distance(self) -> float:
        """The largest distance of rows that were matched by likeness."""
        return max((match.distance for match in self.matches.values()), default=0.0)


def describe_heads(plan: Plan, units: KeptUnits) -> Iterator[str]:
    """Groups that shapes alone do not tell: a width may be fewer heads, or as many narrower ones."""
    heads = _list_ambiguous(plan, units)
    if heads:
        yield (
            f"Warning: {list_few(heads)} may have lost whole attention heads or channels inside of each; "
            "shapes do not tell, and units of the dense model's coupled groups were taken: compare the "
            "outputs with those of the source, or give the dense weights"
        )


def describe_whole_units(plan: Plan, units: KeptUnits) -> Iterator[str]:
    """Numbers of heads and groups that weights do not tell."""
    heads = _list_ambiguous(plan, units)
    if heads:
        yield (
            f"{list_few(heads)} lost whole units of several channels each, such as attention heads, and the "
            "numbers of heads or groups were set to what is left; weights do not say what the source's "
            "code counts"
        )


def _list_ambiguous(plan: Plan, units: KeptUnits) -> tuple[str, ...]:
    dims = {tensor.name: len(tensor.shape) for tensor in plan.map.tensors}
    found = []
    for group in plan.map.coupled:
        if group.name in units.keep and any(_is_ambiguous(part, dims) for part in group.slices):
            found.append(group.name)
    return tuple(found)


def _is_ambiguous(part: Slice, dims: Mapping[str, int]) -> bool:
    """Whether units are rows of heads, or the same places in each of them, in the weight of a linear layer;
    or whole groups of a normalisation."""
    if part.role == "size":
        return part.tensor.endswith(":num_groups")
    if part.role != "out" or dims.get(part.tensor) != 2:
        return False
    several = len(part.spans) > 1 and len({(span.unit, span.units) for span in part.spans}) == 1
    return several or any(span.repeat > 1 for span in part.spans)


def describe_likeness(units: KeptUnits) -> Iterator[str]:
    by_likeness = {name: match for name, match in units.matches.items() if not match.exact}
    if by_likeness:
        farthest = max(by_likeness, key=lambda name: by_likeness[name].distance)
        yield (
            f"the units of {list_few(tuple(by_likeness))} were matched by likeness, as their weights were "
            "trained after the cut: the likest rows differ by up to "
            f"{format_share(by_likeness[farthest].distance)} of their length ('{farthest}'), and some may "
            "be other units; a pruning history would settle it"
        )


def describe_training(state: Mapping[str, Tensor], model: nn.Module) -> str:
    """How far the file's weights are from those of the dense model's units that stayed."""
    own = model.state_dict()
    floats = [name for name, value in state.items() if name in own and value.is_floating_point()]
    moved = [name for name in floats if not torch.equal(own[name].to(state[name].dtype), state[name])]
    if not moved:
        same = "its weights are those of the dense model's units that stayed"
        rounded = [name for name in floats if not torch.equal(own[name], state[name].to(own[name]))]
        if rounded:
            return f"{same}, rounded to {str(state[rounded[0]].dtype).removeprefix('torch.')}"
        return f"{same}, bit for bit"
    squares = [(float((own[n] - state[n]).double().square().sum()), n) for n in moved]
    total = sum(float(own[name].double().square().sum()) for name in floats) or 1.0
    share = (sum(square for square, _ in squares) / total) ** 0.5
    return (
        f"{count_noun(len(moved), 'tensor')} of {len(floats)} differ from those of the dense model's units "
        f"that stayed, by {format_share(share)} of their length in all (most in '{max(squares)[1]}'): they "
        "were trained or repaired after the cut"
    )


def describe_strays(strays: Mapping[str, str]) -> str:
    """Tensors whose units are not those of the layers that they are coupled with."""
    tensor, group = next(iter(strays.items()))
    others = f" and {count_noun(len(strays) - 1, 'other tensor')}" if len(strays) > 1 else ""
    return (
        "Warning: the model was cut apart elsewhere, and computes something else than the dense model "
        f"without these units: '{tensor}'{others} in the file held other units, or another order of them, "
        f"than '{group}' kept; its weights are adopted as they are"
    )
