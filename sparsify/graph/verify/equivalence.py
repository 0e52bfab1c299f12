"""Prove a cut: compare the cut model with the masked dense model, in float64.

Let M be the dense model in which the consumers' input slices of every removed unit are zero. Then
cut(model) == M for any activation. For removed residual branches, M has zeros in the sums that they
joined. Units that meet each other in a product, as those of queries and keys, have no input slices there:
M also has zeros in the weights that compute them. If a statistic is taken over removed units (LayerNorm,
GroupNorm, a mean over channels), M leaves them out of it, and the verdict says `statistics change`: M is
then no longer the dense model with some weights set to zero.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.forward.call_model import (
    convert_inputs,
    named_inputs,
)
from sparsify.forward.calls import Inputs, count_examples, list_calls
from sparsify.forward.copies import copy_model
from sparsify.graph.model_map import ModelMap
from sparsify.graph.surgery.constant_shifts import Constants
from sparsify.graph.surgery.fold_constants import (
    add_shifts_of_masked_units,
    keep_harmless_units,
    write_unrounded_values,
)
from sparsify.graph.surgery.operations import Keep, removed_branches
from sparsify.graph.verify.masked_model import narrowed_groups, run_masked_model
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
    wide, given, plain, tolerance, casts = _copy_in_float64(dense, inputs)
    narrow = copy_in_dtype(thin, torch.float64) if tolerance == TOLERANCE else copy_model(thin).eval()
    if tolerance == TOLERANCE:
        write_unrounded_values(narrow, folded, next((p.dtype for p in thin.parameters()), torch.float32))
    drawn = _keep_accepted(wide, [_match_precision(one, given) for one in fresh])
    first, plain = drawn[0] if drawn else (given, plain)
    if before is not None:
        alike = copy_model(before).eval() if tolerance > TOLERANCE else copy_in_dtype(before, torch.float64)
        plain = run_model(alike, first)
    compared = [one for one, _ in drawn] or [given]
    del drawn
    left_whole = keep_harmless_units(keep, constants.harmless)
    add_shifts_of_masked_units(wide, constants.shifts)
    difference, control = 0.0, 0.0
    for one in compared:
        found = run_cut_model(narrow, one, blamed)
        masked = run_masked_model(wide, model_map, left_whole, one, found, blamed)
        own = relative_difference(found, masked)
        difference = own if math.isnan(own) else max(difference, own)
        if one is first:
            control = relative_difference(plain, masked)
        if not own <= tolerance:
            break
    if not difference <= tolerance:
        raise VerificationError(
            f"the cut model differs from the masked one by {difference:.1e} of the largest output"
            f"{list_groups(blamed)}"
        )
    check_training(wide, narrow, next((one for one in compared if _count_examples(one) > 1), first), blamed)
    changing = any(model_map.by_name[name].statistics for name in narrowed)
    all_dead = not narrowed_groups(model_map, left_whole) and not removed_branches(model_map, keep)
    shifted = any(bool((shift.masked != 0).any()) for shift in constants.shifts)
    unchanged = bool(narrowed) and all_dead and not shifted and before is None
    batches = () if compared[0] is given else tuple(dict.fromkeys(map(_count_examples, compared)))
    return Verdict(
        outcome=_name_outcome(changing, bool(blamed)),
        difference=difference,
        control=control,
        groups=tuple(narrowed),
        reference="dense model" if unchanged else "masked model",
        batches=batches,
        note="; ".join(_list_remarks(changing, tolerance, casts)),
    )


def _name_outcome(changing: bool, cut: bool) -> Literal["statistics change", "equal", "nothing cut"]:
    if changing:
        return "statistics change"
    return "equal" if cut else "nothing cut"


def _list_remarks(changing: bool, tolerance: float, casts: bool) -> Iterable[str]:
    if changing:
        yield (
            "a statistic is taken over removed units (a normalisation, a mean): "
            "equal to the masked model with them left out of it"
        )
    if casts:
        yield "the model casts to a lower precision inside: compared in float64 without these casts"
    if tolerance > TOLERANCE:
        yield (f"the model does not run in float64: compared in its own precision, within {tolerance:.0e}")


def _copy_in_float64(
    dense: nn.Module, inputs: Inputs
) -> tuple[nn.Module, Inputs, list[torch.Tensor], float, bool]:
    """(copy in float64, inputs, outputs, tolerance, whether casts were left out).

    If the model does not run in float64, the copy keeps its precision.
    """
    wide, wide_inputs = copy_in_dtype(dense, torch.float64), convert_inputs(inputs, torch.float64)
    try:
        found, casts = run_and_count_casts(wide, wide_inputs)
        return wide, wide_inputs, found, TOLERANCE, casts > 0
    except Exception:
        wide = copy_model(dense).eval()
        return wide, inputs, run_model(wide, inputs), TRIAL_TOLERANCE, False


def _match_precision(fresh: Inputs, given: Inputs) -> Inputs:
    """Fresh inputs in the precision of the given ones."""
    floating = [value.dtype for _, value in named_inputs(given) if value.is_floating_point()]
    return convert_inputs(fresh, floating[0]) if floating else fresh


def _keep_accepted(model: nn.Module, fresh: Sequence[Inputs]) -> list[tuple[Inputs, list[torch.Tensor]]]:
    """The inputs that the dense model accepts and its outputs. Outputs that are not finite prove nothing."""
    found = []
    for one in fresh:
        try:
            made = run_model(model, one)
        except Exception:
            continue  # such as a batch size that the model does not take
        if all(bool(t.isfinite().all()) for t in made):
            found.append((one, made))
    return found


def _count_examples(inputs: Inputs) -> int:
    """Number of examples along the batch dimension; 1 if there is none."""
    return count_examples(list_calls(inputs)[0]) or 1


def measure_effect(dense: nn.Module, model_map: ModelMap, keep: Keep, inputs: Inputs) -> float:
    """Largest difference between the masked and the dense model's outputs, relative to the largest output."""
    wide, given, plain, *_ = _copy_in_float64(dense, inputs)
    return relative_difference(run_masked_model(wide, model_map, keep, given, plain, ()), plain)
