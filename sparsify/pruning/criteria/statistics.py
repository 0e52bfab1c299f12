"""What criteria look at in training data: gradients of the loss, or what arrives at the layers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.pruning.criteria.scores import Looks
from sparsify_schemas.criterion import Criterion, FromData

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) of a batch -> the mean of what training minimises, a scalar"""
_SEEN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def looks(
    model: nn.Module, spec: Criterion, batches: Sequence[Batch] | None, loss: Loss | None
) -> Looks | None:
    """How a criterion looks at a model, which it leaves in eval mode;
    None where it needs no data or there is none."""
    if batches is None or loss is None or not isinstance(spec, FromData):
        return None
    own = list(islice(batches, spec.batches))
    match spec.facts().sees:
        case "inputs":
            return partial(_inputs, model, spec.kind, own)
        case "gradients":
            return partial(_gradients, model, own, loss)
        case "gradients of examples":
            alone = [(x[i : i + 1], y[i : i + 1]) for x, y in own for i in range(len(x))]
            return partial(_gradients, model, alone, loss)
        case "weights" | "model":
            return None


def _gradients(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> Iterator[None]:
    device = next(model.parameters()).device
    model.eval().requires_grad_(True)
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        loss(model(x.to(device)), y.to(device)).backward()  # type: ignore[no-untyped-call]
        yield


def _inputs(model: nn.Module, kind: str, batches: Sequence[Batch]) -> Iterator[None]:
    """Root mean squares over a batch and, for convolutions, over positions; the same for every output."""
    seen = [module for module in model.modules() if isinstance(module, _SEEN)]
    if not seen:
        raise ModelError(
            f"criterion '{kind}' sees convolutions and Linear layers, and the model has neither; "
            "use magnitude or taylor"
        )
    device = next(model.parameters()).device
    model.eval()
    for x, _ in batches:
        model.zero_grad(set_to_none=True)
        with ExitStack() as stack, torch.no_grad():
            for module in seen:
                handle = module.register_forward_hook(_note)
                stack.callback(handle.remove)
            model(x.to(device))
        yield


def _note(module: nn.Module, args: tuple[Any, ...], _output: Any) -> None:
    weight, x = module.get_parameter("weight"), args[0].detach().float()
    if isinstance(module, nn.Linear):
        rms = x.flatten(0, -2).square().mean(0).sqrt()
        weight.grad = rms.expand_as(weight).to(weight.dtype).clone()
        return
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    channel = x.dim() - len(module.kernel_size) - 1  # 0 where there is no batch
    rms = x.square().mean([d for d in range(x.dim()) if d != channel]).sqrt()
    rows = rms.view(module.groups, -1).repeat_interleave(weight.shape[0] // module.groups, 0)
    weight.grad = (
        rows.view(*rows.shape, *[1] * len(module.kernel_size)).expand_as(weight).to(weight.dtype).clone()
    )
