"""Run the model once on each target before the first epoch, as the report does at the end."""

from collections.abc import Mapping

import torch
from torch import nn

from sparsify.cost.measure import with_batch
from sparsify.cost.measure.onnx_quantize import quantised
from sparsify.cost.measure.runtimes import arrays, pattern_of, prepared, prepared_onnx
from sparsify.errors import ModelError
from sparsify.forward.calls import Inputs
from sparsify.forward.trial_calls import in_eval
from sparsify.runs.int8 import export_onnx, select_int8
from sparsify_schemas.target import Cpu, Target

_EXPORTED = ("onnxruntime", "openvino")


def check_targets(model: nn.Module, inputs: Inputs, targets: Mapping[str, Target]) -> None:
    """Export the model for every ONNX target and run it there once.

    Raises ModelError, which names the target.
    """
    int8_targets = select_int8(targets)
    for name, target in targets.items():
        if not isinstance(target, Cpu) or target.table is not None or target.runtime not in _EXPORTED:
            continue
        try:
            with torch.random.fork_rng(devices=[]), in_eval(model):
                if name in int8_targets:
                    _run_int8(model, inputs, target)
                else:
                    prepared(model, inputs, target, pattern_of(model, inputs, target))()
        except Exception as error:  # each runtime raises its own errors for a model that it cannot run
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"target '{name}' cannot run the model: {reason}; "
                "set its runtime to 'eager' or 'compile', or remove the target"
            ) from error


def _run_int8(model: nn.Module, inputs: Inputs, target: Cpu) -> None:
    """Quantize and run as the report does: its accuracies need a file that takes any batch."""
    file = quantised(export_onnx(model, inputs), [arrays(inputs)])
    prepared_onnx(file, arrays(with_batch(inputs, target.batch)), target)()
