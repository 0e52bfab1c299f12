"""Every kind of task from end to end: trained, cut, repaired, judged by its own metric, resumed.

The figures of a report are compared with the metric written out from its definition.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sparsify
from sparsify.errors import SparsifyError, TrainingError
from sparsify.events import EpochDone
from sparsify.runs.apply import apply
from sparsify.runs.save_load import load_dense, load_run, verify_run
from sparsify.runs.sensitivity import profile_layers
from sparsify_cli.app import exit_code

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
            {"kind": "repair", "examples": 100},
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
    repaired = next(row.repair for row in report.stages if row.repair is not None)
    assert repaired.after.error < repaired.before.error
    page = (run / "report.md").read_text()
    assert f"test {name}" in page and "accuracy" not in page.replace("token_accuracy", "")


SEGMENTATION = {"kind": "segmentation", "ignore": 255}
OWN_LOSSES = {
    "segmentation": (recipe(SEGMENTATION, "conv_net", "squares", "0", "filter"), "pixel_loss"),
    "language model": (
        recipe({"kind": "language_model", "outputs": "logits"}, "TextModel", "equal_sentences", "up"),
        "next_token_loss",
    ),
}
"""each with a loss of its own that is the built-in one"""


@pytest.mark.parametrize("kind", OWN_LOSSES)
def test_a_loss_of_ones_own_trains_as_the_same_loss_built_in(kind: str, tmp_path: Path) -> None:
    """By an optimizer that feels how large gradients are."""
    given, loss = OWN_LOSSES[kind]
    learn = {"kind": "train", "name": "learn", "epochs": 2, "batch": 32}
    learn["optimizer"] = {"kind": "sgd", "lr": 0.3}
    ends = []
    for more in ({}, {"loss": f"task_parts:{loss}"}):
        told = {**given, "task": given["task"] | more, "stages": [learn, {"kind": "cut", "repair": False}]}
        run = apply(told, from_scratch=True, out=tmp_path / "runs", timing=0.02)
        ends.append((verify_run(run).history[-1].loss, load_dense(run).state_dict()))
    (built_in, weights), (own, others) = ends
    assert own == pytest.approx(built_in, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["a part of the outputs", "language model", "masked", "own"])
def test_a_task_is_repaired(kind: str, tmp_path: Path) -> None:
    """Mappings and sequences of different lengths too."""
    given = KINDS[kind][0]
    given = {**given, "stages": [*given["stages"][:2], {"kind": "repair", "examples": 150}]}
    report = verify_run(apply(given, from_scratch=True, out=tmp_path / "runs", timing=0.02))
    cut, repair = report.stages[1:]
    assert repair.repair is not None and repair.repair.examples == 150
    assert cut.agreement is not None and repair.agreement is not None and not repair.repair.reverted
    assert repair.agreement.error < cut.agreement.error


@pytest.mark.parametrize("kind", ["segmentation", "regression", "multilabel"])
def test_int8_files_of_tasks_without_classes_tell_no_share_of_equal_classes(
    kind: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    given = KINDS[kind][0]
    run = apply({**given, "stages": [{"kind": "cut"}]}, from_scratch=True, out=tmp_path / "runs", timing=0.02)
    stages = json.loads((run / "report.json").read_text())["stages"]
    assert stages[0]["agreement"]["same_prediction"] is None
    made = sparsify.export(run, "onnx-int8")
    assert made.difference is not None and made.difference < 1
    assert made.quantised is not None and (made.quantised.agreement, made.quantised.judged) == (None, 0)
    assert made.quantised.examples > 0


def test_lists_of_images_are_neither_compared_nor_repaired(tmp_path: Path) -> None:
    task = {"kind": "regression", "collate": "task_parts:as_lists"}
    given = recipe(task, "ListModel", "pictures", "conv", "filter")
    stages = [stage for stage in given["stages"] if stage["kind"] != "repair"]
    given = {**given, "stages": stages}
    report = verify_run(apply(given, from_scratch=True, out=tmp_path / "runs", timing=0.02))
    assert [row.agreement for row in report.stages] == [None] * 4
    reason = (
        "'repair' needs inputs whose examples lie along one dimension, and the data give a list, such as one "
        "of images of different sizes; leave the repair out, or give inputs of one size"
    )
    assert report.stages[2].repair is not None and report.stages[2].repair.left_out == reason
    given = {**given, "stages": [*given["stages"][:2], {"kind": "repair"}]}
    with pytest.raises(SparsifyError) as caught:
        apply(given, from_scratch=True, out=tmp_path / "runs", timing=0.02)
    assert str(caught.value) == reason


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    """Batches with masks and lists, after a stop between two epochs."""
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


PENALTIES = {
    "gsm": {"kind": "gsm"},
    "sensitivity of the loss": {"kind": "sensitivity", "strength": 1e-3},
    "unspecific sensitivity": {"kind": "sensitivity", "of": "outputs", "strength": 1e-3},
    "auto strength": {"kind": "group_lasso", "strength": "auto"},
}


@pytest.mark.parametrize("kind", ["regression", "multilabel", "segmentation", "masked", "own"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_act_on_every_task(penalty: str, kind: str, tmp_path: Path) -> None:
    """Weights that the rule reaches end smaller than without the penalty."""
    given, _, _ = KINDS[kind]
    rule = {**given["rules"][0], "criterion": {"kind": "magnitude"}}
    epochs = 4 if penalty == "auto strength" else 1
    stages = [{**given["stages"][0], "epochs": epochs}, {"kind": "cut"}]
    sizes = []
    for acting in ({}, {"penalty": PENALTIES[penalty]}):
        asked = {**given, "rules": [{**rule, **acting}], "stages": stages}
        if penalty == "gsm":
            decay = {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.05}
            asked["stages"] = [{**stages[0], "optimizer": decay}, {"kind": "cut"}]
        run = apply(asked, from_scratch=True, out=tmp_path, timing=0.02)
        dense = load_dense(run)
        layers = rule["layers"] if isinstance(rule["layers"], list) else [rule["layers"]]
        sizes.append(sum(float(dense.get_submodule(name).weight.detach().abs().sum()) for name in layers))
    assert sizes[1] < sizes[0]


def test_baselines_and_sensitivity_go_by_the_metric_of_the_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, _, _ = KINDS["regression"]
    asked = {**given, "rules": [{**given["rules"][0], "criterion": {"kind": "magnitude"}}]}
    del asked["rules"][0]["sparsity"]
    asked |= {"budget": {"params": "60%"}, "baselines": ["uniform_width", "random"]}
    run = apply(asked, from_scratch=True, out=tmp_path, timing=0.02)
    report = verify_run(run)
    assert [made.kind for made in report.baselines] == ["uniform_width", "random"]
    assert all(made.side.test_metric is not None for made in report.baselines)
    assert "Rmse of the cut model: " in (run / "report.md").read_text()
    profile = profile_layers(asked, run / "dense.safetensors", tmp_path / "p.json")
    assert (profile.judged_by.name, profile.judged_by.better) == ("rmse", "lower")
    assert profile.curves[0].points[-1].metric > profile.metric
    Path("asked.json").write_text(json.dumps(asked))
    assert exit_code(["sensitivity", "asked.json", str(run / "dense.safetensors"), "--out", "own.json"]) == 0
    title = "Sensitivity by ablation: validation rmse with this fraction of a layer's units removed"
    assert title in " ".join(capsys.readouterr().out.split())


def test_an_optimizer_of_torch_is_named_with_its_arguments(tmp_path: Path) -> None:
    """A run with RMSprop, stopped and resumed, ends with the weights of one that was not stopped."""
    given, _, _ = KINDS["regression"]
    optimizer = {"kind": "other", "use": "RMSprop", "lr": 1e-3, "args": {"alpha": 0.9, "momentum": 0.5}}
    stages = [{**given["stages"][0], "optimizer": optimizer}, {"kind": "cut"}]
    whole = apply({**given, "stages": stages}, from_scratch=True, out=tmp_path / "whole", timing=0.02)

    def stop(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply({**given, "stages": stages}, from_scratch=True, out=tmp_path / "b", timing=0.02, listener=stop)
    (folder,) = (tmp_path / "b").iterdir()
    resumed = apply(resume=folder, timing=0.02)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"use": "RMSProp"}, "torch.optim has no optimizer 'RMSProp'; did you mean 'RMSprop'?"),
        (
            {"use": "RMSprop", "args": {"alfa": 1}},
            "optimizer 'RMSprop': TypeError: RMSprop.__init__() got an unexpected keyword argument 'alfa'",
        ),
        ({"use": "task_parts:mlp"}, "optimizer 'task_parts:mlp': TypeError: mlp() got an unexpected"),
    ],
)
def test_an_optimizer_that_is_none_is_said(optimizer: Any, message: str, tmp_path: Path) -> None:
    given, _, _ = KINDS["regression"]
    stages = [{**given["stages"][0], "optimizer": {"kind": "other", **optimizer}}, {"kind": "cut"}]
    with pytest.raises(TrainingError, match="^" + re.escape(message)):
        apply({**given, "stages": stages}, from_scratch=True, out=tmp_path, timing=0.02)


ALIKE = ("regression", "multilabel", "segmentation", "one channel", "language model", "masked")


@pytest.mark.nightly
def test_distillation_follows_the_dense_model_in_every_task(tmp_path: Path) -> None:
    """With all weight on the teacher, the outputs come nearer to the dense model's."""
    for kind in (*ALIKE, "loss of the model"):
        given, _, _ = KINDS[kind]
        tune = {**given["stages"][3], "epochs": 4, "distill": {"weight": 1.0}}
        stages = [given["stages"][0], {"kind": "cut"}, tune]
        agreement = []

        def note(event: object, found: list[Any] = agreement) -> None:
            if isinstance(event, EpochDone) and event.stage == "tune":
                found.append(event.loss)

        apply({**given, "stages": stages}, from_scratch=True, out=tmp_path, timing=0.02, listener=note)
        assert agreement[-1] < agreement[0], kind


