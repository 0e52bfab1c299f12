"""Losses of each kind of task, by example: a sum over what counts, and how much counts.

The loss of a batch is the sum of all sums over the sum of all weights. Kept apart by example, they add up to
the same number however a batch is divided among parts and processes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.data.columns import IGNORED, count_examples
from sparsify.errors import DataError, TrainingError
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas.task import Kind


@dataclass(frozen=True)
class Losses:
    """Of N examples."""

    sums: Tensor
    """[N], summed over what counts in an example: itself, its pixels, its tokens"""
    weights: Tensor
    """[N], how much counts"""

    @property
    def mean(self) -> Tensor:
        """The loss of the batch, a scalar: sum of sums / sum of weights."""
        return self.sums.sum() / self.weights.sum().clamp(min=1)


def count_targets(kind: Kind, targets: Any) -> Tensor:
    """How much counts in each example, [N], as the weights of its losses say: tokens, pixels, or the
    example."""
    if kind == "language_model":
        targets = targets[:, 1:]
    if kind in ("language_model", "masked_language_model", "segmentation"):
        counts: Tensor = (targets != IGNORED).flatten(1).sum(dim=1).float()
        return counts
    return torch.ones(count_examples(targets))


MeasureLosses = Callable[[Any, Any], Losses]
"""(outputs, targets) -> the losses of a batch"""


def classification_losses(outputs: Any, targets: Any, smoothing: float = 0.0) -> Losses:
    """Cross-entropy: outputs [N, classes], targets [N]."""
    try:
        each = functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing)
    except IndexError as error:
        raise DataError(
            f"the targets hold class {int(targets.max())} and the model has {outputs.shape[1]} outputs; "
            "build the model for as many, or name another task"
        ) from error
    return _per_example(each)


def multilabel_losses(outputs: Any, targets: Any) -> Losses:
    """Binary cross-entropy, mean over the labels: outputs and targets [N, labels]."""
    _same_shape(outputs, targets, "a multilabel task needs one logit for each label")
    wanted = targets.to(outputs.dtype)
    each = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
    return _per_example(each.mean(dim=1))


def regression_losses(outputs: Any, targets: Any) -> Losses:
    """Squared error, mean over an example's numbers: outputs and targets [N, ...]; [N, 1] is [N]."""
    outputs, targets = match_numbers(outputs, targets)
    each = functional.mse_loss(outputs, targets, reduction="none")
    return _per_example(each.flatten(1).mean(dim=1))


def segmentation_losses(outputs: Any, targets: Any, smoothing: float = 0.0) -> Losses:
    """Cross-entropy at each pixel that counts: outputs [N, classes, H, W], targets [N, H, W].

    Binary cross-entropy where there is one channel. Outputs of another size are resized to that of the
    targets.
    """
    outputs = match_pixels(outputs, targets)
    counts = targets != IGNORED
    if outputs.shape[1] == 1:
        wanted = targets.clamp(0, 1).to(outputs.dtype)
        each = functional.binary_cross_entropy_with_logits(outputs[:, 0], wanted, reduction="none")
        each = each * counts
    else:
        each = functional.cross_entropy(
            outputs, targets, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
        )
    return Losses(each.flatten(1).sum(dim=1), counts.flatten(1).sum(dim=1).to(each.dtype))


def masked_token_losses(outputs: Any, targets: Any, smoothing: float = 0.0) -> Losses:
    """Cross-entropy at each token that counts: outputs [N, T, vocabulary], targets [N, T]."""
    check_tokens(outputs, targets)
    each = functional.cross_entropy(
        outputs.transpose(1, 2).float(),
        targets,
        reduction="none",
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )
    counts = targets != IGNORED
    return Losses(each.sum(dim=1), counts.sum(dim=1).to(each.dtype))


def next_token_losses(outputs: Any, targets: Any, smoothing: float = 0.0) -> Losses:
    """Cross-entropy of what each token says of the token after it: outputs [N, T, vocabulary], targets [N,
    T]."""
    check_tokens(outputs, targets)
    return masked_token_losses(*shift_tokens(outputs, targets), smoothing)


