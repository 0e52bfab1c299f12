"""Cut a copy of the model, log each operation, and replay a log on a fresh dense model."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from sparsify.graph.copy import copy_with
from sparsify.graph.layer_types import attributes
from sparsify.graph.model_map import Branch, ModelMap
from sparsify.graph.names import all_tensors, canonical_names, walk_modules
from sparsify.graph.surgery import module_integers
from sparsify.graph.surgery.expert_lists import list_shortened, rename_operations, shorten_lists
from sparsify.graph.surgery.given_heads import list_selections, select_heads
from sparsify.graph.surgery.indices import Keep as Keep
from sparsify.graph.surgery.indices import indices_of_units as indices_of_units
from sparsify.graph.surgery.indices import to_indices as to_indices
from sparsify.graph.surgery.indices import to_ranges as to_ranges
from sparsify.graph.trace.labels import Ints
from sparsify.nn import attention
from sparsify.nn.bypass import Bypassed, Silenced, replace_module
from sparsify_schemas.cuts import (
    Bypass,
    Cuts,
    Narrow,
    Range,
    Replace,
    SetAttribute,
    Silence,
    Width,
)

KeptIndices = list[tuple[int, torch.Tensor]]
"""kept indices of one tensor: (dimension, indices)"""


def cut(model: nn.Module, model_map: ModelMap, keep: Keep, plan: str) -> tuple[nn.Module, Cuts]:
    """Remove every unit that is not in `keep` from a copy of the model. Groups that are not in `keep` stay
    whole.

    Returns (the copy, the log of what was done).
    """
    gone = removed_indices(model_map, keep)
    stubs = tuple(_list_stubs(removed_branches(model_map, keep)))
    steps = _kept_by_tensor(model_map, gone)
    copy, changes = _narrow_model(model, gone, steps, stubs)
    widths = tuple(
        Width(group=name, width=model_map.by_name[name].width, keep=to_ranges(kept))
        for name, kept in keep.items()
    )
    swaps = [op for op in changes if isinstance(op, Replace)]
    sets = [op for op in changes if isinstance(op, SetAttribute)]
    selections = list_selections(model_map, keep, removed_branches(model_map, keep))
    select_heads(copy, selections)
    shortened = list_shortened(model_map, keep)
    shorten_lists(copy, shortened)
    made = (*_log_narrowing(model_map, steps), *swaps, *stubs, *sets, *selections)
    done = rename_operations(made, shortened)
    return copy, Cuts(plan=plan, widths=widths, operations=(*shortened, *done))


def cut_on_trial(model: nn.Module, model_map: ModelMap, keep: Keep) -> nn.Module:
    """The same cut, without a log."""
    gone, removed = removed_indices(model_map, keep), removed_branches(model_map, keep)
    copy, _ = _narrow_model(model, gone, _kept_by_tensor(model_map, gone), tuple(_list_stubs(removed)))
    select_heads(copy, list_selections(model_map, keep, removed))
    shorten_lists(copy, list_shortened(model_map, keep))
    return copy


def _narrow_model(
    model: nn.Module,
    gone: Mapping[tuple[str, int, str], Ints],
    steps: Mapping[str, KeptIndices],
    stubs: Sequence[Bypass | Silence],
) -> tuple[nn.Module, list[Replace | SetAttribute]]:
    """Make the cut model, and list the changes to its modules."""
    copy = _copy_narrowed(model, steps, stubs)
    touched = dict.fromkeys(
        _owning_module(alias) for alias, name in canonical_names(model).items() if name in steps
    )
    removed = tuple(f"{stub.module}." for stub in stubs)
    left = [name for name in touched if not f"{name}.".startswith(removed)]
    replaced = list(_attentions_to_replace(model, left))
    for swap in replaced:
        attention.adopt(copy, swap.module)
    thin = dict(walk_modules(copy, every=True))
    lengths = list(_changed_lengths(model, gone))
    for op in lengths:
        _set_attribute(thin[op.module], op)  # a number of groups, which widths follow from
    widths = list(_changed_attributes(dict(walk_modules(model, every=True)), thin, left))
    for op in widths:
        _set_attribute(thin[op.module], op)
    return copy, [*replaced, *widths, *lengths]


def removed_branches(model_map: ModelMap, keep: Keep) -> list[Branch]:
    """The residual blocks and branches that are removed; none is inside another one."""
    return [b for b in model_map.branches if b.name in keep and not keep[b.name]]


def _list_stubs(branches: Iterable[Branch]) -> Iterable[Bypass | Silence]:
    for stub in (s for b in branches for s in b.stubs):
        yield (Silence if stub.zeros else Bypass)(module=stub.module, returns=stub.returns)


def removed_indices(model_map: ModelMap, keep: Keep) -> dict[tuple[str, int, str], Ints]:
    """(tensor, dimension, role) -> removed indices, ascending.

    Tensors and modules that are removed as a whole with a residual branch, or with an expert that is a
    member of a list, are not listed.
    """
    branches = removed_branches(model_map, keep)
    whole = {tensor for b in branches for tensor in b.tensors}
    members = model_map.list_members(keep)
    gone: dict[tuple[str, int, str], list[Ints]] = defaultdict(list)
    for name, kept in keep.items():
        group = model_map.by_name[name]
        leaves = np.setdiff1d(np.arange(group.width), np.asarray(kept, np.int64), assume_unique=True)
        if not len(leaves):
            continue
        lost: dict[int, Ints] = {}  # dimensions that are alike share their spans
        for part in group.slices:
            if part.tensor in whole or (members and part.tensor.startswith(members)):
                continue
            if part.role == "size" and any(b.holds(part.tensor.partition(":")[0]) for b in branches):
                continue
            if id(part.spans) not in lost:
                lost[id(part.spans)] = indices_of_units(part.spans, leaves)
            if not len(lost[id(part.spans)]):  # another expert's own tensor
                continue
            gone[part.tensor, part.dim, part.role].append(lost[id(part.spans)])
    return {where: _join_indices(own) for where, own in gone.items()}


def _join_indices(parts: Sequence[Ints]) -> Ints:
    if len(parts) == 1:
        return parts[0]
    return np.unique(np.concatenate(parts))


def kept_indices(model_map: ModelMap, keep: Keep, tensor: str, shape: Sequence[int]) -> list[list[int]]:
    """For each dimension of a tensor, the indices that stay."""
    gone: dict[int, set[int]] = defaultdict(set)
    for (name, dim, role), lost in removed_indices(model_map, keep).items():
        if name == tensor and role != "size":
            gone[dim].update(lost.tolist())
    return [sorted(set(range(size)) - gone[dim]) for dim, size in enumerate(shape)]


def _owning_module(tensor: str) -> str:
    """The module whose width attributes describe a tensor; for a parametrization, the module that it
    belongs to."""
    return tensor.rpartition(".")[0].partition(".parametrizations.")[0]


def _set_attribute(module: nn.Module, op: SetAttribute) -> None:
    if op.own:
        module_integers.write_own_number(module, op.attribute, op.value)
        return
    is_list = isinstance(getattr(module, op.attribute), list)
    value = list(op.value) if is_list and isinstance(op.value, tuple) else op.value
    setattr(module, op.attribute, value)


def _changed_lengths(model: nn.Module, gone: Mapping[tuple[str, int, str], Ints]) -> Iterable[SetAttribute]:
    """Attributes that hold the length of a dimension, such as num_heads, reduced by what is removed."""
    values: dict[tuple[str, str], int | list[int]] = {}
    for (name, _, role), lost in gone.items():
        if role != "size":
            continue
        module, _, attribute = name.partition(":")
        attribute, _, place = attribute.rstrip("]").partition("[")
        value = values.get((module, attribute), _read_length(model.get_submodule(module), attribute))
        if place:
            value = list(value)
            value[int(place)] -= len(lost)
        else:
            value -= len(lost)
        values[module, attribute] = value
    for (module, attribute), value in values.items():
        yield SetAttribute(
            module=module,
            attribute=attribute,
            value=tuple(value) if isinstance(value, list) else value,
            own="." in attribute,
        )


def _read_length(module: nn.Module, attribute: str) -> Any:
    """What a module holds; a path leads into one of its configurations."""
    if "." in attribute:
        return module_integers.read_number(module, attribute)
    return getattr(module, attribute)


def _kept_by_tensor(model_map: ModelMap, gone: Mapping[tuple[str, int, str], Ints]) -> dict[str, KeptIndices]:
    """Kept indices of every tensor that loses something. Dimensions that keep the same share one index
    tensor."""
    shapes = {t.name: t.shape for t in model_map.tensors}
    both: dict[tuple[str, int], Ints] = {}
    for (tensor, dim, role), lost in gone.items():
        if role != "size":
            both[tensor, dim] = np.union1d(both[tensor, dim], lost) if (tensor, dim) in both else lost
    steps: dict[str, KeptIndices] = defaultdict(list)
    known: dict[tuple[int, bytes], torch.Tensor] = {}
    for (tensor, dim), lost in both.items():
        size = shapes[tensor][dim]
        same = (size, lost.tobytes())
        if same not in known:
            known[same] = torch.from_numpy(np.nonzero(np.bincount(lost, minlength=size) == 0)[0])
        steps[tensor].append((dim, known[same]))
    return steps


def _log_narrowing(model_map: ModelMap, steps: Mapping[str, KeptIndices]) -> Iterable[Narrow]:
    shapes = {t.name: t.shape for t in model_map.tensors}
    known: dict[int, tuple[Range, ...]] = {}
    for tensor, own in steps.items():
        for dim, kept in own:
            if id(kept) not in known:
                known[id(kept)] = to_ranges(kept.numpy())
            # what is written here is right by construction: no validation of thousands of ranges
            yield Narrow.model_construct(
                op="narrow", tensor=tensor, dim=dim, size=shapes[tensor][dim], keep=known[id(kept)]
            )


def _changed_attributes(
    before: Mapping[str, nn.Module], after: Mapping[str, nn.Module], names: Iterable[str]
) -> Iterable[SetAttribute]:
    for name in names:
        for attribute, value in attributes(after[name]).items():
            if getattr(before[name], attribute) != value:
                yield SetAttribute(module=name, attribute=attribute, value=value)


def _attentions_to_replace(model: nn.Module, touched: Iterable[str]) -> Iterable[Replace]:
    """Attentions that lose heads or inputs: torch's own class cannot have an inner width other than its
    input's."""
    for name in dict.fromkeys(name.removesuffix(".out_proj") for name in touched):
        if attention.can_adopt(model.get_submodule(name)):
            yield Replace(module=name)


