"""Every kind of task from end to end: trained, cut, repaired, judged by its own metric, resumed.

The figures of a report are compared with the metric written out from its definition.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sparsify
from sparsify.errors import SparsifyError
from sparsify.runs.apply import apply
from sparsify.runs.save_load import load_dense, load_run, verify_run

sys.path.append(str(Path(__file__).parent))
import task_parts

ADAM = {"kind": "adamw", "lr": 0.01}
TAYLOR = {"kind": "taylor", "batches": 2}
Judge = Callable[[nn.Module], float]


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts lie where a user's own module lies: in the current folder."""
    (tmp_path / "task_parts.py").write_text(Path(task_parts.__file__).read_text())
    monkeypatch.chdir(tmp_path)


def recipe(
    task: Any, build: str, source: str, layers: Any, group: str = "neuron", **more: Any
) -> dict[str, Any]:
    rule = {"layers": layers, "group": group, "sparsity": "50%", "criterion": TAYLOR}
    return {
        "version": 1,
        "title": "Task",
        "model": {"build": f"task_parts.{build}"},
        "data": {"source": source if source == "digits" else f"task_parts:{source}"},
        "task": task,
        "rules": [rule],
        "stages": [
            {"kind": "train", "name": "learn", "epochs": 3, "batch": 32, "optimizer": ADAM},
            {"kind": "cut"},
            {
                "kind": "train",
                "name": "tune",
                "epochs": 1,
                "batch": 32,
                "optimizer": ADAM,
                "penalties": False,
            },
        ],
        **more,
    }


def rmse(model: nn.Module) -> float:
    x, y = task_parts.numbers()[1]
    return float((model(x) - y).square().mean().sqrt())


def one_rmse(model: nn.Module) -> float:
    x, y = task_parts.one_number()[1]
    return float((model(x)[:, 0] - y).square().mean().sqrt())


def tuple_rmse(model: nn.Module) -> float:
    x, y = task_parts.numbers()[1]
    return float((model(x)[1] - y).square().mean().sqrt())


def average_precision(model: nn.Module) -> float:
    """Mean over the labels of sum_k (R_k - R_(k-1)) P_k, by descending score."""
    x, y = task_parts.labels()[1]
    found = []
    for scores, wanted in zip(model(x).T, y.T, strict=True):
        hits = wanted[scores.argsort(descending=True)].double()
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        found.append(float((precision * hits).sum() / hits.sum()))
    return sum(found) / len(found)