def shift_tokens(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs at each token but the last, targets at each token but the first)."""
    return outputs[:, :-1], targets[:, 1:]


def losses_of_function(function: Callable[[Any, Any], Any], name: str) -> MeasureLosses:
    """The losses that a user's function returns: the mean over a batch, or a number for each example."""

    def measure(outputs: Any, targets: Any) -> Losses:
        with run_user_code(f"loss '{name}'", lambda why: TrainingError(f"loss '{name}' failed: {why}")):
            value = function(outputs, targets)
        return _spread(value, count_examples(targets), name)

    return measure


def losses_of_model(outputs: Any, targets: Any) -> Losses:
    """The loss that the model returns itself: `loss` of what it returns, or all entries of a mapping of
    losses."""
    value = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if value is None and isinstance(outputs, Mapping) and _are_scalars(outputs):
        value = sum(outputs.values())
    if value is None:
        raise TrainingError(
            f"task.loss is 'model', and the model returns a {type(outputs).__name__} without a loss; "
            "write task.loss: package.module:callable"
        )
    return _spread(value, count_examples(targets), "model")


def _are_scalars(outputs: Mapping[str, Any]) -> bool:
    return bool(outputs) and all(isinstance(v, Tensor) and v.dim() == 0 for v in outputs.values())


def _spread(value: Any, count: int, name: str) -> Losses:
    if not isinstance(value, Tensor):
        raise TrainingError(
            f"loss '{name}' returned a {type(value).__name__}; a loss is a tensor: one number, or one for "
            f"each example"
        )
    if value.dim() == 0:
        return _per_example(value.expand(count))
    if tuple(value.shape) == (count,):
        return _per_example(value)
    raise TrainingError(
        f"loss '{name}' returned a tensor of shape {tuple(value.shape)}; "
        f"a loss is one number, or one for each of the {count} examples"
    )


def _per_example(each: Tensor) -> Losses:
    return Losses(each, torch.ones_like(each))


def _same_shape(outputs: Any, targets: Tensor, need: str) -> None:
    if tuple(outputs.shape) != tuple(targets.shape):
        raise TrainingError(
            f"the model returns a tensor of shape {tuple(outputs.shape)} and the targets have the shape "
            f"{tuple(targets.shape)}; {need}"
        )


def match_numbers(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets of a regression in one shape, [N, ...]."""
    if outputs.dim() == 1:
        outputs = outputs[:, None]
    if targets.dim() == 1:
        targets = targets[:, None]
    _same_shape(outputs, targets, "a regression needs one output for each target")
    return outputs, targets


def match_pixels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits [N, classes, H, W] in the size of the targets [N, H, W]."""
    if outputs.dim() != 4:
        raise TrainingError(
            f"the model returns a tensor of shape {tuple(outputs.shape)}; a segmentation needs logits for "
            f"each "
            "pixel, (examples, classes, height, width)"
        )
    largest = int(targets.max()) if targets.numel() else 0
    if largest >= max(2, outputs.shape[1]):
        raise DataError(
            f"the targets hold class {largest} and the model has {outputs.shape[1]} channels; build the "
            f"model for "
            "as many classes, or say in task.ignore which target does not count"
        )
    if outputs.shape[2:] == targets.shape[1:]:
        return outputs
    size = (int(targets.shape[1]), int(targets.shape[2]))
    return functional.interpolate(outputs, size, mode="bilinear", align_corners=False)


def check_tokens(outputs: Tensor, targets: Tensor) -> None:
    """That there are logits for each token. Raises TrainingError and DataError."""
    if outputs.dim() != 3 or outputs.shape[:2] != targets.shape[:2]:
        raise TrainingError(
            f"the model returns a tensor of shape {tuple(outputs.shape)} for targets of shape "
            f"{tuple(targets.shape)}; a language model needs logits for each token, (examples, tokens, "
            f"vocabulary)"
        )
    largest = int(targets.max()) if targets.numel() else 0
    if largest >= outputs.shape[2]:
        raise DataError(
            f"the targets hold token {largest} and the model has a vocabulary of {outputs.shape[2]}"
        )
