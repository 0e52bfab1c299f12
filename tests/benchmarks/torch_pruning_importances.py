"""Importances of torch-pruning beside our criteria, on the same coupled groups.

    python tests/benchmarks/torch_pruning_importances.py ranks [--only PART ...]
    python tests/benchmarks/torch_pruning_importances.py resnet56 [--layers inner|all] [--seeds N ...]

`ranks`: networks of torchvision with random weights and shifted normalisations, two images of 64 x 64 (of
ViT-B/16 224 x 224). Both sides score every unit of every group that may be cut. Spearman's correlation of the
two rankings within a group (least and median over the groups), and the largest difference of a unit's score,
each side's scores of a group divided by their largest. `matched` are the arguments by which an importance
says what our criterion does; `as it comes` are its defaults.
`resnet56`: ResNet-56 on CIFAR-10 cut to 50 % of the MACs, right after the cut, without repair or training.
Weights and data as in `repair.py`. The arguments of each criterion are chosen by the validation images, and
the test images are looked at once for the chosen ones. One thread.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
sys.path.insert(1, str(Path(__file__).parent))

import shim  # noqa: F401
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.graph.build_map import build_map
from sparsify.graph.group_layouts import coupled_layout
from sparsify.graph.model_map import ModelMap
from sparsify.objective.objective import CLASSIFICATION, evaluate
from sparsify.pruning.criteria.peer_scores import peer_scores
from sparsify.pruning.criteria.scores import group_scores
from sparsify.pruning.criteria.statistics import gather_statistics
from sparsify_schemas.rule import Rule

NETWORKS = {"resnet18": 64, "mobilenet_v2": 64, "densenet121": 64, "vit_b_16": 224}
"""of torchvision -> size of the images"""
SUM = {"group_reduction": "sum", "normalizer": None}
PAIRS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("matched", {"importance": "MagnitudeImportance", "args": {**SUM, "bias": True}}, {"kind": "magnitude"}),
    (
        "matched, p = 1",
        {"importance": "MagnitudeImportance", "args": {**SUM, "bias": True, "p": 1}},
        {"kind": "magnitude", "norm": 1},
    ),
    ("as it comes", {"importance": "MagnitudeImportance"}, {"kind": "magnitude"}),
    (
        "matched",
        {"importance": "TaylorImportance", "args": {**SUM, "bias": True}, "batches": 1},
        {"kind": "sensitivity", "batches": 1},
    ),
    ("as it comes", {"importance": "TaylorImportance", "batches": 1}, {"kind": "taylor", "batches": 1}),
    (
        "multivariable",
        {
            "importance": "TaylorImportance",
            "args": {**SUM, "bias": True, "multivariable": True},
            "batches": 1,
        },
        {"kind": "taylor", "batches": 1},
    ),
    (
        "matched",
        {"importance": "LAMPImportance", "args": {"group_reduction": "sum", "bias": True}},
        {"kind": "lamp"},
    ),
    ("as it comes", {"importance": "LAMPImportance"}, {"kind": "lamp"}),
    ("p = 1", {"importance": "FPGMImportance", "args": {**SUM, "p": 1}}, {"kind": "fpgm"}),
    ("as it comes", {"importance": "FPGMImportance"}, {"kind": "fpgm"}),
    ("matched", {"importance": "BNScaleImportance", "args": SUM}, {"kind": "bn_scale"}),
    ("as it comes", {"importance": "OBDCImportance", "batches": 1}, {"kind": "fisher", "batches": 1}),
)
"""how, importance, our criterion"""


def make_network(name: str) -> tuple[nn.Module, Tensor]:
    from torchvision import models

    torch.manual_seed(0)
    model = getattr(models, name)(weights=None).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            if isinstance(module, nn.Linear) and not bool(module.weight.any()):
                module.weight.normal_(0, 0.02)  # ViT's head, without which no gradient comes back
    size = NETWORKS[name]
    return model, torch.randn(2, 3, size, size)


def make_criterion(body: Mapping[str, Any]) -> Any:
    rule = {"layers": "*", "group": "filter", "criterion": dict(body)}
    return Rule.model_validate(rule).criterion


def score_ours(
    spec: Any, model: nn.Module, map: ModelMap, names: Sequence[str], batch: Any
) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    layout = coupled_layout(map, names, parameters, spec.facts().roles)
    statistics_ = gather_statistics(model, spec, [batch], CLASSIFICATION)
    values = group_scores(spec, layout, parameters, statistics_, 0)
    return layout.split(values.double())


def score_theirs(
    spec: Any, model: nn.Module, map: ModelMap, names: Sequence[str], batch: Any
) -> dict[str, Tensor]:
    statistics_ = gather_statistics(model, spec, [batch], CLASSIFICATION)
    return peer_scores(spec, model, map, names, statistics_, 0, 0)


def score_both(
    model: nn.Module,
    map: ModelMap,
    names: Sequence[str],
    batch: Any,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
) -> dict[str, tuple[Tensor, Tensor]]:
    """Group -> (their scores, ours). One by one where a side refuses some; those are left out."""
    their_spec = make_criterion({"kind": "torch_pruning", **theirs})
    try:
        left = score_theirs(their_spec, model, map, names, batch)
        right = score_ours(make_criterion(ours), model, map, names, batch)
    except ModelError:
        if len(names) == 1:
            return {}
        found = {}
        for name in names:
            found |= score_both(model, map, [name], batch, theirs, ours)
        return found
    return {name: (left[name], right[name]) for name in names}


def correlate_ranks(one: Tensor, other: Tensor) -> float:
    """Spearman's correlation: that of the ranks, equal values with the mean of their ranks."""
    a, b = rank(one), rank(other)
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else float("nan")


