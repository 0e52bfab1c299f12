"""What a model costs: multiply-accumulates, parameters, bytes, milliseconds; and the machine that they were measured on."""

from sparsify.cost.measure.availability import check_target
from sparsify.cost.measure.count import count_macs, counted_macs, side
from sparsify.cost.measure.machine import environment
from sparsify.cost.measure.timing import described, latency, timed
from sparsify.forward.calls import resize_batch
from sparsify.forward.copies import copy_model
from sparsify.forward.trial_calls import detach_inputs

__all__ = [
    "check_target",
    "copy_model",
    "count_macs",
    "counted_macs",
    "described",
    "detach_inputs",
    "environment",
    "latency",
    "side",
    "timed",
    "resize_batch",
]
