"""Compare what an exported file computes with the model in memory."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.cost.measure.onnx_export import short_reason
from sparsify.data import Examples, batches
from sparsify.errors import ModelError, VerificationError
from sparsify.formatting.numbers import format_plain, format_tiny
from sparsify.forward import call_model
from sparsify.forward.calls import Inputs, as_arguments, count_examples, flatten_value, list_calls
from sparsify.forward.copies import copy_model
from sparsify.pruning.repair.agreement import share_of_same_classes

_BATCH = 64
Read = Callable[[], Callable[[Inputs], list[Tensor]]]
"""Loads the file, and returns a function that computes its output tensors."""


def compute_outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Every tensor that a forward call of a copy returns, with the same random numbers each time."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        made = call_model.call_model(copy_model(model), inputs)
    return _list_tensors(made)


def _list_tensors(made: Any) -> list[Tensor]:
    return [value for _, value in flatten_value(made) if isinstance(value, Tensor)]


def run_in_memory(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The outputs that the file must compute.

    Raises ModelError when the model refuses the batch or returns no tensor.
    """
    try:
        found = compute_outputs(model, inputs)
    except Exception as error:
        count = count_examples(list_calls(inputs)[0])
        what = "its inputs" if count is None else f"a batch of {count}"
        raise ModelError(
            f"the run's model does not take {what}, so it cannot be exported: {short_reason(error)}"
        ) from error
    if not found:
        raise ModelError("the run's model returns no tensor, so a file of it could not be compared with it")
    return found


def compare_outputs(
    target: Path,
    by: str,
    read: Read,
    probes: Mapping[str, Inputs],
    expected: Mapping[str, list[Tensor]],
    tolerance: float,
) -> float:
    """The largest relative difference at any size. Raises VerificationError above the tolerance."""
    refused = f"{target} was not written"
    try:
        run = read()
        found = {size: run(inputs) for size, inputs in probes.items()}
    except Exception as error:
        raise VerificationError(f"{refused}: {by} cannot run what was made: {short_reason(error)}") from error
    largest = 0.0
    for size, wanted in expected.items():
        shapes, got = _describe_shapes(wanted), _describe_shapes(found[size])
        if shapes != got:
            raise VerificationError(
                f"{refused}: at {size} the model returns {shapes}, reloaded by {by} it returns {got}"
            )
        differences = list(map(relative_difference, wanted, found[size]))
        # NaN is no difference that a maximum is sure to find.
        apart = max(differences) if all(map(math.isfinite, differences)) else math.inf
        if not apart <= tolerance:
            raise VerificationError(
                f"{refused}: at {size}, reloaded by {by}, it differs from the run's model "
                f"by {format_tiny(apart)} of the largest output; at most {format_plain(tolerance)} is allowed"
            )
        largest = max(largest, apart)
    return largest


def measure_same_classes(
    model: nn.Module, run: Callable[[Inputs], list[Tensor]], examples: Examples
) -> float | None:
    """The fraction of the examples on which the first outputs of file and model predict the same class; None
    where they are no scores of classes."""
    copy, pairs = copy_model(model), []
    with torch.no_grad():
        for x, _ in batches(examples, _BATCH):
            given = as_arguments(x)
            expected = _list_tensors(call_model.call_model(copy, given))[0]
            pairs.append((expected, run(given)[0]))
    return share_of_same_classes(pairs)


def _describe_shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in tensors)


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """max|a - b| / max|a|. Equal infinities, and NaN on both sides, are no difference."""
    a, b = _to_double(expected), _to_double(found)
    apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    if not apart.numel() or float(apart.max()) == 0:
        return 0.0
    finite = a[a.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return float(apart.max()) / scale if scale else float("inf")


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)
