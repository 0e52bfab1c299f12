"""The objective of a task: the loss that training minimises and the figures that a model is judged by.

Training, evaluation, criteria, thresholds and limits all take this one value.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.data.columns import IGNORED
from sparsify.data.examples import Datasets, Examples
from sparsify.data.loader import batches
from sparsify.data.targets import split_batch
from sparsify.errors import DataError, TrainingError
from sparsify.forward.call_model import require_values
from sparsify.forward.copies import copy_model
from sparsify.objective import losses
from sparsify.objective.losses import Losses, MeasureLosses
from sparsify.objective.metrics import Meter, Metric, make_metrics, read_meter, update_meter
from sparsify.objective.predictions import call_on_batch, find_prediction
from sparsify.recipe.import_path import resolve_callable
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas.task import LOSS, Facts, Task


@dataclass(frozen=True)
class Objective:
    """What a task comes to: its loss and its metrics.

    Made by `make_objective`. Hand it to `sparsify.cut`, `sparsify.sensitivity` and what else takes an
    objective.
    """

    task: Task
    """as the recipe says it"""
    measure_losses: MeasureLosses
    """(prediction, targets) -> the losses of a batch"""
    metrics: tuple[Metric, ...]
    """the deciding one first; none where the loss decides"""
    classes: int = 0
    """that a classification's data hold; 0 where nothing is known"""

    @property
    def deciding(self) -> Facts:
        """The metric that choices are made by."""
        return self.metrics[0].facts if self.metrics else LOSS

    @property
    def counts_elements(self) -> bool:
        """Whether an example's loss weighs as much as it has tokens or pixels that count. A loss of the
        user's own weighs all examples alike."""
        return self.task.loss is None and self.task.kind in _IGNORING


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on a set of examples."""

    loss: float
    """nan without examples"""
    figures: Mapping[str, float]
    """metric -> value, the deciding one first; nan without examples"""

    @property
    def deciding(self) -> float:
        """The figure that choices are made by."""
        return next(iter(self.figures.values()))


def make_objective(task: Task | str | Mapping[str, Any] = "classification", classes: int = 0) -> Objective:
    """The objective of a task.

    Args:
        task: A kind of task, or what stands under `task` in a recipe.
        classes: That the data of a classification hold, for messages; 0 where that is unknown.

    Returns:
        The objective, for `sparsify.cut` and other functions that take one.

    Raises:
        DataError: A callable that the task names cannot be imported.
        ValidationError: The task is none.

    Examples:
        >>> sparsify.make_objective("segmentation").deciding.name
        'dice'
    """
    if not isinstance(task, Task):
        task = Task.model_validate({"kind": task} if isinstance(task, str) else dict(task))
    return Objective(task, _measure(task), make_metrics(task), classes)


def objective_of_loss(loss: Callable[[Any, Any], Any]) -> Objective:
    """The objective of a loss of (outputs, targets) alone, which returns a scalar or a number for each
    example."""
    name = getattr(loss, "__name__", type(loss).__name__)
    task = Task(kind="own", loss=f"given:{name}")
    return Objective(task, losses.losses_of_function(loss, name), ())


CLASSIFICATION = Objective(Task(), losses.classification_losses, make_metrics(Task()))


def _measure(task: Task, smoothing: float = 0.0) -> MeasureLosses:
    if task.loss == "model":
        return losses.losses_of_model
    if task.loss is not None:
        return losses.losses_of_function(_import_loss(task.loss), task.loss)
    match task.kind:
        case "classification":
            return partial(losses.classification_losses, smoothing=smoothing)
        case "multilabel":
            return losses.multilabel_losses
        case "regression":
            return losses.regression_losses
        case "segmentation":
            return partial(losses.segmentation_losses, smoothing=smoothing)
        case "language_model":
            return partial(losses.next_token_losses, smoothing=smoothing)
        case "masked_language_model":
            return partial(losses.masked_token_losses, smoothing=smoothing)
        case "own":
            raise DataError("a task of its own needs 'loss: package.module:callable'")


def _import_loss(path: str) -> Callable[[Any, Any], Any]:
    found = resolve_callable("task.loss", path)
    function: Callable[[Any, Any], Any] = found
    if isinstance(found, type):  # such as torch.nn:SmoothL1Loss
        where = f"task.loss '{path}'"
        with run_user_code(where, lambda why: DataError(f"{where} failed: {why}")):
            function = found()
    if not callable(function):
        raise DataError(f"task.loss '{path}' makes a {type(function).__name__}, which cannot be called")
    return function


def smooth_labels(objective: Objective, smoothing: float) -> MeasureLosses:
    """The losses with targets spread: 1 - smoothing for the true class, the rest for all classes evenly.

    For training alone. Source: Szegedy et al., arXiv:1512.00567.
    """
    return _measure(objective.task, smoothing) if smoothing else objective.measure_losses


def predict(objective: Objective, model: nn.Module, inputs: Any, targets: Any = None, where: str = "") -> Any:
    """The prediction of a batch, as loss and metrics take it.

    where: what messages begin with. Raises TrainingError when the model does not take the batch or returns
    something that the task cannot use, DataError when there are more classes than outputs.
    """
    if objective.task.loss == "model":
        given = inputs if isinstance(inputs, Mapping) else {}
        if not given:
            raise TrainingError(
                f"{where}task.loss is 'model', which needs inputs by name; the data hold none"
            )
        return call_on_batch(model, {**given, "labels": targets}, where)
    found = find_prediction(call_on_batch(model, inputs, where), objective.task, where)
    if objective.task.kind == "classification" and objective.task.loss is None:
        _check_logits(found, objective.classes, where)
    return found


def find_judged(objective: Objective, outputs: Any, where: str = "") -> Any:
    """What metrics and a teacher look at in what `predict` returned: of a model that returns its own loss,
    the prediction beside it."""
    return find_prediction(outputs, objective.task, where) if objective.task.loss == "model" else outputs


def _check_logits(logits: Any, classes: int, where: str) -> None:
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


def measure_batch(objective: Objective, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
    """The loss of a batch, a scalar with a gradient: what criteria look at."""
    targets = mark_ignored(objective.task, targets)
    return objective.measure_losses(predict(objective, model, inputs, targets), targets).mean


def mark_ignored(task: Task, targets: Any) -> Any:
    """The targets of a batch, with -100 where the task ignores them, as those of a recipe's data have it."""
    whole = isinstance(targets, Tensor) and not targets.is_floating_point()
    if not whole or task.ignore == IGNORED or task.kind not in _IGNORING:
        return targets
    numbers = targets.long()  # bytes cannot hold -100
    return numbers.masked_fill(numbers == task.ignore, IGNORED)


