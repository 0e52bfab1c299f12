"""Whether a model runs on a recipe's targets: tried before the first epoch, as it must at the end."""

from collections.abc import Mapping

import torch
from torch import nn

from sparsify.cost.measure import resize_batch
from sparsify.cost.measure.onnx_quantize import quantise
from sparsify.cost.measure.runtimes import make_shared_pattern, prepare, prepare_onnx, to_arrays
from sparsify.errors import ModelError
from sparsify.forward.calls import Inputs
from sparsify.forward.trial_calls import eval_mode
from sparsify.runs.int8 import exported, in_int8
from sparsify_schemas.target import Cpu, Target

_EXPORTED = ("onnxruntime", "openvino")


def check_runs(model: nn.Module, inputs: Inputs, targets: Mapping[str, Target]) -> None:
    """Export the model for those targets that take it so, and run it there once. Raises ModelError, which names the target."""
    here = {
        name: t
        for name, t in targets.items()
        if isinstance(t, Cpu) and t.table is None and t.runtime in _EXPORTED
    }
    whole = in_int8(targets)
    for name, target in here.items():
        try:
            with torch.random.fork_rng(devices=[]), eval_mode(model):
                if name in whole:  # the report has its accuracy as well, which takes a file for any batch
                    file = quantise(exported(model, inputs), [to_arrays(inputs)])
                    prepare_onnx(file, to_arrays(resize_batch(inputs, target.batch)), target)()
                else:
                    prepare(model, inputs, target, make_shared_pattern(model, inputs, target))()
        except Exception as error:  # each runtime has errors of its own for what it cannot run
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"target '{name}' cannot run the model: {reason}; give it the runtime 'eager' or 'compile', or leave it out"
            ) from error
