"""Check that a cut model runs as the dense one: on fused paths and in train mode, with all gradients."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.forward.call_model import call_model, convert_inputs, float_tensors
from sparsify.forward.calls import Inputs
from sparsify.forward.copies import copy_model
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.forward.scratch import copy_to_call
from sparsify.graph.precision import DOUBLE, cast_model, keep_double
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


def check_training(
    dense: nn.Module,
    narrow: nn.Module,
    inputs: Inputs,
    groups: Sequence[str],
    chosen: Sequence[str] = (),
) -> None:
    """Run both models on torch's fused paths and in train mode; both are used up.

    The cut model must run wherever the dense one does, with outputs of the same shapes, and gradients must
    reach the same parameters, except in modules that only run for what is routed to them. A dense model that
    cannot be trained in its own precision is tried in float64.

    chosen: the beginnings of the names of such modules. Raises VerificationError.
    """
    try:
        wanted = _run_train_step(copy_to_call(dense), inputs)
    except Exception:
        wanted = None
    if wanted is None and all(p.dtype not in DOUBLE for p in dense.parameters()):
        dense, narrow = (cast_model(copy_model(each), torch.float64) for each in (dense, narrow))
        inputs = convert_inputs(inputs, torch.float64)
        with contextlib.suppress(Exception):
            wanted = _run_train_step(copy_to_call(dense), inputs)
    try:
        _run_fused(narrow, inputs)
    except Exception as error:
        if _runs(lambda: _run_fused(copy_to_call(dense), inputs)):
            raise make_run_error(error, groups) from error
    if wanted is None:
        return  # nothing to compare with
    try:
        found = _run_train_step(narrow, inputs)
    except Exception as error:
        raise make_run_error(error, groups) from error
    if found.shapes != wanted.shapes:
        raise VerificationError(
            "in train mode the cut model's outputs have other shapes than the dense one's"
            f"{list_groups(groups)}"
        )
    there = {name for name, _ in narrow.named_parameters()}
    missing = (wanted.reached & there) - found.reached
    lost = sorted(name for name in missing if not name.startswith(tuple(chosen)))
    if lost:
        raise VerificationError(
            f"in train mode no gradient reaches '{lost[0]}' of the cut model, as it does in the dense one"
            f"{list_groups(groups)}"
        )


def _runs(use: Callable[[], object]) -> bool:
    try:
        use()
    except Exception:
        return False
    return True


@dataclass(frozen=True)
class _TrainStep:
    """Result of a forward and backward pass in train mode."""

    shapes: tuple[torch.Size, ...]
    reached: frozenset[str]
    """parameters that have a gradient"""


def _run_train_step(model: nn.Module, inputs: Inputs) -> _TrainStep:
    model.zero_grad(set_to_none=True)
    reached: set[str] = set()
    made = _run_backwards(model, inputs, reached)
    return _TrainStep(tuple(t.shape for t in made), frozenset(reached))


def _run_fused(model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), keep_double(model):
        call_model(model.eval(), inputs)


def _run_backwards(model: nn.Module, inputs: Inputs, reached: set[str] | None = None) -> list[torch.Tensor]:
    """The outputs in train mode, after a backward pass through all of them.

    reached: is given the parameters that get a gradient. Each gradient is dropped as soon as it is there.
    """
    names = set[str]() if reached is None else reached
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), keep_double(model):
        seed_generators(0)
        handles = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(_drop_gradient, names, name)
            )
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and parameter.is_leaf
        ]
        try:
            made = list(float_tensors(call_model(model.train(), inputs)))
            results: Iterable[Any] = [t.sum() for t in made if t.requires_grad]
            total = sum(results)
            if isinstance(total, torch.Tensor):
                total.backward()  # type: ignore[no-untyped-call]
        finally:
            for handle in handles:
                handle.remove()
    return made


def _drop_gradient(reached: set[str], name: str, parameter: torch.Tensor) -> None:
    reached.add(name)
    parameter.grad = None
