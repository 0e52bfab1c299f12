"""Our coupled groups as groups of torch-pruning, so that what is written for those runs on them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsify.errors import ModelError
from sparsify.graph.model_map import Coupled, Slice
from sparsify.peers.torch_pruning_import import torch_pruning

_COMPUTED = ("weight", "original", "original1", "weight_v", "weight_orig")
"""last part of the name of a layer's weight, or of the tensor that it is computed from"""


@dataclass(frozen=True)
class ChannelGroup:
    """A coupled group as torch-pruning sees it."""

    group: Any
    """torch_pruning.dependency.Group: items (dep, idxs) with root_idxs, the root first"""
    units: tuple[int, ...]
    """unit of each channel of the root, in the order of the scores"""


@dataclass(frozen=True)
class Item:
    """What of one layer leaves with the group."""

    name: str
    module: nn.Module
    is_out: bool
    units: Mapping[int, int]
    """channel -> unit, by ascending channel"""


def make_channel_group(model: nn.Module, coupled: Coupled) -> ChannelGroup:
    """The group with every layer that torch-pruning has a pruning function for.

    A unit may have several channels: the rows of a head, the same places of the groups of a convolution, the
    positions behind a flatten. Entry j of k that a layer has of a unit belongs to channel floor(j * r / k) of
    the r that the root has.
    Raises ModelError where it has none for any layer.
    """
    package = torch_pruning()
    items = find_items(model, coupled)
    if not items:
        raise ModelError(
            f"torch-pruning knows none of the layers of '{coupled.name}' ({', '.join(coupled.layers)}); "
            "use magnitude there"
        )
    root, *others = items
    channels = _place_channels(root)
    made = package.dependency.Group()
    root_node = package.dependency.Node(root.module, None, root.name)
    for item in (root, *others):
        node = root_node if item is root else package.dependency.Node(item.module, None, item.name)
        handler, trigger = _pruning_function(package, item), _pruning_function(package, root)
        dep = package.dependency.Dependency(trigger, handler, source=root_node, target=node)
        entry = package._helpers.GroupItem(dep, list(item.units))
        entry.root_idxs = _find_root_channels(item, channels)
        made._group.append(entry)
    return ChannelGroup(made, tuple(root.units.values()))


def find_items(model: nn.Module, coupled: Coupled) -> list[Item]:
    """The layers of a group, the one whose channels are scored first."""
    package = torch_pruning()
    items = list(_list_items(model, coupled))
    root = next((item for item in items if _is_root(package, item, coupled.width)), None)
    if root is not None:
        items.remove(root)
        items.insert(0, root)
    return items


def _is_root(package: Any, item: Item, width: int) -> bool:
    """Whether a layer produces the channels, and importances look at it."""
    kind = package.ops.module2type(item.module)
    is_producer = kind in (package.ops.OPTYPE.CONV, package.ops.OPTYPE.LINEAR) and item.is_out
    return is_producer and len(set(item.units.values())) == width


def _list_items(model: nn.Module, coupled: Coupled) -> Iterator[Item]:
    """One item for each layer and direction, in the order of the group's slices."""
    found: dict[tuple[str, bool], dict[int, int]] = {}
    modules: dict[str, nn.Module] = {}
    for part in coupled.slices:
        if part.role not in ("in", "out"):
            continue
        name, attribute = _split_name(part.tensor)
        module = model.get_submodule(name)
        is_out = _leaves_as_output(module, attribute, part)
        if is_out is None:
            continue
        modules[name] = module
        entries = found.setdefault((name, is_out), {})
        for index, unit in list_entries(part):
            for channel in _list_channels(module, is_out, index):
                entries[channel] = unit
    for (name, is_out), entries in found.items():
        yield Item(name, modules[name], is_out, dict(sorted(entries.items())))


def _split_name(tensor: str) -> tuple[str, str]:
    """Module and attribute; of a parametrized weight those of the weight itself."""
    name, _, attribute = tensor.rpartition(".")
    return name.partition(".parametrizations.")[0], attribute


def _leaves_as_output(module: nn.Module, attribute: str, part: Slice) -> bool | None:
    """Whether the slice is of the layer's outputs; None where torch-pruning does not score it."""
    ops = torch_pruning().ops
    kind = ops.module2type(module)
    if kind in (ops.OPTYPE.CONV, ops.OPTYPE.DEPTHWISE_CONV, ops.OPTYPE.LINEAR):
        if attribute not in _COMPUTED:
            return None  # a bias leaves with its row
        outputs = 1 if getattr(module, "transposed", False) else 0
        if kind == ops.OPTYPE.DEPTHWISE_CONV:
            return True if part.dim == outputs or part.dim == 0 else None
        return part.dim == outputs
    if kind == ops.OPTYPE.EMBED:
        return True if part.dim == 1 else None
    if kind == ops.OPTYPE.LN:
        return True if len(module.normalized_shape) == 1 else None  # type: ignore[arg-type]
    return True if kind in (ops.OPTYPE.BN, ops.OPTYPE.GN, ops.OPTYPE.IN, ops.OPTYPE.PRELU) else None


def list_entries(part: Slice) -> Iterator[tuple[int, int]]:
    """(index of the dimension, unit)."""
    for span in part.spans:
        for place in range(span.units * span.repeat):
            yield span.start + place, span.unit + place // span.repeat


def _list_channels(module: nn.Module, is_out: bool, index: int) -> Iterator[int]:
    """The channels of an index: of the inputs of a grouped convolution one in each of its groups."""
    groups = getattr(module, "groups", 1) if not is_out else 1
    if groups == 1 or getattr(module, "transposed", False):
        yield index
        return
    width = module.in_channels // groups  # type: ignore[operator]
    yield from (index + number * width for number in range(groups))  # type: ignore[misc]


def _pruning_function(package: Any, item: Item) -> Any:
    pruner = package.pruner.function.PrunerBox[package.ops.module2type(item.module)]
    return pruner.prune_out_channels if item.is_out else pruner.prune_in_channels


def _place_channels(root: Item) -> Mapping[int, list[int]]:
    """Unit -> the places of its channels in the root."""
    found: dict[int, list[int]] = defaultdict(list)
    for place, unit in enumerate(root.units.values()):
        found[unit].append(place)
    return found


def _find_root_channels(item: Item, channels: Mapping[int, list[int]]) -> list[int | None]:
    """The root's place of each of the item's channels; None where the root does not have the unit."""
    counts: dict[int, int] = defaultdict(int)
    for unit in item.units.values():
        counts[unit] += 1
    seen: dict[int, int] = defaultdict(int)
    found: list[int | None] = []
    for unit in item.units.values():
        own = channels.get(unit)
        place = seen[unit]
        seen[unit] += 1
        found.append(None if own is None else own[place * len(own) // counts[unit]])
    return found
