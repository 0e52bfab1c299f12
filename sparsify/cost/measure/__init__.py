"""What a model costs: multiply-accumulates, parameters, bytes, milliseconds; and on which machine."""

from sparsify.cost.measure.availability import check_target
from sparsify.cost.measure.count import count_macs, count_macs_by_module, measure_side
from sparsify.cost.measure.machine import describe_environment
from sparsify.cost.measure.timing import describe_target, measure_latency, time_models
from sparsify.forward.calls import resize_batch
from sparsify.forward.copies import copy_model
from sparsify.forward.trial_calls import detach_inputs

__all__ = [
    "check_target",
    "copy_model",
    "count_macs",
    "count_macs_by_module",
    "describe_environment",
    "describe_target",
    "detach_inputs",
    "measure_latency",
    "measure_side",
    "resize_batch",
    "time_models",
]
