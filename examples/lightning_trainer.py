"""A plan's penalties in Lightning: one callback; its state goes into Lightning's own checkpoints.

python examples/lightning_trainer.py          # needs the extra: pip install -e '.[lightning]'
"""

import logging
import tempfile
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import sparsify
from sparsify.adapters.lightning import SparsifyCallback

RECIPE = {
    "version": 1,
    "title": "Lightning",
    "budget": {"macs": "60%"},
    "rules": [
        {
            "layers": "0",
            "group": "neuron",
            "penalty": {"kind": "group_lasso", "strength": {"kind": "linear", "from": 0, "to": 0.3}},
        }
    ],
}
X = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0)


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(epochs: int, folder: Path, resume: Path | None = None) -> nn.Module:
    """Train up to so many of 4 epochs, from a checkpoint where one is given."""
    module = Classifier()
    plan = sparsify.make_plan(RECIPE, module.net, (X[:2],))
    trainer = Trainer(
        max_epochs=4,
        callbacks=[
            SparsifyCallback(plan, module.net),
            *([_Stop(epochs, folder / "last.ckpt")] if epochs < 4 else []),
        ],
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(X, Y), 32), ckpt_path=resume)
    return module.net


class _Stop(Callback):
    """Saves a checkpoint after some epochs and stops, as an interrupted run would."""

    def __init__(self, epochs: int, path: Path) -> None:
        self.epochs, self.path = epochs, path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epochs:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        train(2, Path(folder))
        resumed = train(4, Path(folder), resume=Path(folder) / "last.ckpt")
        whole = train(4, Path(folder))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    print(sparsify.cut(sparsify.make_plan(RECIPE, resumed, (X[:2],)), resumed))


if __name__ == "__main__":
    main()
