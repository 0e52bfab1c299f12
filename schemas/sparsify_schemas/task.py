"""The task: what a model is trained for, and the figures that it is judged by."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sparsify_schemas.base import AtKey, Callable, Flag, Spec, Text, Weigh

Kind = Literal[
    "classification",
    "multilabel",
    "regression",
    "segmentation",
    "language_model",
    "masked_language_model",
    "own",
]
IGNORING: tuple[Kind, ...] = ("segmentation", "language_model", "masked_language_model")
"""kinds with targets that do not count"""
Better = Literal["higher", "lower"]


class Facts(Spec):
    """What is known of a metric before it is measured, so that reports and limits need no torch."""

    name: str = "accuracy"
    """as the report calls it"""
    better: Better = "higher"
    """which way is better"""
    percent: bool = True
    """whether it is a share, shown in % and compared in percentage points"""

    def worse_by(self, before: float, after: float) -> float:
        """How much worse `after` is than `before`, in the metric's own unit; below zero where it is
        better."""
        return before - after if self.better == "higher" else after - before


BUILT_IN: Mapping[str, Facts] = {
    facts.name: facts
    for facts in (
        Facts(name="accuracy"),
        Facts(name="f1"),
        Facts(name="auroc"),
        Facts(name="average_precision"),
        Facts(name="dice"),
        Facts(name="iou"),
        Facts(name="mae", better="lower", percent=False),
        Facts(name="rmse", better="lower", percent=False),
        Facts(name="r2", percent=False),
        Facts(name="perplexity", better="lower", percent=False),
        Facts(name="token_accuracy"),
    )
}
"""metrics that are called by a name alone"""
LOSS = Facts(name="loss", better="lower", percent=False)
"""what decides where a task has no metric"""
DEFAULTS: Mapping[Kind, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "multilabel": ("average_precision", "f1"),
    "regression": ("rmse", "r2"),
    "segmentation": ("dice", "iou"),
    "language_model": ("perplexity",),
    "masked_language_model": ("perplexity", "token_accuracy"),
    "own": (),
}
"""the metrics of a task that names none"""


class Metric(Spec):
    """A figure that models are judged by. A name alone means this with its defaults."""

    use: Callable
    """accuracy, f1, auroc, average_precision, dice, iou, mae, rmse, r2, perplexity, token_accuracy,
    computed by torchmetrics; or package.module:name of a function (outputs, targets) ->
    number, taken as a mean over the examples, or of a class with `update(outputs, targets)` and `compute()`,
    such as one of torchmetrics"""
    name: Text | None = None
    """as the report calls it; the last part of `use` when left out"""
    better: Better | None = None
    """which way is better; built-in metrics know it, for others it is `higher` when left out"""
    percent: Flag | None = None
    """whether the figure is a share, shown in % and compared in percentage points; built-in metrics know it,
    for others it is not when left out"""
    args: dict[Text, Any] = {}
    """keyword arguments of the metric, such as {top_k: 5} or {ignore_index: 255}"""

    @model_validator(mode="after")
    def _known(self) -> "Metric":
        if ":" in self.use or self.use in BUILT_IN:
            return self
        near = get_close_matches(self.use, BUILT_IN, 1)
        hint = (
            f"did you mean '{near[0]}'?" if near else f"known: {', '.join(BUILT_IN)}, or package.module:name"
        )
        raise AtKey("use", f"unknown metric {self.use!r}; {hint}")

    def facts(self) -> Facts:
        """What is known of it: the built-in's facts, with what is said here in their place."""
        known = BUILT_IN.get(self.use)
        name = self.name or self.use.rpartition(":")[2].rpartition(".")[2]
        better = self.better or (known.better if known else "higher")
        percent = self.percent if self.percent is not None else (known is not None and known.percent)
        return Facts(name=name, better=better, percent=percent)


