"""AlexNet's convolutions at the SSL paper's published row and column sparsity: dense against cut, counted
both ways.

    python tests/benchmarks/alexnet_ssl.py [--runtimes eager onnxruntime openvino] [--batch 1] [--seconds 1.5]
    [--write docs/figures/alexnet.md]

Forms of a layer, each interleaved with the dense one of the same runtime, one thread, processor time:
  whole      the same shares as whole input channels and filters, as they fall
  stepped    the same, filters rounded up to multiples of 16 and channels to multiples of 4, in each group
  scattered filters removed, live columns drawn at random in each group and gathered by stock operators (the
  worst case)
And the paper's own yardstick, in PyTorch's matrix product:
  GEMM       rows and columns of the lowered weight removed; the product alone is timed, as the paper does
  lowered    the same with the lowering (im2col) and the choice of columns counted
Source: Wen et al., arXiv:1608.03665, table 4; CaffeNet, 227 x 227. Weights are random, which makes no
difference to latency.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "zoo"))

import shim  # noqa: F401

from sparsify.cost.measure.machine import read_load_average
from sparsify.cost.measure.runtimes import prepare, use_threads
from sparsify.cost.measure.timing import choose_clock, time_interleaved
from sparsify.nn import gathered
from sparsify_schemas.target import Cpu

MARKS = "<!-- alexnet_ssl.py -->\n", "<!-- end of alexnet_ssl.py -->\n"
PAPER = (1.05, 3.37, 6.27, 9.73, 4.93)
"""the paper's speed-ups of the product on a Xeon, one thread"""
FORMS = ("whole", "stepped", "scattered")


@dataclass(frozen=True)
class Layer:
    """A convolution, and the shares of it that the paper removed."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    groups: int
    size: int
    columns: float
    rows: float

    @property
    def kept(self) -> tuple[int, int]:
        """Filters and columns that stay in each group."""
        return round(self.outputs * (1 - self.rows) / self.groups), round(
            self.inputs // self.groups * self.kernel**2 * (1 - self.columns)
        )


LAYERS = {
    "conv1": Layer(3, 96, 11, 4, 0, 1, 227, 0.0, 0.094),
    "conv2": Layer(96, 256, 5, 1, 2, 2, 27, 0.632, 0.129),
    "conv3": Layer(256, 384, 3, 1, 1, 1, 13, 0.769, 0.406),
    "conv4": Layer(384, 384, 3, 1, 1, 2, 13, 0.847, 0.469),
    "conv5": Layer(384, 256, 3, 1, 1, 2, 13, 0.807, 0.0),
}


class Scattered(nn.Module):
    """Each group gathers its own live columns."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        rows, columns = layer.kept
        self.width, self.parts = layer.inputs // layer.groups, nn.ModuleList()
        for group in range(layer.groups):
            part = nn.Conv2d(self.width, rows, layer.kernel, layer.stride, layer.padding)
            every = self.width * layer.kernel**2
            live = sorted(
                torch.randperm(every, generator=torch.Generator().manual_seed(group))[:columns].tolist()
            )
            if columns < every:
                part.weight = nn.Parameter(gathered.select_columns(part.weight.detach(), live))
                gathered.gather_inputs(part, live)
            self.parts.append(part)

    def forward(self, x: Tensor) -> Tensor:
        made = [part(x.narrow(1, at * self.width, self.width)) for at, part in enumerate(self.parts)]
        return torch.cat(made, 1) if made[1:] else made[0]


def form(layer: Layer, name: str) -> tuple[nn.Module, int]:
    """The layer, and the channels that go into it."""
    if name == "scattered":
        return Scattered(layer).eval(), layer.inputs
    channels, filters = layer.inputs, layer.outputs
    if name != "dense":
        steps = (4, 16) if name == "stepped" else (1, 1)
        shares = (1 - layer.columns, 1 - layer.rows)
        channels, filters = (
            min(
                dense,
                ceil(round(dense * share / layer.groups, 6) / step) * step * layer.groups
                if name == "stepped"
                else round(dense * share / layer.groups) * layer.groups,
            )
            for dense, share, step in zip((channels, filters), shares, steps, strict=True)
        )
    return nn.Conv2d(
        channels, filters, layer.kernel, layer.stride, layer.padding, groups=layer.groups
    ).eval(), channels


def on_runtime(layer: Layer, runtime: str, batch: int, seconds: float) -> dict[str, tuple[float, float]]:
    """Form -> (milliseconds of the dense layer, how many times faster the form is)."""
    target = Cpu.model_validate({"kind": "cpu", "runtime": runtime, "batch": batch})
    with use_threads(target), torch.inference_mode():
        calls = []
        for name in ("dense", *FORMS):
            module, channels = form(layer, name)
            calls.append(prepare(module, (torch.randn(2, channels, layer.size, layer.size),), target))
        rounds = time_interleaved(calls, seconds, np.random.default_rng(0), choose_clock(target))
    return compared(rounds, FORMS)


