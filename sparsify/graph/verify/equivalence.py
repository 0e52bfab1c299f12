"""Prove a cut: compare the cut model with the masked dense model, in float64.

Let M be the dense model in which the consumers' input slices of every removed unit are zero. Then
cut(model) == M for any activation. For removed residual branches, M has zeros in the sums that they
joined. Units that meet each other in a product, as those of queries and keys, have no input slices there:
M also has zeros in the weights that compute them. If a statistic is taken over removed units (LayerNorm,
GroupNorm, a mean over channels), M leaves them out of it, and the verdict says `statistics change`: M is
then no longer the dense model with some weights set to zero.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.forward.call_model import (
    call_model,
    convert_inputs,
    float_tensors,
    named_inputs,
    restore_buffers,
)
from sparsify.forward.calls import Inputs, count_examples, list_calls
from sparsify.forward.copies import copy_model
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.graph.model_map import ModelMap
from sparsify.graph.names import all_names
from sparsify.graph.precision import cast_model, keep_double
from sparsify.graph.surgery.constants import Constants
from sparsify.graph.surgery.fold_constants import (
    add_shifts_of_masked_units,
    keep_harmless_units,
    write_unrounded_values,
)
from sparsify.graph.surgery.operations import Keep, removed_branches, removed_indices
from sparsify.graph.trace.labels import Ints
from sparsify.graph.trace.operators import without_fused_attention
from sparsify.graph.trace.zero_branches import zero_branches
from sparsify.graph.verify import masked_statistics
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
    left_whole = keep_harmless_units(keep, constants.whole)
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
            f"{_list_groups(blamed)}"
        )
    _check_training(wide, narrow, next((one for one in compared if _count_examples(one) > 1), first), blamed)
    changing = any(model_map.by_name[name].statistics for name in narrowed)
    all_dead = not narrowed_groups(model_map, left_whole) and not removed_branches(model_map, keep)
    shifted = any(bool((shift.beside != 0).any()) for shift in constants.shifts)
    unchanged = bool(narrowed) and all_dead and not shifted and before is None
    return Verdict(
        outcome="statistics change" if changing else "equal" if blamed else "nothing cut",
        difference=difference,
        control=control,
        groups=tuple(narrowed),
        reference="dense model" if unchanged else "masked model",
        batches=()
        if compared[0] is given
        else tuple(dict.fromkeys(_count_examples(one) for one in compared)),
        note="; ".join(_list_remarks(changing, tolerance, casts)),
    )


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


def narrowed_groups(model_map: ModelMap, keep: Keep) -> list[str]:
    return [
        name
        for name, kept in keep.items()
        if len(kept) < model_map.by_name[name].width and not _within_branches(model_map, keep, name)
    ]


def _within_branches(model_map: ModelMap, keep: Keep, name: str) -> bool:
    """Whether a group was removed because all of it is inside removed residual branches."""
    return not keep[name] and name not in {b.name for b in model_map.branches}


def run_cut_model(narrow: nn.Module, inputs: Inputs, groups: Sequence[str]) -> list[torch.Tensor]:
    """Outputs of the cut model. Raises VerificationError if it does not run."""
    try:
        return run_model(narrow, inputs)
    except Exception as error:
        raise _run_error(error, groups) from error


def _run_error(error: Exception, groups: Sequence[str]) -> VerificationError:
    return VerificationError(
        f"the cut model does not run: {type(error).__name__}: {first_line(error)}{_list_groups(groups)}"
    )


def copy_in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return cast_model(copy_model(model), dtype).eval()


def run_masked_model(
    wide: nn.Module,
    model_map: ModelMap,
    keep: Keep,
    inputs: Inputs,
    found: Sequence[torch.Tensor],
    blamed: Sequence[str],
) -> list[torch.Tensor]:
    """Outputs of the masked dense model.

    Raises VerificationError if their shapes are not those of the cut model's outputs.
    """
    groups, sums = (
        narrowed_groups(model_map, keep),
        [s for b in removed_branches(model_map, keep) for s in b.sums],
    )
    with _mask_units(wide, model_map, keep):
        if any(model_map.by_name[name].statistics for name in groups):
            # Inside branches that leave as well: what comes out of one has the labels of what it is added to.
            gone: dict[tuple[str, int], set[int]] = {}
            for (tensor, dim, _), lost in removed_indices(
                model_map, {name: keep[name] for name in groups if keep[name]}
            ).items():
                gone.setdefault((tensor, dim), set()).update(lost.tolist())
            masked = masked_statistics.run_without_removed(wide, inputs, gone, sums)
        else:
            with zero_branches(wide, sums):
                masked = run_model(wide, inputs)
    if [t.shape for t in found] != [t.shape for t in masked]:
        raise VerificationError(f"the cut model's outputs changed their shapes{_list_groups(blamed)}")
    return masked


@contextmanager
def _mask_units(wide: nn.Module, model_map: ModelMap, keep: Keep) -> Iterator[None]:
    """Set the consumers' input slices of every removed unit to zero, and restore them afterwards.

    For a product without a weight (queries times keys), the slices that compute the units are zero as
    well. The weights of removed branches are left as they are.
    Values are restored in single precision: trial models are made in it, and other models are not used
    again.
    """
    before: list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]] = []
    values = all_names(wide)
    with torch.no_grad():
        for tensor, dim, lost in _slices_to_zero(model_map, keep):
            value, at = values[tensor], torch.from_numpy(lost).to(values[tensor].device)
            own = value.index_select(dim, at)
            before.append((value, dim, at, own.float() if own.dtype == torch.float64 else own))
            value.index_fill_(dim, at, 0.0)
        try:
            yield
        finally:
            for value, dim, at, own in reversed(before):
                value.index_copy_(dim, at, own.to(value.dtype))


def _slices_to_zero(model_map: ModelMap, keep: Keep) -> Iterator[tuple[str, int, Ints]]:
    branches = {b.name: keep[b.name] for b in removed_branches(model_map, keep)}
    made = {
        name: kept
        for name, kept in keep.items()
        if model_map.by_name[name].paired or all(s.role != "in" for s in model_map.by_name[name].slices)
    }
    for chosen, role in (({**keep, **branches}, "in"), ({**made, **branches}, "out")):
        for (tensor, dim, own), lost in removed_indices(model_map, chosen).items():
            if own == role:
                yield tensor, dim, lost


def run_model(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    return run_and_count_casts(model, inputs)[0]


def run_and_count_casts(model: nn.Module, inputs: Inputs) -> tuple[list[torch.Tensor], int]:
    """Run a model. Returns its outputs, and how many of its casts to a lower precision were left out."""
    # Dropout is off in eval mode; operators that still are random draw the same values on both sides.
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        without_fused_attention(),
        restore_buffers(model),
        keep_double(model) as mode,
    ):
        seed_generators(0)
        return list(float_tensors(call_model(model, inputs))), mode.casts


def check_usual_calls(
    dense: Callable[[], nn.Module], narrow: nn.Module, inputs: Inputs, groups: Sequence[str]
) -> None:
    """Run the cut model on torch's fused paths, then forward and backward in train mode; `narrow` is used
    up.

    What the dense model cannot do with these inputs is not asked of the cut one.
    """
    uses: tuple[Callable[[nn.Module, Inputs], object], ...] = (_run_fused, _run_backwards)
    for use in uses:
        try:
            use(narrow, inputs)
        except Exception as error:
            try:
                use(dense(), inputs)
            except Exception:
                continue
            raise _run_error(error, groups) from error


def _check_training(wide: nn.Module, narrow: nn.Module, inputs: Inputs, groups: Sequence[str]) -> None:
    """Run both models on torch's fused paths and in train mode; both are used up.

    The cut model must run wherever the dense one does, with outputs of the same shapes, and gradients must
    reach the same parameters. Raises VerificationError.
    """
    check_usual_calls(lambda: copy_model(wide), narrow, inputs, groups)
    try:
        wanted = _run_train_step(wide, inputs)
    except Exception:
        return  # nothing to compare with
    found = _run_train_step(narrow, inputs)
    if found.shapes != wanted.shapes:
        raise VerificationError(
            "in train mode the cut model's outputs have other shapes than the dense one's"
            f"{_list_groups(groups)}"
        )
    there = {name for name, _ in narrow.named_parameters()}
    lost = sorted((wanted.reached & there) - found.reached)
    if lost:
        raise VerificationError(
            f"in train mode no gradient reaches '{lost[0]}' of the cut model, as it does in the dense one"
            f"{_list_groups(groups)}"
        )


@dataclass(frozen=True)
class _TrainStep:
    """Result of a forward and backward pass in train mode."""

    shapes: tuple[torch.Size, ...]
    reached: frozenset[str]
    """parameters that have a gradient"""


def _run_train_step(model: nn.Module, inputs: Inputs) -> _TrainStep:
    model.zero_grad(set_to_none=True)
    made = _run_backwards(model, inputs)
    reached = frozenset(name for name, p in model.named_parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    return _TrainStep(tuple(t.shape for t in made), reached)


def _run_fused(model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), keep_double(model):
        call_model(model.eval(), inputs)


def _run_backwards(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """The outputs in train mode, after a backward pass through all of them."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), keep_double(model):
        seed_generators(0)
        made = list(float_tensors(call_model(model.train(), inputs)))
        results: Iterable[Any] = [t.sum() for t in made if t.requires_grad]
        total = sum(results)
        if isinstance(total, torch.Tensor):
            total.backward()  # type: ignore[no-untyped-call]
    return made


