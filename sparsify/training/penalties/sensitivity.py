"""Sensitivity: weights that the outputs, or the loss, hardly feel shrink; sensitive ones are left alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsify.distributed import Extent, add_over_processes, find_extent, take_part
from sparsify.errors import ModelError
from sparsify.training.penalties.step_action import Action, Tensors
from sparsify_schemas.penalty import Sensitivity


def make_action(spec: Sensitivity, names: tuple[str, ...], parameters: Tensors) -> Action:
    """After every step w <- w - strength * w * max(0, 1 - S),
    S = sum_k a_k * |dy_k/dw| or |dL/dw| before the step.

    y is the mean of the outputs over the batch, on all processes; over several backward passes in a step,
    S is their mean.
    Source: Tartaglione et al., arXiv:1810.11764.
    """
    if spec.of == "loss":
        return _of_loss(names)
    return _of_outputs(spec, names, {name: find_extent(name, parameters[name]) for name in names})


def _of_loss(names: tuple[str, ...]) -> Action:
    # Kept from step to step: to get so much memory anew takes longer than to fill it.
    found: dict[str, Tensor] = {}
    seen: list[str] = []

    def look(_weights: Tensors, gradients: Tensors, scale: float) -> None:
        # Before the step: some optimizers use the gradients' memory for their own sums.
        seen[:] = [n for n in names if n in gradients]
        for name in seen:
            if name not in found:
                found[name] = torch.empty_like(gradients[name])
            torch.abs(gradients[name], out=found[name])
            if scale != 1.0:
                found[name].div_(scale)

    def shrink(weights: Tensors, strength: float) -> None:
        _shrink_weights(weights, {name: found[name] for name in seen}, strength)
        seen.clear()

    return Action(before=look, after=shrink)


def _of_outputs(spec: Sensitivity, names: tuple[str, ...], extents: Mapping[str, Extent | None]) -> Action:
    found: dict[str, Tensor] = {}
    passes = torch.zeros((), dtype=torch.int64)
    draws = torch.zeros((), dtype=torch.int64)

    def differentiate(weights: Tensors, outputs: Tensor, gradient: Tensor, processes: Any) -> None:
        own = {n: weights[n] for n in names}
        for value, share in _list_derivatives(spec, outputs, gradient, int(draws)):
            for name, slope in _differentiate(value, own, processes):
                here = take_part(slope, extents[name])
                found[name] = found[name].add_(here, alpha=share) if name in found else here.mul(share)
        passes.add_(1)
        draws.add_(1)

    def shrink(weights: Tensors, strength: float) -> None:
        _shrink_weights(weights, {name: total.div_(int(passes)) for name, total in found.items()}, strength)
        found.clear()
        passes.zero_()

    return Action(output=differentiate, after=shrink, state={"draws": draws})


def _list_derivatives(
    spec: Sensitivity, outputs: Tensor, gradient: Tensor, draws: int
) -> list[tuple[Tensor, float]]:
    """(mean output y_k over the batch, a_k) for every k with a_k above zero."""
    count = outputs.shape[1]
    with torch.enable_grad():
        if spec.mode == "specific":
            labels = gradient.argmin(1, keepdim=True)  # cross-entropy pulls only the label's output up
            return [(outputs.gather(1, labels).float().mean(), 1.0)]
        chosen = list(range(count))
        if spec.classes is not None and spec.classes < count:
            chosen = torch.randperm(count, generator=torch.Generator().manual_seed(draws))[
                : spec.classes
            ].tolist()
        means = outputs.float().mean(0)
        return [(means[k], 1 / len(chosen)) for k in chosen]


def _differentiate(value: Tensor, own: Tensors, processes: Any) -> Iterator[tuple[str, Tensor]]:
    """|d mean of all processes' values / dw| of the weights that any of them depends on."""
    slopes: Sequence[Tensor | None] = torch.autograd.grad(
        value, list(own.values()), retain_graph=True, allow_unused=True
    )
    if processes is not None:
        slopes = _average_slopes(slopes, own, processes)
    yield from ((name, slope.abs()) for name, slope in zip(own, slopes, strict=True) if slope is not None)


def _average_slopes(
    slopes: Sequence[Tensor | None], own: Tensors, processes: Any
) -> tuple[Tensor | None, ...]:
    """Over processes, in one exchange; None where no process has any."""
    found = []
    for slope, weight in zip(slopes, own.values(), strict=True):
        found.append(torch.zeros_like(weight) if slope is None else slope)
    seen = found[0].new_tensor([slope is not None for slope in slopes])
    joined = torch.cat([seen, *(slope.flatten() for slope in found)])
    lengths = [len(seen), *(slope.numel() for slope in found)]
    sums = torch.split(add_over_processes(joined, processes), lengths)
    size = torch.distributed.get_world_size(processes)
    means = []
    for any_seen, total, slope in zip(sums[0].tolist(), sums[1:], found, strict=True):
        means.append(total.view_as(slope) / size if any_seen else None)
    return tuple(means)


def _shrink_weights(weights: Tensors, sensitivities: Tensors, strength: float) -> None:
    for name, sensitivity in sensitivities.items():
        insensitivity = sensitivity.neg_().add_(1.0).clamp_(min=0.0)
        weights[name].addcmul_(weights[name], insensitivity.to(weights[name].dtype), value=-strength)


def find_outputs(returned: object) -> Tensor:
    """The tensor of outputs in what a model returned: itself, or its `logits`. Raises ModelError."""
    found = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", returned)
    if isinstance(found, Tensor) and found.dim() in (2, 3, 4):
        return found
    what = f"a {type(returned).__name__}"
    if isinstance(found, Tensor):
        what = f"a tensor of shape {tuple(found.shape)}"
    raise ModelError(
        f"sensitivity of outputs needs a model that returns one row of outputs per example, not {what}; "
        "write 'of: loss'"
    )


def as_rows(outputs: Tensor) -> Tensor:
    """[N, K] as it is; tokens [N, T, K] and pixels [N, K, H, W] as a row of K outputs each."""
    if outputs.dim() == 3:
        return outputs.flatten(0, 1)
    return outputs.permute(0, 2, 3, 1).flatten(0, 2) if outputs.dim() == 4 else outputs
