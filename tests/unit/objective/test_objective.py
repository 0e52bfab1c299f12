"""The loss and the figures of a model have one place, and what needs them is handed them."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsify
from sparsify.data import load_data
from sparsify.data.examples import Examples
from sparsify.errors import DataError, ModelError
from sparsify.models import digits_cnn
from sparsify.objective.metrics import Accuracy
from sparsify.objective.objective import CLASSIFICATION, evaluate
from sparsify.reporting.report_file import read_report
from sparsify.reporting.report_tables import list_tables
from sparsify.runs.apply import apply
from sparsify_schemas.data import Data

TAYLOR = {
    "version": 1,
    "title": "t",
    "data": {"source": "digits"},
    "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "taylor"}}],
}


def test_criteria_take_the_gradient_of_the_loss_that_they_are_given() -> None:
    """The first two units feed the first output alone, the others the second; the loss says which output
    matters."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.copy_(torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]))
    plan = sparsify.make_plan(TAYLOR, model, (torch.randn(2, 3),))
    batches = [(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64))]
    kept = {}
    for output in (0, 1):
        result = sparsify.cut(
            plan, model, batches=batches, loss=lambda made, _y, output=output: made[:, output].mean()
        )
        kept[output] = result.model[1].weight.tolist()
    assert kept == {0: [[1.0, 1.0], [0.0, 0.0]], 1: [[0.0, 0.0], [1.0, 1.0]]}


class Counted(nn.Module):
    """Two scores, and the number of examples of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        return x.flatten(1)[:, :2]


@pytest.mark.parametrize(
    ("shape", "largest"), [((600, 8), 500), ((200, 3, 32, 32), 130), ((20, 3, 160, 160), 16)]
)
def test_an_evaluation_takes_as_many_examples_at_once_as_are_fast(
    shape: tuple[int, ...], largest: int
) -> None:
    model, examples = Counted(), Examples(torch.rand(shape), torch.zeros(shape[0], dtype=torch.int64))
    evaluate(model, examples, CLASSIFICATION)
    assert max(model.sizes) == largest and sum(model.sizes) == shape[0]


def test_a_loss_whose_gradient_is_zero_ranks_nothing_and_is_refused() -> None:
    """Cross-entropy of one logit is zero whatever the weights."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    plan = sparsify.make_plan(TAYLOR, model, (torch.randn(2, 3),))
    batches = [(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))]
    message = (
        "criterion 'taylor' looks at gradients of the loss, and those of the task 'classification' are zero "
        "for "
        "every weight: its loss is constant or does not depend on the model; check the task's loss and the "
        "targets"
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        sparsify.cut(plan, model, batches=batches)
    with pytest.raises(ModelError, match="those of the task 'own' are zero"):
        sparsify.cut(plan, model, batches=batches, loss=lambda _made, y: y.float().mean())


def test_a_metric_is_measured_on_both_models_and_stands_in_the_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(digits_cnn().state_dict(), tmp_path / "model.pt")
    metrics = ["accuracy", {"use": "accuracy", "name": "top-2 accuracy", "args": {"top_k": 2}}]
    recipe = {
        "version": 1,
        "title": "Digits",
        "model": {"build": "sparsify.models.digits_cnn"},
        "data": {"source": "digits", "validation": "10%"},
        "task": {"metrics": metrics},
        "rules": [{"layers": "conv*", "group": "filter", "sparsity": "25%"}],
        "stages": [{"kind": "cut"}],
    }
    run = apply(recipe, tmp_path / "model.pt", out=tmp_path, timing=0.05)
    report = read_report(run)
    assert report.metric.name == "accuracy"
    assert report.dense.metrics.keys() == {"validation top-2 accuracy", "test top-2 accuracy"}
    assert report.cut.test_metric is not None
    model, test = sparsify.load_run(run), load_data(Data(source="digits", validation="10%"), 0).test
    with torch.no_grad():
        two = model(test.ready()).topk(2, dim=1).indices
    expected = (two == test.targets[:, None]).any(dim=1).double().mean()
    assert report.cut.metrics["test top-2 accuracy"] == pytest.approx(float(expected))
    assert float(expected) > report.cut.test_metric
    rows = [row[0] for table in list_tables(report) for row in table.rows if table.title == "Dense and cut"]
    assert rows[-2:] == ["validation top-2 accuracy", "test top-2 accuracy"]


def test_a_report_without_further_figures_says_nothing_of_them(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "0", "group": "neuron"}]}, net, (torch.ones(2, 3),)
    )
    run = sparsify.save_run(sparsify.cut(plan, net), tmp_path / "run")
    written = json.loads((run / "report.json").read_text())
    assert "metrics" not in written["dense"] and "metric" not in written


@pytest.mark.parametrize("shape", [(6, 1), (6,)])
def test_one_output_is_the_logit_of_class_one(shape: tuple[int, ...]) -> None:
    outputs = torch.tensor([2.0, -1.0, 0.5, -0.1, -3.0, 4.0]).reshape(shape)
    targets = torch.tensor([1, 0, 0, 0, 1, 1])
    meter = Accuracy()
    meter.update(outputs, targets)
    assert meter.compute() == 4 / 6


def test_accuracy_of_targets_that_are_no_numbers_of_classes_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        sparsify.evaluate(nn.Linear(4, 3), [(torch.zeros(3, 4), torch.eye(3))])
    assert str(caught.value) == (
        "the targets have the shape (3, 3); accuracy needs the number of each example's class, (examples,)"
    )


def test_masks_of_bytes_may_say_what_does_not_count() -> None:
    masks = torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
    model = nn.Conv2d(1, 2, 1)
    objective = sparsify.make_objective({"kind": "segmentation", "ignore": 255})
    found = sparsify.evaluate(model, [(torch.ones(1, 1, 2, 2), masks)], objective)
    expected = nn.functional.cross_entropy(model(torch.ones(1, 1, 2, 2)), masks.long(), ignore_index=255)
    assert found.loss == pytest.approx(float(expected.detach()), rel=1e-6)
