"""Find which stale numbers can be set without changing what the cut model computes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.errors import describe_error
from sparsify.forward.call_model import call_model, float_tensors
from sparsify.forward.calls import Inputs
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.forward.scratch import borrow_model
from sparsify.graph.surgery import module_integers
from sparsify.graph.surgery.module_integers import Number

CLOSE = 1e-6
"""largest difference between outputs, relative to the largest output, of models that compute the same"""

Outputs = Sequence[list[Tensor] | str]
"""what a model returned in eval mode and in train mode, or the text of its error"""


@dataclass(frozen=True)
class StaleNumber:
    """A number that states an old width."""

    module: str
    path: str
    value: Number
    new: Number | None
    """its new value; None if that is not certain"""
    lengths: tuple[int, ...]
    """new lengths of the dimensions that it may mean"""

    @property
    def name(self) -> str:
        return f"{self.module}.{self.path}" if self.module else self.path


def split_by_effect(
    thin: nn.Module, certain: Sequence[StaleNumber], inputs: Inputs, before: Outputs
) -> tuple[list[StaleNumber], list[StaleNumber]]:
    """Find which numbers can be set without changing what the cut model computes, by halving.

    Returns (those that change nothing, those that change the outputs). A number without which the model
    does not run is in neither list: it is the length of something that has not changed.
    """
    good: list[StaleNumber] = []
    differing: list[StaleNumber] = []
    waiting = [list(certain)] if certain else []
    while waiting:
        part = waiting.pop(0)
        copy = borrow_model(thin)
        for stale in [*good, *part]:
            assert stale.new is not None
            module_integers.write_number(copy.get_submodule(stale.module), stale.path, stale.new)
        found = run_in_both_modes(copy, inputs)
        if compute_the_same(before, found):
            good += part
        elif len(part) > 1:
            half = len(part) // 2
            waiting = [part[:half], part[half:], *waiting]
        elif not any(
            isinstance(after, str) and after != then for after, then in zip(found, before, strict=True)
        ):
            differing += part
    return good, differing


def run_in_both_modes(copy: nn.Module, inputs: Inputs) -> list[list[Tensor] | str]:
    """The outputs in eval mode, then in train mode (which may change the copy); the error's text if it
    fails."""
    found: list[list[Tensor] | str] = []
    for training in (False, True):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                seed_generators(0)
                found.append(list(float_tensors(call_model(copy.train(training), inputs))))
        except Exception as error:
            found.append(describe_error(error))
    return found


def compute_the_same(before: Outputs, after: Outputs) -> bool:
    """Whether two models returned the same, or failed with the same error, in both modes."""
    return all(_same_outputs(a, b) for a, b in zip(before, after, strict=True))


def _same_outputs(before: list[Tensor] | str, after: list[Tensor] | str) -> bool:
    if isinstance(before, str) or isinstance(after, str):
        return before == after
    if len(before) != len(after):
        return False
    pairs = list(zip(before, after, strict=True))
    same_shapes = all(a.shape == b.shape for a, b in pairs)
    return same_shapes and all(_is_close(a, b) for a, b in pairs)


def _is_close(before: Tensor, after: Tensor) -> bool:
    if not before.numel():
        return True
    largest = float(before.abs().nan_to_num(0.0, 0.0).max())
    return torch.allclose(before, after, rtol=0.0, atol=CLOSE * largest, equal_nan=True)
