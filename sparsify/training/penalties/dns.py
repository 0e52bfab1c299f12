"""Dynamic network surgery: weights below a threshold are masked, and spliced back when they grow again."""

from typing import Any

import torch
from torch import Tensor

from sparsify.distributed import add_over_processes, local_part
from sparsify.graph.group_index import Layout
from sparsify.graph.row_pieces import convert_flags, split_rows
from sparsify.training.penalties.step_action import Action, Tensors
from sparsify.training.penalties.topk import list_portions
from sparsify_schemas.penalty import Dns

LOW, HIGH = 0.9, 1.1
"""of the threshold: below the one a weight is masked, above the other it comes back"""


def make_action(spec: Dns, layout: Layout, parameters: Tensors) -> Action:
    """The model holds w * mask; `state` holds w, which every step of the optimizer moves, masked or not.

    After a step: w <- w + (what the step has changed of w * mask); sometimes mask <- by |w|;
    the model gets w * mask.
    Source: Guo et al., arXiv:1608.04493, algorithm 1, and its published code.
    """
    names = tuple(part.name for part in layout.parts)
    among = list_portions([layout], parameters)
    sizes = [size for size, _ in among]
    dense = torch.cat([local_part(parameters[n].detach()).flatten() for n in names])
    mask = torch.ones_like(dense, dtype=torch.bool)
    thresholds = torch.stack(
        [
            _compute_threshold(own, spec.c_rate, processes)
            for own, (_, processes) in zip(torch.split(dense, sizes), among, strict=True)
        ]
    )
    step = torch.zeros((), dtype=torch.int64)
    zero = dense.new_zeros(())

    def splice(weights: Tensors, _strength: float) -> None:
        drawn = _decide_update(spec, int(step))
        step.add_(1)
        for name, own, alive, threshold in zip(
            names, torch.split(dense, sizes), torch.split(mask, sizes), thresholds, strict=True
        ):
            weight = weights[name]
            pieces = split_rows(own.view(weight.shape), alive.view(weight.shape), weight)
            for whole, flags, masked in pieces:
                stays = convert_flags(flags, whole.dtype)
                whole.addcmul_(whole, stays, value=-1).add_(masked)
                if drawn:
                    magnitudes = whole.abs()
                    flags.logical_and_(magnitudes > LOW * threshold)
                    flags.logical_or_(magnitudes > HIGH * threshold)
                    stays = convert_flags(flags, whole.dtype)
                torch.addcmul(zero, whole, stays, out=masked)  # never -0, as a product of its own may be

    return Action(
        after=splice,
        state={"dense": dense, "mask": mask, "thresholds": thresholds, "step": step},
        per={"dense": "weight", "mask": "weight", "thresholds": "tensor"},
    )


def _compute_threshold(weights: Tensor, c_rate: float, processes: Any) -> Tensor:
    """max(0, mean + c_rate * standard deviation) of |w| over what is not zero, on all processes together."""
    magnitudes = weights[weights != 0].abs().double()
    count, total = add_over_processes(
        torch.stack([magnitudes.new_tensor(len(magnitudes)), magnitudes.sum()]), processes
    )
    mean = total / count.clamp(min=1)
    variance = add_over_processes((magnitudes - mean).square().sum(), processes) / count.clamp(min=1)
    threshold: Tensor = (mean + c_rate * variance.sqrt()).clamp(min=0.0)
    return threshold.to(weights.dtype)


def _decide_update(spec: Dns, step: int) -> bool:
    """Whether masks change in this step: with probability (1 + gamma * step)^(-power), and no more from
    `stop` on."""
    if spec.stop is not None and step >= spec.stop:
        return False
    draw = torch.rand((), generator=torch.Generator().manual_seed(step))
    return float(draw) < float((1 + spec.gamma * step) ** -spec.power)
