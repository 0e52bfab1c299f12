"""How many calibration examples fit into a stated amount of memory."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import call_model, every_tensor
from sparsify.forward.calls import Inputs
from sparsify.forward.opaque import is_scripted
from sparsify.pruning.repair.agreement import take_examples

COPIES = 4
"""the dense and the cut model each hold the input and the output of a module, and sampled patches take as much again"""


def affordable_examples(model: nn.Module, inputs: Inputs, examples: int, memory: int) -> int:
    """The number of examples whose activations stay within `memory` bytes, at least one.

    One example passes through the model. Its largest module, by bytes of inputs and outputs, counts `COPIES` times.
    """
    largest = 0

    def after(module: nn.Module, args: Any, output: Any) -> None:
        del module
        nonlocal largest
        tensors = (*every_tensor(args), *every_tensor(output))
        unique: dict[int, Tensor] = {id(tensor): tensor for tensor in tensors}
        largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in unique.values()))

    modules = [module for module in model.modules() if not is_scripted(module)]
    handles = [module.register_forward_hook(after) for module in modules]
    try:
        with torch.no_grad():
            call_model(model, take_examples(inputs, examples, 0, 1))
    finally:
        for handle in handles:
            handle.remove()
    return max(1, min(examples, memory // max(1, COPIES * largest)))
