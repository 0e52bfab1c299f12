"""A plan's penalties in a loop on Accelerate, with gradient accumulation, checkpoints and a cut at the end.

python examples/accelerate_loop.py            # or: accelerate launch examples/accelerate_loop.py
"""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparsify

RECIPE = {
    "version": 1,
    "title": "Accelerate",
    "budget": {"macs": "60%"},
    "rules": [
        {
            "layers": "0",
            "group": "neuron",
            "penalty": {"kind": "group_lasso", "strength": {"kind": "linear", "from": 0, "to": 0.15}},
        }
    ],
}
X = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0)


def train(epochs: int, folder: Path, start: int = 0) -> nn.Module:
    """Train up to so many of 4 epochs, from the state in the folder where `start` is above 0; leave the state
    there."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    plan = sparsify.make_plan(RECIPE, net, (X[:2],))
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = accelerator.prepare(
        net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), DataLoader(TensorDataset(X, Y), 32)
    )
    steps = len(loader) // 2
    with sparsify.attach(plan, model, optimizer, steps_per_epoch=steps, steps=4 * steps) as hooks:
        accelerator.register_for_checkpointing(hooks)
        if start:
            accelerator.load_state(str(folder))
        for _ in range(start, epochs):
            for x, y in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.cross_entropy(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
        accelerator.save_state(str(folder))
        accelerator.print(f"{hooks.sparsity():.0%} of the neurons are zero after {epochs} epochs")
    return accelerator.unwrap_model(model)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(2, Path(folder))
        resumed = train(4, Path(folder), start=2)
        whole = train(4, Path(folder) / "whole")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    print(sparsify.cut(sparsify.make_plan(RECIPE, resumed, (X[:2],)), resumed))


if __name__ == "__main__":
    main()
