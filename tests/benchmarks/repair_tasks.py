"""A segmentation, a detector and two classifiers: cut by several choices, repaired, and trained shortly.

    python tests/benchmarks/repair_tasks.py [--networks NAME ...] [--criteria NAME ...] [--seeds N ...]
    [--dense FOLDER] [--json FILE]

Networks and data of the shipped recipes. Each network is trained once by its recipe's first stage (seed 0;
ResNet-18 for two of its four epochs) and kept in FOLDER; VGG-16 has given weights. All convolutions are cut
in one ranking to the recipe's budget of MACs. 1,000 training images score and calibrate; the seed draws them,
the places that the repair samples, and the order of the training. The repair sees no labels. The short
training takes 100 steps with the task's own loss. Figures are the task's deciding metric, in percent. The
test set is read once for each row. One thread; seconds are of the processor.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path

import torch
from default_bound import RECIPES, Trained, prepare
from rows import measure_rows, spread
from torch import Tensor, nn
from torch_pruning_choice import TORCH_PRUNING, TorchPruningFailed, choose_by_torch_pruning

import sparsify
from sparsify.cost.measure import count_macs
from sparsify.data import batches
from sparsify.data.loader import Batch
from sparsify.forward.copies import copy_model
from sparsify.objective.objective import evaluate, measure_batch
from sparsify.pruning.cut import Result

CALIBRATION, SCORED = 1000, 50
"""images, and those of a batch of the gradients"""
STEPS = 100


@dataclass(frozen=True)
class Network:
    """How a network is trained shortly."""

    share: int
    """percent of the MACs that its recipe leaves"""
    batch: int
    make_optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


def make_adam(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)


def make_sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


NETWORKS = {
    "U-Net": Network(40, 16, make_adam),
    "detector": Network(50, 32, make_adam),
    "ResNet-18": Network(50, 128, make_sgd),
    "VGG-16": Network(50, 128, make_sgd),
}


@dataclass(frozen=True)
class Row:
    """One cut. Metrics in percent, on the validation set where a name does not say `test`."""

    network: str
    criterion: str
    seed: int
    macs: float
    """percent of the MACs left"""
    narrowest: int
    """units of the layer that keeps fewest"""
    dense: float
    cut: float
    batch_norm: float
    repaired: float
    trained: float
    test_dense: float
    test_repaired: float
    test_trained: float
    cut_seconds: float
    repair_seconds: float
    train_seconds: float


FIGURES = ("macs", "narrowest", "cut", "batch_norm", "repaired", "trained", "test_repaired", "test_trained")
SECONDS = ("cut_seconds", "repair_seconds", "train_seconds")


def measure_if_possible(seed: int, name: str, criterion: str, folder: Path) -> Row | None:
    """None where torch-pruning fails, with its words on the screen."""
    try:
        return measure(name, criterion, seed, folder)
    except TorchPruningFailed as error:
        print(f"{name}, {criterion}, seed {seed}: {error}", flush=True)
        return None


def measure(name: str, criterion: str, seed: int, folder: Path) -> Row:
    """folder: of the trained dense networks."""
    trained = prepare(name, "magnitude" if criterion in TORCH_PRUNING else criterion, folder)
    datasets = trained.datasets
    order = torch.randperm(len(datasets.train), generator=torch.Generator().manual_seed(seed))
    scored = list(batches(datasets.train[order[:CALIBRATION]], SCORED))
    unlabelled = [x for x, _ in scored]

    def judge(model: nn.Module, test: bool = False) -> float:
        examples = datasets.test if test else datasets.validation
        return 100 * float(evaluate(model, examples, trained.objective).deciding)

    started = time.process_time()
    result = cut_to(trained, criterion, NETWORKS[name].share, scored)
    cut_seconds = time.process_time() - started
    cut = judge(result.model)
    normed = replace(result, model=copy_model(result.model).eval())
    sparsify.repair(normed, unlabelled, method="batch_norm")
    started = time.process_time()
    sparsify.repair(result, unlabelled, seed=seed)
    repair_seconds = time.process_time() - started
    repaired, test_repaired = judge(result.model), judge(result.model, test=True)
    started = time.process_time()
    train(result.model, trained, NETWORKS[name], seed)
    train_seconds = time.process_time() - started
    one: Tensor = unlabelled[0][:1]
    return Row(
        name,
        criterion,
        seed,
        100 * count_macs(result.model, (one,))[0] / count_macs(trained.model, (one,))[0],
        min(width.kept for width in result.cuts.widths),
        judge(trained.model),
        cut,
        judge(normed.model),
        repaired,
        judge(result.model),
        judge(trained.model, test=True),
        test_repaired,
        judge(result.model, test=True),
        cut_seconds,
        repair_seconds,
        train_seconds,
    )


def cut_to(trained: Trained, criterion: str, share: int, scored: Sequence[Batch]) -> Result:
    plan, model = trained.plan, trained.model
    if criterion not in TORCH_PRUNING:
        return sparsify.cut(plan, model, batches=scored)
    keep = choose_by_torch_pruning(plan, model, criterion, share, scored, trained.objective)
    return sparsify.cut(plan, model, chooser=lambda *_args, **_options: keep)


def train(model: nn.Module, trained: Trained, network: Network, seed: int) -> None:
    """A rate that falls to 0 by a cosine; the model ends in eval mode."""
    optimizer = network.make_optimizer(model.parameters())
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    model.train()
    for x, y in islice(draw_batches(trained, network.batch, seed), STEPS):
        optimizer.zero_grad()
        measure_batch(trained.objective, model, x, y).backward()
        optimizer.step()
        falling.step()
    model.eval()


def draw_batches(trained: Trained, size: int, seed: int) -> Iterator[Batch]:
    """Epoch after epoch, shuffled."""
    epoch = 0
    while True:
        yield from batches(trained.datasets.train, size, seed=1000 * seed + epoch)
        epoch += 1


def summarize(rows: Sequence[Row]) -> Iterator[str]:
    """Mean and standard deviation over the seeds, as a Markdown table."""
    names = ("network", "criterion", "seeds", "dense", "test: dense", *FIGURES, *SECONDS)
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for network, criterion in dict.fromkeys((row.network, row.criterion) for row in rows):
        own = [row for row in rows if (row.network, row.criterion) == (network, criterion)]
        dense = [f"{own[0].dense:.1f}", f"{own[0].test_dense:.1f}"]
        cells = [spread([getattr(row, name) for row in own]) for name in (*FIGURES, *SECONDS)]
        yield f"| {' | '.join([network, criterion, str(len(own)), *dense, *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    usual = ["reconstruction", "magnitude", "taylor", *TORCH_PRUNING]
    parser.add_argument("--criteria", nargs="*", default=usual)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--dense", type=Path, default=Path("runs/dense"), help="of the trained weights")
    parser.add_argument("--json", type=Path, help="a line for each row; what is there is not made again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.dense.mkdir(parents=True, exist_ok=True)
    folder = options.dense.resolve()
    file = None if options.json is None else options.json.resolve()
    os.chdir(RECIPES)
    wanted = product(options.seeds, options.networks, options.criteria)
    measure_one = partial(measure_if_possible, folder=folder)
    rows = measure_rows(Row, ("seed", "network", "criterion"), wanted, measure_one, file)
    print("\n".join(summarize(rows)))


if __name__ == "__main__":
    main()
