"""Gradients of a random projection of the outputs at what layers gave in a forward call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from sparsify.forward.call_model import every_tensor


@dataclass(frozen=True)
class LayerOutput:
    """What a layer gave at a call, and where its gradient comes back: an operator that writes into the
    output, such as an in-place ReLU, leaves that place."""

    values: Tensor
    edge: GradientEdge | None

    @staticmethod
    def of(output: Tensor) -> "LayerOutput":
        return LayerOutput(output.detach(), get_gradient_edge(output) if output.requires_grad else None)


def differentiate(loss: Tensor, outputs: Sequence[LayerOutput]) -> list[Tensor | None]:
    """The gradient of a loss at each output, None where none comes back."""
    edges = [output.edge for output in outputs if output.edge is not None]
    if not loss.requires_grad or not edges:
        return [None] * len(outputs)
    gradients = torch.autograd.grad(loss, edges, allow_unused=True)
    found: dict[GradientEdge | None, Tensor | None] = dict(zip(edges, gradients, strict=True))
    return [found.get(output.edge) for output in outputs]


def project_outputs(returned: object, generator: torch.Generator) -> Tensor:
    """<outputs, v> with v ~ N(0, I); each output less its mean over the last dimension, as a softmax has
    it."""
    total = torch.zeros(())
    for one in every_tensor(returned):
        if one.is_floating_point() and one.dim() and one.requires_grad:
            centred = one - one.mean(-1, keepdim=True) if one.shape[-1] > 1 else one
            total = (
                total.to(one.device) + (centred * torch.randn(one.shape, generator=generator).to(one)).sum()
            )
    return total
