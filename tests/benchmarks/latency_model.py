"""How well the latency model predicts: random cuts of real architectures, predicted first and then timed.

    python tests/benchmarks/latency_model.py [--networks resnet50 mobilenet_v2 alexnet vit] [--targets eager
    onnxruntime openvino]
                                             [--cuts 20] [--size 224] [--widths step|any] [--json FILE]
                                             [--write docs/explanations/latency-model.md]

Weights are random, which makes no difference to latency. Every network is cut at random (each coupled group
keeps its own share of its width, 15 % to 100 %), in steps of the target or to any width. The model is
calibrated on the dense network and eight cuts of its own; none of the cuts here is among those. Cuts are
timed interleaved with the dense network, processor time on one thread, and count as the share of its time
that they take: so a machine that is busier now than it was then does not count. Each is prepared and timed
twice, some time apart: the mean counts, and *timed again* is how far the two were apart at worst. `--write`
puts the table between the two marks of the page.
"""

# ruff: noqa: E402

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "zoo")]

import shim  # noqa: F401

from sparsify.cost import measure
from sparsify.cost.cost_model import Costs
from sparsify.cost.latency import calibrate
from sparsify.cost.latency.calibrate import cut_to_widths, draw_widths
from sparsify.cost.measure.machine import read_load_average
from sparsify.cost.measure.timing import choose_clock
from sparsify.events import Event, Measuring
from sparsify.graph import build_map
from sparsify.graph.verify import trial_cuts
from sparsify.recipe import list_presets

TOGETHER = 5
"""cuts that are timed interleaved"""
SEED = 2
"""of the random cuts: none of these was seen while the latency model was made"""
MARKS = "<!-- latency_model.py -->\n", "<!-- end of latency_model.py -->\n"


class Vit(nn.Module):
    """A small vision transformer: 16 x 16 patches, `depth` layers of `heads` heads; queries, keys and values
    apart."""

    def __init__(self, size: int, width: int = 384, depth: int = 6, heads: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.place = nn.Parameter(torch.randn(1, (size // 16) ** 2, width))
        self.layers = nn.Sequential(*(VitLayer(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(x)).mean(1))


class VitLayer(nn.Module):
    """Attention and a two-layer perceptron, each with a norm before and a sum after it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (p(y).unflatten(2, (-1, self.size)).transpose(1, 2) for p in (self.q, self.k, self.v))
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


def network(name: str, size: int) -> nn.Module:
    """One of torchvision's by name, or the transformer above; random weights."""
    torch.manual_seed(0)
    if name == "vit":
        return Vit(size).eval()
    import torchvision

    made: nn.Module = getattr(torchvision.models, name)(weights=None)
    return made.eval()


def tried(name: str, target: str, count: int, size: int, any_width: bool) -> dict[str, Any]:
    """The errors of one network on one target."""
    started, model, x = time.perf_counter(), network(name, size), (torch.randn(1, 3, size, size),)
    spec = list_presets()[target]
    with torch.random.fork_rng():
        map = trial_cuts.protect_failing_groups(
            model, build_map.build_map(model, x, measure.count_macs(model, x)[1]), x
        )
    clock = calibrate.build_latency_model(target, spec, model, map, x, _said)
    shares = np.random.default_rng(SEED).uniform(0.25, 0.95, count)
    keeps = list(draw_widths(map, None if any_width else clock.steps, shares, seed=SEED))
    widths = {c.name: c.width for c in map.coupled}
    shapes = [Costs(map).shapes({g: range(kept, widths[g]) for g, kept in keep.items()}) for keep in keeps]
    predicted = np.array([clock.ms(s) for s in shapes])
    twice = np.array(
        [list(_timed(model, map, keeps, x, target, spec, clock.dense_ms or 1.0)) for _ in range(2)]
    )
    measured = twice.mean(axis=0)
    macs = np.array(
        [Costs(map).of({g: range(kept, widths[g]) for g, kept in keep.items()})["macs"] for keep in keeps]
    )
    errors = np.abs(predicted / measured - 1)
    by_macs = np.abs(macs / map.macs * (clock.dense_ms or np.nan) / measured - 1)
    return {
        "network": name,
        "target": target,
        "size": size,
        "widths": "any" if any_width else f"steps of {clock.steps.convolution}",
        "cuts": count,
        "dense_ms": clock.dense_ms,
        "median": float(np.median(errors)),
        "worst": float(errors.max()),
        "rank": _rank(predicted, measured),
        "macs_median": float(np.median(by_macs)),
        "macs_worst": float(by_macs.max()),
        "macs_rank": _rank(macs, measured),
        "again": float((twice.max(axis=0) / twice.min(axis=0) - 1).max()),
        "predicted": predicted.tolist(),
        "measured": twice.tolist(),
        "load": read_load_average(),
        "seconds": time.perf_counter() - started,
    }


def _timed(
    model: nn.Module,
    map: Any,
    keeps: list[dict[str, int]],
    x: tuple[Tensor],
    target: str,
    spec: Any,
    dense_ms: float,
) -> Iterator[float]:
    for start in range(0, len(keeps), TOGETHER):
        models = [model, *(cut_to_widths(model, map, keep) for keep in keeps[start : start + TOGETHER])]
        rounds = measure.time_models(
            models,
            x,
            target,
            spec,
            seconds=0.4 * len(models),
            rng=np.random.default_rng(0),
            now=choose_clock(spec),
        )
        yield from (np.median(rounds[:, 1:] / rounds[:, :1], axis=0) * dense_ms).tolist()


def _rank(a: Any, b: Any) -> float:
    """Spearman's rank correlation."""
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def _said(event: Event) -> None:
    if isinstance(event, Measuring) and event.done in (0, event.total):
        print(f"  {event.what}: {event.done} of {event.total}", file=sys.stderr, flush=True)


def table(found: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        (
            "| network | target | widths | cuts | dense | median error | worst | rank "
            "| timed again | by MACs: median | worst | rank | load |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        lines.append(
            f"| {f['network']} at {f['size']} | {f['target']} | {f['widths']} | "
            f"{f['cuts']} | {f['dense_ms']:.2f} ms | {100 * f['median']:.1f} % | "
            f"{100 * f['worst']:.1f} % | {f['rank']:.3f} | {100 * f['again']:.1f} % "
            f"| {100 * f['macs_median']:.1f} % | {100 * f['macs_worst']:.1f} % | "
            f"{f['macs_rank']:.3f} | {f['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["resnet50", "mobilenet_v2", "alexnet", "vit"])
    parser.add_argument("--targets", nargs="+", default=["eager", "onnxruntime", "openvino"])
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--widths", choices=("step", "any"), default="step")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    for name in given.networks:
        for target in given.targets:
            found.append(tried(name, target, given.cuts, given.size, given.widths == "any"))
            print(table(found[-1:]).splitlines()[-1], flush=True)
            if given.json:
                given.json.write_text(json.dumps(found, indent=1))
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        before, after = page.partition(MARKS[0])[0], page.partition(MARKS[1])[2]
        given.write.write_text(f"{before}{MARKS[0]}{table(found)}{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
