"""Prove a cut: compare the cut model with the masked dense model, in float64.

Let M be the dense model in which the consumers' input slices of every removed unit are zero. Then
cut(model) == M for any activation. For removed residual branches, M has zeros in the sums that they
joined. Where experts of a mixture left, M has minus infinity in place of the scores that their router gives
them: a softmax or a sigmoid makes zeros of these, and a choice of the largest leaves them out. Units that
meet each other in a product, as those of queries and keys, have no input slices there: M also has zeros in
the weights that compute them. If a statistic is taken over removed units (LayerNorm,
GroupNorm, a mean over channels), M leaves them out of it, and the verdict says `statistics change`: M is
then no longer the dense model with some weights set to zero.

Outputs of whole numbers and booleans must be the same, but for choices between numbers that are equal to
rounding, which the verdict then counts.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.formatting.numbers import count_noun
from sparsify.forward.call_model import (
    convert_inputs,
    named_inputs,
)
from sparsify.forward.calls import Inputs, count_examples, list_calls
from sparsify.forward.copies import copy_model
from sparsify.forward.free_memory import return_freed_memory
from sparsify.forward.scratch import borrow_model, is_scratch, make_scratch
from sparsify.graph.model_map import ModelMap
from sparsify.graph.precision import widen_model
from sparsify.graph.surgery.constant_shifts import Constants
from sparsify.graph.surgery.fold_constants import (
    add_shifts_of_masked_units,
    keep_harmless_units,
    write_unrounded_values,
)
from sparsify.graph.surgery.operations import Keep, removed_branches
from sparsify.graph.verify import whole_outputs
from sparsify.graph.verify.failed_allocations import raise_out_of_memory
from sparsify.graph.verify.masked_model import check_same_shapes, narrowed_groups, run_masked_model
from sparsify.graph.verify.run_models import (
    copy_in_dtype,
    list_groups,
    relative_difference,
    run_and_count_casts,
    run_cut_model,
    run_model,
)
from sparsify.graph.verify.usual_calls import check_training
from sparsify_schemas.report import Verdict

TOLERANCE = 1e-9
"""largest difference in float64 of a correct cut, relative to the largest output"""

TRIAL_TOLERANCE = 1e-3
"""the same for a trial cut in float32, which only checks that the coupled groups are right"""


Widen = Callable[[nn.Module], nn.Module]
"""makes a copy of a model that computes in double precision"""


def copy_in_double(model: nn.Module) -> nn.Module:
    return copy_in_dtype(model, torch.float64)


WAYS_TO_WIDEN: tuple[Widen, ...] = (widen_model, copy_in_double)
"""the one that takes less memory first; not every model runs so"""

NO_CONSTANTS = Constants()
NOTHING_FOLDED: Mapping[str, torch.Tensor] = {}


def verify_cut(
    dense: nn.Module,
    thin: nn.Module,
    model_map: ModelMap,
    keep: Keep,
    inputs: Inputs,
    *,
    before: nn.Module | None = None,
    reshaped: Sequence[str] = (),
    constants: Constants = NO_CONSTANTS,
    folded: Mapping[str, torch.Tensor] = NOTHING_FOLDED,
    fresh: Sequence[Inputs] = (),
) -> Verdict:
    """Compare a cut model as delivered with the masked dense model, in float64.

    Also runs both in train mode with a backward pass, and on torch's fused paths.

    Args:
        before: the dense model before groups inside its tensors were set to zero, for the control.
            reshaped: layers of the cut model that compute in another way than before. constants: what
            removed units emitted and the cut model got back. Units whose removal changes nothing stay
            in the masked model; if only such units were removed, it is the dense model.
        folded: the values that folding wrote, before rounding. The comparison uses them. fresh: inputs
            that played no part in planning or choosing, of one or several batch sizes. Those that the
            dense model does not accept are left out. Without any, `inputs` are used.

    Raises:
        VerificationError: naming the coupled groups, if the outputs differ or the cut model does not run.
    """
    narrowed = narrowed_groups(model_map, keep)
    blamed = narrowed or list(reshaped)
    if not is_scratch(dense):
        dense = make_scratch(dense)  # its weights are set to zero and restored
    run = _choose_precision(dense, inputs, fresh)
    wide, narrow, plain = run.wide, run.copy(thin), run.plain
    if run.tolerance == TOLERANCE:
        write_unrounded_values(narrow, folded, next((p.dtype for p in thin.parameters()), torch.float32))
    if before is not None:
        plain = run_model(run.copy(before), run.first)
    left_whole = keep_harmless_units(keep, constants.harmless)
    add_shifts_of_masked_units(wide, constants.shifts)
    difference, control, compared, ties = 0.0, 0.0, list[Inputs](), 0
    for one in run.candidates:
        wanted_whole, found_whole = list[torch.Tensor](), list[torch.Tensor]()
        masked = _run_masked(run, model_map, left_whole, one, wanted_whole)
        if masked is None:
            continue
        compared.append(one)
        found = run_cut_model(narrow, one, blamed, found_whole)
        check_same_shapes(found, masked, blamed)
        own = relative_difference(found, masked)
        difference = own if math.isnan(own) else max(difference, own)
        if one is run.first:
            control = relative_difference(plain, masked)
        if not own <= run.tolerance:
            break
        ties += _count_ties(run, model_map, left_whole, one, (found_whole, wanted_whole), blamed)
    tolerance, first = run.tolerance, run.first
    del wide, narrow, plain
    return_freed_memory()
    if not difference <= tolerance:
        raise VerificationError(
            f"the cut model differs from the masked one by {difference:.1e} of the largest output"
            f"{list_groups(blamed)}"
        )
    several = next((one for one in compared if _count_examples(one) > 1), first)
    routed = [f"{name}." for mixture in model_map.mixtures for name in mixture.lists]
    check_training(dense, borrow_model(thin), run.restore(several), blamed, routed)
    changing = any(model_map.by_name[name].statistics for name in narrowed)
    all_dead = not narrowed_groups(model_map, left_whole) and not removed_branches(model_map, keep)
    shifted = any(bool((shift.masked != 0).any()) for shift in constants.shifts)
    unchanged = bool(narrowed) and all_dead and not shifted and before is None
    batches = tuple(dict.fromkeys(map(_count_examples, compared))) if run.is_fresh else ()
    return Verdict(
        outcome=_name_outcome(changing, bool(blamed)),
        difference=difference,
        control=control,
        groups=tuple(narrowed),
        reference="dense model" if unchanged else "masked model",
        batches=batches,
        note="; ".join(_list_remarks(changing, tolerance, run.casts, ties)),
    )


def _name_outcome(changing: bool, cut: bool) -> Literal["statistics change", "equal", "nothing cut"]:
    if changing:
        return "statistics change"
    return "equal" if cut else "nothing cut"


def _count_ties(
    run: "_Comparison",
    model_map: ModelMap,
    keep: Keep,
    inputs: Inputs,
    outputs: tuple[list[torch.Tensor], list[torch.Tensor]],
    groups: Sequence[str],
) -> int:
    """How many outputs of whole numbers differ, each a choice between numbers that are equal to rounding.

    outputs: whole numbers of the cut and of the masked model. Raises VerificationError where another one
    differs.
    """
    found, wanted = outputs

    def run_again() -> list[torch.Tensor]:
        again: list[torch.Tensor] = []
        run_masked_model(run.wide, model_map, keep, inputs, again)
        return again

    count, are_ties = whole_outputs.count_and_judge(found, wanted, run.wide, run_again, run.tolerance)
    if are_ties:
        return count
    total = sum(one.numel() for one in wanted)
    raise VerificationError(
        f"the cut model's outputs of whole numbers (classes, indices, masks) differ from those of the masked "
        f"one in {count} of {total} places, and not by ties alone{list_groups(groups)}"
    )


def _list_remarks(changing: bool, tolerance: float, casts: bool, ties: int) -> Iterable[str]:
    if changing:
        yield (
            "a statistic is taken over removed units (a normalisation, a mean): "
            "equal to the masked model with them left out of it"
        )
    if casts:
        yield "the model casts to a lower precision inside: compared in float64 without these casts"
    if ties:
        yield (
            f"outputs of whole numbers (classes, indices, masks) differ in {count_noun(ties, 'place')}, each "
            "a choice between numbers that are equal to rounding; all others are equal"
        )
    if tolerance > TOLERANCE:
        yield (f"the model does not run in float64: compared in its own precision, within {tolerance:.0e}")


@dataclass(frozen=True)
class _Comparison:
    """In which precision and on which inputs two models are compared."""

    copy: Widen
    """makes a copy to compare, in that precision"""
    wide: nn.Module
    """the dense model in that precision"""
    tolerance: float
    casts: bool
    """whether casts to a lower precision were left out"""
    first: Inputs
    """the first inputs that the dense model accepts"""
    plain: list[torch.Tensor]
    """its outputs on them"""
    candidates: tuple[Inputs, ...]
    """all inputs to compare on, less those before the first"""
    is_fresh: bool
    """whether these are inputs that played no part before"""
    given: Inputs
    """as given, in the model's own precision"""

    def restore(self, inputs: Inputs) -> Inputs:
        """Such inputs in the model's own precision."""
        return _match_precision(inputs, self.given)