def test_a_teacher_whose_prediction_is_no_tensor_is_told(tmp_path: Path) -> None:
    """An own loss is handed the mapping that the model returns; distillation cannot compare mappings."""
    given, _, _ = KINDS["language model"]
    task = {"loss": "task_parts:token_loss"}
    tune = {**given["stages"][3], "distill": {}}
    rules = [{**given["rules"][0], "criterion": {"kind": "magnitude"}}]
    data = {"source": "task_parts:masked_sentences"}
    asked = {**given, "task": task, "data": data, "rules": rules, "stages": [{"kind": "cut"}, tune]}
    with pytest.raises(TrainingError) as caught:
        apply(asked, from_scratch=True, out=tmp_path, timing=0.02)
    assert str(caught.value) == (
        "distillation compares tensors, and the model returns a dict; say in task.outputs which part is the "
        "prediction, or leave 'distill' out"
    )


def test_labels_are_smoothed_where_there_are_classes(tmp_path: Path) -> None:
    """(1 - s) CE + s * mean over the classes of -log p: higher than the plain loss on a model that is
    sure."""
    given, _, _ = KINDS["masked"]
    losses = []
    for smoothing in (0.0, 0.2):
        learn = {**given["stages"][0], "label_smoothing": smoothing}
        run = apply(
            {**given, "stages": [learn, {"kind": "cut"}]}, from_scratch=True, out=tmp_path, timing=0.02
        )
        losses.append(verify_run(run).history[-1].loss)
    assert losses[1] > losses[0]
    wrong = {**KINDS["regression"][0]}
    wrong["stages"] = [{**wrong["stages"][0], "label_smoothing": 0.1}, {"kind": "cut"}]
    with pytest.raises(SparsifyError) as caught:
        sparsify.load_recipe(wrong)
    assert str(caught.value) == (
        "<recipe>: stages.0.label_smoothing: 'learn' smooths labels, which a task with a class for each "
        "target has; leave it out"
    )


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
    share = 100 * limit.achieved / report.dense.validation_metric
    (row,) = [line for line in (run / "report.md").read_text().splitlines() if "of validation rmse" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["rise of validation rmse", "at most 5 %"]
    assert float(cells[2].removesuffix(" %")) == pytest.approx(share, abs=0.06)
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


def test_a_loop_of_ones_own_has_the_same_report(tmp_path: Path) -> None:
    """The stages of the recipe, written as a loop: figures, curves and notes stand in the report."""
    torch.manual_seed(0)
    model = task_parts.mlp()
    (x, y), (test_x, test_y) = task_parts.numbers()
    given = {
        "version": 1,
        "title": "Own",
        "task": "regression",
        "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "taylor"}}],
    }
    batches, test = [(x[i : i + 50], y[i : i + 50]) for i in range(0, 300, 50)], [(test_x, test_y)]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    history = []
    for _ in range(3):
        losses = []
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        history.append(
            {
                "loss": sum(losses) / 6,
                "validation_metric": sparsify.evaluate(model, test, "regression").deciding,
            }
        )
    plan = sparsify.make_plan(given, model, (x[:2],))
    result = sparsify.cut(plan, model, batches=batches)
    sparsify.repair(result, batches)
    run = sparsify.save_run(
        result,
        tmp_path / "run",
        test=test,
        history=history,
        metrics={"dense": {"test hits": 0.5}, "cut": {"test hits": 0.25}},
        timing=0.02,
    )
    report = verify_run(run)
    with torch.no_grad():
        assert report.cut.test_metric == pytest.approx(rmse(result.model), rel=1e-4)
        assert report.dense.test_metric == pytest.approx(rmse(model), rel=1e-4)
    assert (report.metric.name, report.dense.metrics["test hits"], report.cut.metrics["test hits"]) == (
        "rmse",
        0.5,
        0.25,
    )
    assert [row.loss for row in report.history] == [row["loss"] for row in history]
    assert report.stages[0].epochs == 3
    assert "measured elsewhere and handed to save_run: test hits" in report.notes
    assert "Rmse" in (run / "report.html").read_text()


def test_what_is_handed_over_is_checked(tmp_path: Path) -> None:
    model = task_parts.mlp()
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}]},
        model,
        (torch.randn(2, 6),),
    )
    result = sparsify.cut(plan, model)

    def refused(**given: Any) -> str:
        with pytest.raises(SparsifyError) as caught:
            sparsify.save_run(result, tmp_path / "run", timing=0.02, **given)
        return str(caught.value)

    assert (
        refused(metrics={"thin": {"a": 1.0}})
        == "metrics has figures of 'thin'; they are of 'dense' or of 'cut'"
    )
    assert refused(history=[{"loss": 1.0}, {"lost": 2.0}]) == "history, row 2: loss: Field required"
    assert refused(test=[{"input_ids": torch.zeros(1)}]) == (
        "a batch is a dict without targets; pass pairs (inputs, targets), or mappings with one of labels, "
        "label, "
        "targets, target, y"
    )


