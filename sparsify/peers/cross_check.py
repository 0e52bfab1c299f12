"""Our coupled groups beside those of torch-pruning's dependency graph, on the same model and inputs."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from sparsify.cost.measure import copy_model
from sparsify.forward.call_model import move_inputs_to_cpu
from sparsify.forward.calls import Inputs
from sparsify.graph.model_map import Coupled, ModelMap
from sparsify.peers.channel_groups import Item, find_items
from sparsify.peers.group_comparison import CrossCheck, GroupComparison
from sparsify.peers.limited_process import PeerError, ask_process
from sparsify.peers.requests import GroupsRequest, Limits
from sparsify.peers.torch_pruning_import import torch_pruning

Place = tuple[str, bool]
"""name of a module, and whether its outputs leave; of a parameter that no known layer holds its own name"""
Channels = Mapping[int, int | None]
"""channel -> unit; None where that is not known"""

_UNKNOWN = "torch-pruning knows none of its layers"
_LIMITS = Limits()


def cross_check(model: nn.Module, map: ModelMap, inputs: Inputs, limits: Limits = _LIMITS) -> CrossCheck:
    """Compare each coupled group with what torch-pruning couples with the same channels.

    Its graph is built in a process of its own, as on some networks it does not end.

    Args:
        model: The dense model, which is left as it is.
        map: Made of this model, as `plan.map`.
        inputs: What one call of the model takes.
        limits: Of the process: 600 seconds and 8 GiB when left out.

    Returns:
        A comparison for each coupled group, or why torch-pruning has no groups.

    Examples:
        >>> plan = sparsify.make_plan(recipe, model, (x,))
        >>> [found.differences for found in cross_check(model, plan.map, (x,)).groups]
        [(), ()]
    """
    copy = copy_model(model).cpu().eval()
    items = {group.name: find_items(copy, group) for group in map.coupled}
    roots = tuple(dict.fromkeys(own[0].name for own in items.values() if own and own[0].is_out))
    try:
        answer = ask_process(GroupsRequest(copy, move_inputs_to_cpu(inputs), roots), limits)
    except PeerError as error:
        return CrossCheck(failure=str(error))
    found = []
    for group in map.coupled:
        differences = tuple(_compare_group(copy, group, items[group.name], answer["groups"]))
        protected = group.protected if group.is_reached else None
        found.append(GroupComparison(group.name, group.width, differences, protected))
    return CrossCheck(tuple(found))


def _compare_group(
    model: nn.Module, group: Coupled, items: list[Item], theirs: Mapping[str, Any]
) -> Iterator[str]:
    if not items or not items[0].is_out:
        yield _UNKNOWN
        return
    root = items[0]
    rows = theirs[root.name]
    if rows is None:
        yield f"does not follow '{root.name}'"
        return
    if isinstance(rows, str):
        yield f"raises {rows}"
        return
    ours = _list_ours(model, group, items)
    other = _list_theirs(root, rows)
    for place in other:
        if place not in ours:
            yield f"couples also {_name_place(place)}"
    for place, channels in ours.items():
        if place not in other:
            yield f"does not couple {_name_place(place)}"
        elif channels and dict(channels) != dict(other[place]):
            yield f"couples other channels of {_name_place(place)}"


def _list_ours(model: nn.Module, group: Coupled, items: list[Item]) -> dict[Place, Channels]:
    """Layers with their channels; layers and parameters that have no pruning function for these without."""
    found: dict[Place, Channels] = {(item.name, item.is_out): item.units for item in items}
    known = {item.name for item in items}
    ops = torch_pruning().ops
    for part in group.slices:
        name = part.tensor.rpartition(".")[0]
        if part.role not in ("in", "out") or name in known:
            continue
        kind = ops.module2type(model.get_submodule(name))
        is_layer = kind in (ops.OPTYPE.MHA, ops.OPTYPE.LSTM)
        is_parameter = kind == ops.OPTYPE.ELEMENTWISE and part.tensor in dict(model.named_parameters())
        if is_layer or is_parameter:
            found[name if is_layer else part.tensor, True] = {}
    return found


def _list_theirs(root: Item, rows: list[Any]) -> dict[Place, Channels]:
    """Of the root's channels in this group alone, as units of it."""
    found: dict[Place, Channels] = {}
    for name, is_out, channels in rows:
        units = {}
        for channel, of_root in channels.items():
            if of_root is None or of_root in root.units:
                units[int(channel)] = None if of_root is None else root.units[of_root]
        if units:
            found[name, is_out] = units
    return found


def _name_place(place: Place) -> str:
    name, is_out = place
    return f"the {'outputs' if is_out else 'inputs'} of '{name}'"