def _pixels(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Predicted and true classes of the pixels that count."""
    x, y = task_parts.squares()[1]
    logits = functional.interpolate(model(x / 255), (12, 12), mode="bilinear", align_corners=False)
    predicted = logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).long()
    return predicted[y != 255], y[y != 255]


def dice(model: nn.Module) -> float:
    """Mean over both classes of 2 TP / (2 TP + FP + FN)."""
    predicted, wanted = _pixels(model)
    return sum(_dice(predicted == c, wanted == c) for c in (0, 1)) / 2


def foreground_dice(model: nn.Module) -> float:
    predicted, wanted = _pixels(model)
    return _dice(predicted == 1, wanted == 1)


def _dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def perplexity(model: nn.Module) -> float:
    """exp of the mean over all tokens but the first of -log p(token | tokens before it), one sentence at a
    time."""
    total, count = 0.0, 0
    for example in task_parts.sentences()[1]:
        ids = torch.tensor([example["input_ids"]])
        log = model(ids, torch.ones_like(ids))["logits"].log_softmax(dim=2)
        total -= float(log[0, :-1].gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return math.exp(total / count)


def masked_perplexity(model: nn.Module) -> float:
    total, count = 0.0, 0
    for example in task_parts.masked_sentences()[1]:
        ids = torch.tensor([example["input_ids"]])
        log = model(ids, torch.ones_like(ids))["logits"].log_softmax(dim=2)
        total -= float(log[0, 1, example["labels"][1]])
        count += 1
    return math.exp(total / count)


def hit_rate(model: nn.Module) -> float:
    near = 0
    for x, target in task_parts.boxes()[1]:
        near += int((model(x[None])[0] - target["points"].mean(dim=0)).norm() <= 0.5)
    return near / len(task_parts.boxes()[1])


OWN = {"loss": "task_parts:nearest_point", "metrics": [{"use": "task_parts:HitRate", "percent": True}]}
MASKED = {"kind": "masked_language_model", "loss": "model"}
KINDS: dict[str, tuple[dict[str, Any], str, Judge]] = {
    "regression": (recipe("regression", "mlp", "numbers", ["0", "2"]), "rmse", rmse),
    "one number": (recipe("regression", "one_output", "one_number", "0"), "rmse", one_rmse),
    "a part of the outputs": (
        recipe({"kind": "regression", "outputs": 1}, "TupleModel", "numbers", ["net.0"]),
        "rmse",
        tuple_rmse,
    ),
    "multilabel": (recipe("multilabel", "mlp", "labels", ["0", "2"]), "average_precision", average_precision),
    "segmentation": (
        recipe({"kind": "segmentation", "ignore": 255}, "conv_net", "squares", ["0", "3"], "filter"),
        "dice",
        dice,
    ),
    "one channel": (
        recipe(
            {"kind": "segmentation", "ignore": 255},
            "conv_net",
            "squares",
            ["0", "3"],
            "filter",
            model={"build": "task_parts.conv_net", "args": {"channels": 1}},
        ),
        "dice",
        foreground_dice,
    ),
    "language model": (recipe("language_model", "TextModel", "sentences", "up"), "perplexity", perplexity),
    "masked": (
        recipe("masked_language_model", "TextModel", "masked_sentences", "up"),
        "perplexity",
        masked_perplexity,
    ),
    "loss of the model": (
        recipe(MASKED, "TextModel", "masked_sentences", "up"),
        "perplexity",
        masked_perplexity,
    ),
    "own": (recipe(OWN, "mlp", "boxes", ["0", "2"]), "HitRate", hit_rate),
    "own collate": (
        recipe(
            {"kind": "language_model", "collate": "task_parts:good_collate"}, "TextModel", "sentences", "up"
        ),
        "perplexity",
        perplexity,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_is_trained_cut_and_judged(kind: str, tmp_path: Path) -> None:
    given, name, judge = KINDS[kind]
    run = apply(given, from_scratch=True, out=tmp_path / "runs", timing=0.02)
    report = verify_run(run)
    assert report.metric.name == name
    assert report.verdict.outcome in ("equal", "statistics change") and report.verdict.difference < 1e-9
    assert report.cut.params < 0.75 * report.dense.params
    with torch.no_grad():
        expected = judge(load_dense(run).eval()), judge(load_run(run).eval())
    assert (report.dense.test_metric, report.cut.test_metric) == pytest.approx(expected, rel=1e-4)
    first, last = report.history[0], report.history[2]
    assert last.loss < 0.9 * first.loss, "nothing was learned"
    page = (run / "report.md").read_text()
    assert f"test {name}" in page and "accuracy" not in page.replace("token_accuracy", "")


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """Batches with masks and lists, after a stop between two epochs."""
    from sparsify.events import EpochDone

    given, _, _ = KINDS["masked"]
    whole = verify_run(apply(given, from_scratch=True, out=tmp_path / "whole", timing=0.02))

    def stop(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(given, from_scratch=True, out=tmp_path / "stopped", timing=0.02, listener=stop)
    (folder,) = (tmp_path / "stopped").iterdir()
    resumed = verify_run(apply(resume=folder, timing=0.02))
    assert resumed.cut.test_metric == whole.cut.test_metric
    assert [row.loss for row in resumed.history] == [row.loss for row in whole.history]


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "sensitivity"])
def test_gradient_criteria_rank_by_the_loss_of_the_task(criterion: str) -> None:
    """Units whose outputs reach no pixel's logits score nothing; all others score something."""
    torch.manual_seed(0)
    model = task_parts.conv_net(1).eval()
    with torch.no_grad():
        model[5].weight[:, :6] = 0
    images, masks = task_parts._squares(8, 0)
    given = {
        "version": 1,
        "title": "t",
        "data": {"source": "task_parts:squares"},
        "task": {"kind": "segmentation"},
        "rules": [{"layers": "3", "group": "filter", "sparsity": "50%", "criterion": {"kind": criterion}}],
    }
    plan = sparsify.make_plan(given, model, (images[:2] / 255,))
    result = sparsify.cut(plan, model, batches=[(images / 255, masks.masked_fill(masks == 255, -100))])
    (width,) = result.cuts.widths
    assert (width.width, width.keep) == (12, ((6, 12),))


def test_the_limit_of_a_metric_that_falls_is_in_its_own_unit(tmp_path: Path) -> None:
    given, _, _ = KINDS["regression"]
    budget = {"accuracy_drop": {"at_most": "5%", "trials": 3}}
    rule = {**given["rules"][0], "criterion": {"kind": "magnitude"}}
    del rule["sparsity"]
    run = apply({**given, "rules": [rule], "budget": budget}, from_scratch=True, out=tmp_path, timing=0.02)
    report = verify_run(run)
    (limit,) = [limit for limit in report.limits if limit.what == "budget.accuracy_drop"]
    assert report.dense.validation_metric is not None and report.cut.validation_metric is not None
    assert limit.limit == pytest.approx(0.05 * report.dense.validation_metric)
    assert limit.achieved == pytest.approx(report.cut.validation_metric - report.dense.validation_metric)
    assert report.search is not None
    for trial in report.search.trials:
        assert trial.inside == (trial.drop <= limit.limit + 1e-9)


REFUSED = {
    "a loss with a vector": (
        recipe({"loss": "task_parts:wrong_loss"}, "mlp", "numbers", "0"),
        "loss 'task_parts:wrong_loss' returned a tensor of shape (2, 2); a loss is one number, or one for "
        "each of "
        "the 2 examples",
    ),
    "a loss without a gradient": (
        recipe({"loss": "task_parts:constant_loss"}, "mlp", "numbers", "0"),
        "stage 'learn', epoch 1, step 1: the loss does not depend on the weights, so nothing can be "
        "learned; check "
        "task.loss",
    ),
    "a metric that raises": (
        recipe({"kind": "regression", "metrics": ["task_parts:failing_metric"]}, "mlp", "numbers", "0"),
        "metric 'failing_metric' failed: ValueError: no such thing",
    ),
    "a collate that drops a key": (
        recipe(
            {"kind": "language_model", "collate": "task_parts:dropping_collate"},
            "TextModel",
            "sentences",
            "up",
        ),
        "a forward call with inputs input_ids 2x7 failed: TypeError: TextModel.forward() missing 1 required "
        "positional argument: 'attention_mask'",
    ),
    "targets of another task": (
        recipe("segmentation", "mlp", "numbers", "0"),
        "task_parts:numbers: train: targets of a segmentation are the number of a class for each pixel, "
        "(examples, height, width); they are 300x2 float32",
    ),
    "outputs of another shape": (
        recipe("regression", "one_output", "numbers", "0"),
        "the model returns a tensor of shape (2, 1) and the targets have the shape (2, 2); a regression "
        "needs one "
        "output for each target",
    ),
    "a prediction that cannot be told": (
        recipe("regression", "TupleModel", "numbers", "net.0"),
        "the model returns a tuple of 2; say in task.outputs which part is the prediction",
    ),
    "classes that the set does not have": (
        recipe("segmentation", "mlp", "digits", "0"),
        "data.source 'digits' holds classes, which a task of segmentation cannot use",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_said(case: str, tmp_path: Path) -> None:
    given, message = REFUSED[case]
    with pytest.raises(SparsifyError) as caught:
        apply(given, from_scratch=True, out=tmp_path, timing=0.02)
    assert str(caught.value) == message


def test_recipes_say_what_is_wrong_with_a_task() -> None:
    def refused(task: Any, **more: Any) -> str:
        with pytest.raises(SparsifyError) as caught:
            sparsify.load_recipe({**recipe(task, "mlp", "numbers", "0"), **more})
        return str(caught.value)

    assert refused("regresion") == (
        "<recipe>: task: expected one of classification, multilabel, regression, segmentation, "
        "language_model, "
        "masked_language_model, own, found the text 'regresion'; did you mean 'regression'?"
    )
    assert refused({"metrics": ["acuracy"]}) == (
        "<recipe>: task.metrics.0.use: unknown metric 'acuracy'; did you mean 'accuracy'?"
    )
    assert refused({"kind": "own"}) == (
        "<recipe>: task.kind: a task of its own needs 'loss: package.module:callable'"
    )
    assert refused({"loss": "mse"}) == "<recipe>: task.loss: 'mse' is no package.module:callable"
    assert refused("regression", budget={"accuracy_drop": "1pp"}) == (
        "<recipe>: budget.accuracy_drop: '1pp' is of a share, and 'rmse', which decides, is none; write a "
        "number in "
        "its own unit, or a share of the dense model's figure such as 5%"
    )