def _choose_precision(dense: nn.Module, inputs: Inputs, fresh: Sequence[Inputs]) -> _Comparison:
    """float64 where the model runs in it, else its own precision."""
    double = convert_inputs(inputs, torch.float64)
    for widen in WAYS_TO_WIDEN:
        wide = widen(dense)
        matched = tuple(_match_precision(one, double) for one in fresh)
        for own, is_fresh in ((matched, True), ((double,), False)):
            for at, one in enumerate(own):
                try:
                    plain, casts = run_and_count_casts(wide, one)
                except Exception as error:
                    raise_out_of_memory(error)
                    continue  # such as a batch size that the model does not take
                if is_fresh and not _are_finite(plain):
                    continue
                return _Comparison(
                    widen, wide, TOLERANCE, casts > 0, one, plain, own[at:], is_fresh=is_fresh, given=inputs
                )
    wide = _copy_as_it_is(dense)
    for at, one in enumerate(fresh):
        with contextlib.suppress(Exception):
            plain = run_model(wide, one)
            if _are_finite(plain):
                own = tuple(fresh[at:])
                return _Comparison(
                    _copy_as_it_is, wide, TRIAL_TOLERANCE, False, one, plain, own, is_fresh=True, given=inputs
                )
    plain, own = run_model(wide, inputs), (inputs,)
    return _Comparison(
        _copy_as_it_is, wide, TRIAL_TOLERANCE, False, inputs, plain, own, is_fresh=False, given=inputs
    )