def compared(rounds: np.ndarray, names: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    dense = float(np.median(rounds[:, 0])) * 1e3
    return {
        name: (dense, float(np.median(rounds[:, 0] / rounds[:, at])))
        for at, name in enumerate(names, start=1)
    }


def lowered(layer: Layer, batch: int, seconds: float) -> dict[str, tuple[float, float]]:
    """The paper's: GEMM against GEMM; lowering and GEMM against the same of the dense layer, and against
    today's convolution."""
    x = torch.randn(batch, layer.inputs, layer.size, layer.size)
    dense, _ = form(layer, "dense")
    rows, columns = layer.kept
    every = layer.inputs // layer.groups * layer.kernel**2
    whole = torch.randn(layer.groups, layer.outputs // layer.groups, every)
    live = torch.stack([torch.randperm(every)[:columns].sort().values for _ in range(layer.groups)])
    thin = torch.randn(layer.groups, rows, columns)

    def unfold() -> Tensor:
        flat = (
            F.unfold(x, layer.kernel, padding=layer.padding, stride=layer.stride).transpose(0, 1).flatten(1)
        )
        return flat.unflatten(0, (layer.groups, every))

    def select(flat: Tensor) -> Tensor:
        return torch.stack([part[index] for part, index in zip(flat, live, strict=True)])

    flat = unfold()
    chosen = select(flat)
    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (lambda: whole @ flat, lambda: thin @ chosen),
        (lambda: whole @ unfold(), lambda: thin @ select(unfold())),
        (lambda: dense(x), lambda: thin @ select(unfold())),
    ]
    target = Cpu(kind="cpu")
    with use_threads(target), torch.inference_mode():
        calls = [call for pair in pairs for call in pair]
        rounds = time_interleaved(calls, seconds, np.random.default_rng(0), choose_clock(target))
    names = ("GEMM alone", "lowering and GEMM", "lowering and GEMM against today's dense convolution")
    return {
        name: next(iter(compared(rounds[:, 2 * at : 2 * at + 2], (name,)).values()))
        for at, name in enumerate(names)
    }


def table(found: dict[str, dict[str, dict[str, tuple[float, float]]]], batch: int) -> str:
    """Both ways of counting: the mean of the layers' ratios, as the paper counts, and the ratio of the
    sums of their times."""
    ideal = [
        layer.inputs
        // layer.groups
        * layer.kernel**2
        * (layer.outputs // layer.groups)
        / (layer.kept[0] * layer.kept[1])
        for layer in LAYERS.values()
    ]
    lines = [
        f"Batch {batch}, one thread; load average {read_load_average():.1f}.",
        "",
        "| executed as | dense, ms | " + " | ".join(LAYERS) + " | mean of ratios | whole stack |",
        "|---|---|" + "---|" * (len(LAYERS) + 2),
        f"| multiply-accumulates | | {_ratios(ideal)} | {np.mean(ideal):.2f}x | |",
        f"| the paper's product, on its Xeon | | {_ratios(PAPER)} | {np.mean(PAPER):.2f}x | |",
    ]
    for how, layers in found.items():
        for name in next(iter(layers.values())):
            dense, ratios = (
                [layers[layer][name][0] for layer in LAYERS],
                [layers[layer][name][1] for layer in LAYERS],
            )
            stack = sum(dense) / sum(ms / ratio for ms, ratio in zip(dense, ratios, strict=True))
            lines.append(
                f"| {how}: {name} | {sum(dense):.2f} | {_ratios(ratios)} | {np.mean(ratios):.2f}x "
                f"| {stack:.2f}x |"
            )
    return "\n".join(lines) + "\n"


def _ratios(values: list[float] | tuple[float, ...]) -> str:
    return " | ".join(f"{value:.2f}x" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runtimes", nargs="+", default=["eager", "onnxruntime", "openvino"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.5, help="spent on each layer and runtime")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    found = {"PyTorch": {name: lowered(layer, given.batch, given.seconds) for name, layer in LAYERS.items()}}
    for runtime in given.runtimes:
        print(runtime, file=sys.stderr, flush=True)
        found[runtime] = {
            name: on_runtime(layer, runtime, given.batch, given.seconds) for name, layer in LAYERS.items()
        }
    made = table(found, given.batch)
    print(made)
    if given.write:
        page = given.write.read_text(encoding="utf-8")
        before, after = page.partition(MARKS[0])[0], page.partition(MARKS[1])[2]
        given.write.write_text(f"{before}{MARKS[0]}{made}{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
