"""torch-pruning's record of a cut, `pruning_history`: a list of [layer, whether outputs leave, indices].

Indices count what the entries before have left. Written and read here without torch-pruning.
"""

import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from sparsify.errors import ModelError
from sparsify.formatting.numbers import list_few
from sparsify.graph.model_map import Coupled, ModelMap, Slice
from sparsify.graph.names import canonical_names
from sparsify.graph.surgery.operations import indices_of_units, to_indices
from sparsify.graph.trace.labels import Ints
from sparsify_schemas.cuts import Cuts, Narrow

_OUTPUTS_SECOND = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.EmbeddingBag,
)
"""layers whose weight has its outputs in dimension 1"""


class Entry(NamedTuple):
    """One step of a history."""

    layer: str
    """dotted name of a module, or of a bare parameter"""
    outputs: bool
    """whether outputs leave; else inputs"""
    indices: tuple[int, ...]
    """which ones leave, of those that the entries before have left"""


def parse_history(found: Any, name: str) -> tuple[Entry, ...]:
    """Check that something is a history. Raises ModelError, which names the entry."""
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ModelError(
            f"{name}: a pruning history is a list of [layer, whether outputs leave, indices], as "
            f"pruner.pruning_history() returns it; found a {type(found).__name__}"
        )
    entries = []
    for number, entry in enumerate(found):
        try:
            layer, outputs, indices = entry
            whole = _read_indices(indices)
        except (TypeError, ValueError):
            whole, layer, outputs = None, "", None
        if whole is None or not isinstance(layer, str) or not isinstance(outputs, bool):
            raise ModelError(
                f"{name}: entry {number} of the pruning history is not [layer, true or false, indices]"
            )
        entries.append(Entry(layer, outputs, tuple(whole)))
    return tuple(entries)


def _read_indices(found: Any) -> list[int]:
    """Raises TypeError where something else than whole numbers is in it."""
    if isinstance(found, str) or any(isinstance(index, bool) for index in found):
        raise TypeError("not a list of whole numbers")
    return [operator.index(index) for index in found]


def read_history(model: nn.Module, model_map: ModelMap, history: Sequence[Entry]) -> dict[str, list[int]]:
    """The units that a history leaves, for each coupled group that loses some.

    Each entry's indices are told in indices of the dense model; the units that hold them leave. An entry
    must remove whole units.

    Args:
        model: The dense model.
        model_map: Of the dense model.
        history: Entries in order.

    Raises:
        ModelError: An entry names what the model does not have, or a part of a unit. The message says which.
    """
    gone: dict[str, set[int]] = defaultdict(set)
    shapes = {tensor.name: tensor.shape for tensor in model_map.tensors}
    for number, entry in enumerate(history):
        where = f"entry {number} of the pruning history"
        tensor, dim = _find_dimension(model, shapes, entry, where)
        there = model_map.slices_at.get((tensor, dim), [])
        left = _find_left(shapes[tensor][dim], there, gone)
        chosen = sorted(set(entry.indices))
        if chosen and not 0 <= chosen[0] <= chosen[-1] < len(left):
            outside = next(i for i in chosen if not 0 <= i < len(left))
            side = "outputs" if entry.outputs else "inputs"
            raise ModelError(
                f"{where} removes index {outside} of '{entry.layer}', which has {len(left)} {side} by then"
            )
        lost = left[np.asarray(chosen, np.int64)]
        if len(lost) == len(left):
            raise ModelError(
                f"{where} removes all of '{entry.layer}'; torch-pruning 1.6.1 writes such an entry after "
                "group.prune(idxs=...), and cannot read it again itself: remove the entry"
            )
        for group, units in _find_units(there, lost, gone, entry, where):
            gone[group.name].update(units.tolist())
    return {name: sorted(set(range(model_map.by_name[name].width)) - units) for name, units in gone.items()}


def write_history(dense: nn.Module, rounds: Sequence[Cuts]) -> list[Entry]:
    """The history of cuts that torch-pruning's `load_pruning_history` repeats on the dense model.

    One entry for each coupled group that lost units, by the layer that the group is named after.

    Args:
        dense: The dense model.
        rounds: Logs of the cuts, in order.

    Raises:
        ModelError: A history cannot say it: a layer or a residual branch was replaced or removed, columns of
            a weight were gathered, a layer got a bias, or units are no outputs of a layer.
    """
    history = []
    for cuts in rounds:
        odd = next((op for op in cuts.operations if op.op not in _TOLD), None)
        if odd is not None:
            name = getattr(odd, "module", getattr(odd, "tensor", ""))
            raise ModelError(
                f"torch-pruning's history knows widths alone, and '{name}' changed otherwise ({odd.op}); "
                "export another format"
            )
        narrowed = {(op.tensor, op.dim): op for op in cuts.operations if isinstance(op, Narrow)}
        for width in cuts.widths:
            if width.kept < width.width:
                tensor, dim = _find_outputs(dense, width.group)
                op = narrowed.get((tensor, dim))
                if op is None:
                    raise ModelError(
                        f"units of '{width.group}' are no outputs of a layer that torch-pruning's history "
                        "could name; export another format"
                    )
                lost = sorted(set(range(op.size)) - set(to_indices(op.keep).tolist()))
                history.append(Entry(width.group, True, tuple(lost)))
    return history


