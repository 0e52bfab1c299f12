"""Find which groups and residual branches can be cut at all, by trial cuts before any training."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain

import torch
from torch import nn

from sparsify.errors import ModelError
from sparsify.forward.call_model import convert_inputs
from sparsify.forward.calls import Inputs
from sparsify.forward.copies import copy_model
from sparsify.graph.length_attributes import add_settings, add_the_same, choose_attributes, drop_attributes
from sparsify.graph.model_map import UNREACHED, Branch, Coupled, ModelMap, Slice
from sparsify.graph.name_kinds import name_kind
from sparsify.graph.peft_adapters import find_adapter_names
from sparsify.graph.proportional_groups import bundle_groups
from sparsify.graph.residual_branches import find_branches
from sparsify.graph.trace.label_fields import FLATTENED, SHARED
from sparsify.graph.trace.labels import TIED
from sparsify.graph.verify.group_trials import GroupTrials, choose_double, judge_cut
from sparsify.graph.verify.run_models import (
    copy_in_dtype,
    draws_random_numbers,
)
from sparsify.graph.verify.search_faults import find_cuttable
from sparsify.graph.verify.trial_weights import randomize_weights

WIDTH_COUNTS = "; its width may count as a number in the code, as in attention without 'scale'"
"""of a group that by itself gives other outputs once it is narrower"""
DIFFERS = "differs from the masked one"
"""in the reason of a group whose cut runs and gives other outputs"""
SMALLER = (0.5, 0.2, 0.05)
"""of the usual scale of the trials' weights"""
DRAWS = (
    "; the model draws random numbers in eval mode, as dropout with training=True does, and a narrower one "
    "draws others: leave that out in eval mode"
)
"""of the same in a model whose outputs no comparison can follow"""


def protect_failing_groups(
    model: nn.Module,
    model_map: ModelMap,
    inputs: Inputs,
    scratch: nn.Module | None = None,
    reached: Collection[str] | None = None,
    follow_other_sides: Callable[[], ModelMap] | None = None,
) -> ModelMap:
    """Cut every group on trial and mark groups whose trial cut fails as protected.

    The trials, quickest first:

    1. On the meta device (shapes only): the cut model must run in eval and train mode.
    2. On random well-conditioned weights, so that dead channels of a trained model hide nothing: the cut
       model must compute what the masked one does. Half of the units are cut in float32, the other half in
       float64, so that every unit is removed once; then one unit of each group, so that little else
       changes.

    All groups are cut together; only if that fails, the failing ones are found by halving.

    scratch: a float32 copy of the model whose weights may be overwritten; they are restored.
    reached: names of the groups that rules reach. Where all of these pass together, the others are not tried
    and marked as not reached. Where one fails, all are tried: it may have to be cut with one of the others.
    follow_other_sides: the map with the other dimension of whatever leaves along one of several. It is only
    called where a group fails that could leave along another one.
    """
    trials = GroupTrials(model, inputs, scratch)
    try:
        if reached is not None:
            found = _protect_unreached(trials, model_map, reached)
            if found is not None:
                return found
        return _protect_groups(trials, model_map, cache(follow_other_sides) if follow_other_sides else None)
    finally:
        trials.restore()
        vars(trials).clear()  # it refers to itself: its models would stay in memory until a collection


def _protect_unreached(trials: GroupTrials, model_map: ModelMap, reached: Collection[str]) -> ModelMap | None:
    """The map without the groups that no rule reaches, if all that rules reach pass every trial together.

    None as well where one that rules reach may leave along another dimension, which others then leave along.
    """
    if any(c.name in reached and c.protected in _ON_ONE_SIDE for c in model_map.coupled):
        return None
    groups = [c for c in model_map.coupled if c.protected is None]
    tried = [c for c in groups if c.name in reached]
    if any(find_fault(tried, model_map) for find_fault in trials.faults if tried):
        return None
    others = [replace(c, protected=UNREACHED) for c in groups if c.name not in reached]
    return _replace_groups(model_map, others)


_ON_ONE_SIDE = (FLATTENED, SHARED, TIED)
"""why heads stay where the places in each leave, or the reverse"""
OtherSides = Callable[[], ModelMap] | None
"""the map with the other dimension of whatever leaves along one of several"""


def _protect_groups(trials: GroupTrials, model_map: ModelMap, other_sides: OtherSides) -> ModelMap:
    groups = [c for c in model_map.coupled if c.protected is None]
    found = _protect_by_shapes(trials, model_map, groups, other_sides)
    if found is not None:
        return found
    reasons: dict[str, str] = {}
    groups = choose_attributes(groups, lambda c: trials.find_fault_alone(c, model_map, trials.faults[:-1]))
    model_map = _replace_groups(model_map, groups)
    good = trials.find_cuttable(groups, model_map, reasons, trials.faults)
    good = _try_other_weights(trials, model_map, good, reasons)
    model_map, saved = _rescue_groups(
        model_map,
        [c for c in groups if c.name in reasons],
        lambda chosen: trials.find_fault_apart(chosen, model_map, trials.faults),
        other_sides,
    )
    if saved:
        reasons = _drop_saved(reasons, model_map, saved)
        together = [*good, *(model_map.by_name[name] for name in saved)]
        trials.find_cuttable(together, model_map, reasons, trials.faults)
    return _add_reasons(model_map, reasons, trials)


