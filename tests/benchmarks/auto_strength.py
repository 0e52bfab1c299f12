"""How near `strength: auto` comes to its budget by the end of a stage, from its default setting, on five
networks.

    python tests/benchmarks/auto_strength.py [--steps 300] [--only lstm]

LeNet-5 on MNIST, VGG-16 (batch normalisation) and ResNet-56 (its pretrained weights where they
lie beside the data) on CIFAR-10, a two-layer LSTM on ECG5000, a small ViT on CIFAR-10. One stage of so many
steps, one seed; `left` is what would remain if the groups that are exactly zero left now; `cut` what the cut
then leaves, which is never above the budget and below it by at most a unit (of LeNet-5's first layer one is 4
% of all MACs).
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sparsify
from sparsify.cost.cost_model import Costs
from sparsify.data import load_data
from sparsify.models import cifar_resnet56, lenet5
from sparsify_schemas.data import Data

CACHE = Path("~/.cache/sparsify").expanduser()
_found = importlib.util.spec_from_file_location(
    "ecg5000", Path(__file__).parents[2] / "recipes" / "ecg5000.py"
)
assert _found is not None and _found.loader is not None
ecg5000 = importlib.util.module_from_spec(_found)
_found.loader.exec_module(ecg5000)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    rules: list[dict[str, Any]]
    budget: dict[str, str]
    batch: int
    optimizer: Callable[[Any], torch.optim.Optimizer]


class Patches(nn.Module):
    """Tokens of 4 x 4 pixels, and their places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 64, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.place


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit(width: int = 64, heads: int = 4, depth: int = 4) -> nn.Module:
    return nn.Sequential(
        Patches(width),
        *(ecg5000.Block(width, heads) for _ in range(depth)),
        nn.LayerNorm(width),
        Mean(),
        nn.Linear(width, 10),
    )


def vgg16(narrower: int = 1) -> nn.Module:
    layers, inputs = list[nn.Module](), 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [
                nn.Conv2d(inputs, width // narrower, 3, padding=1, bias=False),
                nn.BatchNorm2d(width // narrower),
                nn.ReLU(),
            ]
            inputs = width // narrower
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 10))


def resnet56() -> nn.Module:
    weights = CACHE / "weights" / "cifar_resnet56b.pt"
    model = cifar_resnet56(shortcut="B")
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def images(source: str, count: int) -> tuple[Tensor, Tensor]:
    examples = load_data(Data(source=source), 0).train[:count]
    return examples.ready(), examples.targets


def lasso(layers: Any, group: str) -> dict[str, Any]:
    return {"layers": layers, "group": group, "penalty": {"kind": "group_lasso", "strength": "auto"}}


def sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)


def adam(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


CASES = {
    "lenet5": Case(
        lenet5,
        lambda: images("mnist", 10000),
        [lasso("Conv2d", "filter"), lasso("fc1", "neuron")],
        {"macs": "30%"},
        64,
        sgd(0.02),
    ),
    "vgg16": Case(
        vgg16, lambda: images("cifar10", 10000), [lasso("Conv2d", "filter")], {"macs": "40%"}, 16, sgd(0.02)
    ),
    "resnet56": Case(
        resnet56,
        lambda: images("cifar10", 10000),
        [lasso(r"re:layer\d\.\d\.conv1", "filter")],
        {"macs": "60%"},
        8,
        sgd(0.01),
    ),
    "lstm": Case(
        ecg5000.Lstm, lambda: ecg5000.load()[0], [lasso("rnn", "hidden")], {"params": "25%"}, 64, adam(3e-3)
    ),
    "vit": Case(
        vit,
        lambda: images("cifar10", 10000),
        [lasso("*.q", "head"), lasso("*.up", "neuron")],
        {"macs": "50%"},
        16,
        adam(1e-3),
    ),
}


def met(case: Case, steps: int) -> tuple[float, float, float, float, float]:
    """(limit, what is left at the end of the stage, what the cut leaves, loss at the end, seconds)."""
    torch.manual_seed(0)
    model, (x, y) = case.build(), case.data()
    ((what, limit),) = case.budget.items()
    plan = sparsify.make_plan(
        {"version": 1, "title": "auto", "budget": case.budget, "rules": case.rules}, model, (x[:2],)
    )
    optimizer, started, losses = case.optimizer(model.parameters()), time.perf_counter(), []
    with sparsify.attach(plan, model, optimizer, steps_per_epoch=steps, steps=steps) as hooks:
        for _ in range(steps):
            at = torch.randint(len(x), (case.batch,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[at]), y[at])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        hooks.flush()
        left = hooks.remaining()[what]
    dense, now = (
        Costs(plan.map).of(gone)[what]
        for gone in ({}, {w.group: range(w.kept, w.width) for w in sparsify.cut(plan, model).cuts.widths})
    )
    return (
        float(limit[:-1]) / 100,
        left,
        now / dense,
        sum(losses[-20:]) / len(losses[-20:]),
        time.perf_counter() - started,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", choices=list(CASES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, case in CASES.items():
        if given.only in (None, name):
            limit, left, cut, loss, seconds = met(case, given.steps)
            print(
                (
                    f"{name:10} {next(iter(case.budget)):7} budget {limit:7.2%}  left {left:7.2%}  "
                    f"deviation {left - limit:+.2%}  cut {cut:7.2%}  loss {loss:.2f}  {given.steps} "
                    f"steps  {seconds:.0f} s"
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