def rank(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def compare_ranks(name: str) -> Iterator[str]:
    model, x = make_network(name)
    map = build_map(model, (x,), {})
    batch = (x, torch.tensor([1, 2]))
    names = [group.name for group in map.coupled if group.protected is None and group.width > 2]
    modules = dict(model.named_modules())
    heads = [own for own in names if isinstance(modules[own], nn.MultiheadAttention)]
    others = [own for own in names if own not in heads]
    yield from _compare_groups(name, model, map, others, batch)
    if heads:
        yield from _compare_groups(f"{name}, heads", model, map, heads, batch)


def _compare_groups(
    name: str, model: nn.Module, map: ModelMap, names: Sequence[str], batch: Any
) -> Iterator[str]:
    for how, theirs, ours in PAIRS:
        found: list[tuple[float, float]] = []
        refused = 0
        sides = score_both(model, map, names, batch, theirs, ours)
        for group in names:
            if group not in sides:
                refused += 1
                continue
            left, right = sides[group]
            gap = float((left / left.abs().max() - right / right.abs().max()).abs().max())
            found.append((correlate_ranks(left, right), gap))
        cells = ("-", "-", "-")
        if found:
            correlations = [c for c, _ in found]
            cells = (
                f"{min(correlations):.3f}",
                f"{statistics.median(correlations):.3f}",
                f"{max(gap for _, gap in found):.0e}",
            )
        importance = str(theirs["importance"]).removesuffix("Importance")
        shown = (name, f"{importance}, {how}", ours["kind"], len(found), refused, *cells)
        yield "".join(f"| {cell} " for cell in shown) + "|"


def ranks(given: argparse.Namespace) -> None:
    print("| network | importance | ours | groups | not scored | least | median | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for name in NETWORKS:
        if not given.only or any(part in name for part in given.only):
            for line in compare_ranks(name):
                print(line, flush=True)


# ResNet-56 right after the cut

FREE = {"group_reduction": "mean", "normalizer": None}
CHOICES: dict[str, tuple[dict[str, Any], ...]] = {
    "torch-pruning OBDC": (
        {"kind": "torch_pruning", "importance": "OBDCImportance", "batches": 4},
        {"kind": "torch_pruning", "importance": "OBDCImportance", "args": FREE, "batches": 4},
    ),
    "torch-pruning Taylor": (
        {"kind": "torch_pruning", "importance": "TaylorImportance"},
        {"kind": "torch_pruning", "importance": "TaylorImportance", "args": FREE},
    ),
    "torch-pruning magnitude": (
        {"kind": "torch_pruning", "importance": "MagnitudeImportance"},
        {"kind": "torch_pruning", "importance": "MagnitudeImportance", "args": FREE},
    ),
    "magnitude": ({"kind": "magnitude"}, {"kind": "magnitude", "normalize": "mean"}),
    "taylor": ({"kind": "taylor"}, {"kind": "taylor", "normalize": "l2"}),
    "fisher": ({"kind": "fisher", "batches": 4},),
    "reconstruction": ({"kind": "reconstruction", "batches": 16},),
}


def resnet56(given: argparse.Namespace) -> None:
    import repair as own

    datasets, dense = own.data(), own.dense_model()
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        x, y = own.calibration(datasets, seed)
        batches = list(zip(x.split(64), y.split(64), strict=True))
        for name, choices in CHOICES.items():
            if given.only and not any(part in name for part in given.only):
                continue
            tried = []
            for criterion in choices:
                recipe = {
                    "version": 1,
                    "title": "ResNet-56",
                    "data": {"source": "cifar10"},
                    "budget": {"macs": "50%"},
                    "rules": [
                        {"layers": own.LAYERS[given.layers], "group": "filter", "criterion": criterion}
                    ],
                }
                began = time.process_time()
                result = sparsify.cut(sparsify.make_plan(recipe, dense, (x[:2],)), dense, batches=batches)
                seconds = time.process_time() - began
                figure = evaluate(result.model, datasets.validation, CLASSIFICATION).deciding
                tried.append((figure, criterion, result, seconds))
                print(f"{name} {seed} {criterion} validation {figure:.2%}", file=sys.stderr, flush=True)
            figure, criterion, result, seconds = max(tried, key=lambda entry: entry[0])
            test = evaluate(result.model, datasets.test, CLASSIFICATION).deciding
            rows.append(
                {
                    "name": name,
                    "seed": seed,
                    "criterion": criterion,
                    "validation": 100 * figure,
                    "test": 100 * test,
                    "seconds": seconds,
                }
            )
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1))
    print("| criterion | chosen | seeds | validation | test | choice, s |\n|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        chosen = [json.dumps(row["criterion"].get("args", row["criterion"].get("normalize"))) for row in mine]
        cells = [own.spread([row[key] for row in mine]) for key in ("validation", "test", "seconds")]
        print(f"| {name} | {', '.join(dict.fromkeys(chosen))} | {len(mine)} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("ranks", "resnet56"))
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--layers", choices=("inner", "all"), default="inner")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    (ranks if given.what == "ranks" else resnet56)(given)


if __name__ == "__main__":
    main()