def test_a_class_without_an_output_is_said() -> None:
    with pytest.raises(SparsifyError) as caught:
        sparsify.evaluate(task_parts.mlp(), [(torch.randn(4, 6), torch.tensor([0, 1, 2, 1]))])
    assert str(caught.value) == (
        "the targets hold class 2 and the model has 2 outputs; build the model for as many, or name another "
        "task"
    )


def test_layers_are_judged_and_baselines_cut_in_a_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    model = task_parts.mlp().eval()
    x, y = task_parts.numbers()[0]
    rules = [{"layers": ["0", "2"], "group": "neuron", "criterion": {"kind": "taylor"}}]
    given = {"version": 1, "title": "t", "task": "regression", "budget": {"params": "60%"}, "rules": rules}
    plan = sparsify.make_plan(given, model, (x[:2],))
    profile = sparsify.sensitivity(plan, model, [(x, y)], tolerance="10%")
    assert (profile.judged_by.name, profile.examples) == ("rmse", 300)
    whole = (model(x) - y).square().mean().sqrt().item()
    assert profile.metric == pytest.approx(whole, rel=1e-4)
    assert set(profile.limits) == {curve.group for curve in profile.curves} == {"0", "2"}
    for curve in profile.curves:
        for point in curve.points:
            if point.share <= profile.limits[curve.group].fraction:
                assert point.metric is not None and point.metric - whole <= 0.1 * whole + 1e-6
    with pytest.raises(SparsifyError) as refused:
        sparsify.sensitivity(plan, model, [(x, y)], tolerance="10pp")
    assert str(refused.value) == (
        "the tolerance of the limits: '10pp' is of a share, and 'rmse', which decides, is none; write a "
        "number in "
        "its own unit, or a share of the dense model's figure such as 5%"
    )
    result = sparsify.cut(plan, model, batches=[(x, y)])
    size = sum(p.numel() for p in result.model.parameters())
    for kind in ("uniform_width", "random", "magnitude"):
        other = sparsify.cut_baseline(result, kind)
        assert other.verdicts[0].outcome == "equal"
        assert 0.8 * size <= sum(p.numel() for p in other.model.parameters()) <= size
    even = sparsify.cut_baseline(result, "uniform_width").model
    assert even[0].out_features == even[2].out_features
    with pytest.raises(SparsifyError) as caught:
        sparsify.cut_baseline(result, "best")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "there is no baseline 'best'; known: uniform_width, random, magnitude, by_macs"
    )


