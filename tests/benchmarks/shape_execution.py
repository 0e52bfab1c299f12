"""What cropping a kernel and gathering live columns gain over computing with the zeros, on AlexNet's layers.

    python tests/benchmarks/shape_execution.py [--seconds 3] [--batch 1]

Eager PyTorch, one thread; dense and cheaper layer timed interleaved, in the thread's own processor time, so
that what else the machine does matters little; the median of their ratio and its 95 % bootstrap interval.
Cropped: a corner of the kernel lives in all channels. Gathered: live columns drawn at random, the worst case,
as every kernel position is alive somewhere.
"""

import argparse
from copy import deepcopy
from math import prod

import torch
from torch import Tensor, nn

from sparsify.cost import measure
from sparsify.graph.surgery import compact_layers, operations
from sparsify.nn import cropped as cropped_layers
from sparsify.nn import gathered as gathered_layers
from sparsify_schemas.cuts import Crop, Gather
from sparsify_schemas.report import Latency
from sparsify_schemas.target import Cpu

LAYERS = {
    "conv2, 5x5, 96 to 256, 27x27": (nn.Conv2d(96, 256, 5, padding=2), 27),
    "conv3, 3x3, 256 to 384, 13x13": (nn.Conv2d(256, 384, 3, padding=1), 13),
    "conv4, 3x3, 384 to 384, 13x13": (nn.Conv2d(384, 384, 3, padding=1), 13),
}
SHARES = (0.5, 0.75, 0.9)
CORNERS = {3: ((2, 2), (1, 2), (1, 1)), 5: ((3, 4), (2, 3), (1, 2))}
"""kernels that come closest to the shares"""


def cropped(conv: nn.Conv2d, kernel: tuple[int, int]) -> tuple[nn.Conv2d, nn.Module]:
    """The layer with zeros, and cropped."""
    mask = torch.zeros(conv.weight.shape[2:])
    mask[: kernel[0], : kernel[1]] = 1
    return reshaped(conv, mask)


def gathered(conv: nn.Conv2d, share: float) -> tuple[nn.Conv2d, nn.Module]:
    """The layer with zeros in so many of its columns, and gathering the others."""
    columns = prod(conv.weight.shape[1:])
    mask = torch.zeros(columns)
    mask[
        torch.randperm(columns, generator=torch.Generator().manual_seed(0))[: round(columns * (1 - share))]
    ] = 1
    return reshaped(conv, mask.view(conv.weight.shape[1:]), gather=True)


def reshaped(conv: nn.Conv2d, mask: Tensor, gather: bool = False) -> tuple[nn.Conv2d, nn.Module]:
    zeros = deepcopy(conv).eval()
    with torch.no_grad():
        zeros.weight.mul_(mask)
    model = nn.Sequential(deepcopy(zeros))
    if gather:
        live = gathered_layers.find_live_columns(zeros.weight)
        compact_layers.compact_layers(
            model, [Gather(module="0", size=mask.numel(), keep=operations.to_ranges(live))]
        )
    else:
        compact_layers.compact_layers(
            model,
            [Crop(module="0", kernel=tuple(conv.kernel_size), grids=cropped_layers.find_grids(zeros.weight))],
        )
    return zeros, model


def timed(pair: tuple[nn.Module, nn.Module], x: Tensor, seconds: float) -> Latency:
    with torch.no_grad():
        torch.testing.assert_close(pair[0](x), pair[1](x), rtol=1e-3, atol=1e-4)
    return measure.measure_latency(*pair, (x,), "cpu", Cpu(kind="cpu", batch=len(x)), seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(
        "| layer | form | columns gone | dense ms | ms | speed-up | 95 % interval |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    )
    for name, (conv, size) in LAYERS.items():
        x = torch.randn(options.batch, conv.in_channels, size, size)
        kernels = CORNERS[conv.kernel_size[0]]
        rows = [
            (f"cropped to {a}x{b}", 1 - a * b / prod(conv.kernel_size), cropped(conv, (a, b)))
            for a, b in kernels
        ]
        rows += [("gathered", share, gathered(conv, share)) for share in SHARES]
        for form, gone, pair in rows:
            t = timed(pair, x, options.seconds)
            print(
                (
                    f"| {name} | {form} | {100 * gone:.0f} % | {t.dense_ms:.2f} | {t.cut_ms:.2f} | "
                    f"{t.speedup:.2f}x | {t.low:.2f} to {t.high:.2f} |"
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
