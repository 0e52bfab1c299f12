"""Replay the log of a cut on a fresh dense model, without inputs or a trace."""

from collections import defaultdict

import torch
from torch import nn

from sparsify.errors import RunError
from sparsify.forward.copies import copy_model
from sparsify.graph.held_constants import list_constants
from sparsify.graph.layer_types import attributes
from sparsify.graph.surgery import module_integers, transformers_config
from sparsify.graph.surgery.biases import create_bias
from sparsify.graph.surgery.compact_layers import are_ascending, compact_layers
from sparsify.graph.surgery.expert_lists import shorten_lists
from sparsify.graph.surgery.explained_numbers import is_explained
from sparsify.graph.surgery.given_heads import select_heads
from sparsify.graph.surgery.operations import KeptIndices, _copy_narrowed, _set_attribute, to_indices
from sparsify.graph.surgery.width_names import Meaning, read_meaning
from sparsify.nn import attention
from sparsify_schemas.cuts import (
    AddBias,
    Bypass,
    Crop,
    Cuts,
    Fold,
    Gather,
    Narrow,
    Replace,
    Select,
    SetAttribute,
    Shorten,
    Silence,
    Zero,
)


def replay_cuts(model: nn.Module, cuts: Cuts) -> nn.Module:
    """Repeat a logged cut on a copy of a dense model, without inputs or a trace.

    Raises RunError if the log does not fit the model.
    """
    steps: dict[str, KeptIndices] = defaultdict(list)
    stubs: list[Bypass | Silence] = []
    swaps: list[str] = []
    narrowed: set[tuple[str, int]] = set()
    sets: list[SetAttribute] = []
    reshaped: list[Crop | Gather] = []
    biased: list[str] = []
    selections: list[Select] = []
    shortened = [op for op in cuts.operations if isinstance(op, Shorten)]
    if shortened:  # what follows in the log calls members of lists by their new numbers
        model = copy_model(model)
        shorten_lists(model, shortened)
    for op in cuts.operations:
        match op:
            case Narrow():
                _check_narrow(model, op)
                if (op.tensor, op.dim) in narrowed:
                    raise RunError(f"the cut log narrows dimension {op.dim} of '{op.tensor}' twice")
                narrowed.add((op.tensor, op.dim))
                steps[op.tensor].append((op.dim, to_indices(op.keep)))
            case Replace():
                swaps.append(op.module)
            case SetAttribute():
                sets.append(op)
            case Bypass() | Silence():
                _check_module(model, op.module)
                stubs.append(op)
            case Crop() | Gather():
                reshaped.append(op)
            case AddBias():
                biased.append(op.module)
            case Select():
                selections.append(op)
            case Shorten():
                pass  # done
            case Zero() | Fold():
                pass  # the values themselves come with the weights
    copy = _copy_narrowed(model, steps, stubs)
    for name in swaps:
        try:
            attention.adopt(copy, name)
        except (AttributeError, TypeError):
            raise RunError(
                f"the cut log replaces '{name}', which is not a MultiheadAttention in this model; "
                "was it built by the same recipe?"
            ) from None
    for op in sets:
        _replay_attribute(model, copy, op, cuts)
    for name in biased:
        create_bias(copy, name)
    compact_layers(copy, reshaped)
    select_heads(copy, selections)
    return copy


def _replay_attribute(model: nn.Module, copy: nn.Module, op: SetAttribute, cuts: Cuts) -> None:
    """Set a logged attribute on the copy. Raises RunError if it is no width, or not smaller than before."""
    try:
        module = copy.get_submodule(op.module)
    except AttributeError:
        raise RunError(f"the cut log names a module '{op.module}' that this model does not have") from None
    if "." in op.attribute:
        _set_nested_attribute(module, op, cuts)
        return
    implied = attributes(model.get_submodule(op.module))
    if op.attribute not in implied and not _holds_lengths(vars(module).get(op.attribute)):
        raise RunError(
            f"the cut log sets '{op.module}.{op.attribute}', "
            f"which is not a width of a {type(module).__name__}"
        )
    old = getattr(module, op.attribute)
    if not _is_no_larger(old, op.value):
        raise RunError(
            f"the cut log sets '{op.module}.{op.attribute}' to {op.value}, "
            f"which is not a smaller width than {old}"
        )
    _set_attribute(module, op)


def _holds_lengths(value: object) -> bool:
    return type(value) is int or (isinstance(value, tuple | list) and all(type(v) is int for v in value))


def _is_no_larger(old: object, new: object) -> bool:
    """Whether two numbers are of one kind and the new one is not larger.

    A cut widens nothing, and a huge number in a damaged log would exhaust the memory.
    """
    if isinstance(old, tuple | list) and isinstance(new, tuple):
        return len(old) == len(new) and all(map(_is_no_larger, old, new))
    return isinstance(old, int) and isinstance(new, int) and 0 <= new <= old


def _set_nested_attribute(module: nn.Module, op: SetAttribute, cuts: Cuts) -> None:
    """Set a number inside a container that a module holds, such as config.hidden_size.

    Raises RunError if there is no such number, or if nothing else in the log narrows the old width to the
    new.
    """
    if transformers_config.states_new_field(module, op):
        transformers_config.state_field(module, op)
        return
    old = module_integers.read_number(module, op.attribute)
    container, _, axis = op.attribute.partition(".")
    is_axis = container == module_integers.AXES and axis in module_integers.read_axes(module)
    name = next((word for word in reversed(op.attribute.split(".")) if not word.isdigit()), "")
    if old is None or (not is_axis and read_meaning(name) in (Meaning.NEVER, Meaning.UNKNOWN)):
        raise RunError(
            f"the cut log sets '{op.module}.{op.attribute}', "
            f"which is not a width that a {type(module).__name__} holds"
        )
    explained = op.own or is_explained(cuts, name, old, op.value)
    if not _is_no_larger(old, op.value) or not explained:
        raise RunError(
            f"the cut log sets '{op.module}.{op.attribute}' to {op.value}, "
            f"but no operation in it narrows {old} to that"
        )
    if op.own:
        module_integers.write_own_number(module, op.attribute, op.value)
    else:
        module_integers.write_number(module, op.attribute, op.value)


def _check_narrow(model: nn.Module, op: Narrow) -> None:
    try:
        tensor = _find_tensor(model, op.tensor)
    except AttributeError:
        raise RunError(
            f"the cut log narrows '{op.tensor}', which this model does not have; "
            "was it built by the same recipe?"
        ) from None
    size = tensor.shape[op.dim] if op.dim < tensor.dim() else None
    if size != op.size:
        raise RunError(
            f"the cut log expects '{op.tensor}' to have {op.size} entries in dimension {op.dim}, "
            f"this model has {size}"
        )
    if not are_ascending(op.keep, op.size):
        raise RunError(
            f"the cut log keeps indices of '{op.tensor}' that are out of order "
            f"or beyond its {op.size} entries"
        )


def _check_module(model: nn.Module, name: str) -> None:
    try:
        model.get_submodule(name)
    except AttributeError:
        raise RunError(
            f"the cut log removes a module '{name}' that this model does not have; "
            "was it built by the same recipe?"
        ) from None


def _find_tensor(model: nn.Module, name: str) -> torch.Tensor:
    module, _, attribute = name.rpartition(".")
    owner = model.get_submodule(module)
    found: torch.Tensor | None = owner._parameters.get(attribute)
    found = owner._buffers.get(attribute) if found is None else found
    found = dict(list_constants(owner)).get(attribute) if found is None else found
    if found is None:
        raise AttributeError(name)
    return found
