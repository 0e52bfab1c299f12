"""Running statistics of batch normalisation, taken anew from what a cut model computes."""

import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from sparsify.distributed import add_over_processes, counts_of
from sparsify.errors import ModelError
from sparsify.forward.call_model import call_model, require_values
from sparsify.forward.calls import Inputs, required_arguments
from sparsify.forward.trial_calls import eval_mode
from sparsify.pruning.repair.agreement import CHUNK, take_examples
from sparsify.pruning.repair.calibration_examples import collect_examples


def calibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Take the running mean and variance of each batch normalisation anew, from what the model computes.

    Of use after a cut that is not repaired by least squares, and after changes of your own. The model runs in
    eval mode but for its batch normalisations; each module gets its own mode back. Where the model raises an
    error, the statistics stay as they were.

    Args:
        model: The model, whose statistics change in place.
        batches: Training examples, unlabelled or not: tensors, mappings of tensors, or (x, y) pairs.

    Returns:
        How many normalisations have new statistics: those that ran.

    Raises:
        ModelError: There are no batches, or one example, which has no variance where values are single.

    Source: re-calibration of batch normalisation after a cut (EagleEye, arXiv:2007.02491).

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> sparsify.calibrate(net, [torch.randn(32, 4) + 1])
        1
    """
    require_values(model)
    inputs, count = collect_examples(batches, sys.maxsize, "calibrate", required_arguments(model))
    with eval_mode(model):
        try:
            return reestimate_statistics(model, inputs, count)
        except ValueError as error:
            if count > 1:
                raise
            raise ModelError("one example has no variance at a normalisation; calibrate needs two") from error


def reestimate_statistics(model: nn.Module, inputs: Inputs, examples: int, processes: Any = None) -> int:
    """Set the running mean and variance of each batch normalisation to their means over batches of `CHUNK`
    examples.

    The model is in eval mode. Of several processes, each of which has other examples, the means over all
    their batches are taken. Returns how many normalisations ran; the others keep what they had.

    Source: re-calibration of batch normalisation after a cut (EagleEye, arXiv:2007.02491).
    """
    norms = _list_norms(model)
    momenta = [norm.momentum for norm in norms]
    statistics = [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    ends = _list_ends(examples)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean over all batches
        norm.train()
    ran: list[bool] = []
    try:
        with torch.no_grad():
            for start, end in pairwise((0, *ends)):
                call_model(model, take_examples(inputs, examples, start, end))
        _average(norms, len(ends), processes)
        ran = [bool(norm.num_batches_tracked) for norm in norms]
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
        for norm, old, done in zip(norms, statistics, ran or [False] * len(norms), strict=True):
            if not done:
                norm.load_state_dict(old, strict=False)
    return sum(ran)


def why_not_reestimated(model: nn.Module) -> str | None:
    """Why statistics cannot be taken anew; None where they can."""
    if _list_norms(model):
        return None
    return (
        "'batch_norm' takes running statistics anew, and the model has no batch normalisation that keeps "
        "them; take 'least_squares'"
    )


def _list_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]


def _list_ends(examples: int) -> list[int]:
    """Where each batch ends. A single example left over joins the batch before, as it has no variance."""
    ends = [*range(CHUNK, examples, CHUNK), examples]
    if len(ends) > 1 and ends[-1] - ends[-2] == 1:
        del ends[-2]
    return ends


def _average(norms: list[nn.modules.batchnorm._BatchNorm], batches: int, processes: Any) -> None:
    """Means over the batches of all processes."""
    if processes is None:
        return
    everywhere = sum(counts_of(batches, processes))
    for norm in norms:
        for value in (norm.running_mean, norm.running_var):
            assert value is not None
            value.copy_(add_over_processes(value * batches, processes) / everywhere)
