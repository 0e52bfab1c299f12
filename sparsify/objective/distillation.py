"""Distillation: a loss that follows a teacher besides the targets."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.data.columns import IGNORED
from sparsify.errors import TrainingError
from sparsify.objective.losses import Losses, classification_losses, match_numbers, match_pixels
from sparsify_schemas.task import Task


def distillation_losses(
    outputs: Tensor,
    targets: Tensor,
    teacher: Tensor,
    temperature: float = 4.0,
    weight: float = 0.5,
    features: Sequence[tuple[Tensor, Tensor]] = (),
    features_weight: float = 1.0,
) -> Tensor:
    """The loss of each example, with a share that follows a teacher: [N].

        (1 - weight) * cross-entropy + weight * T^2 * KL(softmax(teacher / T) || softmax(outputs / T))
        + features_weight * mean over the pairs (f, t) of mean((f - t)^2) / var(t)

    Args:
        outputs: Logits [N, classes] of the model that learns.
        targets: Numbers of classes [N].
        teacher: Logits [N, classes] of the teacher; no gradient goes to it.
        temperature: T, above 0.
        weight: Share of the loss that follows the teacher, 0 to 1.
        features: What layers of both return, each pair of one shape: `pairs()` of `sparsify.FeaturePairs`.
        features_weight: Factor of their term, whose mean is that of each example, and whose variance is that
            of the whole batch.

    Returns:
        One loss for each example; take the mean and call `backward`.

    Raises:
        TrainingError: The shapes of outputs and teacher, or of a pair, differ; `temperature` or `weight` is
            out of range.

    Source: Hinton et al., arXiv:1503.02531; Romero et al., arXiv:1412.6550.

    Examples:
        >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> sparsify.distillation_losses(logits, labels, logits, weight=1.0)
        tensor([0.])
    """
    if not temperature > 0:
        raise TrainingError(f"the temperature of a distillation is above 0, found {temperature}")
    if not 0 <= weight <= 1:
        raise TrainingError(f"the weight of a distillation is a share, from 0 to 1, found {weight}")
    own = classification_losses(outputs, targets)
    losses = mix_losses(own, _class_divergence(outputs, teacher, temperature), weight)
    if features:
        losses = add_feature_losses(losses, features, features_weight)
    return losses.sums


def add_feature_losses(
    losses: Losses,
    pairs: Sequence[tuple[Tensor, Tensor]],
    weight: float,
    variances: Sequence[float] | None = None,
) -> Losses:
    """The losses, and weight * mean over the pairs (f, t) of mean((f - t)^2) / var(t) for what counts in each
    example.

    pairs: what a layer returns in the model and in the teacher, in one shape: [N, ...] gives each example its
    own mean, any other shape gives every example that of the whole. variances: var(t) of each pair; that of
    the pair itself when left out. A pair whose t does not vary is left out.
    """
    count, terms, counted = len(losses.sums), [], torch.zeros((), device=losses.sums.device)
    for place, (own, taught) in enumerate(pairs):
        _check_shapes(own, taught, "the two of a pair of features")
        own, taught = own.float(), taught.detach().float()
        variance = taught.var(correction=0) if variances is None else taught.new_tensor(variances[place])
        square = (own - taught).square()
        is_of_examples = square.dim() > 1 and len(square) == count
        each = square.flatten(1).mean(dim=1) if is_of_examples else square.mean().expand(count)
        varies = variance > _CONSTANT * taught.square().mean()
        terms.append(torch.where(varies, each / torch.where(varies, variance, 1.0), 0.0))
        counted = counted + varies
    distance = torch.stack(terms).sum(dim=0) / counted.clamp(min=1)
    return Losses(losses.sums + weight * distance * losses.weights, losses.weights)


_CONSTANT = 1e-12
"""of the mean square: a variance that rounding alone explains"""


def mix_losses(own: Losses, divergence: Tensor, weight: float) -> Losses:
    """(1 - weight) * own + weight * divergence, both summed over what counts in each example.

    divergence: [N], the mean over what counts.
    """
    return Losses((1 - weight) * own.sums + weight * divergence * own.weights, own.weights)


def teacher_divergence(task: Task, outputs: Any, targets: Any, teacher: Any, temperature: float) -> Tensor:
    """How far the outputs are from the teacher's: [N], the mean over what counts in each example. Raises
    TrainingError where the prediction is no tensor.

    classes, pixels, tokens     T^2 * KL(softmax(teacher / T) || softmax(outputs / T))
    labels                      the same of the two values of each label, mean over the labels
    numbers                     (outputs - teacher)^2, mean over the numbers
    """
    if not (isinstance(outputs, Tensor) and isinstance(teacher, Tensor)):
        raise TrainingError(
            f"distillation compares tensors, and the model returns a {type(outputs).__name__}; say in "
            f"task.outputs "
            "which part is the prediction, or leave 'distill' out"
        )
    match task.kind:
        case "classification":
            return _class_divergence(outputs, teacher, temperature)
        case "multilabel":
            return _label_divergence(outputs, teacher, temperature).mean(dim=1)
        case "segmentation":
            own, taught = match_pixels(outputs, targets), match_pixels(teacher, targets)
            if own.shape[1] == 1:
                each = _label_divergence(own, taught, temperature)[:, 0]
            else:
                each = _class_divergence(own, taught, temperature)
            return _mean_where(each, targets != IGNORED)
        case "language_model":
            each = _class_divergence(
                outputs[:, :-1].transpose(1, 2), teacher[:, :-1].transpose(1, 2), temperature
            )
            return _mean_where(each, targets[:, 1:] != IGNORED)
        case "masked_language_model":
            each = _class_divergence(outputs.transpose(1, 2), teacher.transpose(1, 2), temperature)
            return _mean_where(each, targets != IGNORED)
        case "regression" | "own":
            own, taught = match_numbers(outputs, teacher)
            return (own - taught).square().flatten(1).mean(dim=1)


def _class_divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL over the classes, dimension 1. A class of which the teacher says -inf adds nothing:
    0 * log(0 / q) = 0."""
    _check_shapes(outputs, teacher, "outputs and teacher")
    soft = functional.log_softmax(teacher.detach() / temperature, dim=1)
    own = functional.log_softmax(outputs / temperature, dim=1)
    each = functional.kl_div(own, soft, reduction="none", log_target=True)
    return temperature**2 * each.masked_fill(soft == -torch.inf, 0.0).sum(dim=1)


def _check_shapes(own: Tensor, taught: Tensor, what: str) -> None:
    """Raises TrainingError: torch would repeat the smaller one along what differs."""
    if own.shape != taught.shape:
        raise TrainingError(
            f"{what} have the shapes {list(own.shape)} and {list(taught.shape)}; a distillation compares "
            "tensors of one shape"
        )


def _label_divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL over the two values of each label, [N, labels, ...]."""
    pair = torch.stack([outputs, torch.zeros_like(outputs)], dim=1)
    taught = torch.stack([teacher, torch.zeros_like(teacher)], dim=1)
    return _class_divergence(pair, taught, temperature)


def _mean_where(each: Tensor, counts: Tensor) -> Tensor:
    total = (each * counts).flatten(1).sum(dim=1)
    return total / counts.flatten(1).sum(dim=1).clamp(min=1)
