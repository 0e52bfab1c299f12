"""Cuts of ResNet-56 on CIFAR-10, repaired without labels: validation figures, and the test set once at the
end.

    python tests/benchmarks/repair.py table [--criteria NAME ...] [--shares PERCENT ...] [--seeds N ...]
    [--json FILE] python tests/benchmarks/repair.py ablations [--json FILE]
    python tests/benchmarks/repair.py merge

Weights: cifar_resnet56b.pt, cifar_vgg16.pt (trained on the first 45,000 images). Calibration: 1,000 of
these, without labels, drawn by the seed. Validation: the last 5,000 training images. `inner`: the first
convolution of each block; `all`: every one. One thread; seconds are of the processor. `zoo`: small networks
of tests/zoo, half of their units removed at random, repaired with 32 random inputs each; what became of the
error of their outputs.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rows import measure_rows, spread
from torch import Tensor, nn
from torch_pruning_choice import TORCH_PRUNING, choose_by_torch_pruning

import sparsify
from sparsify.cost.measure import count_macs
from sparsify.data import load_data
from sparsify.data.examples import Datasets
from sparsify.forward.copies import copy_model
from sparsify.models import cifar_resnet56, cifar_vgg16
from sparsify.objective.objective import CLASSIFICATION, evaluate
from sparsify.pruning.cut import Result
from sparsify.pruning.layer_matrix import input_rows, output_rows, sample_places, set_weight, weight_matrix
from sparsify.pruning.repair.choose_fit import Settings
from sparsify.pruning.repair.kept_outputs import find_kept_outputs, kept_columns
from sparsify.pruning.repair.least_squares import refit_layers
from sparsify.pruning.repair.regression import Fit, fit_ridge
from sparsify.pruning.repair.repair import repair_model
from sparsify.pruning.repair.sites import find_sites
from sparsify_schemas.data import Data
from sparsify_schemas.stage import Repair

WEIGHTS = Path.home() / ".cache/sparsify/weights"
LAYERS = {"inner": r"re:layer\d\.\d\.conv1", "all": "Conv2d"}
"""inner: the first convolution of each residual block"""
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet56": (lambda: cifar_resnet56("B"), "cifar_resnet56b.pt"),
    "vgg16": (cifar_vgg16, "cifar_vgg16.pt"),
}
"""builder, and the file of its weights"""
CALIBRATION = 1000
ROWS = 16_000
"""sampled outputs of a layer, as the repair samples them"""


@dataclass(frozen=True)
class Row:
    """One cut. Accuracies in percent; of each repair by its method."""

    layers: str
    criterion: str
    share: int
    """percent of the cost asked for"""
    seed: int
    macs: float
    """percent of the MACs left"""
    cut: float
    batch_norm: float
    repaired: float
    test_cut: float
    test_repaired: float
    cut_seconds: float
    repair_seconds: float
    network: str = "resnet56"
    cost: str = "macs"
    """what the share is of: macs or params"""


def dense_model(network: str = "resnet56") -> nn.Module:
    build, file = NETWORKS[network]
    model = build()
    model.load_state_dict(torch.load(WEIGHTS / file, weights_only=True))
    return model.eval()


def data() -> Datasets:
    return load_data(Data.model_validate({"source": "cifar10", "validation": "10%", "split": "last"}), 0)


def calibration(datasets: Datasets, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(datasets.train), generator=torch.Generator().manual_seed(seed))
    chosen = datasets.train[order[:CALIBRATION]]
    return chosen.ready(), chosen.targets


def cut_to(
    model: nn.Module, layers: str, criterion: str, share: int, x: Tensor, y: Tensor, cost: str = "macs"
) -> Result:
    own = "magnitude" if criterion in TORCH_PRUNING else criterion
    recipe = {
        "version": 1,
        "title": "ResNet-56",
        "data": {"source": "cifar10"},
        "budget": {cost: f"{share}%"},
        "rules": [{"layers": LAYERS[layers], "group": "filter", "criterion": {"kind": own}}],
    }
    plan = sparsify.make_plan(recipe, model, (x[:2],))
    batches = list(zip(x.split(64), y.split(64), strict=True))
    if criterion in TORCH_PRUNING:
        keep = choose_by_torch_pruning(plan, model, criterion, share, batches)
        return sparsify.cut(plan, model, chooser=lambda *_args, **_options: keep)
    return sparsify.cut(plan, model, batches=batches)


def measure(
    datasets: Datasets,
    layers: str,
    share: int,
    criterion: str,
    seed: int,
    network: str,
    cost: str,
) -> Row:
    dense = dense_model(network)
    x, y = calibration(datasets, seed)
    started = time.process_time()
    result = cut_to(dense, layers, criterion, share, x, y, cost)
    cut_seconds = time.process_time() - started

    def percent(model: nn.Module, examples: Any) -> float:
        return 100 * evaluate(model, examples, CLASSIFICATION).deciding

    cut, test_cut = percent(result.model, datasets.validation), percent(result.model, datasets.test)
    normed = replace(result, model=copy_model(result.model).eval())
    sparsify.repair(normed, [x], method="batch_norm")
    started = time.process_time()
    sparsify.repair(result, [x], seed=seed)
    repair_seconds = time.process_time() - started
    return Row(
        layers,
        criterion,
        share,
        seed,
        _macs(result),
        cut,
        percent(normed.model, datasets.validation),
        percent(result.model, datasets.validation),
        test_cut,
        percent(result.model, datasets.test),
        cut_seconds,
        repair_seconds,
        network,
        cost,
    )


def _macs(result: Result) -> float:
    x = (torch.zeros(1, 3, 32, 32),)
    return 100 * count_macs(result.model, x)[0] / count_macs(result.dense, x)[0]


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Mean and standard deviation over the seeds, as a Markdown table."""
    yield (
        "| network | layers | criterion | share | of | cut | + batch norm | + repair | test: cut | test: "
        "+ repair | choice, s "
        "| repair, s |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    keys = dict.fromkeys((row.network, row.layers, row.criterion, row.share, row.cost) for row in rows)
    for key in keys:
        own = [r for r in rows if (r.network, r.layers, r.criterion, r.share, r.cost) == key]
        cells = [spread([getattr(r, name) for r in own]) for name in COLUMNS]
        yield f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |"


COLUMNS = ("cut", "batch_norm", "repaired", "test_cut", "test_repaired", "cut_seconds", "repair_seconds")


def refit_apart(dense: nn.Module, model: nn.Module, result: Result, x: Tensor) -> None:
    """Refit every layer towards its dense outputs from its *dense* inputs, of which the kept ones remain.

    No layer sees what the cut and the repair of the layers before it changed. Only layers that lost inputs
    lose anything in this view.
    """
    columns, outputs = kept_columns(dense, (result.cuts,)), find_kept_outputs(dense, (result.cuts,))
    sites = find_sites(model, (x[:2],))[0]
    generator = torch.Generator().manual_seed(0)

    def refit(name: str, layer: nn.Module, value: Tensor, output: Tensor) -> None:
        places = sample_places(layer, output, ROWS // len(x), generator)
        rows = input_rows(layer, value, places)[:, :, columns[name]]
        targets = output_rows(layer, output, places)
        targets = targets[:, outputs[name]] if name in outputs else targets
        own, norm = model.get_submodule(name), sites[name].norm
        start = Fit(weight_matrix(own).double(), torch.zeros(1, targets.shape[1], dtype=torch.float64))
        fit = fit_ridge(rows, targets[:, None], start, 0.01)
        set_weight(own, fit.weight)
        if own.bias is not None:
            own.bias.data.copy_(fit.intercept[0])
        elif norm is not None:
            model.get_buffer(f"{norm}.running_mean").sub_(fit.intercept[0])

    hooks = [
        dense.get_submodule(name).register_forward_hook(
            lambda layer, args, output, name=name: refit(name, layer, args[0], output)
        )
        for name in columns
    ]
    with torch.no_grad():
        dense(x)
    for hook in hooks:
        hook.remove()


def ablations(datasets: Datasets) -> Iterator[tuple[str, float]]:
    """Validation accuracy of the repair with one mechanism changed, at half of the MACs, criterion
    reconstruction."""
    dense = dense_model()
    x, y = calibration(datasets, 0)
    result = cut_to(dense, "inner", "reconstruction", 50, x, y)
    held_out = CALIBRATION // 10
    apart = copy_model(result.model).eval()
    refit_apart(dense, apart, result, x)
    yield "inputs of the dense model", 100 * evaluate(apart, datasets.validation, CLASSIFICATION).deciding
    lost_inputs = frozenset(kept_columns(dense, (result.cuts,)))
    for name, settings, examples in (
        ("as it is", Settings(held_out=held_out), CALIBRATION),
        ("only layers that lost inputs", Settings(held_out=held_out, layers=lost_inputs), CALIBRATION),
        ("without the shortcut's term", Settings(held_out=held_out, shortcuts=False), CALIBRATION),
        ("ridge 0.001", Settings(held_out=held_out, ridge=0.001), CALIBRATION),
        ("ridge 0.1", Settings(held_out=held_out, ridge=0.1), CALIBRATION),
        ("4,000 places a layer", Settings(held_out=held_out, rows=4_000), CALIBRATION),
        ("64,000 places a layer", Settings(held_out=held_out, rows=64_000), CALIBRATION),
        ("250 examples", Settings(held_out=25), 250),
        ("means alone", Settings(held_out=held_out, method="mean"), CALIBRATION),
    ):
        model = copy_model(result.model).eval()
        refit_layers(dense, model, (result.cuts,), (x[:examples],), examples, settings)
        yield name, 100 * evaluate(model, datasets.validation, CLASSIFICATION).deciding


def merges(datasets: Datasets) -> Iterator[tuple[int, float, float]]:
    """Share of the MACs, and validation accuracy after a cut by magnitude and after a merge without data."""
    dense = dense_model()
    x, y = calibration(datasets, 0)
    for share in (80, 70, 50):
        result = cut_to(dense, "inner", "magnitude", share, x, y)
        cut = 100 * evaluate(result.model, datasets.validation)[1]
        sparsify.repair(result, method="merge")
        yield share, cut, 100 * evaluate(result.model, datasets.validation)[1]


def count_zoo() -> Counter[str]:
    """How many small networks came nearer to the dense one, were taken back, or could not be cut."""
    tests = Path(__file__).parents[1]
    sys.path[:0] = [str(tests / "zoo"), str(tests)]
    import networks
    import table

    found: Counter[str] = Counter()
    for entry in {**networks.micro(), **networks.own(), **networks.further()}.values():
        torch.manual_seed(0)
        model = entry.build().eval()
        table.perturb(model, entry.fresh(2, 0), shift=0.0)
        try:
            plan = table.planned(model, entry.fresh(2, 0), "random")
        except table.CannotBeCut:
            found["cannot be cut"] += 1
            continue
        result = sparsify.cut(plan, model)
        inputs, stage = entry.fresh(32, 3), Repair(kind="repair")
        repaired = repair_model(
            model, result.model, (result.cuts,), inputs, 32, stage, seed=0, model_map=plan.map
        )
        found["taken back" if repaired.reverted else "nearer"] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("table", "ablations", "merge", "zoo"))
    parser.add_argument("--criteria", nargs="*", default=["magnitude", "taylor", "reconstruction"])
    parser.add_argument("--network", default="resnet56", choices=list(NETWORKS))
    parser.add_argument("--layers", nargs="*", default=["inner"], choices=list(LAYERS))
    parser.add_argument("--shares", nargs="*", type=int, default=[70, 50, 40])
    parser.add_argument("--cost", default="macs", choices=("macs", "params"), help="what the shares are of")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="a line for each row; what is there is not made again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "zoo":
        print(count_zoo())
        return
    datasets = data()
    if options.what == "merge":
        for share, cut, merged in merges(datasets):
            print(f"| {share} % | {cut:.1f} | {merged:.1f} |", flush=True)
        return
    if options.what == "ablations":
        for name, value in ablations(datasets):
            print(f"| {name} | {value:.2f} |", flush=True)
        return
    keys = ("layers", "share", "criterion", "seed", "network", "cost")
    wanted = product(
        options.layers, options.shares, options.criteria, options.seeds, [options.network], [options.cost]
    )
    rows = measure_rows(Row, keys, wanted, partial(measure, datasets), options.json)
    print("\n".join(summary(rows)))


if __name__ == "__main__":
    main()
