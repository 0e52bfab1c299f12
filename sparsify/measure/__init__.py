"""What a model costs: multiply-accumulates, parameters, bytes, milliseconds; and the machine that they were measured on."""

from sparsify.measure.calling import copied, detached
from sparsify.measure.counting import count_macs, side
from sparsify.measure.machine import environment
from sparsify.measure.timing import latency, with_batch

__all__ = ["copied", "count_macs", "detached", "environment", "latency", "side", "with_batch"]
