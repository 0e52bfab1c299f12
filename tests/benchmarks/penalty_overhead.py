"""What a penalty costs per training step, as a ratio to the plain step, beside torch-pruning's regularizer.

    python tests/benchmarks/penalty_overhead.py [--rounds 15] [--depth 50] [--only gsm dns] [--batch 4]

ResNet-18 and ResNet-50, batch 4 of 3 x 64 x 64 (small on purpose: the penalty's cost does not depend on the
batch; `--batch 32` shows a usual one), one thread and its processor time, SGD with momentum. Variants run a
handful at a time beside the plain step, so that memory suffices; each round runs every one of a handful once,
in random order, and the ratio is taken within a round.
"""

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch_pruning
from nets import ResNet

import sparsify

Batch = tuple[Tensor, Tensor]
"""images and classes"""


PENALTIES: dict[str, tuple[dict[str, object], str]] = {
    "group_lasso, every 8 (default)": ({"kind": "group_lasso", "strength": 1e-4}, "filter"),
    "group_lasso, every step": ({"kind": "group_lasso", "strength": 1e-4, "every": 1}, "filter"),
    "group_lasso, sub-gradient": (
        {"kind": "group_lasso", "strength": 1e-4, "solver": "subgradient"},
        "filter",
    ),
    "group_lasso, half-space": ({"kind": "group_lasso", "strength": 1e-4, "solver": "half_space"}, "filter"),
    "group_lasso, per layer, every step": (
        {"kind": "group_lasso", "strength": 1e-4, "scope": "layer", "every": 1},
        "filter",
    ),
    "group_lasso, strength auto": ({"kind": "group_lasso", "strength": "auto"}, "filter"),
    "l1, every 8 (default)": ({"kind": "l1", "strength": 1e-4}, "weight"),
    "l2, every 8 (default)": ({"kind": "l2", "strength": 1e-4}, "weight"),
    "gsm on weights": ({"kind": "gsm"}, "weight"),
    "gsm on filters": ({"kind": "gsm"}, "filter"),
    "sensitivity of the loss": ({"kind": "sensitivity", "strength": 1e-4}, "weight"),
    "sensitivity of outputs, specific": (
        {"kind": "sensitivity", "strength": 1e-4, "of": "outputs", "mode": "specific"},
        "weight",
    ),
    "bn_scale, every 8 (default)": ({"kind": "bn_scale", "strength": 1e-4}, "filter"),
    "growing_l2 on filters": ({"kind": "growing_l2"}, "filter"),
    "agp on weights, share constant": (
        {"kind": "agp", "start": "0it", "end": "1it", "every": "1it"},
        "weight",
    ),
    "dns": ({"kind": "dns"}, "weight"),
    "l0 on filters": ({"kind": "l0", "strength": 1e-6}, "filter"),
    "variational_dropout": ({"kind": "variational_dropout", "strength": 1e-6}, "weight"),
}
TORCH_PRUNING = "torch-pruning regularize"
TOGETHER = 3
STEPS = 1 << 20
"""in the stage that the penalties believe to be in"""


def stepper(
    depth: int, batch: Batch, penalty: dict[str, object] | None, group: str = "filter"
) -> Callable[[], None]:
    """A training step of a fresh network, with or without a penalty attached."""
    torch.manual_seed(0)
    model = ResNet(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if penalty is not None:
        layers, share = (
            ("*", {"sparsity": "90%"})
            if group == "weight"
            else ("Conv2d", {"sparsity": "50%"} if penalty["kind"] in ("gsm", "growing_l2") else {})
        )
        rule = {"layers": layers, "group": group, "penalty": penalty, **share}
        budget = {"macs": "50%"} if penalty.get("strength") == "auto" else {}
        plan = sparsify.make_plan(
            {"version": 1, "title": "bench", "budget": budget, "rules": [rule]}, model, (batch[0][:2],)
        )
        sparsify.attach(plan, model, optimizer, steps_per_epoch=STEPS, steps=STEPS)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def torch_pruning_stepper(depth: int, batch: Batch) -> Callable[[], None]:
    """The same with torch-pruning's GroupNormPruner.regularize between backward and step."""
    torch.manual_seed(0)
    model = ResNet(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.GroupNormPruner(
            model,
            (batch[0][:2],),
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            ignored_layers=[model.fc],
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        )
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        pruner.regularize(model)
        optimizer.step()

    return step


def interval(ratios: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(seed).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def measured(
    depth: int, batch: Batch, names: Sequence[str], rounds: int
) -> tuple[float, dict[str, np.ndarray]]:
    """(milliseconds of the plain step, ratios to it by round) of a handful."""
    variants = {"plain": stepper(depth, batch, None)}
    variants |= {
        name: torch_pruning_stepper(depth, batch)
        if name == TORCH_PRUNING
        else stepper(depth, batch, *PENALTIES[name])
        for name in names
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    shuffle = random.Random(0)
    for round_ in range(rounds + 2):
        order = list(variants)
        shuffle.shuffle(order)
        for name in order:
            # eight steps a turn, so that a penalty that acts on every eighth step acts exactly once
            started = time.thread_time()
            for _ in range(8):
                variants[name]()
            if round_ >= 2:
                times[name].append((time.thread_time() - started) / 8)
    plain = np.array(times.pop("plain"))
    return 1000 * float(np.median(plain)), {name: np.array(values) / plain for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--depth", type=int, choices=(18, 50))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the variants' names")
    given = parser.parse_args()
    torch.set_num_threads(1)
    batch = torch.randn(given.batch, 3, 64, 64), torch.arange(given.batch)
    names = [name for name in (*PENALTIES, TORCH_PRUNING) if any(part in name for part in given.only)]
    for depth in (given.depth,) if given.depth else (18, 50):
        for first in range(0, len(names), TOGETHER):
            plain, found = measured(depth, batch, names[first : first + TOGETHER], given.rounds)
            for name, ratios in found.items():
                low, high = interval(ratios)
                print(
                    (
                        f"ResNet-{depth}  {name:36} {np.median(ratios):.3f}x  [{low:.3f}, "
                        f"{high:.3f}]  plain {plain:.0f} ms"
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
