"""Run a model for a comparison: fixed draws, plain operators, double precision kept."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.formatting.numbers import count_noun
from sparsify.forward.call_model import (
    call_model,
    float_tensors,
    restore_buffers,
    whole_tensors,
)
from sparsify.forward.calls import Inputs
from sparsify.forward.copies import copy_model
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.graph.peft_adapters import call_in_each_state
from sparsify.graph.precision import cast_model, keep_double
from sparsify.graph.trace.operators import without_grouped_experts
from sparsify.graph.verify import whole_outputs
from sparsify.graph.verify.failed_allocations import raise_out_of_memory


def run_cut_model(
    narrow: nn.Module, inputs: Inputs, groups: Sequence[str], whole: list[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """Outputs of the cut model; whole: is given its whole numbers. Raises VerificationError if it does not
    run."""
    try:
        return run_model(narrow, inputs, whole=whole)
    except Exception as error:
        raise make_run_error(error, groups) from error


def make_run_error(error: Exception, groups: Sequence[str]) -> VerificationError:
    """The error to raise where a cut model does not run. Raises ModelError where memory ended."""
    raise_out_of_memory(error)
    return VerificationError(
        f"the cut model does not run: {type(error).__name__}: {first_line(error)}{list_groups(groups)}"
    )


def copy_in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return cast_model(copy_model(model), dtype).eval()


def run_model(
    model: nn.Module,
    inputs: Inputs,
    restart: Callable[[], None] = lambda: None,
    whole: list[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Outputs of the model, and of it with its other adapters, and without any: real and complex numbers.

    restart: called before it is run once more. whole: is given the outputs of whole numbers and booleans.
    """
    return run_and_count_casts(model, inputs, restart, whole)[0]


def run_and_count_casts(
    model: nn.Module,
    inputs: Inputs,
    restart: Callable[[], None] = lambda: None,
    whole: list[torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor], int]:
    """Run a model. Returns its outputs, and how many of its casts to a lower precision were left out."""
    # Dropout is off in eval mode; operators that still are random draw the same values on both sides.
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        without_fused_attention(),
        without_grouped_experts(model),
        restore_buffers(model),
        keep_double(model) as mode,
    ):
        found: list[torch.Tensor] = []
        seed_generators(0)
        for output in call_in_each_state(model, inputs):
            found += float_tensors(output)
            if whole is not None:
                whole += whole_tensors(output)
            seed_generators(0)
            restart()
        return found, mode.casts


def draws_random_numbers(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a call in eval mode moves torch's generator on, as dropout does that is always on."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), restore_buffers(model):
        before = torch.get_rng_state()
        call_model(model, inputs)
        return not torch.equal(before, torch.get_rng_state())


@dataclass(frozen=True)
class Difference:
    """How far the outputs of two models are apart."""

    real: float = 0.0
    """largest difference of a real number, relative to the largest of its output"""
    whole: int = 0
    """places of whole numbers and booleans (classes, indices, masks) that differ by more than a tie"""

    def exceeds(self, tolerance: float) -> bool:
        return not self.real <= tolerance or self.whole > 0

    def __str__(self) -> str:
        """What follows 'outputs differ'."""
        if self.whole:
            return f"in {count_noun(self.whole, 'whole number')} (classes, indices, masks)"
        return f"by {self.real:.1e} of the largest"


def compare_outputs(
    one: nn.Module, other: nn.Module, candidates: Sequence[Inputs], noise: float
) -> Difference:
    """How two models with the same weights differ, on the first inputs that give finite outputs.

    noise: what rounding may change, relative to each number; see `whole_outputs.are_ties`.
    """
    for inputs in candidates:
        whole = list[torch.Tensor]()
        try:
            wanted = run_model(one, inputs, whole=whole)
        except Exception:
            continue
        if all(bool(t.isfinite().all()) for t in wanted):  # a covariance of one example is not a number
            return compare_with(one, (wanted, whole), other, inputs, noise)
    return Difference()


def compare_with(
    model: nn.Module,
    outputs: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],
    other: nn.Module,
    inputs: Inputs,
    noise: float,
) -> Difference:
    """How another model differs from one whose outputs on these inputs are known: real and whole numbers."""
    wanted, wanted_whole = outputs
    found_whole = list[torch.Tensor]()
    found = run_model(other, inputs, whole=found_whole)
    whole = _count_differing(model, inputs, wanted_whole, found_whole, noise)
    return Difference(relative_difference(found, wanted), whole)


def _count_differing(
    model: nn.Module,
    inputs: Inputs,
    wanted: Sequence[torch.Tensor],
    found: Sequence[torch.Tensor],
    noise: float,
) -> int:
    """How many whole numbers differ from those of the model; 0 where all of them are ties."""

    def run_again() -> list[torch.Tensor]:
        again = list[torch.Tensor]()
        run_model(model, inputs, whole=again)
        return again

    count, are_ties = whole_outputs.count_and_judge(found, wanted, model, run_again, noise)
    return 0 if are_ties else count


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
    if any(map(math.isnan, gaps)):
        return math.nan
    return max(gaps)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def list_groups(groups: Sequence[str]) -> str:
    shown = ", ".join(groups[:5]) + (f" and {len(groups) - 5} more" if len(groups) > 5 else "")
    return f" [groups: {shown}]" if groups else ""