def _from_name(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


NamedMetric = Annotated[Metric, BeforeValidator(_from_name, json_schema_input_type=Text | Metric)]


class Task(Spec):
    """What a model is trained for. A kind alone means this with its defaults.

    The loss of a batch is the mean over what counts: examples, or pixels and tokens whose target is not -100.

        classification         cross-entropy of logits [N, classes] and numbers of classes [N]
        multilabel             binary cross-entropy of logits [N, labels] and 0 or 1 [N, labels]
        regression             mean squared error of outputs and targets of one shape [N, ...]
        segmentation           cross-entropy of logits [N, classes, H, W] and a class a pixel [N, H, W];
                               binary cross-entropy where there is one channel
        language_model         cross-entropy of logits [N, T, vocabulary] at each token and the token after it
        masked_language_model  cross-entropy at the tokens whose label is not -100
        own                    `loss` says it

    The first metric decides: accuracy, average_precision, rmse, dice, perplexity, perplexity in that order of
    kinds, the loss itself where there is none.
    """

    kind: Kind = "classification"
    """what the loss and the metrics are, where nothing else is said"""
    loss: Callable | None = None
    """package.module:callable of (outputs, targets), which returns the mean over the batch or a number for
    each example; `model` for models that take `labels` and return a loss of their own"""
    metrics: tuple[NamedMetric, ...] = ()
    """figures on the validation and the test set; the first one decides"""
    outputs: Text | Annotated[int, Field(strict=True, ge=0)] | None = None
    """field or index of what the model returns that holds the prediction; found when left out: the tensor
    itself, `logits` of a mapping or of a transformers output"""
    ignore: Annotated[int, Field(strict=True)] = -100
    """target of pixels and tokens that do not count, such as 255; of segmentation, language_model and
    masked_language_model"""
    collate: Callable | None = None
    """package.module:callable that makes a batch (inputs, targets) of a list of examples as the data hold
    them"""

    @property
    def has_classes(self) -> bool:
        """Whether a target is the number of a class."""
        return self.kind in ("classification", "segmentation") or "language" in self.kind

    def explain_unweighable(self, weigh: Weigh | None, user: str) -> str | None:
        """Why places cannot be weighed, as a stage or a criterion asks; None where they can, or it does not.

        user: the stage or criterion, for the sentence.
        """
        if weigh != "places" or (self.has_classes and self.loss is None):
            return None
        return (
            f"'{user}' weighs places by predictions of classes, which this task has not, or which a "
            "loss of its own may read otherwise; leave 'weigh' out"
        )

    def weighs_places(self, weigh: Weigh | None) -> bool:
        """Whether places are weighed, be it by default."""
        by_default = weigh is None and self.kind == "segmentation" and self.loss is None
        return by_default or weigh == "places"

    @model_validator(mode="before")
    @classmethod
    def _own_loss_is_own_kind(cls, value: Any) -> Any:
        """A loss without a kind is a task of its own."""
        if isinstance(value, dict) and value.get("loss") is not None and "kind" not in value:
            return {"kind": "own", **value}
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> "Task":
        if self.kind == "own" and self.loss is None:
            raise AtKey("kind", "a task of its own needs 'loss: package.module:callable'")
        for key, path in (("loss", self.loss), ("collate", self.collate)):
            if path is not None and ":" not in path and not (key == "loss" and path == "model"):
                raise AtKey(key, f"'{path}' is no package.module:callable")
        if self.ignore != -100 and self.kind not in IGNORING:
            raise AtKey(
                "ignore",
                f"a task of {self.kind} counts every target; leave 'ignore' out"
                + (", and let the loss do it" if self.kind == "own" else ""),
            )
        names = [metric.facts().name for metric in self.metrics]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise AtKey(
                "metrics", f"'{doubled}' stands there twice; leave one out, or give one another 'name'"
            )
        return self


def metrics_of(task: Task) -> tuple[Metric, ...]:
    """The metrics that a task names, else those of its kind."""
    return task.metrics or tuple(Metric(use=name) for name in DEFAULTS[task.kind])


def deciding_metric(task: Task) -> Facts:
    """What the metric that choices are made by is called and which way is better."""
    metrics = metrics_of(task)
    return metrics[0].facts() if metrics else LOSS


def _from_kind(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


NamedTask = Annotated[Task, BeforeValidator(_from_kind, json_schema_input_type=Kind | Task)]
