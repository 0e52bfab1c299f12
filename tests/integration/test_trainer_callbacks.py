"""The example of a class-based trainer: a detector is cut between two epochs, and its training goes on."""

import inspect
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from sparsify.objective.detection import mean_precision
from sparsify.runs.save_load import load_dense, verify_run

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")
pytest.importorskip("sklearn")

pytestmark = pytest.mark.filterwarnings("ignore")  # of torchmetrics

EXAMPLE = Path(__file__).parents[2] / "examples" / "trainer_callbacks.py"
EPOCHS, CUT_AFTER = 3, 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(trainer, callbacks, model, optimizer and scheduler that each epoch began with, folder of the run)."""
    example = runpy.run_path(str(EXAMPLE))
    folder = tmp_path_factory.mktemp("trainer")
    torch.manual_seed(0)
    trainer = example["Trainer"](EPOCHS, folder / "trainer")
    trainer.data = {part: (images[:24], boxes[:24]) for part, (images, boxes) in trainer.data.items()}
    callbacks = example["Sparsify"](example["RECIPE"], CUT_AFTER, folder / "run")
    seen: list[Any] = []
    callbacks.add_to(trainer)
    trainer.add_callback("on_train_epoch_start", lambda t: seen.append((t.model, t.optimizer, t.scheduler)))
    trainer.train()
    return trainer, callbacks, seen, folder / "run"


def shapes(model: torch.nn.Module) -> list[torch.Size]:
    return [parameter.shape for parameter in model.parameters()]


def test_the_trainer_goes_on_with_the_cut_model(trained: Any) -> None:
    trainer, callbacks, seen, _ = trained
    (first, optimizer, scheduler), (same, _, _), (thin, optimizer_after, scheduler_after) = seen
    assert same is first and thin is trainer.model is callbacks.result.model
    assert optimizer_after is optimizer and scheduler_after is scheduler and scheduler.last_epoch == EPOCHS
    assert shapes(thin) != shapes(first)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in held] == [id(parameter) for parameter in thin.parameters()]
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in held)
    steps = {int(optimizer.state[p]["step"]) for p in held}
    assert steps == {EPOCHS * len(trainer.train_loader)}
    assert trainer.ema.updates == EPOCHS * len(trainer.train_loader)
    assert shapes(trainer.ema.ema) == shapes(thin)
    assert not any(p.requires_grad for p in trainer.ema.ema.parameters())
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_the_checkpoints_are_of_the_cut_model(trained: Any) -> None:
    trainer, _, _, _ = trained
    for file in (trainer.last, trainer.best):
        stored = torch.load(file, weights_only=False)
        assert stored["epoch"] == EPOCHS - 1
        assert shapes(stored["ema"]) == shapes(trainer.model)


def test_the_run_has_figures_curves_and_what_the_trainer_validated(trained: Any) -> None:
    trainer, callbacks, _, run = trained
    report = verify_run(run)
    assert [(stage.name, stage.kind, stage.epochs) for stage in report.stages] == [
        ("train", "train", CUT_AFTER),
        ("cut", "cut", 0),
        ("repair", "repair", 0),
        ("finetune", "train", EPOCHS - CUT_AFTER),
    ]
    assert report.cut.macs <= 0.6 * report.dense.macs
    assert report.cut.metrics["mAP50-95"] == trainer.metrics["mAP50-95"]
    assert report.dense.metrics["mAP50-95"] == callbacks.history[CUT_AFTER - 1]["validation_metric"]
    assert (report.metric.name, report.cut.validation_metric is None) == ("map", False)
    assert (run / "report.html").read_text().count("<polyline") >= 2
    images = torch.rand(2, 3, 32, 32)
    for loaded, model in (
        (sparsify.load_run(run), trainer.ema.ema),
        (load_dense(run), callbacks.result.dense),
    ):
        for found, wanted in zip(loaded(images), model.eval()(images), strict=True):
            assert torch.allclose(found, wanted, atol=1e-6)


def test_the_trainer_and_the_recipe_measure_the_same(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics in the trainer and the metric that the recipe names, on boxes near the true ones."""
    trainer, _, _, _ = trained
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch in trainer.test_loader:
        rows = []
        for one in batch:
            boxes = one["boxes"] + torch.randn(one["boxes"].shape, generator=generator)
            rows.append((boxes, torch.rand(len(boxes), generator=generator), one["labels"]))
        found.append(rows)
    turn = iter([*found, *found])
    names = inspect.unwrap(type(trainer).validate).__globals__  # of the example
    monkeypatch.setitem(names, "find_boxes", lambda *_, **__: next(turn))
    monkeypatch.setattr(mean_precision, "find_boxes", lambda *_, **__: next(turn))
    figures, fitness = trainer.validate()
    metric = mean_precision.MeanAveragePrecision()
    for batch in trainer.test_loader:
        metric.update((), batch)
    assert figures == {"mAP50-95": fitness}
    assert 0.1 < fitness < 1
    assert fitness == pytest.approx(metric.compute()["map"], abs=1e-3)  # they round boxes apart
