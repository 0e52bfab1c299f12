"""Trial cuts of coupled groups: by shapes alone, in single and in double precision."""

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.forward.call_model import convert_inputs
from sparsify.forward.calls import Call, Inputs, resize_batch
from sparsify.forward.copies import copy_model
from sparsify.forward.free_memory import return_freed_memory
from sparsify.graph.model_map import Coupled, ModelMap
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
from sparsify.graph.verify.trial_weights import (
    NOTHING_DRAWN,
    DrawnWeights,
    randomize_weights,
    redraw_weights,
    restore_copy,
)
from sparsify.graph.verify.usual_calls import check_usual_calls

ONE_UNIT_TOLERANCE = 1e-5
"""largest relative difference in float64 between outputs of a trial cut of one unit a group"""

UsualCalls = Callable[[Callable[[], nn.Module], nn.Module, Inputs, Sequence[str]], None]
FindFault = Callable[[Sequence[Coupled], ModelMap], str | None]
"""what is wrong with a cut of these groups; None if nothing is"""


def choose_double(trial: nn.Module, inputs: Inputs) -> Widen | None:
    """How the model runs in double precision; None if it does not."""
    for widen in WAYS_TO_WIDEN:
        try:
            run_model(widen(trial), convert_inputs(inputs, torch.float64))
        except Exception as error:
            raise_out_of_memory(error)
            continue
        return widen
    return None


class GroupTrials:
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
        self.drawn = randomize_weights(model, self.model, self.inputs)
        self.redraw = partial(redraw_weights, model, self.model, self.inputs)
        self.few = repeat_examples(self.inputs, 1)
        self.double = cache(lambda: choose_double(self.model, self.inputs))
        values = (
            self._cut_half_in_single,
            self._cut_rest_in_double,
            self._cut_one_unit,
            self._cut_pairs_apart,
        )
        self.faults += map(_remember_last, values)

    def _cut_half_in_single(self, chosen: Sequence[Coupled], model_map: ModelMap) -> str | None:
        keep = {c.name: choose_half(c) for c in chosen}
        return judge_cut(self.model, model_map, keep, self.inputs, usual=check_usual_calls, drawn=self.drawn)

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
        judge = partial(judge_cut, tolerance=tolerance, usual=usual, drawn=self.drawn)
        fault = judge(self.model, model_map, keep, self.few, WAYS_TO_WIDEN[0])
        if fault is None:
            return None
        return judge(self.model, model_map, keep, self.inputs, self.double())

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

    def draw_weights(self, scale: float | None) -> None:
        """Give the trials weights of another scale than 1, or the model's own (None)."""
        self.drawn = self.redraw(scale)

    def find_cuttable_in_double(
        self, groups: Sequence[Coupled], model_map: ModelMap, reasons: dict[str, str]
    ) -> list[Coupled]:
        """The groups that can be cut together, by values alone; the others get their reason."""
        return find_cuttable(groups, _bind_map(self._cut_rest_in_double, model_map), reasons)

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


def repeat_examples(inputs: Inputs, count: int) -> Inputs:
    """The inputs with so many examples each, where it is known that the model takes any number."""
    known = all(isinstance(each, Call) for each in inputs)
    return resize_batch(inputs, count) if known else inputs


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


def judge_cut(
    trial: nn.Module,
    model_map: ModelMap,
    keep: Keep,
    inputs: Inputs,
    double: Widen | None = None,
    tolerance: float = TOLERANCE,
    usual: UsualCalls | None = check_usual_calls,
    drawn: DrawnWeights = NOTHING_DRAWN,
) -> str | None:
    """What is wrong with a trial cut.

    trial: in float32; its weights are set to zero and restored. double: how a copy computes in double
    precision; left out, the models are compared in float32, within `TRIAL_TOLERANCE`. usual: makes further
    calls of the cut model, and raises where one fails. drawn: what the weights of trial hold.
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
        wide = trial if double is None else double(trial)
        masked = run_masked_model(wide, model_map, keep, compared, drawn=drawn)
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
