"""The loss and the figures of a model have one place, and what needs them is handed them."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.data import Examples
from sparsify.models import digits_cnn
from sparsify.reporting.report_file import read_report
from sparsify.reporting.report_tables import tables
from sparsify.runs.apply import apply
from sparsify.training import objective

TAYLOR = {
    "version": 1,
    "title": "t",
    "data": {"source": "digits"},
    "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "taylor"}}],
}


def two_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 for each example whose class is one of the two largest outputs."""
    return (outputs.topk(2, dim=1).indices == targets[:, None]).any(1)


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


def test_the_mean_loss_is_the_mean_of_the_losses() -> None:
    outputs, targets = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    assert objective.mean_loss(outputs, targets) == pytest.approx(
        float(objective.losses(outputs, targets).mean()), rel=1e-6
    )


def test_a_metric_is_measured_on_both_models_and_stands_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "METRICS", (objective.Metric("top-2 accuracy", two_classes),))
    torch.manual_seed(0)
    torch.save(digits_cnn().state_dict(), tmp_path / "model.pt")
    recipe = {
        "version": 1,
        "title": "Digits",
        "model": {"build": "sparsify.models.digits_cnn"},
        "data": {"source": "digits", "validation": "10%"},
        "rules": [{"layers": "conv*", "group": "filter", "sparsity": "25%"}],
        "stages": [{"kind": "cut"}],
    }
    run = apply(recipe, tmp_path / "model.pt", out=tmp_path, timing=0.05)
    report = read_report(run)
    assert report.dense.metrics.keys() == {"validation top-2 accuracy", "test top-2 accuracy"}
    assert report.cut.test_accuracy is not None
    assert report.cut.metrics["test top-2 accuracy"] > report.cut.test_accuracy
    rows = [row[0] for table in tables(report) for row in table.rows if table.title == "Dense and cut"]
    assert rows[-2:] == ["validation top-2 accuracy", "test top-2 accuracy"]


def test_a_report_without_further_figures_says_nothing_of_them(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "0", "group": "neuron"}]}, net, (torch.ones(2, 3),)
    )
    run = sparsify.save_run(sparsify.cut(plan, net), tmp_path / "run")
    assert "metrics" not in json.loads((run / "report.json").read_text())["dense"]


def test_further_figures_of_no_examples_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "METRICS", (objective.Metric("top-2 accuracy", two_classes),))
    none = Examples(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert objective.further_figures(nn.Linear(3, 2), none) == {}
