"""Cuts of ImageNet networks, repaired without labels: accuracy on CIFAR-10 and agreement with the dense one.

    python tests/benchmarks/repair_imagenet.py [--network NAME ...] [--criteria NAME ...]
    [--shares PERCENT ...] [--seeds N ...] [--train IMAGES] [--json FILE]

Weights: resnet50.pt (converted from Keras), mobilenet_v2.pt (torchvision). Images of CIFAR-10, enlarged to
160 pixels; the classes of ImageNet that show one of CIFAR-10's are summed. 300 of the first 45,000 training
images, which the seed draws, calibrate, without labels: criteria that need some take the classes that the
dense model says. Validation: the first 500 of the last 5,000 training images; test: the first 500. With
--train the repaired network then follows what the dense one says of so many other training images, one epoch
without labels. One thread. Seconds are of the processor; memory is the highest resident size of the process
during the repair.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import repair as small_networks
import torch
from rows import measure_rows, spread
from torch import Tensor, nn
from torch_pruning_choice import TORCH_PRUNING, choose_by_torch_pruning

import sparsify
from sparsify.cost.measure import count_macs
from sparsify.forward.copies import copy_model
from sparsify.pruning.cut import Result

PIXELS = 160
CALIBRATION, JUDGED = 300, 500
BATCH, RATE = 25, 1e-5
"""of the short training: images of a step, and its first learning rate, which falls to 0 by a cosine"""
CLASSES = (
    (404, 895),
    (436, 468, 511, 609, 627, 656, 661, 751, 817),
    (*range(7, 25), *range(80, 101), *range(127, 147)),
    tuple(range(281, 294)),
    (351, 352, 353),
    tuple(range(151, 269)),
    (30, 31, 32),
    (339,),
    (403, 510, 554, 625, 628, 724, 780, 814, 833, 871, 914, 472, 484, 576),
    (555, 569, 717, 864, 867, 675, 734),
)
"""ImageNet's classes that show airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck"""


@dataclass(frozen=True)
class Row:
    """One cut. Accuracies and agreements, of 1,000 classes, in percent on the validation images."""

    network: str
    criterion: str
    share: int
    seed: int
    macs: float
    """percent of the MACs left"""
    dense: float
    cut: tuple[float, float]
    batch_norm: tuple[float, float]
    repaired: tuple[float, float]
    test_dense: float
    test_repaired: tuple[float, float]
    trained: tuple[float, float] | None
    """after the short training; None without"""
    test_trained: tuple[float, float] | None
    cut_seconds: float
    repair_seconds: float
    repair_megabytes: float
    train_seconds: float


PAIRS = ("cut", "batch_norm", "repaired", "trained", "test_repaired", "test_trained")
COSTS = ("cut_seconds", "repair_seconds", "train_seconds", "repair_megabytes")
"""columns of the table"""


def build_resnet50() -> Any:
    """With the stride on the first convolution of a block, as Keras has it."""
    model = import_torchvision().models.resnet50()
    for module in model.modules():
        if type(module).__name__ == "Bottleneck":
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    return model


def build_mobilenet_v2() -> Any:
    return import_torchvision().models.mobilenet_v2()


def import_torchvision() -> Any:
    """Also one that was built for CUDA, beside a torch without it."""
    sys.path.append(str(Path(__file__).parents[1] / "zoo"))
    import shim  # noqa: F401 - before torchvision
    import torchvision

    return torchvision


def enlarge(images: Tensor) -> Tensor:
    """Bytes [N, 3, 32, 32] -> values from 0 to 1, [N, 3, 160, 160]."""
    enlarged = nn.functional.interpolate(images.float() / 255, size=(PIXELS, PIXELS), mode="bicubic")
    return enlarged.clamp(0, 1)


def prepare_rgb(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (enlarge(images) - mean[:, None, None]) / std[:, None, None]


def prepare_bgr(images: Tensor) -> Tensor:
    mean = torch.tensor([103.939, 116.779, 123.68])
    return (255 * enlarge(images)).flip(1) - mean[:, None, None]


@dataclass(frozen=True)
class Network:
    build: Callable[[], nn.Module]
    prepare: Callable[[Tensor], Tensor]
    layers: str
    """those inside of the blocks"""


NETWORKS = {
    "resnet50": Network(build_resnet50, prepare_bgr, r"re:layer\d\.\d\.conv[12]"),
    "mobilenet_v2": Network(build_mobilenet_v2, prepare_rgb, r"re:features\.\d+\.conv\.0\.0"),
}


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).softmax(1) for part in images.split(50)])


def judge(model: nn.Module, images: Tensor, targets: Tensor, dense: Tensor) -> tuple[float, float]:
    """Accuracy over ten classes, and how often the class of 1,000 is that of the dense model, in percent."""
    probabilities = predict(model, images)
    summed = torch.stack([probabilities[:, list(own)].sum(1) for own in CLASSES], 1)
    right = (summed.argmax(1) == targets).float().mean()
    same = (probabilities.argmax(1) == dense.argmax(1)).float().mean()
    return 100 * float(right), 100 * float(same)


