"""The objective: the loss that training minimises and the figures that a model is
judged by. Nothing else writes them.

Recipes train classifiers: a model returns one row of logits for each example, and a target is the number of a
class. What is not training (criteria, thresholds) is handed the loss.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsify.cost.measure import copy_model
from sparsify.data import Datasets, Examples, batches
from sparsify.errors import DataError, TrainingError

OfEach = Callable[[Tensor, Tensor], Tensor]
"""(outputs [N, classes], targets [N]) -> one number for each example: [N]"""


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example: [N]."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def distillation_losses(
    outputs: Tensor, targets: Tensor, teacher: Tensor, temperature: float = 4.0, weight: float = 0.5
) -> Tensor:
    """The loss of each example, with a share that follows a teacher: [N].

        (1 - weight) * cross-entropy + weight * T^2 * KL(softmax(teacher / T) || softmax(outputs / T))

    Args:
        outputs: Logits [N, classes] of the model that learns.
        targets: Numbers of classes [N].
        teacher: Logits [N, classes] of the teacher, without a gradient.
        temperature: T.
        weight: Share of the loss that follows the teacher.

    Returns:
        One loss for each example; take the mean and call `backward`.

    Raises:
        RuntimeError: The shapes do not fit each other.

    Source: Hinton et al., arXiv:1503.02531.

    Examples:
        >>> logits, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> sparsify.distillation_losses(logits, labels, logits, weight=1.0)
        tensor([0.])
    """
    soft = functional.log_softmax(teacher / temperature, dim=1)
    own = functional.log_softmax(outputs / temperature, dim=1)
    divergence = functional.kl_div(own, soft, reduction="none", log_target=True).sum(dim=1)
    return (1 - weight) * losses(outputs, targets) + weight * temperature**2 * divergence


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of `losses` over a batch, a scalar: what criteria take the gradient of."""
    return functional.cross_entropy(outputs, targets)


def are_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether each example is classified rightly: [N]. Accuracy is the mean of it."""
    return outputs.argmax(dim=1) == targets


@dataclass(frozen=True)
class Metric:
    """A further figure that a finished run measures on both models, on the validation and on the test set."""

    name: str
    """as the report calls it"""
    of_each: OfEach
    """its mean over the examples is the figure"""


METRICS: tuple[Metric, ...] = ()
"""besides loss and accuracy"""


def evaluate(model: nn.Module, examples: Examples, batch: int = 500) -> tuple[float, float]:
    """(mean cross-entropy, share classified rightly) in eval mode; (nan, nan) without examples."""
    loss, accuracy = _means(model, examples, (losses, are_right), batch)
    return loss, accuracy


def further_figures(model: nn.Module, examples: Examples, batch: int = 500) -> dict[str, float]:
    """Name -> value of each metric, in eval mode; none without examples."""
    if not METRICS or not len(examples):
        return {}
    means = _means(model, examples, tuple(metric.of_each for metric in METRICS), batch)
    return {metric.name: mean for metric, mean in zip(METRICS, means, strict=True)}


def _means(model: nn.Module, examples: Examples, figures: Sequence[OfEach], batch: int) -> tuple[float, ...]:
    """The mean of each figure over the examples, summed up in float64; nan without examples."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    totals = torch.zeros(len(figures), dtype=torch.float64, device=device)
    count = len(examples)
    if not count:
        return tuple(math.nan for _ in figures)
    classes = int(examples.targets.max()) + 1
    with in_mode(model, training=False), torch.no_grad():
        for x, y in batches(examples, batch):
            targets = y.to(device)
            outputs = outputs_of(model, x.to(device), classes)
            totals += torch.stack([of(outputs, targets).sum(dtype=torch.float64) for of in figures])
    return tuple(total / count for total in totals.tolist())


def check_trainable(model: nn.Module, datasets: Datasets) -> None:
    """That a model takes a batch of the data and has an output for every
    class, on a copy and before any epoch.

    Raises TrainingError and DataError.
    """
    examples = datasets.train[:2]
    if not len(examples):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        outputs_of(copy_model(model).cpu().eval(), examples.ready(), datasets.classes)


def outputs_of(model: nn.Module, x: Tensor, classes: int, where: str = "") -> Tensor:
    """The logits of a batch: [N, outputs].

    where: what messages begin with. Raises TrainingError when the model does not take the batch or returns no
    logits, DataError when there are more classes than outputs.
    """
    try:
        logits = model(x)
    except (RuntimeError, ValueError, TypeError) as error:
        raise TrainingError(
            f"{where}the model does not take a batch of shape {tuple(x.shape)}: {error}"
        ) from error
    if not isinstance(logits, Tensor):
        raise TrainingError(
            f"{where}the model returns a {type(logits).__name__}; cross-entropy needs one row of logits per "
            "example"
        )
    if logits.dim() != 2:
        raise TrainingError(
            f"{where}the model returns a tensor of shape {tuple(logits.shape)}; "
            "cross-entropy needs one row of logits per example"
        )
    if logits.shape[1] < classes:
        raise DataError(
            f"{where}the model has {logits.shape[1]} outputs and the data {classes} classes; "
            "build the model for as many"
        )
    return logits


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put every module in train or eval mode, and each back as it was."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was in before.items():
            module.training = was
