"""What a penalty costs per training step, as a ratio to the plain step, beside torch-pruning's regularizer.

    python tests/benchmarks/penalty_overhead.py [--rounds 15]

ResNet-18 and ResNet-50, batch 4 of 3 x 64 x 64 (small on purpose: the penalty's cost does not depend on the batch), one
thread, SGD with momentum. Each round runs every variant once, in random order; the ratio is taken within a round.
"""

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch_pruning
from nets import ResNet

import sparsify

BATCH = (torch.randn(4, 3, 64, 64), torch.arange(4))


def stepper(depth: int, penalty: dict[str, object] | None, group: str = "filter") -> Callable[[], None]:
    """A training step of a fresh network, with or without a penalty attached."""
    torch.manual_seed(0)
    model = ResNet(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    if penalty is not None:
        given = penalty if penalty["kind"] in ("gsm", "agp") else {"strength": 1e-4, **penalty}
        layers, share = ("*", {"sparsity": "90%"}) if group == "weight" else ("Conv2d", {"sparsity": "50%"} if penalty["kind"] == "gsm" else {})
        rule = {"layers": layers, "group": group, "penalty": given, **share}
        plan = sparsify.make_plan({"version": 1, "title": "bench", "rules": [rule]}, model, (BATCH[0][:2],))
        sparsify.attach(plan, model, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
        optimizer.step()

    return step


def torch_pruning_stepper(depth: int) -> Callable[[], None]:
    """The same with torch-pruning's GroupNormPruner.regularize between backward and step."""
    torch.manual_seed(0)
    model = ResNet(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.GroupNormPruner(
            model, (BATCH[0][:2],), importance=torch_pruning.importance.GroupMagnitudeImportance(), ignored_layers=[model.fc],
            in_channel_groups={}, out_channel_groups={}, num_heads={},
        )  # fmt: skip
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
        pruner.regularize(model)
        optimizer.step()

    return step


def interval(ratios: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(seed).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for depth in (18, 50):
        variants = {
            "plain": stepper(depth, None),
            "coupled, every 8 (default)": stepper(depth, {"kind": "group_lasso"}),
            "coupled, every step": stepper(depth, {"kind": "group_lasso", "every": 1}),
            "coupled, sub-gradient": stepper(depth, {"kind": "group_lasso", "solver": "subgradient"}),
            "per layer, every step": stepper(depth, {"kind": "group_lasso", "scope": "layer", "every": 1}),
            "gsm on weights": stepper(depth, {"kind": "gsm"}, "weight"),
            "gsm on filters": stepper(depth, {"kind": "gsm"}),
            "sensitivity of the loss": stepper(depth, {"kind": "sensitivity"}, "weight"),
            "agp on weights, share constant": stepper(depth, {"kind": "agp", "start": "0it", "end": "1it", "every": "1it"}, "weight"),
            "torch-pruning regularize": torch_pruning_stepper(depth),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        shuffle = random.Random(0)
        for round_ in range(rounds + 2):
            order = list(variants)
            shuffle.shuffle(order)
            for name in order:
                # eight steps a turn, so that a penalty that acts on every eighth step acts exactly once
                started = time.perf_counter()
                for _ in range(8):
                    variants[name]()
                if round_ >= 2:
                    times[name].append((time.perf_counter() - started) / 8)
        plain = np.array(times["plain"])
        print(f"ResNet-{depth}: plain step {1000 * np.median(plain):.1f} ms, median of {rounds} rounds")
        for name, values in times.items():
            ratios = np.array(values) / plain
            low, high = interval(ratios)
            print(f"  {name:30} {np.median(ratios):.3f}x  [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