_IGNORING = ("segmentation", "language_model", "masked_language_model")
ROWS, PIXELS, TOKENS = 500, 16, 4
"""examples in a batch of an evaluation, by what the outputs of one are: a row, at most; pixels or boxes;
logits of a whole vocabulary for each token"""
UNREAD = 64
"""examples in a batch whose outputs are rows, where the size of an example shows only when it is read"""
NUMBERS = 400_000
"""input numbers in a batch whose outputs are rows, such as 130 images of 3 x 32 x 32: what convolutions make
of more no longer fits the caches, and ResNet-56 takes 1.8 times as long with 500 images as with 128"""


def evaluate(
    model: nn.Module, examples: Examples, objective: Objective, batch: int | None = None
) -> Evaluation:
    """Loss and metrics in eval mode, over all examples.

    batch: examples in a batch; fewer where each has more outputs, when left out.
    """
    batch = _choose_batch(objective.task, examples) if batch is None else batch
    return evaluate_batches(model, batches(examples, batch) if len(examples) else (), objective)


def _choose_batch(task: Task, examples: Examples) -> int:
    if task.kind in ("language_model", "masked_language_model"):
        return TOKENS
    has_rows = isinstance(examples.targets, Tensor) and examples.targets.dim() <= 2
    if not has_rows or task.kind == "own":
        return PIXELS
    if not isinstance(examples.inputs, Tensor) or examples.read is not None:
        return UNREAD
    numbers = math.prod(examples.inputs.shape[1:])
    return max(PIXELS, min(ROWS, NUMBERS // max(1, numbers)))


def evaluate_batches(
    model: nn.Module, batches: Iterable[Any], objective: Objective | Task | str = "classification"
) -> Evaluation:
    """Measure a model's loss and metrics in eval mode.

    Args:
        model: The model, which stays as it is.
        batches: Pairs (inputs, targets), or mappings with the targets among them.
        objective: Of `make_objective`, or a kind of task.

    Returns:
        The loss, `figures` by name, and `deciding`, the first of these; nan without batches.

    Raises:
        TrainingError: The model does not take a batch, or returns what the task cannot use.

    Examples:
        >>> batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,)))]
        >>> found = sparsify.evaluate(model, batches)
        >>> 0 <= found.deciding <= 1, list(found.figures)
        (True, ['accuracy'])
    """
    if not isinstance(objective, Objective):
        objective = make_objective(objective)
    require_values(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    total = torch.zeros(2, dtype=torch.float64, device=device)
    meters = [metric.make() for metric in objective.metrics]
    count = 0
    with in_mode(model, training=False), torch.no_grad():
        for given in batches:
            x, y = split_batch(given)
            count += 1
            total += _take_in(model, objective, meters, move(x, device), move(y, device))
    if not count:
        names = [metric.facts.name for metric in objective.metrics] or [LOSS.name]
        return Evaluation(math.nan, dict.fromkeys(names, math.nan))
    sums, weights = total.tolist()
    loss = sums / max(weights, 1)
    pairs = zip(objective.metrics, meters, strict=True)
    figures = {metric.facts.name: read_meter(metric, meter) for metric, meter in pairs}
    return Evaluation(loss, figures or {LOSS.name: loss})


def _take_in(
    model: nn.Module, objective: Objective, meters: list[Meter], inputs: Any, targets: Any
) -> Tensor:
    """Hand a batch to every meter; (sum of the losses, how much counts)."""
    targets = mark_ignored(objective.task, targets)
    outputs = predict(objective, model, inputs, targets)
    found: Losses = objective.measure_losses(outputs, targets)
    judged = find_judged(objective, outputs)
    for metric, meter in zip(objective.metrics, meters, strict=True):
        update_meter(metric, meter, judged, targets)
    return torch.stack([found.sums.sum(dtype=torch.float64), found.weights.sum(dtype=torch.float64)])


def move(value: Any, device: torch.device) -> Any:
    """A batch on another device: tensors in mappings, tuples and lists."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: move(part, device) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(move(part, device) for part in value)
    return value


def require_gradients(model: nn.Module) -> None:
    """Have every parameter of a model get gradients that can have one: numbers that are integers cannot."""
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)


def check_trainable(model: nn.Module, datasets: Datasets, objective: Objective) -> None:
    """That a model takes a batch of the data and returns what the loss takes, on a copy and before any epoch.

    Raises TrainingError and DataError.
    """
    examples = datasets.train[:2]
    if not len(examples):
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        inputs, targets = examples.batch()
        found = predict(objective, copy_model(model).cpu().eval(), inputs, targets)
        objective.measure_losses(found, targets)


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