def _try_other_weights(
    trials: GroupTrials, model_map: ModelMap, good: Sequence[Coupled], reasons: dict[str, str]
) -> list[Coupled]:
    """The groups without those that fail with other weights, where the cut of a group gave other outputs.

    Blocks that are built alike fail alike, unless the weights of the trials hide it in one of them: where
    activations grow from block to block, a softmax far behind sees one large number, or a sigmoid is flat. So
    groups of the same kind are tried with smaller weights, and all groups with the model's own.
    """
    kinds = {name_kind(name) for name, why in reasons.items() if DIFFERS in why}
    if not kinds:
        return list(good)
    for scale in (None, *SMALLER):
        tried = [group for group in good if group.name not in reasons]
        if scale is not None:
            tried = [group for group in tried if name_kind(group.name) in kinds]
        if tried:
            trials.draw_weights(scale)
            trials.find_cuttable_in_double(tried, model_map, reasons)
    trials.draw_weights(1.0)
    return [group for group in good if group.name not in reasons]


def _protect_by_shapes(
    trials: GroupTrials, model_map: ModelMap, groups: Sequence[Coupled], other_sides: OtherSides
) -> ModelMap | None:
    """The same where shapes alone tell which groups fail, and all others then pass every trial together; None
    where they do not.

    Most models are like that, and a trial of shapes costs nothing beside one of values.
    """
    reasons: dict[str, str] = {}
    good = trials.find_cuttable(groups, model_map, reasons, trials.by_shapes)
    if reasons:
        failed = [c for c in groups if c.name in reasons]

        def find_fault(group: Coupled) -> str | None:
            return trials.find_fault_alone(group, model_map, trials.by_shapes)

        chosen = [c for c in choose_attributes(failed, find_fault) if c not in failed]
        model_map = _replace_groups(model_map, chosen)
        names = {c.name for c in chosen}
        left = [c for c in failed if c.name not in names]
        model_map, saved = _rescue_groups(
            model_map,
            left,
            lambda chosen: trials.find_fault_apart(chosen, model_map, trials.by_shapes),
            other_sides,
        )
        saved += names
        reasons = _drop_saved(reasons, model_map, saved)
        good = [*good, *(model_map.by_name[name] for name in saved)]
    if any(fault(good, model_map) for fault in trials.faults if good):
        return None
    return _add_reasons(model_map, reasons, trials)


def _drop_saved(reasons: Mapping[str, str], model_map: ModelMap, saved: Collection[str]) -> dict[str, str]:
    """The reasons of groups that are still there and were not saved."""
    return {name: why for name, why in reasons.items() if name in model_map.by_name and name not in saved}


def _add_reasons(model_map: ModelMap, reasons: Mapping[str, str], trials: GroupTrials) -> ModelMap:
    protected = []
    hint = cache(lambda: DRAWS if draws_random_numbers(trials.model, trials.few) else WIDTH_COUNTS)
    for name, why in reasons.items():
        group = model_map.by_name[name]
        differs = DIFFERS in why  # it runs, so that its parts stand where they should
        if differs and why.startswith("a trial cut failed") and "by nan" not in why:
            why += hint()
        protected.append(replace(group, protected=why if differs or group.doubt is None else group.doubt))
    return _replace_groups(model_map, protected)


def _replace_groups(model_map: ModelMap, groups: Iterable[Coupled]) -> ModelMap:
    """The map with these groups in place of those of the same names."""
    return replace(model_map, coupled=tuple({c.name: c for c in [*model_map.coupled, *groups]}.values()))


