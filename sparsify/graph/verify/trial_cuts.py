"""Find which groups and residual branches can be cut at all, by trial cuts before any training."""

import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import nn

from sparsify.errors import ModelError, VerificationError
from sparsify.forward.call_model import convert_inputs
from sparsify.forward.calls import Call, Inputs, resize_batch
from sparsify.forward.copies import copy_model
from sparsify.forward.free_memory import return_freed_memory
from sparsify.graph.length_attributes import add_settings, add_the_same, choose_attributes, drop_attributes
from sparsify.graph.model_map import UNREACHED, Branch, Coupled, ModelMap
from sparsify.graph.peft_adapters import find_adapter_names
from sparsify.graph.proportional_groups import bundle_groups
from sparsify.graph.residual_branches import find_branches
from sparsify.graph.surgery import operations
from sparsify.graph.surgery.operations import Keep
from sparsify.graph.verify.equivalence import TOLERANCE, TRIAL_TOLERANCE, WAYS_TO_WIDEN, Widen
from sparsify.graph.verify.failed_allocations import raise_out_of_memory
from sparsify.graph.verify.masked_model import check_same_shapes, narrowed_groups, run_masked_model
from sparsify.graph.verify.meta_trials import MetaTrials, choose_half, split_pairs
from sparsify.graph.verify.run_models import (
    copy_in_dtype,
    first_line,
    relative_difference,
    run_cut_model,
    run_model,
)
from sparsify.graph.verify.search_faults import find_cuttable
from sparsify.graph.verify.trial_weights import randomize_weights, restore_copy
from sparsify.graph.verify.usual_calls import check_usual_calls

ONE_UNIT_TOLERANCE = 1e-5
"""largest relative difference in float64 between outputs of a trial cut of one unit a group"""

UsualCalls = Callable[[Callable[[], nn.Module], nn.Module, Inputs, Sequence[str]], None]
FindFault = Callable[[Sequence[Coupled], ModelMap], str | None]
"""what is wrong with a cut of these groups; None if nothing is"""


def _choose_double(trial: nn.Module, inputs: Inputs) -> Widen | None:
    """How the model runs in double precision; None if it does not."""
    for widen in WAYS_TO_WIDEN:
        try:
            run_model(widen(trial), convert_inputs(inputs, torch.float64))
        except Exception as error:
            raise_out_of_memory(error)
            continue
        return widen
    return None


