"""What the default bound on each layer is worth: cut in one ranking over all layers, then repaired.

    python tests/benchmarks/default_bound.py [--networks NAME ...] [--criteria NAME ...] [--bounds NAME ...]
    [--dense FOLDER]

Networks of the shipped recipes, their rules replaced by one that says nothing of what stays, and no penalty.
Each is trained by its recipe's first stage, kept in FOLDER, cut to the budget under four bounds, and repaired
with 1,000 unlabelled training examples. The metric is of at most 1,000 validation examples; the test sets are
not read. `none`: one unit stays; `tenth`: a tenth of each layer; `even`: the share that an even cut keeps,
times this.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sparsify
from sparsify.data import Datasets, batches
from sparsify.data.sources import load_data
from sparsify.forward.copies import copy_model
from sparsify.objective.objective import Objective, evaluate, make_objective
from sparsify.pruning.fitting_inputs import find_inputs
from sparsify.pruning.planning import candidates
from sparsify.pruning.planning.plan import Plan
from sparsify.runs.setup import make_request, read_dense_model
from sparsify_schemas.stage import Cut

RECIPES = Path(__file__).parents[2] / "recipes"
BOUNDS = {"none": (0.0, 0.0), "tenth": (0.1, 0.0), "even x 0.5": (0.1, 0.5), "even x 0.7": (0.1, 0.7)}
"""share of a layer, and of what an even cut keeps of it"""
JUDGED = 1000


@dataclass(frozen=True)
class Network:
    recipe: str
    layers: str
    budget: str
    group: str = "filter"
    weights: str | None = None
    """file of given weights, in ~/.cache/sparsify/weights"""
    build: str | None = None
    """another model than the recipe's"""
    learn: int | None = None
    """epochs of the dense network, where its recipe says more than this needs"""


NETWORKS = {
    "U-Net": Network("unet-digits", "[Conv2d, ConvTranspose2d]", "macs: 40%"),
    "detector": Network("detector-digits", "Conv2d", "macs: 50%"),
    "ResNet-56, all": Network("resnet56-cifar10-repair", "Conv2d", "macs: 50%", weights="cifar_resnet56b.pt"),
    "ResNet-8": Network("resnet8-digits-multilabel", "Conv2d", "macs: 50%"),
    "LeNet-5": Network("lenet5-mnist-ssl-filters", "conv*", "macs: 25%"),
    "digits CNN": Network("digits-cnn", "Conv2d", "macs: 20%"),
    "autoencoder": Network("autoencoder-fashion-mnist", "[Conv2d, ConvTranspose2d]", "macs: 40%"),
    "MLP": Network("mlp-diabetes", "Linear", "params: 25%", group="neuron"),
    "ResNet-18": Network("resnet18-fashion-mnist", "Conv2d", "macs: 50%", learn=2),
    "VGG-16": Network(
        "resnet56-cifar10-repair",
        "Conv2d",
        "macs: 50%",
        weights="cifar_vgg16.pt",
        build="{build: sparsify.models.cifar_vgg16}",
    ),
}


@dataclass(frozen=True)
class Trained:
    model: nn.Module
    plan: Plan
    datasets: Datasets
    objective: Objective


_DATASETS: dict[str, Datasets] = {}
"""of each network"""


def prepare(name: str, criterion: str, folder: Path) -> Trained:
    """Build, and train where there are no weights yet."""
    network = NETWORKS[name]
    rule = f"{{layers: {network.layers}, group: {network.group}, criterion: {{kind: {criterion}}}}}"
    overrides = [f"budget={{{network.budget}}}", f"rules=[{rule}]", "targets={}"]
    overrides += [] if network.build is None else [f"model={network.build}"]
    overrides += [] if network.learn is None else [f"vars.learn={network.learn}"]
    path = RECIPES / f"{network.recipe}.yaml"
    weights = folder / f"{network.recipe}.safetensors"
    if network.weights is not None:
        weights = Path.home() / ".cache/sparsify/weights" / network.weights
    if not weights.exists():
        given = sparsify.load_recipe(path, [*overrides, "budget={params: 90%}"]).recipe
        stages = (given.stages[0], Cut(kind="cut", repair=False))
        training = given.model_copy(update={"stages": stages})
        run = sparsify.apply(training, from_scratch=True, out=folder, timing=0.01)
        save_file(load_file(run / "dense.safetensors"), weights)
    request = make_request(path, weights, [*overrides, "stages=[{kind: cut}]"], (), False, False)
    recipe = request.loaded.recipe
    assert recipe.data is not None
    if name not in _DATASETS:  # scenes take minutes to draw
        _DATASETS[name] = load_data(recipe.data, recipe.seed, recipe.task)
    datasets = _DATASETS[name]
    model = read_dense_model(request)[0].eval()
    plan = sparsify.make_plan(recipe, model, find_inputs(recipe, model, datasets))
    return Trained(model, plan, datasets, make_objective(recipe.task, datasets.classes))


def measure(trained: Trained, bounds: Sequence[str]) -> Iterator[tuple[str, float, float, int]]:
    """Bound, metric after the cut and after the repair, and the fewest units that a layer keeps."""
    model, datasets = trained.model, trained.datasets
    judged = datasets.validation[:JUDGED]
    order = torch.randperm(len(datasets.train), generator=torch.Generator().manual_seed(0))[:1000]
    calibration = [x for x, _ in batches(datasets.train[order], 100)]

    def judge(one: nn.Module) -> float:
        return float(evaluate(one, judged, trained.objective).deciding)

    yield "dense", judge(model), judge(model), 0
    for name in bounds:
        least, even = BOUNDS[name]
        with (
            mock.patch.object(candidates, "LEAST_SHARE", least),
            mock.patch.object(candidates, "LEAST_OF_EVEN", even),
        ):
            scored = list(batches(datasets.train[order], 50))
            result = sparsify.cut(trained.plan, copy_model(model), batches=scored)
        after = judge(result.model)
        sparsify.repair(result, calibration)
        yield name, after, judge(result.model), min(width.kept for width in result.cuts.widths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--criteria", nargs="*", default=["magnitude"])
    parser.add_argument("--bounds", nargs="*", default=list(BOUNDS), choices=list(BOUNDS))
    parser.add_argument("--dense", type=Path, default=Path("runs/dense"), help="of the trained weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.dense.mkdir(parents=True, exist_ok=True)
    folder = options.dense.resolve()
    os.chdir(RECIPES)
    for name in options.networks:
        for criterion in options.criteria:
            for bound, *figures in measure(prepare(name, criterion, folder), options.bounds):
                cells = [name, criterion, bound, *(f"{figure:.4g}" for figure in figures)]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