_TOLD = ("narrow", "set", "zero")
"""operations that a history implies, or that are in the weights"""


def _find_outputs(dense: nn.Module, layer: str) -> tuple[str, int]:
    """The weight of a layer and the dimension of its outputs."""
    try:
        module = dense.get_submodule(layer)
    except AttributeError:
        return layer, 0
    tensor = canonical_names(dense).get(f"{layer}.weight", f"{layer}.weight")
    return tensor, int(isinstance(module, _OUTPUTS_SECOND))


def _find_dimension(
    model: nn.Module, shapes: Mapping[str, Sequence[int]], entry: Entry, where: str
) -> tuple[str, int]:
    """The tensor and the dimension that an entry speaks of."""
    try:
        module = model.get_submodule(entry.layer)
    except AttributeError:
        if entry.layer in shapes:  # a bare parameter: torch-pruning takes its last dimension with a length
            lengths = shapes[entry.layer]
            return entry.layer, max((d for d, size in enumerate(lengths) if size > 1), default=0)
        raise ModelError(f"{where} names '{entry.layer}', which the dense model does not have") from None
    of_attention = isinstance(module, nn.MultiheadAttention)
    tensor = f"{entry.layer}.out_proj.weight" if of_attention else f"{entry.layer}.weight"
    tensor = canonical_names(model).get(tensor, tensor)  # of tied weights one name is known
    if tensor not in shapes:
        raise ModelError(
            f"{where} names '{entry.layer}', a {type(module).__name__} without a weight of its own; give the "
            "narrower state dict in place of the history"
        )
    outputs_second = isinstance(module, _OUTPUTS_SECOND)
    dim = int(entry.outputs == outputs_second) if len(shapes[tensor]) > 1 else 0
    groups = getattr(module, "groups", 1)
    if groups > 1 and groups == getattr(module, "in_channels", 0):  # one channel each: in and out are one
        return tensor, 0
    if not entry.outputs and groups > 1:
        raise ModelError(
            f"{where} removes inputs of the grouped convolution '{entry.layer}', which its weight does not "
            "list; give the narrower state dict in place of the history"
        )
    return tensor, dim


def _find_left(size: int, there: Iterable[tuple[Coupled, Slice]], gone: Mapping[str, set[int]]) -> Ints:
    """Dense indices of a dimension that have not left yet."""
    left = np.ones(size, bool)
    for group, part in there:
        if gone.get(group.name):
            left[indices_of_units(part.spans, np.asarray(sorted(gone[group.name]), np.int64))] = False
    return np.nonzero(left)[0]


def _find_units(
    there: Sequence[tuple[Coupled, Slice]],
    lost: Ints,
    gone: Mapping[str, set[int]],
    entry: Entry,
    where: str,
) -> Iterator[tuple[Coupled, Ints]]:
    """The units that hold the lost indices. Raises ModelError where a part of a unit would stay."""
    explained = np.zeros(0, np.int64)
    for group, part in there:
        present = np.asarray(sorted(set(range(group.width)) - gone.get(group.name, set())), np.int64)
        owner = _list_owners(part)
        held = np.bincount(owner[owner >= 0], minlength=group.width)
        own = owner[lost[lost < len(owner)]]
        shared = np.bincount(own[own >= 0], minlength=group.width)
        parted = present[(shared[present] > 0) & (shared[present] < held[present])]
        if len(own[own >= 0]) and group.protected:
            raise ModelError(f"{where} removes a part of '{entry.layer}', and {group.protected}")
        if len(parted):
            unit = int(parted[0])
            raise ModelError(
                f"{where} removes {shared[unit]} of the {held[unit]} places in '{entry.layer}' that unit "
                f"{unit} of '{group.name}' holds, and a unit leaves as a whole: an attention "
                "head, a group of a GroupNorm or what is coupled with one output"
            )
        units = present[shared[present] > 0]
        if len(units):
            explained = np.union1d(explained, indices_of_units(part.spans, units))
            yield group, units
    rest = np.setdiff1d(lost, explained)
    if len(rest):
        raise ModelError(
            f"{where} removes {list_few(tuple(str(i) for i in rest.tolist()), 5)} of '{entry.layer}', and no "
            "unit of the model holds a part of it"
        )


def _list_owners(part: Slice) -> Ints:
    """Unit of every index of a dimension, up to the last that belongs to one; -1 where it belongs to none."""
    length = max(span.start + span.units * span.repeat for span in part.spans)
    owner = np.full(length, -1, np.int64)
    for span in part.spans:
        units = span.unit + np.arange(span.units)
        owner[span.start : span.start + span.units * span.repeat] = np.repeat(units, span.repeat)
    return owner
