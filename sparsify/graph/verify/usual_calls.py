"""Check that a cut model runs as the dense one: on fused paths and in train mode, with all gradients."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.forward.call_model import (
    call_model,
    float_tensors,
)
from sparsify.forward.calls import Inputs
from sparsify.forward.copies import copy_model
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.graph.precision import keep_double
from sparsify.graph.verify.run_models import (
    list_groups,
    make_run_error,
)


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
            raise make_run_error(error, groups) from error


def check_training(wide: nn.Module, narrow: nn.Module, inputs: Inputs, groups: Sequence[str]) -> None:
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
            f"{list_groups(groups)}"
        )
    there = {name for name, _ in narrow.named_parameters()}
    lost = sorted((wanted.reached & there) - found.reached)
    if lost:
        raise VerificationError(
            f"in train mode no gradient reaches '{lost[0]}' of the cut model, as it does in the dense one"
            f"{list_groups(groups)}"
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