def compare_outputs(one: nn.Module, other: nn.Module, candidates: Sequence[Inputs]) -> float:
    """Largest relative difference between two models' outputs, on the first inputs with finite outputs."""
    for inputs in candidates:
        try:
            wanted = run_model(one, inputs)
        except Exception:
            continue
        if all(bool(t.isfinite().all()) for t in wanted):  # a covariance of one example is not a number
            return relative_difference(run_model(other, inputs), wanted)
    return 0.0


def measure_effect(dense: nn.Module, model_map: ModelMap, keep: Keep, inputs: Inputs) -> float:
    """Largest difference between the masked and the dense model's outputs, relative to the largest output."""
    wide, given, plain, *_ = _copy_in_float64(dense, inputs)
    return relative_difference(run_masked_model(wide, model_map, keep, given, plain, ()), plain)


def relative_difference(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Largest difference of an output, relative to its own largest value; nan if only one of the two is
    nan.

    Infinities of the same sign are equal, since outputs may be masked with them.
    """
    gaps = [0.0]
    for a, b in zip(found, wanted, strict=True):
        if a.numel():
            apart, size = (a - b).abs(), b.abs()
            gap = torch.where(a == b, torch.zeros_like(apart), apart)
            largest = torch.where(b.isfinite(), size, torch.zeros_like(size)).max()
            gaps.append(float(gap.max()) / max(float(largest), torch.finfo(b.dtype).tiny))
    return math.nan if any(math.isnan(gap) for gap in gaps) else max(gaps)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _list_groups(groups: Sequence[str]) -> str:
    shown = ", ".join(groups[:5]) + (f" and {len(groups) - 5} more" if len(groups) > 5 else "")
    return f" [groups: {shown}]" if groups else ""
