"""How far a cut model still says what the dense model says of the same inputs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.distributed import add_over_processes
from sparsify.errors import ModelError
from sparsify.forward.call_model import call_model, every_tensor
from sparsify.forward.calls import Inputs, map_tensors
from sparsify.forward.trial_calls import eval_mode
from sparsify_schemas.report import Agreement

CHUNK = 64
"""examples of one forward call"""


def measure_agreement(
    dense: nn.Module,
    model: nn.Module,
    inputs: Inputs,
    examples: int,
    processes: Any = None,
    classes: bool = True,
) -> Agreement:
    """Compare the outputs of two models on the same inputs, in eval mode; each gets its own mode back.

    With a and b the outputs of dense and cut model, each less its mean over the examples:

        correlation = sum(a b) / sqrt(sum(a a) sum(b b)),    error = sum((y_cut - y_dense)^2) / sum(a a)

    Args:
        inputs: one call with all examples along the first dimension of each tensor that has as many.
        examples: how many.
        processes: process group, each of which has other examples.
        classes: whether an output [N, C] is scores of C classes.

    A correlation near zero says that the outputs no longer follow the inputs.
    """
    with eval_mode(dense, model):
        calls = [_call_models(dense, model, part) for part in _split_inputs(inputs, examples)]
    if not calls:
        return Agreement(correlation=1.0, error=0.0)
    first = torch.cat([_join_outputs(a) for a, _ in calls]).double()
    second = torch.cat([_join_outputs(b) for _, b in calls]).double()
    count = add_over_processes(first.new_tensor(len(first)), processes)
    spread = first - add_over_processes(first.sum(0), processes) / count
    other = second - add_over_processes(second.sum(0), processes) / count
    products = (spread * spread, other * other, spread * other, (second - first).square())
    sums = add_over_processes(torch.stack([product.sum() for product in products]), processes)
    total, of_other, joint, distance = sums.tolist()
    scale = (total * of_other) ** 0.5
    correlation = joint / scale if scale else 0.0
    error = distance / total if total else 0.0
    single = all(len(a) == 1 for a, _ in calls)
    same = share_of_same_classes([(a[0], b[0]) for a, b in calls], processes) if classes and single else None
    return Agreement(correlation=correlation, error=error, same_prediction=same)


def share_of_same_classes(pairs: list[tuple[Tensor, Tensor]], processes: Any = None) -> float | None:
    """Share of the examples of which both models name the same class; None where outputs are no [N, C] scores
    of two classes or more.

    pairs: outputs of both models for each batch.
    """
    if any(a.dim() != 2 or a.shape[1] < 2 for a, _ in pairs):
        return None
    same = sum(int((a.argmax(dim=1) == b.argmax(dim=1)).sum()) for a, b in pairs)
    numbers = torch.tensor([same, sum(len(a) for a, _ in pairs)], dtype=torch.float64)
    agreeing, count = add_over_processes(numbers.to(pairs[0][0].device), processes).tolist()
    return float(agreeing / count)


def _call_models(dense: nn.Module, model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    with torch.no_grad():
        return _list_outputs(call_model(dense, inputs)), _list_outputs(call_model(model, inputs))


def _list_outputs(output: object) -> list[Tensor]:
    """The floating-point outputs."""
    found = [one.float() for one in every_tensor(output) if one.is_floating_point() and one.dim()]
    if not found:
        raise ModelError("the model returns no floating-point numbers, so its outputs cannot be compared")
    return found


def _join_outputs(found: list[Tensor]) -> Tensor:
    """The only output as it is, of several a row for each example."""
    if len(found) == 1:
        return found[0]
    return torch.cat([one.reshape(len(one), -1) for one in found if len(one) == len(found[0])], dim=1)


def _split_inputs(inputs: Inputs, examples: int) -> Iterator[Inputs]:
    for start in range(0, examples, CHUNK):
        yield take_examples(inputs, examples, start, start + CHUNK)


def take_examples(inputs: Inputs, examples: int, start: int, end: int) -> Inputs:
    """Some of the examples of one call; tensors without an example dimension go along whole."""
    return map_tensors(
        inputs, lambda value: value[start:end] if value.dim() and len(value) == examples else value
    )
