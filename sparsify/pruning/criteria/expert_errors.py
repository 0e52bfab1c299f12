"""How much the outputs of a model change when experts of a mixture go.

A mixture M runs again on what arrives at it, with the scores of a set S of experts at minus infinity: a
softmax then shares their weight among the others, and a choice of the largest takes the next ones. With g the
gradient of <outputs, v>, v ~ N(0, I), at each place of the mixture's output,

    e(S) = 1/n sum over n examples and their places of ( g . (M_S(x) - M(x)) )^2,

which is the squared change of the model's outputs, to first order and without what places have in common.
Experts go one after another, each time the one without which e(S) is least; of many experts one in eight of
those that are left goes at a time. So the last of several that can stand in for each other stays.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import float_tensors
from sparsify.forward.calls import map_tensors
from sparsify.graph.model_map import Mixture
from sparsify.graph.verify.router_mask import mask_experts
from sparsify.objective.objective import move, require_gradients
from sparsify.objective.predictions import call_on_batch
from sparsify.pruning.criteria.error_curve import score_by_curve
from sparsify.pruning.criteria.layer_gradients import LayerOutput, differentiate, project_outputs

STEPS = 8
"""of the experts that are left, one in so many goes at a time"""
RUNS = 512
"""of a mixture, over all batches, about; two batches at least"""
FEWEST_BATCHES = 2


@dataclass
class _Call:
    """One call of a mixture. Inputs are copies, as what comes behind may write into them."""

    args: Any
    kwargs: Any
    outputs: tuple[LayerOutput, ...]
    gradients: tuple[Tensor | None, ...] = ()


def expert_errors(
    model: nn.Module, mixtures: Sequence[Mixture], inputs: Sequence[Any], seed: int
) -> dict[str, Tensor]:
    """Name of each mixture -> score of each unit: the slope of the curve of errors where the unit goes. Units
    that the router cannot do without score as the last that can go.

    None of a mixture of which no call was seen.

    Args:
        model: the dense model in eval mode; its parameters are left with gradients on.
        inputs: of each batch, as the model takes them.
        seed: of v.
    """
    found: dict[str, Tensor] = {}
    for mixture in mixtures:
        count = max(FEWEST_BATCHES, RUNS // count_runs(mixture.group.width, mixture.group.least))
        # One mixture at a time, so that what arrives at the others need not be kept.
        calls, examples = _record_calls(model, mixture, inputs[:count], seed)
        if calls:
            found[mixture.name] = _score_units(model, mixture, calls, examples)
    return found


def count_runs(width: int, least: int) -> int:
    """How often a mixture runs for one call that was recorded.

    >>> count_runs(4, 2)
    7
    """
    return sum(left for left, _ in _list_steps(width, least))


def _list_steps(width: int, least: int) -> Iterator[tuple[int, int]]:
    """(units that are left, how many of them go) of each step."""
    left = width
    while left > max(1, least):
        going = min(max(1, left // STEPS), left - max(1, least))
        yield left, going
        left -= going


def _record_calls(
    model: nn.Module, mixture: Mixture, inputs: Sequence[Any], seed: int
) -> tuple[list[_Call], int]:
    """Calls of a mixture on some batches, with the gradients at its outputs, and the number of examples."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    recorded: list[_Call] = []
    examples = 0

    def note(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        outputs = tuple(LayerOutput.of(tensor) for tensor in float_tensors(output))
        recorded.append(_Call(_copy(args), _copy(kwargs), outputs))

    require_gradients(model)
    handle = model.get_submodule(mixture.module).register_forward_hook(note, with_kwargs=True)
    with ExitStack() as stack:
        stack.callback(handle.remove)
        for x in inputs:
            first = len(recorded)
            returned = call_on_batch(model, move(x, device))
            examples += max((len(tensor) for tensor in float_tensors(returned) if tensor.dim()), default=0)
            own = recorded[first:]
            outputs = [output for call in own for output in call.outputs]
            gradients = iter(differentiate(project_outputs(returned, generator), outputs))
            for call in own:
                call.gradients = tuple(next(gradients) for _ in call.outputs)
                call.outputs = ()
    return recorded, examples


def _copy(values: Any) -> Any:
    return map_tensors(values, lambda tensor: tensor.detach().clone())


def _score_units(model: nn.Module, mixture: Mixture, calls: Sequence[_Call], examples: int) -> Tensor:
    """Remove units step by step, the cheapest first."""
    module = model.get_submodule(mixture.module)
    axis = _find_axis(module)
    whole = [_run(module, call) for call in calls]

    def measure(gone: Sequence[int]) -> float:
        stay = [unit for unit in range(mixture.group.width) if unit not in gone]
        with mask_experts(model, [mixture], {mixture.name: stay}):
            changed = [_run(module, call) for call in calls]
        pairs = zip(calls, changed, whole, strict=True)
        return sum(_weigh_change(call, after, before, axis) for call, after, before in pairs) / examples

    gone: list[int] = []
    errors = [0.0]
    for _, going in _list_steps(mixture.group.width, mixture.group.least):
        left = [unit for unit in range(mixture.group.width) if unit not in gone]
        costs = {unit: measure([*gone, unit]) for unit in left}
        cheapest = sorted(left, key=lambda unit: (costs[unit], unit))[:going]
        gone += cheapest
        error = costs[cheapest[0]] if going == 1 else measure(gone)
        step = error - errors[-1]
        errors += [errors[-1] + step * (number + 1) / going for number in range(going)]
    stay = [unit for unit in range(mixture.group.width) if unit not in gone]
    return score_by_curve(gone, errors, stay)


@torch.no_grad()
def _run(module: nn.Module, call: _Call) -> list[Tensor]:
    return list(float_tensors(module(*_copy(call.args), **_copy(call.kwargs))))


def _weigh_change(call: _Call, after: Sequence[Tensor], before: Sequence[Tensor], axis: int) -> float:
    """Sum over the places of (g . change)^2."""
    total = 0.0
    for gradient, own, other in zip(call.gradients, after, before, strict=True):
        if gradient is not None:
            product = (gradient.double() * (own.double() - other.double())).sum(axis if own.dim() > 2 else -1)
            total += float(product.square().sum())
    return total


def _find_axis(module: nn.Module) -> int:
    """Of the channels in what a mixture returns."""
    convolves = any(isinstance(inner, nn.modules.conv._ConvNd) for inner in module.modules())
    return 1 if convolves else -1
