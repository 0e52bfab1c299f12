"""Running statistics of batch normalisation, taken anew from what a cut model computes."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sparsify.distributed import add_over_processes, counts_of
from sparsify.forward.call_model import call_model
from sparsify.forward.calls import Inputs
from sparsify.pruning.repair.agreement import CHUNK, take_examples
from sparsify.pruning.repair.calibration_examples import collect_examples


def calibrate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Take the running mean and variance of each batch normalisation anew, from what the model computes.

    Of use after a cut that is not repaired by least squares, and after changes of your own.

    Args:
        model: The model, whose statistics change in place.
        batches: Training examples, unlabelled or not: tensors, mappings of tensors, or (x, y) pairs.

    Returns:
        How many normalisations there are.

    Raises:
        ModelError: There are no batches.

    Source: re-calibration of batch normalisation after a cut (EagleEye, arXiv:2007.02491).

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> sparsify.calibrate(net, [torch.randn(32, 4) + 1])
        1
    """
    inputs, count = collect_examples(batches, sys.maxsize)
    return reestimate_statistics(model, inputs, count)


def reestimate_statistics(model: nn.Module, inputs: Inputs, examples: int, processes: Any = None) -> int:
    """Set the running mean and variance of each batch normalisation to their means over batches of `CHUNK`
    examples.

    Everything else runs in eval mode. Of several processes, each of which has other examples, the means over
    all their batches are taken. Returns how many normalisations there are.

    Source: re-calibration of batch normalisation after a cut (EagleEye, arXiv:2007.02491).
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean over all batches
        norm.train()
    try:
        with torch.no_grad():
            for start in range(0, examples, CHUNK):
                call_model(model, take_examples(inputs, examples, start, start + CHUNK))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    _average(norms, -(-examples // CHUNK), processes)
    return len(norms)


def _average(norms: list[nn.modules.batchnorm._BatchNorm], batches: int, processes: Any) -> None:
    """Means over the batches of all processes."""
    if processes is None:
        return
    everywhere = sum(counts_of(batches, processes))
    for norm in norms:
        for value in (norm.running_mean, norm.running_var):
            assert value is not None
            value.copy_(add_over_processes(value * batches, processes) / everywhere)
