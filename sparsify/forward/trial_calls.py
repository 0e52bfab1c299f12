"""Calling a model so that nothing about it changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from sparsify.forward.calls import Call, Inputs, call, calls_of, changed, examples_of, flattened, with_batch
from sparsify.forward.copies import copied


def detached(inputs: Inputs) -> Inputs:
    """Copies of the tensors, as a forward call may change what it is given."""
    return changed(inputs, lambda value: value.detach().clone())


def shown(inputs: Inputs) -> str:
    """The shapes, such as 2x3x32x32; what is no tensor as it is written."""
    calls = calls_of(inputs)
    if len(calls) == 1 and calls[0].method == "forward":
        return _arguments(calls[0])
    return "; ".join(f"{each.method}({_arguments(each)})" for each in calls)


def _arguments(each: Call) -> str:
    return ", ".join(_shown(path, value) for path, value in flattened(each.inputs))


def _shown(path: str, value: object) -> str:
    text = "x".join(map(str, value.shape)) if isinstance(value, Tensor) else repr(value)
    return text if path.isdigit() else f"{path} {text}"


def takes(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the model runs on the inputs in eval mode, on the device of its parameters; a copy of it is tried."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            call(copied(model).eval(), changed(inputs, lambda tensor: tensor.to(device, copy=True)))
    except Exception:  # whatever a model of somebody else's says of inputs that it does not take
        return False
    return True


OTHERS = (1, 5)
"""numbers of examples that are tried: what is timed, and what shows that any number will do"""


def tried_batches(model: nn.Module, inputs: Inputs) -> tuple[Call, ...]:
    """The calls, those marked as fixed that the model does not take with another number of examples."""
    return tuple(replace(each, fixed=each.fixed or _is_fixed(model, each)) for each in calls_of(inputs))


def _takes_batch(model: nn.Module, each: Call, count: int) -> bool:
    try:
        other = with_batch((each,), count)
    except RuntimeError:  # a tensor of which no part can be taken: nested, sparse
        return False
    return takes(model, other)


def _is_fixed(model: nn.Module, each: Call) -> bool:
    if not each.varies:
        return False
    others = [count for count in OTHERS if count != examples_of(each)]
    refused = any(not _takes_batch(model, each, count) for count in others)
    return refused and takes(model, (each,))  # one that takes nothing fails where that can be said


@contextmanager
def in_eval(*models: nn.Module) -> Iterator[None]:
    """Eval mode; each module gets its own mode back."""
    training = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, flag in training:
            module.training = flag
