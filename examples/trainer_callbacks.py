"""Sparsify in a class-based trainer, by callbacks alone: a detector is trained, cut between two epochs,
repaired and fine-tuned in one call of `train()`.

`Trainer` stands for a trainer of your own. Its methods, attributes and events have the names that those of
ultralytics have; `Sparsify` is what you add. See docs/how-to/own-trainer.md.

python examples/trainer_callbacks.py    # needs torchvision, and pip install -e '.[demo,detection]'
"""

import time
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.detection import MeanAveragePrecision

import sparsify
from sparsify.data.scenes import few_digit_boxes
from sparsify.models import detector
from sparsify.objective.detection.loss import detection_loss
from sparsify.objective.detection.mean_precision import find_boxes

# ------------------------------------------------------------------------------------------- the trainer


class ModelEMA:
    """A moving average of the weights, in `ema`."""

    def __init__(self, model: nn.Module, decay: float = 0.99) -> None:
        self.ema = deepcopy(model).eval().requires_grad_(False)
        self.updates, self.decay = 0, decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = model.state_dict()
        for name, value in self.ema.state_dict().items():
            if value.is_floating_point():
                value.mul_(decay).add_(now[name], alpha=1 - decay)


class Trainer:
    """Trains a detector; whatever else shall happen is a callback."""

    def __init__(self, epochs: int, save_dir: Path, width: int = 8, batch: int = 8) -> None:
        self.epochs, self.save_dir, self.width, self.batch_size = epochs, save_dir, width, batch
        self.callbacks: dict[str, list[Callable[[Trainer], None]]] = defaultdict(list)
        self.last, self.best = save_dir / "last.pt", save_dir / "best.pt"
        self.model: Any = None
        self.best_fitness: float | None = None
        self.data = dict(zip(("train", "val"), few_digit_boxes(), strict=True))

    def add_callback(self, event: str, callback: Callable[["Trainer"], None]) -> None:
        self.callbacks[event].append(callback)

    def run_callbacks(self, event: str) -> None:
        for callback in self.callbacks[event]:
            callback(self)

    def setup_model(self) -> None:
        if not isinstance(self.model, nn.Module):  # a model that is there already is taken as it is
            self.model = detector(width=self.width)

    def get_dataloader(self, part: str) -> DataLoader[Any]:
        images, targets = self.data[part]
        examples = [{"img": image, **target} for image, target in zip(images, targets, strict=True)]
        return DataLoader(examples, self.batch_size, shuffle=part == "train", collate_fn=list)

    def preprocess_batch(self, batch: list[dict[str, Tensor]]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        return torch.stack([one["img"] for one in batch]).float() / 255, batch

    def criterion(self, outputs: Any, targets: Any) -> Tensor:
        return detection_loss(outputs, targets).mean()

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=1e-4)

    def _setup_train(self) -> None:
        self.setup_model()
        self.train_loader, self.test_loader = self.get_dataloader("train"), self.get_dataloader("val")
        self.optimizer = self.build_optimizer()
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, self.epochs)
        self.scaler = torch.amp.GradScaler(enabled=False)  # mixed precision, on a GPU
        self.ema = ModelEMA(self.model)

    def optimizer_step(self) -> None:
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.ema.update(self.model)

    @torch.no_grad()
    def validate(self, model: nn.Module | None = None) -> tuple[dict[str, float], float]:
        """(figures, the one that counts) of the moving average, by torchmetrics."""
        metric = MeanAveragePrecision()
        for batch in self.test_loader:
            images, targets = self.preprocess_batch(batch)
            found = find_boxes((model or self.ema.ema).eval()(images), score=0.01)
            names = ("boxes", "scores", "labels")
            metric.update([dict(zip(names, one, strict=True)) for one in found], targets)
        figures = {"mAP50-95": float(metric.compute()["map"])}
        return figures, figures["mAP50-95"]

    def save_model(self) -> None:
        torch.save({"epoch": self.epoch, "ema": deepcopy(self.ema.ema).half()}, self.last)
        if self.fitness == self.best_fitness:
            self.best.write_bytes(self.last.read_bytes())

    def train(self) -> None:
        self.save_dir.mkdir(parents=True, exist_ok=True)
        self._setup_train()
        self.run_callbacks("on_train_start")
        for epoch in range(self.epochs):
            self.epoch = epoch
            self.run_callbacks("on_train_epoch_start")
            self.model.train()
            self.tloss = 0.0
            for place, batch in enumerate(self.train_loader):
                images, targets = self.preprocess_batch(batch)
                self.loss = self.criterion(self.model(images), targets)
                self.scaler.scale(self.loss).backward()
                self.optimizer_step()
                self.tloss += (self.loss.item() - self.tloss) / (place + 1)
            self.lr = self.optimizer.param_groups[0]["lr"]
            self.scheduler.step()
            self.run_callbacks("on_train_epoch_end")
            self.metrics, self.fitness = self.validate()
            if self.best_fitness is None or self.fitness > self.best_fitness:
                self.best_fitness = self.fitness
            self.save_model()
            self.run_callbacks("on_fit_epoch_end")
        self.run_callbacks("on_train_end")


