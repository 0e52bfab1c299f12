"""What criteria look at in training data: gradients of the loss, or what arrives at the layers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.data.columns import count_examples, split_values
from sparsify.errors import ModelError
from sparsify.forward.calls import first_tensor
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.objective.objective import Objective, measure_batch, move, require_gradients
from sparsify.objective.predictions import call_on_batch
from sparsify.pruning.criteria.scores import Statistics
from sparsify_schemas.criterion import Criterion

Batch = tuple[Any, Any]
"""(inputs, targets)"""
_SEEN_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def gather_statistics(
    model: nn.Module, spec: Criterion, batches: Sequence[Batch] | None, objective: Objective | None
) -> Statistics | None:
    """What a criterion takes from training data, batch by batch; the model is left in eval mode.

    None where the criterion needs no data or there is none.
    """
    if batches is None or objective is None or not spec.count_batches():
        return None
    own = list(islice(batches, spec.count_batches()))
    match spec.facts().sees:
        case "inputs":
            return partial(_visit_inputs, model, spec.kind, own)
        case "gradients":
            return partial(_visit_gradients, model, spec.kind, own, objective)
        case "gradients of examples":
            alone = [example for batch in own for example in _one_by_one(batch)]
            return partial(_visit_gradients, model, spec.kind, alone, objective)
        case "weights" | "model":
            return None


def _one_by_one(batch: Batch) -> list[Batch]:
    x, y = batch
    count = count_examples(y)
    return list(zip(split_values(x, count), split_values(y, count), strict=True))


def _visit_gradients(
    model: nn.Module, kind: str, batches: Sequence[Batch], objective: Objective
) -> Iterator[None]:
    device = next(model.parameters()).device
    require_gradients(model.eval())
    has_gradient = False
    for x, y in batches:
        model.zero_grad(set_to_none=True)
        loss = measure_batch(objective, model, move(x, device), move(y, device))
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        has_gradient = has_gradient or any(
            p.grad is not None and bool(p.grad.any()) for p in model.parameters()
        )
        yield
    if batches and not has_gradient:
        raise ModelError(
            f"criterion '{kind}' looks at gradients of the loss, and those of the task "
            f"'{objective.task.kind}' are "
            "zero for every weight: its loss is constant or does not depend on the model; check the task's "
            "loss and "
            "the targets"
        )


def _visit_inputs(model: nn.Module, kind: str, batches: Sequence[Batch]) -> Iterator[None]:
    """Root mean squares over a batch, over all calls of a layer, and for convolutions over positions; the
    same for every output."""
    layers = [module for module in model.modules() if isinstance(module, _SEEN_LAYERS)]
    seen = [module for module in layers if _find_weight(module) is not None]
    if not seen:
        raise ModelError(
            f"criterion '{kind}' sees convolutions and Linear layers, and the model has neither; "
            "use magnitude or taylor"
        )
    device = next(model.parameters()).device
    model.eval()
    for x, _ in batches:
        model.zero_grad(set_to_none=True)
        arrived: dict[int, _Arrived] = {}
        with ExitStack() as stack, torch.no_grad(), without_fused_attention():
            for module in seen:
                handle = module.register_forward_hook(partial(_note_input, arrived), with_kwargs=True)
                stack.callback(handle.remove)
            call_on_batch(model, move(x, device))
        yield


@dataclass
class _Arrived:
    """Squares of what one weight multiplies, of all calls that read it so far."""

    total: Tensor
    """sum over rows or positions: [inputs]"""
    count: int


def _note_input(
    arrived: dict[int, _Arrived],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    _output: Any,
) -> None:
    """arrived: by the id of the weight, which several layers may share."""
    weight, given = _find_weight(module), first_tensor(args, kwargs)
    assert weight is not None and given is not None
    x = given.detach().float()
    channel = x.dim() - 1
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        channel = x.dim() - len(module.kernel_size) - 1  # 0 where there is no batch
    squares = x.square().movedim(channel, -1).reshape(-1, x.shape[channel])
    own = arrived.setdefault(id(weight), _Arrived(squares.new_zeros(squares.shape[-1]), 0))
    own.total = own.total + squares.sum(0)
    own.count += len(squares)
    rms = own.total.div(max(1, own.count)).sqrt()  # no row reaches an expert that is not chosen
    weight.grad = _spread_over(module, weight, rms).to(weight.dtype).clone()


def _find_weight(module: nn.Module) -> nn.Parameter | None:
    """The weight of a layer; under weight_norm, spectral_norm, another parametrization or a mask the
    parameter of its shape that it is computed from; None where there is none."""
    own = module._parameters.get("weight")
    if own is not None:
        return own
    shape = getattr(getattr(module, "weight", None), "shape", None)
    behind = [
        parameter
        for name, parameter in module.named_parameters()
        if name.startswith(("weight_", "parametrizations.weight.")) and parameter.shape == shape
    ]
    return behind[-1] if behind else None  # of weight_norm the direction stands last


def _spread_over(module: nn.Module, weight: Tensor, rms: Tensor) -> Tensor:
    """What arrives at each input, in the shape of the weight."""
    if isinstance(module, nn.Linear):
        return rms.expand_as(weight)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    rows = rms.view(module.groups, -1).repeat_interleave(weight.shape[0] // module.groups, 0)
    return rows.view(*rows.shape, *[1] * len(module.kernel_size)).expand_as(weight)
