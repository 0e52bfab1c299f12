"""Trace a model: one forward call in eval mode, and one in train mode."""

from typing import Any

import torch
from torch import nn

from sparsify.errors import ModelError
from sparsify.forward.call_model import call_model, every_tensor, float_tensors
from sparsify.forward.calls import Inputs, count_examples, list_calls, resize_batch
from sparsify.graph.names import walk_modules
from sparsify.graph.peft_adapters import call_in_other_states
from sparsify.graph.trace.labels import Labels
from sparsify.graph.trace.operators import (
    decompose_operators,
)
from sparsify.graph.trace.products import TracedProduct
from sparsify.graph.trace.tracer import LeavingTorch, Tracer
from sparsify.nn import attention


def trace_model(
    model: nn.Module, inputs: Inputs, *, lenient: bool
) -> tuple[Labels, list[tuple[TracedProduct, int]]]:
    """Trace the model in eval mode and in train mode (auxiliary heads run only there). Pass a copy of it.

    A model with adapters of peft is also traced with each of them alone, and without any, in eval mode.

    Running statistics change, and attentions are replaced by `sparsify.nn.attention`, which writes no
    number of heads into a mask.

    lenient: a model that does not run in train mode is traced in eval mode only.

    Returns the labels of its parameters and buffers with all that was learnt, and the products that ran in
    eval mode with how often each ran. Raises ModelError if the model returns nothing that could be
    compared.
    """
    for name in [name for name, module in walk_modules(model) if attention.can_adopt(module)]:
        attention.adopt(model, name)
    labels = Labels()
    mode = Tracer(labels, numbers=lenient)
    mode.enter_model(model)
    labels.used.clear()  # that a tensor was given its labels is no use of it
    with mode.track_modules(model):
        for training in (False, True):
            model.train(training)
            mode.counting = not training
            try:
                outputs = [_run_traced(model, mode, inputs, training)]
            except Exception:
                if not training or not lenient:
                    raise
                _fix_half_traced(model, mode, labels)
                break
            if not training:
                mode.counting = False
                outputs += _trace_other_states(model, mode, inputs)
                labels.evaluated = frozenset(labels.used | labels.ran)
            if next(float_tensors(outputs), None) is None and not training:
                raise ModelError("the model returns no floating-point tensor; a cut could not be checked")
            for tensor in every_tensor(outputs):
                for aspect in mode.labels_of(tensor).aspects:
                    labels.fix(aspect.numpy(), "it feeds the network's output")
    model.eval()
    return labels, [(mode.products[key], times) for key, times in mode.ran.items()]


def _run_traced(model: nn.Module, mode: Tracer, inputs: Inputs, training: bool) -> Any:
    """What the model returns. In train mode one example is not enough for some batch normalisations (an
    auxiliary head on a single place): then two are tried."""
    with decompose_operators(model), torch.random.fork_rng(devices=[]), LeavingTorch(mode), mode:
        try:
            return call_model(model, inputs)
        except ValueError:
            if not training or count_examples(list_calls(inputs)[0]) != 1:
                raise
            return call_model(model, resize_batch(inputs, 2))


def _trace_other_states(model: nn.Module, mode: Tracer, inputs: Inputs) -> list[Any]:
    """What the model returns with its other adapters, and without any."""
    with decompose_operators(model), torch.random.fork_rng(devices=[]), LeavingTorch(mode), mode:
        return list(call_in_other_states(model, inputs))


def _fix_half_traced(model: nn.Module, mode: Tracer, labels: Labels) -> None:
    """Protect what only a failed call in train mode has read: it is not known what else would read it."""
    half = (labels.used | labels.ran) - labels.evaluated
    reason = "it is read in train mode alone, and the model does not run there with these inputs"
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in half or name.rpartition(".")[0] in half:
            for aspect in mode.labels_of(tensor).aspects:
                labels.fix(aspect.numpy(), reason)