# ------------------------------------------------------------------------------------------ the callbacks

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "detector in a trainer of one's own",
    "model": {"build": "sparsify.models.detector", "args": {"width": 8}},
    "task": {
        "loss": "sparsify.objective.detection.loss:detection_loss",
        "metrics": [
            {
                "use": "sparsify.objective.detection.mean_precision:MeanAveragePrecision",
                "name": "map",
                "percent": True,
            }
        ],
    },
    "budget": {"macs": "60%"},
    "rules": [
        {
            "layers": "Conv2d",
            "group": "filter",
            "keep": {"at_least": 2},
            "penalty": {"kind": "group_lasso", "strength": 1e-3},
        }
    ],
}


class Sparsify:
    """Penalties from the first epoch, a cut and a repair after `cut_after` of them, and a run at the end."""

    def __init__(self, recipe: dict[str, Any], cut_after: int, run: Path) -> None:
        self.recipe, self.cut_after, self.run = recipe, cut_after, run
        self.result: Any = None
        self.history: list[dict[str, Any]] = []

    def add_to(self, trainer: Trainer) -> None:
        for event in (
            "on_train_start",
            "on_train_epoch_start",
            "on_train_epoch_end",
            "on_fit_epoch_end",
            "on_train_end",
        ):
            trainer.add_callback(event, getattr(self, event))

    def on_train_start(self, trainer: Trainer) -> None:
        """The model, the optimizer and the data are there, and no step was made."""
        images, _ = trainer.preprocess_batch(next(iter(trainer.train_loader)))
        self.plan = sparsify.make_plan(self.recipe, trainer.model, (images[:2],))
        print(self.plan)
        steps = len(trainer.train_loader)
        self.hooks = sparsify.attach(
            self.plan,
            trainer.model,
            trainer.optimizer,
            steps_per_epoch=steps,
            steps=steps * self.cut_after,
        )

    def on_train_epoch_start(self, trainer: Trainer) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        """After the last step of an epoch, before the validation: what it judges is the cut model."""
        self.history.append(
            {
                "loss": trainer.tloss,
                "lr": trainer.lr,
                "sparsity": 0.0 if self.result else self.hooks.sparsity(),
                "seconds": time.perf_counter() - self.started,
            }
        )
        if trainer.epoch + 1 == self.cut_after:
            self.cut(trainer)

    def cut(self, trainer: Trainer) -> None:
        self.hooks.detach()
        dense = deepcopy(trainer.ema.ema)
        self.dense, self.history[-1]["validation_metric"] = trainer.validate(dense)
        started = time.perf_counter()
        self.result = sparsify.cut(
            self.plan, trainer.model, optimizer=trainer.optimizer, follow=[trainer.ema]
        )
        self.history.append({"stage": "cut", "seconds": time.perf_counter() - started})
        print(self.result)
        started = time.perf_counter()
        sparsify.repair(self.result, self.images(trainer))
        self.history.append({"stage": "repair", "seconds": time.perf_counter() - started})
        trainer.model, (trainer.ema,) = self.result.model, self.result.followers
        trainer.ema.ema.load_state_dict(trainer.model.state_dict())  # the average of before was not repaired
        trainer.best_fitness = None  # best.pt shall be a cut model
        self.result = replace(self.result, dense=dense)

    def images(self, trainer: Trainer) -> list[Tensor]:
        return [trainer.preprocess_batch(batch)[0] for batch in trainer.train_loader]

    def on_fit_epoch_end(self, trainer: Trainer) -> None:
        """After the validation."""
        self.history[-1]["validation_metric"] = trainer.fitness

    def on_train_end(self, trainer: Trainer) -> None:
        assert self.result is not None
        result = replace(self.result, model=trainer.ema.ema)  # what is validated is what is delivered
        figures = {"dense": self.dense, "cut": trainer.validate()[0]}
        batches = [trainer.preprocess_batch(batch) for batch in trainer.test_loader]
        sparsify.save_run(result, self.run, validation=batches, metrics=figures, history=self.history)


def main(epochs: int = 6, cut_after: int = 4, folder: Path = Path("runs")) -> None:
    torch.manual_seed(0)
    trainer = Trainer(epochs, folder / "trainer")
    Sparsify(RECIPE, cut_after, folder / "detector").add_to(trainer)
    trainer.train()
    print(trainer.metrics)


if __name__ == "__main__":
    main()
