"""Running statistics of batch normalisation, taken anew from what a cut model computes."""

import torch
from torch import nn

from sparsify.forward.call_model import call_model
from sparsify.forward.calls import Inputs
from sparsify.pruning.repair.agreement import CHUNK, take_examples


def reestimate_statistics(model: nn.Module, inputs: Inputs, examples: int) -> int:
    """Set the running mean and variance of each batch normalisation to their means over batches of `CHUNK`
    examples.

    Everything else runs in eval mode. Returns how many normalisations there are.

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
    return len(norms)
