"""Metrics: figures that a model is judged by, gathered over batches. torchmetrics computes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from sparsify.data.columns import IGNORED, count_examples
from sparsify.errors import DataError, TrainingError
from sparsify.objective.losses import check_tokens, match_numbers, match_pixels, shift_tokens
from sparsify.objective.torchmetrics_import import torchmetrics
from sparsify.recipe.import_path import resolve
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas import task as spec
from sparsify_schemas.task import Facts, Kind, Task, metrics_of


class Meter(Protocol):
    """Gathers batches, as the metrics of torchmetrics do."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch."""

    def compute(self) -> Any:
        """The figure of all batches: a number, or a tensor of one."""


@dataclass(frozen=True)
class Metric:
    """A figure, and how to make what measures it."""

    facts: Facts
    """what it is called, and which way is better"""
    make: Callable[[], Meter]
    """a new, empty meter"""


class Accuracy:
    """The share of examples whose largest output is that of their class; of one output, class 1 where it is
    above 0."""

    def __init__(self) -> None:
        self._right, self._count = 0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """outputs [N, classes], [N, 1] or [N], targets [N]."""
        self._right += int(are_right(outputs, targets).sum())
        self._count += len(targets)

    def compute(self) -> float:
        """right / all"""
        return self._right / self._count


def are_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether each example is classified rightly: [N]. One output is the logit of class 1.

    Raises DataError where the targets are no numbers of classes.
    """
    if targets.dim() != 1 and targets.shape != (len(targets), 1):
        raise DataError(
            f"the targets have the shape {tuple(targets.shape)}; accuracy needs the number of each example's "
            "class, (examples,)"
        )
    if outputs.dim() == 1 or outputs.shape[1] == 1:
        return (outputs.reshape(len(outputs)) > 0) == targets.reshape(len(targets))
    return outputs.argmax(dim=1) == targets.reshape(len(targets))


Prepare = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""(outputs, targets) of the task -> (predictions, targets) as a metric of torchmetrics takes them"""
Build = Callable[[Tensor, Tensor], Any]
"""(predictions, targets) of the first batch -> the metric, since numbers of classes are seen there"""


def _keep_in_process(metric: Any) -> Any:
    """A metric of torchmetrics that does not add up over processes: each has seen every example, and some are
    computed by the main process alone."""
    if hasattr(metric, "sync_on_compute"):
        metric.sync_on_compute = False
        metric._to_sync = False  # what was copied from it when the metric was made
    return metric


class TorchMeter:
    """A metric of torchmetrics, made when the first batch shows how many classes there are."""

    def __init__(self, prepare: Prepare, build: Build) -> None:
        self._prepare, self._build = prepare, build
        self._metric: Any = None

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch."""
        predictions, wanted = self._prepare(outputs, targets)
        if self._metric is None:
            self._metric = _keep_in_process(self._build(predictions, wanted)).to(predictions.device)
        self._metric.update(predictions, wanted)

    def compute(self) -> Any:
        """The figure."""
        return float("nan") if self._metric is None else self._metric.compute()


class MeanMeter:
    """The mean over the examples of what a function returns for a batch."""

    def __init__(self, function: Callable[[Any, Any], Any], name: str) -> None:
        self._function, self._name = function, name
        self._total, self._count = 0.0, 0

    def update(self, outputs: Any, targets: Any) -> None:
        """Take in a batch."""
        value, count = self._function(outputs, targets), count_examples(targets)
        if isinstance(value, Tensor) and value.dim() > 0:
            value = value.float().mean()
        self._total += float(value) * count
        self._count += count

    def compute(self) -> float:
        """total / examples"""
        return self._total / self._count if self._count else float("nan")


_CLASS_NAMES = {
    "accuracy": "Accuracy",
    "f1": "F1Score",
    "dice": "F1Score",
    "iou": "JaccardIndex",
    "auroc": "AUROC",
    "average_precision": "AveragePrecision",
}
"""torchmetrics.classification has each as Binary..., Multiclass... and Multilabel..."""


def make_metrics(task: Task) -> tuple[Metric, ...]:
    """The metrics of a task, the deciding one first; none where the loss decides.

    Raises DataError where one cannot be imported.
    """
    return tuple(_make_metric(metric, task.kind) for metric in metrics_of(task))


def _make_metric(asked: spec.Metric, kind: Kind) -> Metric:
    if asked.use in spec.BUILT_IN:
        return Metric(asked.facts(), partial(_make_built_in, asked.use, kind, asked.args))
    try:
        found = resolve(asked.use)
    except ImportError as error:
        raise DataError(f"task.metrics '{asked.use}': {error}") from error
    if not callable(found):
        raise DataError(f"task.metrics '{asked.use}' is a {type(found).__name__}, which cannot be called")
    return Metric(asked.facts(), partial(_make_own, found, asked.use, asked.args))


def _make_own(found: Any, use: str, args: Mapping[str, Any]) -> Meter:
    if not isinstance(found, type):
        return MeanMeter(partial(found, **args), use)
    where = f"task.metrics '{use}'"
    with run_user_code(where, lambda why: DataError(f"{where} failed: {why}")):
        meter: Meter = found(**args)
    if not (hasattr(meter, "update") and hasattr(meter, "compute")):
        raise DataError(f"task.metrics '{use}' has no methods update(outputs, targets) and compute()")
    own: Meter = _keep_in_process(meter)
    return own


def _make_built_in(use: str, kind: Kind, args: Mapping[str, Any]) -> Meter:
    if use == "accuracy" and kind == "classification" and not args:
        return Accuracy()
    if use in ("mae", "rmse", "r2"):
        return TorchMeter(match_flat, partial(_build_of_numbers, use, args))
    if use in ("perplexity", "token_accuracy"):
        return TorchMeter(partial(_match_tokens, use, kind), partial(_build_of_tokens, use, args))
    return TorchMeter(partial(_match_classes, kind), partial(_build_of_classes, use, kind, args))


def match_flat(outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Numbers of an example in a row: [N, numbers] both."""
    predictions, wanted = match_numbers(outputs, targets)
    return predictions.float().flatten(1), wanted.float().flatten(1)


