"""Measure the staircase of a target: widths up to the next multiple of its step cost (almost) nothing
more."""

from collections.abc import Callable, Mapping, Sequence

from sparsify.cost.latency.layer_benchmark import time_layers
from sparsify.cost.latency.layer_geometry import Geometry
from sparsify.events import Listener, Measuring, silence
from sparsify_schemas.table import Steps
from sparsify_schemas.target import Target

WIDTHS = (*range(16, 34), 36, 40, 44, 47, 48, 49, 52, 56, 60, 63, 64, 65, 66, 68, 72, 80, 96)
"""channels at which a layer is timed: every number up to 33, then around the multiples of 4, 8, 16 and 32"""
FREE = 0.35
"""rounding up is called free if it costs less than this share of a layer's average cost per channel"""
_CONVOLUTION = Geometry((3, 3), (1, 1), (1, 1), (1, 1), size=(14, 14))
_LINEAR = Geometry(rows=16)
_OTHER = 64
"""width of the side that is not varied"""


def measure_steps(target: Target, listener: Listener = silence) -> Steps:
    """Measure the steps of convolutions and linear layers: the larger of those of their inputs and
    outputs."""
    found = {}
    for what, geometry in (("convolution", _CONVOLUTION), ("linear", _LINEAR)):
        for side in ("outputs", "inputs"):
            listener(Measuring(f"staircase of {what}s, {side}", 0, 1))
            found[what, side] = find_step(time_widths(geometry, side == "outputs", target))
            listener(Measuring(f"staircase of {what}s, {side}", 1, 1))
    convolution, linear = (
        [found[what, side] for side in ("inputs", "outputs")] for what in ("convolution", "linear")
    )
    return Steps(convolution=max(convolution), inputs=convolution[0], linear=max(linear))


def time_widths(
    geometry: Geometry, outputs: bool, target: Target, time: Callable[..., Sequence[float]] = time_layers
) -> dict[int, float]:
    """Width -> milliseconds, all timed interleaved."""
    layers = []
    for width in WIDTHS:
        layers.append((geometry, _OTHER, width) if outputs else (geometry, width, _OTHER))
    return dict(zip(WIDTHS, time(layers, target), strict=True))


def find_step(ms: Mapping[int, float]) -> int:
    """The largest 2^k for which widths up to the next multiple of 2^k cost (almost) nothing more.

    Each odd multiple of 2^(k-1) is compared with the next multiple of 2^k.
    """
    step = 1
    while step < 32:
        pairs = [(width, width + step) for width in ms if width % (2 * step) == step and width + step in ms]
        firm = sorted(width for width in ms if width % (2 * step) == 0)
        if len(pairs) < 2 or len(firm) < 2:
            break
        slope = (ms[firm[-1]] - ms[firm[0]]) / (firm[-1] - firm[0])
        if sum(ms[b] - ms[a] for a, b in pairs) > FREE * slope * step * len(pairs):
            break
        step *= 2
    return step
