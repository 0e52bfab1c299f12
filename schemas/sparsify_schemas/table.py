"""Tables of latencies: what each layer costs on one machine, runtime and thread count, at measured widths.

A table lies in the cache of the machine that measured it, or in a file that a target names: `table:
phone.json`.
"""

from typing import Annotated, Literal

from pydantic import Field

from sparsify_schemas.base import Positive, Spec, Text
from sparsify_schemas.target import Target

Width = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Point = tuple[Width, Width, Milliseconds]
"""(inputs, outputs, milliseconds)"""


class Machine(Spec):
    """What a latency depends on besides the model: tables of one machine say nothing of another."""

    processor: Text
    """as the system names it"""
    vectors: Text
    """widest vector instructions: AVX512, AVX2, NEON and so on"""
    system: Text
    """operating system and architecture"""
    runtime: Text
    """what executes the layers, with its version"""


class Steps(Spec):
    """Rounding a width up to a multiple of its step costs (next to) no time: the staircase of this
    machine."""

    convolution: Positive
    """of a convolution's channels"""
    inputs: Positive = 1
    """of those that go in, which some runtimes charge evenly"""
    linear: Positive
    """of a linear layer's features"""


class Network(Spec):
    """A whole network, timed: what the sum over its layers is corrected by."""

    kept: dict[Text, Positive] = {}
    """coupled group -> units kept; empty for the dense network"""
    ms: Milliseconds
    """of a forward call, measured"""


class Table(Spec):
    """Milliseconds of single layers on one target, grown as networks need them."""

    version: Literal[1] = 1
    machine: Machine
    """where it was measured"""
    target: Target
    """what executed it"""
    steps: Steps | None = None
    """widths that are rewarded; measured by `sparsify targets measure`"""
    layers: dict[Text, tuple[Point, ...]] = {}
    """layer without its widths, such as 'conv 3x3 stride 1 pad 1 at 14x14' -> what it costs at which
    widths"""
    networks: dict[Text, tuple[Network, ...]] = {}
    """digest of a network's layers -> that network and cuts of it, timed whole; the dense one first"""
