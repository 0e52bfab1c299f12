"""A cut in the middle of a training that another library runs: the module that it holds becomes the cut
one."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sparsify.adapters.bound_functions import bind_to
from sparsify.errors import ModelError
from sparsify.forward.copies import COMPILED
from sparsify.pruning.cut import Result, cut
from sparsify.pruning.planning.plan import Plan


def cut_in_place(
    plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Any] | None
) -> Result:
    """Cut a model, and let the very same module object be the cut one from now on; `result.dense` is a copy
    of it.

    The trainer, its optimizer and schedulers go on with the objects that they hold. Raises what `cut`
    raises, and ModelError where processes share the training: their gradients are reduced in buckets of the
    old shapes.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ModelError(
            "a model cannot be cut in the middle of a training on several processes; cut it between two "
            "trainings"
        )
    result = cut(plan, model, optimizer=optimizer, batches=batches)
    dense = become(model, result.model)
    return Result(model, dense, plan, result.cuts, result.verdicts, result.followers, result.notes)


def become(model: nn.Module, thin: nn.Module) -> nn.Module:
    """Let a module object be the cut model from now on, and return another object that is the dense one."""
    training = model.training
    compiled = model.__dict__.pop(COMPILED, None)  # of `model.compile()`; it calls this very object
    dense = nn.Module.__new__(type(model))
    dense.__dict__ = dict(model.__dict__)
    model.__dict__ = dict(thin.__dict__)
    bind_to(dense, model, dense)
    bind_to(model, thin, model)
    if compiled is not None:
        model.__dict__[COMPILED] = compiled
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # what was compiled knows the old shapes
    model.train(training)
    return dense
