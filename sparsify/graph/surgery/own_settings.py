"""Configurations that layers share, and of which a cut gave single layers a copy of their own.

Layers of transformers read `config.num_attention_heads` from one configuration. A cut that may leave them
unequal widths gives each its own copy. Where all are equal afterwards, the number of the shared
configuration follows instead, and the copies go. A copy does not follow what is changed in the shared one
later, such as the implementation of attention.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from sparsify.forward.calls import Inputs
from sparsify.forward.scratch import borrow_model
from sparsify.graph.model_map import ModelMap
from sparsify.graph.names import walk_modules
from sparsify.graph.proportional_groups import has_several_features
from sparsify.graph.surgery import module_integers, operations
from sparsify.graph.surgery.explained_numbers import is_explained
from sparsify.graph.surgery.harmless_numbers import Outputs, compute_the_same, run_in_both_modes
from sparsify.graph.surgery.operations import Keep
from sparsify.graph.surgery.width_names import is_head_count
from sparsify.nn.bypass import Bypassed, Silenced
from sparsify_schemas.cuts import Cuts, SetAttribute


def has_copies(cuts: Cuts) -> bool:
    """Whether layers got copies of configurations."""
    return any(isinstance(op, SetAttribute) and op.own for op in cuts.operations)


def share_again(dense: nn.Module, thin: nn.Module, cuts: Cuts, inputs: Inputs, before: Outputs) -> Cuts:
    """Have layers share a configuration again where all of them have one number, in place.

    before: what the cut model computes. Returns the log, with one number set in place of many.
    """
    for alike in _group_by_container(dense, cuts):
        by_attribute: dict[str, SetAttribute] = {}
        for op in alike:
            by_attribute.setdefault(op.attribute, op)
        firsts = list(by_attribute.values())
        shared = [op.model_copy(update={"own": False}) for op in firsts]
        explained = all(_is_explained(dense, cuts, op) for op in firsts)
        if not explained or not _have_one_number(dense, thin, alike):
            continue
        trial = borrow_model(thin)
        _write_shared(dense, trial, alike)
        if compute_the_same(before, run_in_both_modes(trial, inputs)):
            _write_shared(dense, thin, alike)
            others = [op for op in cuts.operations if op not in alike]
            cuts = cuts.model_copy(update={"operations": (*others, *shared)})
    return cuts


def write_alike(
    dense: nn.Module, thin: nn.Module, cuts: Cuts, sets: Sequence[SetAttribute]
) -> list[SetAttribute]:
    """Set numbers of a shared configuration in the copies too that layers have of it, in place."""
    made = []
    for alike in _group_by_container(dense, cuts):
        owners = list(dict.fromkeys(op.module for op in alike))
        first = alike[0].attribute.partition(".")[0]
        container = vars(dense.get_submodule(owners[0]))[first]
        for op in sets:
            start = op.attribute.partition(".")[0]
            if "." not in op.attribute or vars(dense.get_submodule(op.module)).get(start) is not container:
                continue
            path = first + op.attribute.removeprefix(start)
            old = module_integers.read_number(dense.get_submodule(op.module), op.attribute)
            for name in owners:
                module = thin.get_submodule(name)
                if name != op.module and module_integers.read_number(module, path) == old:
                    own = SetAttribute(module=name, attribute=path, value=op.value, own=True)
                    module_integers.write_own_number(module, path, op.value)
                    made.append(own)
    return made


def list_numbers(dense: nn.Module, thin: nn.Module, cuts: Cuts) -> Iterator[tuple[str, str, int, int]]:
    """(name of a number, module, value before, value after) of the configurations that layers have copies
    of, and of layers of the same classes that still share them."""
    for alike in _group_by_container(dense, cuts):
        for path in dict.fromkeys(op.attribute for op in alike):
            for name in _list_sharers(dense, thin, alike):
                old, new = (
                    module_integers.read_number(model.get_submodule(name), path) for model in (dense, thin)
                )
                if type(old) is int and type(new) is int:
                    yield path.rpartition(".")[2], name, old, new


def list_stated_heads(
    dense: nn.Module, model_map: ModelMap, keep: Keep
) -> Iterator[tuple[str, str, int, int]]:
    """(name of a number, module, value before, value after) of heads that configurations count and layers
    do not: one entry for each layer."""
    lost: dict[str, int] = defaultdict(int)
    for group in model_map.coupled:
        kept = np.asarray(keep.get(group.name, range(group.width)), np.int64)
        leaves = np.setdiff1d(np.arange(group.width), kept, assume_unique=True)
        for part in group.settings if has_several_features(group) else ():
            lost[part.tensor] += len(operations.indices_of_units(part.spans, leaves))
    for number, gone in lost.items():
        module, _, path = number.partition(":")
        name = path.rpartition(".")[2]
        old = module_integers.read_number(dense.get_submodule(module), path)
        if is_head_count(name) and type(old) is int:
            yield name, module, old, old - gone


def _group_by_container(dense: nn.Module, cuts: Cuts) -> list[list[SetAttribute]]:
    """The numbers that were set in copies, by the container of the dense model."""
    found: dict[tuple[int, str], list[SetAttribute]] = defaultdict(list)
    for op in cuts.operations:
        if isinstance(op, SetAttribute) and op.own:
            first = op.attribute.partition(".")[0]
            found[id(vars(dense.get_submodule(op.module))[first]), first].append(op)
    return list(found.values())


def _is_explained(dense: nn.Module, cuts: Cuts, op: SetAttribute) -> bool:
    """Whether the log of one number in place of many can be replayed."""
    old = module_integers.read_number(dense.get_submodule(op.module), op.attribute)
    name = next(word for word in reversed(op.attribute.split(".")) if not word.isdigit())
    return old is not None and is_explained(cuts, name, old, op.value)


def _have_one_number(dense: nn.Module, thin: nn.Module, alike: Sequence[SetAttribute]) -> bool:
    """Whether every layer of these classes that shared the container has the same numbers now."""
    values: dict[str, set[Any]] = defaultdict(set)
    owners: dict[str, set[str]] = defaultdict(set)
    for op in alike:
        values[op.attribute].add(op.value)
        owners[op.attribute].add(op.module)
    every = set(_list_sharers(dense, thin, alike))
    are_equal = all(len(own) == 1 for own in values.values())
    return are_equal and all(own == every for own in owners.values())


def _list_sharers(dense: nn.Module, thin: nn.Module, alike: Sequence[SetAttribute]) -> Iterator[str]:
    """The modules that are left of these classes and share the container in the dense model."""
    first = alike[0].attribute.partition(".")[0]
    holders = [dense.get_submodule(op.module) for op in alike]
    container, kinds = vars(holders[0])[first], {type(holder) for holder in holders}
    left = dict(walk_modules(thin))
    for name, module in walk_modules(dense):
        shares = vars(module).get(first) is container and type(module) in kinds
        if shares and name in left and not isinstance(left[name], Bypassed | Silenced):
            yield name


def _write_shared(dense: nn.Module, thin: nn.Module, alike: Iterable[SetAttribute]) -> None:
    """Set the numbers in the container that other modules still share, and have the layers share it."""
    ops = list(alike)
    first = ops[0].attribute.partition(".")[0]
    container = vars(dense.get_submodule(ops[0].module))[first]
    owners = {op.module for op in ops}
    left = dict(walk_modules(thin))
    sharing = [name for name, module in walk_modules(dense) if vars(module).get(first) is container]
    keeper = next((name for name in sharing if name in left and name not in owners), ops[0].module)
    shared = vars(left[keeper])[first]
    for name in owners:
        vars(left[name])[first] = shared
    for op in ops:
        module_integers.write_number(left[op.module], op.attribute, op.value)
