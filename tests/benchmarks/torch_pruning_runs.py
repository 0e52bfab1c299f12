"""Runs with torch-pruning's own pruner among their baselines: the table of the report.

    python tests/benchmarks/torch_pruning_runs.py KIND [--out FOLDER] [--importance NAME]

KIND is digits, resnet56 or mobilenet_v2.

`digits`: the recipe digits-cnn, from scratch. `resnet56`: ResNet-56 on CIFAR-10 to 50 % of the MACs,
fine-tuned for two epochs of 4,000 of the first 45,000 training images; validation: 1,000 of the last
5,000 training images; test: the first 2,000 test images. `mobilenet_v2`: torchvision's weights, images
of CIFAR-10 enlarged to 96 pixels, ImageNet's classes that show one of CIFAR-10's are summed; to 70 % of
the MACs, two epochs of 600 images, 300 for validation, 500 of the test set. Weights as in `repair.py`
and `repair_imagenet.py`. One thread.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import repair as small_networks
import repair_imagenet as imagenet
import torch
from torch import Tensor, nn

import sparsify

ROOT = Path(__file__).parents[2]
PIXELS = 96


def make_tuning(lr: float) -> dict[str, Any]:
    optimizer = {"kind": "sgd", "lr": {"kind": "cosine", "from": lr, "to": 0}, "momentum": 0.9}
    return {"kind": "train", "name": "finetune", "epochs": 2, "batch": 64, "optimizer": optimizer}


def cifar_part(train: int = 4000, validation: int = 1000, test: int = 2000) -> Any:
    """(train, test); the last of the former are the validation images."""
    datasets = small_networks.data()
    order = torch.randperm(len(datasets.train), generator=torch.Generator().manual_seed(0))[:train]
    inputs = torch.cat([datasets.train[order].ready(), datasets.validation[range(validation)].ready()])
    targets = torch.cat([datasets.train.targets[order], datasets.validation.targets[:validation]])
    return (inputs, targets), (datasets.test[range(test)].ready(), datasets.test.targets[:test])


def enlarged_part() -> Any:
    datasets = small_networks.data()
    order = torch.randperm(len(datasets.train), generator=torch.Generator().manual_seed(0))[:600]
    images = torch.cat([datasets.train.inputs[order], datasets.validation.inputs[:300]])
    targets = torch.cat([datasets.train.targets[order], datasets.validation.targets[:300]])
    return (prepare(images), targets), (prepare(datasets.test.inputs[:500]), datasets.test.targets[:500])


def prepare(images: Tensor) -> Tensor:
    small = nn.functional.interpolate(imagenet.prepare_rgb(images), size=(PIXELS, PIXELS), mode="bilinear")
    return small.contiguous()


class OfTen(nn.Module):
    """A network for ImageNet whose outputs are the ten classes of CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = imagenet.build_mobilenet_v2()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return torch.stack([logits[:, list(own)].logsumexp(1) for own in imagenet.CLASSES], 1)


def make_recipe(kind: str, importance: str) -> tuple[Any, Path | None]:
    """A recipe, and the file of the weights."""
    baselines = ["magnitude", {"kind": "torch_pruning", "importance": importance}]
    if kind == "digits":
        loaded = sparsify.load_recipe(ROOT / "recipes/digits-cnn.yaml")
        return {**loaded.data, "baselines": baselines}, None
    body: dict[str, Any] = {"version": 1, "title": kind, "baselines": baselines}
    if kind == "resnet56":
        return {
            **body,
            "model": {"build": "sparsify.models.cifar_resnet56", "args": {"shortcut": "B"}},
            "data": {"source": "torch_pruning_runs:cifar_part", "validation": "20%", "split": "last"},
            "budget": {"macs": "50%"},
            "rules": [
                {
                    "layers": r"re:layer\d\.\d\.conv1",
                    "group": "filter",
                    "criterion": {"kind": "reconstruction"},
                }
            ],
            "stages": [{"kind": "cut"}, {"kind": "repair"}, make_tuning(0.01)],
        }, small_networks.WEIGHTS / "cifar_resnet56b.pt"
    return {
        **body,
        "model": {"build": "torch_pruning_runs:OfTen"},
        "data": {"source": "torch_pruning_runs:enlarged_part", "validation": "33.334%", "split": "last"},
        "budget": {"macs": "70%"},
        "rules": [
            {
                "layers": r"re:inner\.features\.\d+\.conv\.0\.0",
                "group": "filter",
                "criterion": {"kind": "reconstruction", "batches": 4},
            }
        ],
        "stages": [{"kind": "cut"}, {"kind": "repair", "examples": 300}, make_tuning(0.001)],
    }, small_networks.WEIGHTS / "mobilenet_v2.pt"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("digits", "resnet56", "mobilenet_v2"))
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--importance", default="TaylorImportance")
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe, weights = make_recipe(given.kind, given.importance)
    with tempfile.TemporaryDirectory() as folder:
        if given.kind == "mobilenet_v2":
            state = torch.load(weights, weights_only=True)
            weights = Path(folder) / "of_ten.pt"
            torch.save({f"inner.{name}": value for name, value in state.items()}, weights)
        run = sparsify.apply(
            recipe, weights, out=given.out, from_scratch=weights is None, listener=lambda event: print(event)
        )
    text = (run / "report.md").read_text()
    print((text + "\n## ").partition("## Compared with baselines")[2].partition("\n## ")[0])


if __name__ == "__main__":
    main()