def peak_megabytes(run: Callable[[], Any]) -> float:
    """Highest resident size of this process while `run` runs; Linux alone tells it."""
    Path("/proc/self/clear_refs").write_text("5")
    run()
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def train(model: nn.Module, dense: nn.Module, batches: Iterable[Tensor], steps: int) -> None:
    """Let the model follow the dense one's outputs. Norms keep their statistics, as batches are small."""
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.eval()
    for x in batches:
        with torch.no_grad():
            said = dense(x)
        losses = sparsify.distillation_losses(model(x), said.argmax(1), said, temperature=1.0, weight=1.0)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        falling.step()


def measure(name: str, share: int, criterion: str, seed: int, images: int = 0) -> Row:
    """images: of the short training."""
    network = NETWORKS[name]
    dense = network.build()
    dense.load_state_dict(torch.load(small_networks.WEIGHTS / f"{name}.pt", weights_only=True))
    dense.eval()
    datasets = small_networks.data()
    order = torch.randperm(len(datasets.train), generator=torch.Generator().manual_seed(seed))
    x = network.prepare(datasets.train.inputs[order[:CALIBRATION]])
    validation, test = (
        (network.prepare(part.inputs[:JUDGED]), part.targets[:JUDGED])
        for part in (datasets.validation, datasets.test)
    )
    said, said_test = predict(dense, validation[0]), predict(dense, test[0])
    started = time.process_time()
    result = cut_to(dense, network, criterion, share, x)
    cut_seconds = time.process_time() - started
    cut = judge(result.model, *validation, said)
    normed = replace(result, model=copy_model(result.model).eval())
    sparsify.repair(normed, [x], method="batch_norm", seed=seed)
    batch_norm = judge(normed.model, *validation, said)
    del normed
    started = time.process_time()
    megabytes = peak_megabytes(partial(sparsify.repair, result, [x], seed=seed))
    repair_seconds = time.process_time() - started
    one = (torch.zeros(1, 3, PIXELS, PIXELS),)
    repaired, test_repaired = judge(result.model, *validation, said), judge(result.model, *test, said_test)
    started = time.process_time()
    if images:
        parts = order[CALIBRATION:][:images].split(BATCH)
        batches = (network.prepare(datasets.train.inputs[part]) for part in parts)
        train(result.model, dense, batches, len(parts))
    train_seconds = time.process_time() - started
    return Row(
        name,
        criterion,
        share,
        seed,
        100 * count_macs(result.model, one)[0] / count_macs(dense, one)[0],
        judge(dense, *validation, said)[0],
        cut,
        batch_norm,
        repaired,
        judge(dense, *test, said_test)[0],
        test_repaired,
        judge(result.model, *validation, said) if images else None,
        judge(result.model, *test, said_test) if images else None,
        cut_seconds,
        repair_seconds,
        megabytes,
        train_seconds,
    )


def cut_to(dense: nn.Module, network: Network, criterion: str, share: int, x: Tensor) -> Result:
    chosen_elsewhere = criterion in TORCH_PRUNING
    recipe = {
        "version": 1,
        "title": "ImageNet",
        "data": {"source": "cifar10"},
        "budget": {"macs": f"{share}%"},
        "rules": [
            {
                "layers": network.layers,
                "group": "filter",
                "criterion": {"kind": "magnitude" if chosen_elsewhere else criterion},
            }
        ],
    }
    plan = sparsify.make_plan(recipe, dense, (x[:2],))
    batches = [(part, dense(part).argmax(1)) for part in x.split(50)]
    if not chosen_elsewhere:
        return sparsify.cut(plan, dense, batches=batches)
    keep = choose_by_torch_pruning(plan, dense, criterion, share, batches)
    return sparsify.cut(plan, dense, chooser=lambda *_args, **_options: keep)


def summary(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over the seeds, as a Markdown table."""
    titles = (
        "network|criterion|seeds|MACs|cut|+ batch norm|+ repair|+ training|test: + repair|+ training"
        "|choice, s|repair, s|training, s|MB"
    )
    heads = titles.split("|")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, share, criterion in dict.fromkeys((row.network, row.share, row.criterion) for row in rows):
        own = [row for row in rows if (row.network, row.share, row.criterion) == (name, share, criterion)]
        cells = [name, criterion, str(len(own)), spread([row.macs for row in own]) + " %"]
        for stage in PAIRS:
            pairs = [pair for row in own if (pair := getattr(row, stage)) is not None]
            cells.append(" / ".join(spread(part) for part in zip(*pairs, strict=True)))
        cells += [spread([getattr(row, cost) for row in own], 0) for cost in COSTS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--criteria", nargs="*", default=["magnitude", "reconstruction"])
    parser.add_argument("--shares", nargs="*", type=int, default=[85, 70])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=0, help="images of a short training")
    parser.add_argument("--json", type=Path, help="a line for each row; what is there is not made again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wanted = product(options.network, options.shares, options.criteria, options.seeds)
    keys = ("network", "share", "criterion", "seed")
    measure_one = partial(measure, images=options.train)
    print(summary(measure_rows(Row, keys, wanted, measure_one, options.json)))


if __name__ == "__main__":
    main()