def _copy_as_it_is(model: nn.Module) -> nn.Module:
    return copy_model(model).eval()


def _are_finite(outputs: Sequence[torch.Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in outputs)


def _run_masked(
    run: _Comparison, model_map: ModelMap, keep: Keep, inputs: Inputs, whole: list[torch.Tensor]
) -> list[torch.Tensor] | None:
    """Outputs of the masked dense model; None on inputs that the dense model does not accept, or on which its
    own outputs are not finite, as they prove nothing. whole: is given its outputs of whole numbers."""
    try:
        masked = run_masked_model(run.wide, model_map, keep, inputs, whole)
    except Exception as error:
        raise_out_of_memory(error)
        if inputs is run.first or _accepts(run.wide, inputs):
            raise
        return None
    if inputs is run.first or _are_finite(masked) or _accepts(run.wide, inputs):
        return masked
    return None


def _accepts(model: nn.Module, inputs: Inputs) -> bool:
    try:
        return _are_finite(run_model(model, inputs))
    except Exception as error:
        raise_out_of_memory(error)
        return False


def _match_precision(fresh: Inputs, given: Inputs) -> Inputs:
    """Fresh inputs in the precision of the given ones."""
    floating = [value.dtype for _, value in named_inputs(given) if value.is_floating_point()]
    return convert_inputs(fresh, floating[0]) if floating else fresh


def _count_examples(inputs: Inputs) -> int:
    """Number of examples along the batch dimension; 1 if there is none."""
    return count_examples(list_calls(inputs)[0]) or 1


def measure_effect(dense: nn.Module, model_map: ModelMap, keep: Keep, inputs: Inputs) -> float:
    """Largest difference between the masked and the dense model's outputs, relative to the largest output."""
    run = _choose_precision(dense if is_scratch(dense) else make_scratch(dense), inputs, ())
    return relative_difference(run_masked_model(run.wide, model_map, keep, run.first), run.plain)