def _build_of_numbers(use: str, args: Mapping[str, Any], _predictions: Tensor, _targets: Tensor) -> Any:
    metrics = torchmetrics()
    if use == "mae":
        return metrics.MeanAbsoluteError(**args)
    if use == "rmse":
        return metrics.MeanSquaredError(**{"squared": False, **args})
    return metrics.R2Score(**args)


def _match_tokens(use: str, kind: Kind, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    check_tokens(outputs, targets)
    if kind == "language_model":
        outputs, targets = shift_tokens(outputs, targets)
    return (outputs if use == "perplexity" else outputs.transpose(1, 2)), targets


def _build_of_tokens(use: str, args: Mapping[str, Any], predictions: Tensor, _targets: Tensor) -> Any:
    if use == "perplexity":
        return torchmetrics().text.Perplexity(**{"ignore_index": IGNORED, **args})
    options = {"num_classes": predictions.shape[1], "average": "micro", "ignore_index": IGNORED}
    return torchmetrics().classification.MulticlassAccuracy(**{**options, **args})


def _match_classes(kind: Kind, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    if kind == "segmentation":
        logits = match_pixels(outputs, targets)
        return (logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits), targets
    if kind == "multilabel":
        return outputs.sigmoid(), targets.long()
    if outputs.dim() == 2 and outputs.shape[1] == 1:
        return outputs[:, 0].sigmoid(), targets.long()
    return outputs, targets


def _build_of_classes(
    use: str, kind: Kind, args: Mapping[str, Any], predictions: Tensor, targets: Tensor
) -> Any:
    """Binary where predictions have the shape of the targets, multilabel or multiclass otherwise."""
    classes = torchmetrics().classification
    name = _CLASS_NAMES[use]
    options = dict(args)
    if kind == "multilabel":
        return getattr(classes, f"Multilabel{name}")(**{"num_labels": predictions.shape[1], **options})
    ignored = {"ignore_index": IGNORED} if kind == "segmentation" else {}
    if predictions.shape == targets.shape:
        return getattr(classes, f"Binary{name}")(**{**ignored, **options})
    average = {"average": "micro" if use == "accuracy" else "macro"}
    defaults = {"num_classes": predictions.shape[1], **average, **ignored}
    return getattr(classes, f"Multiclass{name}")(**{**defaults, **options})


def update_meter(metric: Metric, meter: Meter, outputs: Any, targets: Any) -> None:
    """Hand a batch to a meter. Raises TrainingError, which names the metric."""
    try:
        with run_user_code(f"metric '{metric.facts.name}'", partial(_failed, metric)):
            meter.update(outputs, targets)
    except TrainingError as error:
        if isinstance(error.__cause__, TrainingError | DataError):
            raise error.__cause__ from None
        raise


def _failed(metric: Metric, why: str) -> TrainingError:
    return TrainingError(f"metric '{metric.facts.name}' failed: {why}")


def read_meter(metric: Metric, meter: Meter) -> float:
    """The figure as a number. Raises TrainingError, which names the metric."""
    with run_user_code(f"metric '{metric.facts.name}'", partial(_failed, metric)):
        value = meter.compute()
        if isinstance(value, Mapping):
            value = value[metric.facts.name] if metric.facts.name in value else next(iter(value.values()))
        return float(value)
