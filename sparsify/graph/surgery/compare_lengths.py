"""How long each dimension was before a cut and is after it, module by module."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from sparsify.forward.call_model import call_model, float_tensors, move_inputs_to_meta
from sparsify.forward.calls import Inputs
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import is_scripted, without_compiling
from sparsify.forward.scratch import borrow_model
from sparsify.graph.copy import copy_to_meta
from sparsify.graph.expert_numbers import find_old_names
from sparsify.graph.names import all_names, walk_modules
from sparsify.graph.trace.meta_kernels import FastMeta
from sparsify_schemas.cuts import Shorten

Lengths = set[tuple[int, int]]
"""(length in the dense model, length in the cut model) of dimensions"""


@dataclass
class ModuleLengths:
    """Old and new lengths of the dimensions of one module's tensors."""

    inputs: Lengths = field(default_factory=set)
    outputs: Lengths = field(default_factory=set)
    held: Lengths = field(default_factory=set)
    """of its own parameters and buffers"""

    @property
    def every(self) -> Lengths:
        return self.inputs | self.outputs | self.held


def compare_lengths(
    dense: nn.Module, thin: nn.Module, inputs: Inputs, shortened: Sequence[Shorten] = ()
) -> dict[str, ModuleLengths]:
    """Old and new lengths of the dimensions of every module's tensors, by names of the dense model.

    shortened: the lists whose members have other numbers in the cut model.
    """
    found: dict[str, ModuleLengths] = {name: ModuleLengths() for name, _ in walk_modules(dense)}
    old = find_old_names([*found, *all_names(dense)], shortened)
    after = {old[name]: tensor for name, tensor in all_names(thin).items() if name in old}
    for name, tensor in all_names(dense).items():
        owner, _, attribute = name.rpartition(".")
        if owner in found and name in after:
            rows = (
                isinstance(dense.get_submodule(owner), nn.Embedding | nn.EmbeddingBag)
                and attribute == "weight"
            )
            found[owner].held |= _pair_lengths(
                tensor.shape, after[name].shape, range(1 if rows else 0, min(2, tensor.dim()))
            )
    wide, made = (_record_without_values(model, inputs) for model in (dense, thin))
    if not (wide and made):
        wide, made = _record_shapes(borrow_model(dense), inputs), _record_shapes(borrow_model(thin), inputs)
    narrow = {old[name]: calls for name, calls in made.items() if name in old}
    for name, calls in wide.items():
        if name not in narrow or len(narrow[name]) != len(calls):
            continue
        for (taken, returned), (taken_after, returned_after) in zip(calls, narrow[name], strict=True):
            found[name].inputs |= _pair_activation_lengths(taken, taken_after)
            found[name].outputs |= _pair_activation_lengths(returned, returned_after)
    return found


def _pair_lengths(before: Sequence[int], after: Sequence[int], dims: Iterable[int]) -> Lengths:
    if len(before) != len(after):
        return set()
    return {(before[dim], after[dim]) for dim in dims}


def _pair_activation_lengths(before: Sequence[torch.Size], after: Sequence[torch.Size]) -> Lengths:
    """Old and new lengths of activations. The batch is no width, unless it changes.

    A tensor has one width: if an image is as wide as it has channels, two dimensions have that length, and
    the one that changed is meant.
    """
    found: Lengths = set()
    for a, b in zip(before, after, strict=False):
        changes = {(old, new) for old, new in _pair_lengths(a, b, range(len(a))) if old != new}
        changed = {old for old, _ in changes}
        kept = {(old, new) for old, new in _pair_lengths(a, b, range(1, len(a))) if old == new}
        found |= changes | {(old, new) for old, new in kept if old not in changed}
    return found


CallShapes = tuple[list[torch.Size], list[torch.Size]]
"""shapes of the tensors that a module took, and of those that it returned"""


def _record_without_values(model: nn.Module, inputs: Inputs) -> dict[str, list[CallShapes]]:
    """The same, of a copy on the meta device: empty where the model needs values."""
    with FastMeta({}):
        return _record_shapes(copy_to_meta(model), move_inputs_to_meta(inputs))


def _record_shapes(copy: nn.Module, inputs: Inputs) -> dict[str, list[CallShapes]]:
    """Shapes that every module took and returned in one forward call in eval mode; empty if the model
    fails. The copy is used up."""
    found: dict[str, list[CallShapes]] = {}
    for name, module in walk_modules(copy.eval()):
        if is_scripted(module):
            continue  # it takes no hooks, and none of its widths change
        module.register_forward_hook(partial(_record_call, found.setdefault(name, [])), with_kwargs=True)
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=[]),
            without_compiling(),
            without_fused_attention(),
        ):
            call_model(copy, inputs)
    except Exception:
        return {}
    return found


def _record_call(into: list[CallShapes], _module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
    taken = [tensor.shape for tensor in float_tensors((args, kwargs))]
    returned = [tensor.shape for tensor in float_tensors(result)]
    into.append((taken, returned))