def protect_failing_groups(
    model: nn.Module,
    model_map: ModelMap,
    inputs: Inputs,
    scratch: nn.Module | None = None,
    reached: Collection[str] | None = None,
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
    """
    trials = _Trials(model, inputs, scratch)
    try:
        if reached is not None:
            found = _protect_unreached(trials, model_map, reached)
            if found is not None:
                return found
        return _protect_groups(trials, model_map)
    finally:
        trials.restore()
        vars(trials).clear()  # it refers to itself: its models would stay in memory until a collection


def _protect_unreached(trials: "_Trials", model_map: ModelMap, reached: Collection[str]) -> ModelMap | None:
    """The map without the groups that no rule reaches, if all that rules reach pass every trial together."""
    groups = [c for c in model_map.coupled if c.protected is None]
    tried = [c for c in groups if c.name in reached]
    if any(find_fault(tried, model_map) for find_fault in trials.faults if tried):
        return None
    others = [replace(c, protected=UNREACHED) for c in groups if c.name not in reached]
    return _replace_groups(model_map, others)


def _protect_groups(trials: "_Trials", model_map: ModelMap) -> ModelMap:
    groups = [c for c in model_map.coupled if c.protected is None]
    found = _protect_by_shapes(trials, model_map, groups)
    if found is not None:
        return found
    reasons: dict[str, str] = {}
    groups = choose_attributes(groups, lambda c: trials.find_fault_alone(c, model_map, trials.faults[:-1]))
    model_map = _replace_groups(model_map, groups)
    good = trials.find_cuttable(groups, model_map, reasons, trials.faults)
    model_map, saved = _rescue_groups(
        model_map,
        [c for c in groups if c.name in reasons],
        lambda chosen: trials.find_fault_apart(chosen, model_map, trials.faults),
    )
    if saved:
        reasons = _drop_saved(reasons, model_map, saved)
        together = [*good, *(model_map.by_name[name] for name in saved)]
        trials.find_cuttable(together, model_map, reasons, trials.faults)
    return _add_reasons(model_map, reasons)


def _protect_by_shapes(trials: "_Trials", model_map: ModelMap, groups: Sequence[Coupled]) -> ModelMap | None:
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
            model_map, left, lambda chosen: trials.find_fault_apart(chosen, model_map, trials.by_shapes)
        )
        saved += names
        reasons = _drop_saved(reasons, model_map, saved)
        good = [*good, *(model_map.by_name[name] for name in saved)]
    if any(fault(good, model_map) for fault in trials.faults if good):
        return None
    return _add_reasons(model_map, reasons)


def _drop_saved(reasons: Mapping[str, str], model_map: ModelMap, saved: Collection[str]) -> dict[str, str]:
    """The reasons of groups that are still there and were not saved."""
    return {name: why for name, why in reasons.items() if name in model_map.by_name and name not in saved}


def _add_reasons(model_map: ModelMap, reasons: Mapping[str, str]) -> ModelMap:
    protected = []
    for name, why in reasons.items():
        group = model_map.by_name[name]
        differs = "differs from the masked one" in why  # it runs, so that its parts stand where they should
        protected.append(replace(group, protected=why if differs or group.doubt is None else group.doubt))
    return _replace_groups(model_map, protected)


def _replace_groups(model_map: ModelMap, groups: Iterable[Coupled]) -> ModelMap:
    """The map with these groups in place of those of the same names."""
    return replace(model_map, coupled=tuple({c.name: c for c in [*model_map.coupled, *groups]}.values()))


def _rescue_groups(
    model_map: ModelMap, failed: Sequence[Coupled], fault: Callable[[Sequence[Coupled]], str | None]
) -> tuple[ModelMap, list[str]]:
    """Find failed groups that can be cut after all, and return the map with them and their names.

    These are groups that must be cut in proportion, groups whose length a configuration states, and groups
    with an attribute that held a length by chance.
    """
    saved: list[str] = []

    @cache
    def is_cuttable(group: Coupled) -> bool:
        return fault([group]) is None

    for candidate, names in [*bundle_groups(failed), *((group, (group.name,)) for group in failed)]:
        if set(names) & set(saved) or any(name not in model_map.by_name for name in names):
            continue
        bundle = [candidate] if len(names) > 1 else []
        candidates = dict.fromkeys((*bundle, *add_settings(candidate), *drop_attributes(candidate)))
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


class _Trials:
    """Trial cuts of one model, quickest first: shapes, values in float32, values in float64."""

    def __init__(self, model: nn.Module, inputs: Inputs, scratch: nn.Module | None) -> None:
        shapes = MetaTrials(model, inputs)
        self.inputs = convert_inputs(inputs, torch.float32)
        self.by_shapes: list[FindFault] = [shapes.cut_half, shapes.cut_pairs_apart] if shapes.works else []
        self.by_shapes = list(map(_remember_last, self.by_shapes))
        self.faults = list(self.by_shapes)
        self.shapes = shapes if shapes.works else None
        self.restore: Callable[[], None] = lambda: None
        if any(p.is_meta for p in model.parameters()):
            return  # a model of shapes alone can be planned, not compared
        self.model = scratch or copy_in_dtype(model, torch.float32)
        if scratch is not None:
            self.restore = lambda: restore_copy(model, self.model)
            self.model.eval()
        randomize_weights(model, self.model, self.inputs)
        self.few = _take_one_example(self.inputs)
        self.double = cache(lambda: _choose_double(self.model, self.inputs))
        values = (
            self._cut_half_in_single,
            self._cut_rest_in_double,
            self._cut_one_unit,
            self._cut_pairs_apart,
        )
        self.faults += map(_remember_last, values)

    def _cut_half_in_single(self, chosen: Sequence[Coupled], model_map: ModelMap) -> str | None:
        keep = {c.name: choose_half(c) for c in chosen}
        return _find_fault(self.model, model_map, keep, self.inputs, usual=check_usual_calls)

    def _cut_rest_in_double(self, chosen: Sequence[Coupled], model_map: ModelMap) -> str | None:
        keep = _choose_other_halves(model_map, chosen)
        return self._find_fault_in_double(model_map, keep, TOLERANCE)

    def _cut_one_unit(self, chosen: Sequence[Coupled], model_map: ModelMap) -> str | None:
        """Cut one unit of each group. Half of a narrow network silences whole paths and hides their
        faults.

        The tolerance is larger: odd widths round differently, and a deep network without normalisations,
        with all units alive, can amplify that a billion times.
        """
        keep = {group.name: list(range(group.width - 1)) for group in chosen}
        return self._find_fault_in_double(model_map, keep, ONE_UNIT_TOLERANCE)

    def _cut_pairs_apart(self, chosen: Sequence[Coupled], model_map: ModelMap) -> str | None:
        """Cut groups of two units in two halves, all else whole: cut together they silence each other's
        paths."""
        for part in split_pairs(chosen):
            why = self._cut_one_unit(part, model_map) if 0 < len(part) < len(chosen) else None
            if why is not None:
                return why
        return None

    def _find_fault_in_double(self, model_map: ModelMap, keep: Keep, tolerance: float) -> str | None:
        """Compare in double precision. The usual calls were made in single precision with other widths: that
        these run as well is seen from shapes alone where the model runs so.

        One example tells that a cut is right. What it refuses, all examples decide, in the precision that the
        model runs in.
        """
        if self.shapes is None:
            usual = self._check_usual_calls
        else:
            why = self.shapes.find_fault(model_map, keep)
            if why is not None:
                return why
            usual = None
        fault = _find_fault(self.model, model_map, keep, self.few, WAYS_TO_WIDEN[0], tolerance, usual)
        if fault is None:
            return None
        return _find_fault(self.model, model_map, keep, self.inputs, self.double(), tolerance, usual)

    def _check_usual_calls(
        self, dense: Callable[[], nn.Module], narrow: nn.Module, _compared: Inputs, groups: Sequence[str]
    ) -> None:
        check_usual_calls(dense, narrow, self.inputs, groups)

    def find_fault_alone(
        self, group: Coupled, model_map: ModelMap, faults: Sequence[FindFault]
    ) -> str | None:
        """What is wrong with a cut of this group alone."""
        return self.find_fault_apart([group], model_map, faults)

    def find_fault_apart(
        self, groups: Sequence[Coupled], model_map: ModelMap, faults: Sequence[FindFault]
    ) -> str | None:
        """What is wrong with a cut of these groups and no others."""
        own = replace(model_map, coupled=tuple(groups))
        return next((why for fault in faults if (why := fault(groups, own)) is not None), None)

    def find_cuttable(
        self,
        groups: Sequence[Coupled],
        model_map: ModelMap,
        reasons: dict[str, str],
        faults: Sequence[FindFault],
    ) -> list[Coupled]:
        """The groups that can be cut together; the others get their reason."""
        good = list(groups)
        for find_fault in faults:
            good = find_cuttable(good, _bind_map(find_fault, model_map), reasons)
        return good


def _take_one_example(inputs: Inputs) -> Inputs:
    """The inputs with one example each, where it is known that the model takes any number."""
    known = all(isinstance(each, Call) for each in inputs)
    return resize_batch(inputs, 1) if known else inputs


def _remember_last(find_fault: FindFault) -> FindFault:
    """The same trial, which is not repeated for the groups and the map that it was last asked for."""
    last: list[tuple[Sequence[Coupled], Sequence[Coupled], str | None]] = []

    def find(groups: Sequence[Coupled], model_map: ModelMap) -> str | None:
        if not (last and _are_same(groups, last[0][0]) and _are_same(model_map.coupled, last[0][1])):
            last[:] = [(tuple(groups), model_map.coupled, find_fault(groups, model_map))]
        return last[0][2]

    return find


def _are_same(one: Sequence[Coupled], other: Sequence[Coupled]) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _bind_map(find_fault: FindFault, model_map: ModelMap) -> Callable[[Sequence[Coupled]], str | None]:
    return lambda groups: find_fault(groups, model_map)


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
    double = _choose_double(trial, inputs)

    def find_fault(chosen: Sequence[Coupled]) -> str | None:
        keep: dict[str, list[int]] = {group.name: [] for group in chosen}
        return _find_fault(trial, model_map, keep, inputs, double)

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


def _find_fault(
    trial: nn.Module,
    model_map: ModelMap,
    keep: Keep,
    inputs: Inputs,
    double: Widen | None = None,
    tolerance: float = TOLERANCE,
    usual: UsualCalls | None = check_usual_calls,
) -> str | None:
    """What is wrong with a trial cut.

    trial: in float32; its weights are set to zero and restored. double: how a copy computes in double
    precision; left out, the models are compared in float32, within `TRIAL_TOLERANCE`. usual: makes further
    calls of the cut model, and raises where one fails.
    """
    narrowed = narrowed_groups(model_map, keep)
    if double is None:
        tolerance = TRIAL_TOLERANCE
    compared = inputs if double is None else convert_inputs(inputs, torch.float64)
    return_freed_memory()
    try:
        thin = operations.cut_on_trial(trial, model_map, keep)
        found = run_cut_model(thin if double is None else double(thin), compared, narrowed)
        if usual is not None:  # in float32, which is enough to see that it runs
            usual(lambda: copy_model(trial), thin, inputs, narrowed)
        del thin
        return_freed_memory()
        masked = run_masked_model(trial if double is None else double(trial), model_map, keep, compared)
        check_same_shapes(found, masked, narrowed)
        difference = relative_difference(found, masked)
        if not difference <= tolerance:
            raise VerificationError(
                f"the cut model differs from the masked one by {difference:.1e} of the largest output"
            )
    except VerificationError as error:
        return str(error).partition(" [groups")[0]
    except Exception as error:
        raise_out_of_memory(error)
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _choose_other_halves(model_map: ModelMap, chosen: Iterable[Coupled]) -> dict[str, list[int]]:
    """Group -> kept units of the second trial: the units that `choose_half` removes, less a few.

    Every unit is removed in one of the trials, the number kept differs from the first half, and groups of
    one width keep different numbers, since code may tie their widths together.
    """
    ranks: Counter[int] = Counter()
    kept = {}
    for group in model_map.coupled:
        half = choose_half(group)
        rest = sorted(set(range(group.width)) - set(half)) or half
        ranks[group.width] += 1
        few = rest[: len(rest) - ranks[group.width] % len(rest)]
        missing = max(0, group.least - len(few))
        kept[group.name] = sorted({*few, *[unit for unit in half if unit not in few][:missing]})
    return {group.name: kept[group.name] for group in chosen}
