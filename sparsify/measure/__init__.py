"""What a model costs: multiply-accumulates, parameters, bytes, milliseconds; and the machine that they were measured on."""

from sparsify.measure.calling import copied, detached
from sparsify.measure.counting import count_macs, counted_macs, side
from sparsify.measure.installed import check_target
from sparsify.measure.machine import environment
from sparsify.measure.running import with_batch
from sparsify.measure.timing import described, latency, timed

__all__ = ["check_target", "copied", "count_macs", "counted_macs", "described", "detached", "environment", "latency", "side", "timed", "with_batch"]
