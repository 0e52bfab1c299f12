"""Call a model without changing anything about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparsify.forward.calls import (
    Call,
    Inputs,
    call_without_copies,
    count_examples,
    flatten_value,
    list_calls,
    map_tensors,
    resize_batch,
)
from sparsify.forward.scratch import copy_to_call


def detach_inputs(inputs: Inputs) -> Inputs:
    """Copies of the tensors, since a forward call may change its inputs."""
    return map_tensors(inputs, lambda value: value.detach().clone())


def format_inputs(inputs: Inputs) -> str:
    """The shapes, such as 2x3x32x32; values that are no tensors as Python writes them."""
    calls = list_calls(inputs)
    if len(calls) == 1 and calls[0].method == "forward":
        return _format_arguments(calls[0])
    return "; ".join(f"{each.method}({_format_arguments(each)})" for each in calls)


def _format_arguments(each: Call) -> str:
    return ", ".join(_format_value(path, value) for path, value in flatten_value(each.inputs))


def _format_value(path: str, value: object) -> str:
    text = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else repr(value)
    return text if path.isdigit() else f"{path} {text}"


def accepts_inputs(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a copy of the model runs on the inputs in eval mode, on the device of its parameters."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call_without_copies(
                copy_to_call(model).eval(), map_tensors(inputs, lambda tensor: tensor.to(device, copy=True))
            )
    except Exception:  # whatever a model of somebody else's says of inputs that it does not take
        return False
    return True


TRIED_BATCHES = (1, 5)
"""batch sizes that are tried: 1 is timed, 5 shows that any size works"""


def mark_fixed_calls(model: nn.Module, inputs: Inputs) -> tuple[Call, ...]:
    """Mark the calls that the model only accepts with the given number of examples as fixed."""
    return tuple(replace(each, fixed=each.fixed or _is_fixed(model, each)) for each in list_calls(inputs))


def _accepts_batch(model: nn.Module, each: Call, count: int) -> bool:
    try:
        other = resize_batch((each,), count)
    except RuntimeError:  # a tensor of which no part can be taken: nested, sparse
        return False
    return accepts_inputs(model, other)


def _is_fixed(model: nn.Module, each: Call) -> bool:
    if not each.varies:
        return False
    others = [count for count in TRIED_BATCHES if count != count_examples(each)]
    refused = any(not _accepts_batch(model, each, count) for count in others)
    return refused and accepts_inputs(model, (each,))  # one that takes nothing fails where that can be said


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Switch to eval mode; afterwards each module gets its own mode back."""
    training = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, flag in training:
            module.training = flag
