"""What a penalty does around one step of the optimizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Tensors = Mapping[str, Tensor]
Output = Callable[[Tensors, Tensor, Tensor, Any], None]
"""(weights of the graph, outputs, gradient of the loss by them, processes that share the batch):
while a backward pass is at the outputs, their graph still whole; the graph's weights are whole ones,
where they lie spread over processes"""
Before = Callable[[Tensors, Tensors, float], None]
"""(weights, gradients of the loss, what a GradScaler has multiplied them by):
may change the gradients in place"""
Gradient = Callable[[Tensors, Tensors, float], None]
"""(weights, gradients, strength): add to the gradients in place"""
After = Callable[[Tensors, float], None]
"""(weights, strength): change the weights in place, after every step"""
Proximal = Callable[[Tensors, Mapping[str, float]], None]
"""(weights, amounts): change the weights in place, after every n-th step;
amount is lr * strength summed over the n steps"""
Restore = Callable[[Tensors, Tensors, float], None]
"""(weights, gradients, what a GradScaler has multiplied them by): swap the trained weights back in, and turn
the gradients into those of the trained weights; there are none where no backward pass came before"""
Show = Callable[[Tensors, bool], None]
"""(weights, noisy): swap in the weights for the forward pass: a sample if noisy, for the next training step,
else the expectation. `restore` swaps back."""
StrengthAt = Callable[[int, tuple[int, int], int], float]
"""(step, steps of the last cut and of the next one or the ends of the stage, steps of an epoch):
lambda, where no schedule of the recipe says it"""


@dataclass(frozen=True)
class Action:
    """What a penalty does; what is None it does not do.
    `state` holds tensors that it changes in place, for checkpoints.

    per: which of them hold one number for each weight or tensor,
    in the order of the layouts' parts, or for each group.
    """

    output: Output | None = None
    before: Before | None = None
    gradient: Gradient | None = None
    after: After | None = None
    proximal: Proximal | None = None
    restore: Restore | None = None
    show: Show | None = None
    strength_at: StrengthAt | None = None
    reactivated: Callable[[], float] | None = None
    """fraction of its weights or groups that were inactive in one step and active in the next, mean over the
    steps since the last call"""
    state: Tensors = field(default_factory=dict)
    per: Mapping[str, Literal["weight", "group", "tensor"]] = field(default_factory=dict)