def _rescue_groups(
    model_map: ModelMap,
    failed: Sequence[Coupled],
    fault: Callable[[Sequence[Coupled]], str | None],
    other_sides: OtherSides,
) -> tuple[ModelMap, list[str]]:
    """Find failed groups that can be cut after all, and return the map with them and their names.

    These are groups that must be cut in proportion, groups whose length a configuration states, groups with
    an attribute that held a length by chance, and groups that leave along another dimension.
    """
    saved: list[str] = []

    @cache
    def is_cuttable(group: Coupled) -> bool:
        return fault([group]) is None

    alone = ((group, (group.name,)) for group in failed)
    turned = _list_other_sides(failed, model_map, other_sides)
    for candidate, names in chain(bundle_groups(failed), alone, turned):
        if set(names) & set(saved) or any(name not in model_map.by_name for name in names):
            continue
        untried = [] if candidate in failed else [candidate]
        candidates = dict.fromkeys((*untried, *add_settings(candidate), *drop_attributes(candidate)))
        found = next((group for group in candidates if is_cuttable(group)), None)
        if found is not None:
            replaced = set(names) - {found.name}
            others = tuple(group for group in model_map.coupled if group.name not in replaced)
            model_map = _replace_groups(replace(model_map, coupled=others), [found])
            saved.append(found.name)
            alike = add_the_same(found, candidate, [c for c in failed if c.name not in saved])
            if alike and fault([found, *alike]) is None:  # blocks that are built alike are saved alike
                model_map = _replace_groups(model_map, alike)
                saved += [group.name for group in alike]
    return model_map, saved


def _list_other_sides(
    failed: Sequence[Coupled], model_map: ModelMap, other_sides: OtherSides
) -> Iterator[tuple[Coupled, tuple[str, ...]]]:
    """Failed groups along the other of their dimensions, with the names of what they replace: of a packed
    projection that code takes apart into four blocks of heads, the same heads of each block where no block
    can leave; the heads of the values with those of the keys where no place in a head can leave."""
    fields = {group.name for group in failed if _has_several_places(group)}
    if other_sides is None or not fields:
        return
    try:
        turned = [group for group in other_sides().coupled if group.protected is None]
    except ModelError:  # with the random weights of the trials it may not run as far
        return
    names = {group.name for group in failed}
    for group in turned:
        axes = _list_axes(group)
        met = [own for own in model_map.coupled if axes & _list_axes(own)]
        is_stuck = all(own.name in names or own.protected is not None for own in met)
        is_whole = axes.issuperset(axis for own in met for axis in _list_axes(own))
        is_new = all(_list_units(own) != _list_units(group) for own in met)
        if is_stuck and is_whole and is_new and any(own.name in fields for own in met):
            replaced = tuple(own.name for own in met)
            yield replace(group, name=group.name if group.name in replaced else replaced[0]), replaced


def _has_several_places(group: Coupled) -> bool:
    """Whether one unit is several outputs of a layer."""
    return any(len(part.spans) > 1 or part.spans[0].repeat > 1 for part in group.slices if part.role == "out")


def _list_axes(group: Coupled) -> frozenset[tuple[str, int]]:
    """The dimensions of tensors that it reaches."""
    return frozenset((part.tensor, part.dim) for part in group.slices if part.role != "size")


def _list_units(group: Coupled) -> frozenset[Slice]:
    return frozenset(part for part in group.slices if part.role != "size")


def add_branches(model: nn.Module, model_map: ModelMap, inputs: Inputs, macs: Mapping[str, int]) -> ModelMap:
    """Add the model's residual blocks and branches to the map.

    Those whose trial cut in float64, on random weights, fails are marked protected. All that are not
    inside each other are cut together; failing ones are found by halving.

    macs: multiply-accumulates by module name. Raises ModelError for a model without weights.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ModelError(
            "group 'depth' needs a model with weights: "
            "a trial cut decides whether a residual block can be removed"
        )
    plain = find_adapter_names(model).plain
    found = find_branches(copy_model(model), model_map, inputs, macs)
    named = tuple(replace(branch, plain=plain.get(branch.module, "")) for branch in found)
    model_map = replace(model_map, branches=named)
    reasons: dict[str, str] = {}
    inputs = convert_inputs(inputs, torch.float32)
    trial = copy_in_dtype(model, torch.float32)
    randomize_weights(model, trial, inputs)
    double = choose_double(trial, inputs)

    def find_fault(chosen: Sequence[Coupled]) -> str | None:
        keep: dict[str, list[int]] = {group.name: [] for group in chosen}
        return judge_cut(trial, model_map, keep, inputs, double)

    open_branches = [branch for branch in model_map.branches if branch.group.protected is None]
    for level in _split_by_nesting(open_branches):
        find_cuttable([branch.group for branch in level], find_fault, reasons)

    def add_reason(branch: Branch) -> Branch:
        if branch.name not in reasons:
            return branch
        return replace(branch, group=replace(branch.group, protected=reasons[branch.name]))

    return replace(model_map, branches=tuple(map(add_reason, model_map.branches)))


def _split_by_nesting(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """The branches, from the outermost to the innermost."""
    while branches:
        size = {b.name: (len(b.tensors), -i) for i, b in enumerate(branches)}
        pairs = [(outer, inner) for outer in branches for inner in branches if outer.overlaps(inner)]
        covered = {inner.name for outer, inner in pairs if size[outer.name] > size[inner.name]}
        level = [branch for branch in branches if branch.name not in covered]
        yield level
        branches = [b for b in branches if b not in level]