def _copy_narrowed(
    model: nn.Module, steps: Mapping[str, KeptIndices], stubs: Iterable[Bypass | Silence]
) -> nn.Module:
    """A deep copy with every tensor narrowed in all its dimensions and removed branches replaced by stubs.

    Aliases of a tied tensor stay tied.
    """
    fresh: dict[int, torch.Tensor] = {}
    tensors = all_tensors(model)
    for name, own in steps.items():
        old = tensors[name]
        data = select_kept(old.detach(), own)
        if isinstance(old, nn.Parameter):
            data = nn.Parameter(data, requires_grad=old.requires_grad)
        fresh[id(old)] = data
    copy = copy_with(model, fresh)
    for stub in stubs:
        kind = Silenced if isinstance(stub, Silence) else Bypassed
        replace_module(copy, stub.module, kind(stub.returns))
    for _, module in walk_modules(copy):
        if isinstance(module, nn.RNNBase):  # it keeps a list of its weights beside its parameters
            module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
        _recompute_hooked_weights(module)
    return copy


@torch.no_grad()
def _recompute_hooked_weights(module: nn.Module) -> None:
    """Recompute weights that a forward hook computes (torch.nn.utils.prune, weight_norm): the cut made
    them stale."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
        elif isinstance(hook, BasePruningMethod | WeightNorm):
            hook(module, ())


def select_kept(tensor: torch.Tensor, steps: KeptIndices) -> torch.Tensor:
    """Select the kept indices of each dimension, in the tensor's memory format; always a new tensor."""
    found = tensor
    for dim, kept in steps:
        found = found.index_select(dim, kept.to(tensor.device))
    if not steps:
        return tensor.clone()
    for rank, format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=format) and not tensor.is_contiguous():
            return found.contiguous(memory_format=format)
    return found