@pytest.mark.parametrize("keys", [{"ema": 0.9}, {"ends_with": "best"}, {"patience": 1}], ids=str)
def test_what_is_kept_survives_a_kill(keys: dict[str, Any], tmp_path: Path) -> None:
    """Averages, best weights and the wait for better ones go on where they were, to the last bit."""
    given, _, _ = KINDS["regression"]
    lr = {"kind": "one_shot", "from": 0.01, "to": 0.3, "at": "2ep"}
    learn = {**given["stages"][0], "epochs": 5, "optimizer": {"kind": "adamw", "lr": lr}, **keys}
    asked = {**given, "stages": [learn, {"kind": "cut"}]}
    whole = apply(asked, from_scratch=True, out=tmp_path / "whole", timing=0.02)

    def stop(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(asked, from_scratch=True, out=tmp_path / "stopped", timing=0.02, listener=stop)
    (folder,) = (tmp_path / "stopped").iterdir()
    resumed = apply(resume=folder, timing=0.02)
    for name in ("dense.safetensors", "model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    (row,) = [row for row in verify_run(whole).stages if row.kind == "train"]
    if "ends_with" in keys:
        assert row.kept_epoch is not None
        assert (
            f"learn ended with the weights of epoch {row.kept_epoch} of 5"
            in (whole / "report.md").read_text()
        )
    if "patience" in keys:
        assert row.epochs < 5


def test_a_found_strength_shows_how_near_its_goal_is() -> None:
    """In a loop of one's own, before any group is zero."""
    torch.manual_seed(0)
    model = task_parts.mlp()
    x, y = task_parts.numbers()[0]
    rules = [
        {"layers": ["0", "2"], "group": "neuron", "penalty": {"kind": "group_lasso", "strength": "auto"}}
    ]
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "budget": {"params": "50%"}, "rules": rules}, model, (x[:2],)
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    shown = []
    with sparsify.attach(plan, model, optimizer, steps_per_epoch=10, steps=200) as hooks:
        for _ in range(200):
            optimizer.zero_grad()
            functional.mse_loss(model(x), y).backward()
            optimizer.step()
            shown.append(hooks.figures())
    assert shown[0].keys() == {"sparsity", "goal_due", "goal_reached"}
    assert [row["goal_due"] for row in shown] == sorted(row["goal_due"] for row in shown)
    assert shown[-1]["goal_reached"] > 0.9 > shown[0]["goal_reached"]


@pytest.mark.nightly
def test_two_processes_equal_one_with_masks_and_metrics(tmp_path: Path) -> None:
    """Tokens count alike on one process and on two, and a metric of torchmetrics stays in its process."""
    given, _, _ = KINDS["masked"]
    lasso = {"kind": "group_lasso", "strength": 0.01}
    stages = [{**stage, "batch": 36} for stage in given["stages"] if stage["kind"] == "train"]
    asked = {**given, "rules": [{**given["rules"][0], "penalty": lasso}]}
    asked["stages"] = [stages[0], {"kind": "cut", "repair": False}, stages[1]]
    Path("two.json").write_text(json.dumps(asked))
    found = []
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["-m", "sparsify_cli", "apply", "two.json", "--from-scratch", "--quiet"]
        command += ["--out", f"runs-{processes}"]
        here = os.pathsep.join((".", *sys.path))
        surroundings = {
            **os.environ,
            "PYTHONPATH": here,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        (folder,) = Path(f"runs-{processes}").iterdir()
        found.append(verify_run(folder))
    one, two = found
    assert [row.loss for row in two.history] == pytest.approx([row.loss for row in one.history], rel=1e-5)
    assert two.cut.test_metric == pytest.approx(one.cut.test_metric, rel=1e-4)


def test_reconstruction_looks_at_inputs_by_name() -> None:
    """A neuron that no later layer reads goes first."""
    torch.manual_seed(0)
    model = task_parts.TextModel().eval()
    with torch.no_grad():
        model.down.weight[:, :16] = 0
    ids = torch.randint(1, task_parts.WORDS, (40, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rule = {"layers": "up", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "reconstruction"}}
    given = {"version": 1, "title": "t", "task": "language_model", "rules": [rule]}
    result = sparsify.cut(sparsify.make_plan(given, model, inputs), model, batches=[(inputs, ids)])
    (width,) = result.cuts.widths
    assert width.keep == ((16, 32),)
