"""How many calibration examples fit into a stated amount of memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import call_model, every_tensor
from sparsify.forward.calls import Inputs
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import is_scripted
from sparsify.pruning.repair.agreement import take_examples

COPIES = 4
"""the dense and the cut model each hold the input and the output of a module, and sampled patches take as
much again"""


def affordable_examples(
    model: nn.Module, inputs: Inputs, examples: int, memory: int, layers: frozenset[str] = frozenset()
) -> int:
    """The number of examples whose activations stay within `memory` bytes, at least one.

    layers: see `measure_example`.
    """
    return affordable_count(examples, memory, measure_example(model, inputs, examples, layers))


def affordable_count(examples: int, memory: int, size: float) -> int:
    """How many of the examples, each of so many bytes, fit into the memory; at least one."""
    return max(1, min(examples, int(memory / size)))


def measure_example(
    model: nn.Module, inputs: Inputs, examples: int, layers: frozenset[str] = frozenset()
) -> float:
    """Bytes that the activations of one example take, at least one.

    One example passes through the model, or two where it does not take a single one. The largest module, by
    bytes of inputs and outputs, counts `COPIES` times.

    layers: those to refit, after the last of which the model is not run; none: it runs to its end.
    """
    largest = needed = 0

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal largest, needed
            tensors = (*every_tensor((args, kwargs)), *every_tensor(output))
            unique: dict[int, Tensor] = {id(tensor): tensor for tensor in tensors}
            largest = max(largest, sum(tensor.numel() * tensor.element_size() for tensor in unique.values()))
            needed = largest if name in layers else needed

        return hook

    modules = [(name, module) for name, module in model.named_modules() if not is_scripted(module)]
    handles = [module.register_forward_hook(after(name), with_kwargs=True) for name, module in modules]
    tried = 1
    try:
        with torch.no_grad(), without_fused_attention():
            try:
                call_model(model, take_examples(inputs, examples, 0, tried))
            except Exception:  # such as where dimensions of length 1 are dropped
                if examples < 2:
                    raise
                tried = 2
                call_model(model, take_examples(inputs, examples, 0, tried))
    finally:
        for handle in handles:
            handle.remove()
    return max(1.0, COPIES * (needed or largest) / tried)
