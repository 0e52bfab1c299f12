"""Zeroing small weights while a model trains: when it is due, and how many the validation loss can bear."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsify.distributed import gather_tensor, local_part

_PRECISION = 1000
"""bisection ends when it knows the number of weights to so fine a part of all"""


def has_plateaued(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` validation losses are all no better than the best before them."""
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


@torch.no_grad()
def zero_smallest(weights: Sequence[Tensor], loss: Callable[[], float], tolerance: float) -> float:
    """Set to zero every weight with |w| <= T and return T:
    the largest for which loss() <= (1 + tolerance) * loss() before.

    By bisection on the number of weights, to a thousandth of those that are not zero yet;
    T = 0 where none can go.
    Source: Tartaglione et al., arXiv:2011.09905.
    """
    magnitudes = torch.cat([gather_tensor(w).abs().flatten() for w in weights])
    weights = [local_part(w) for w in weights]
    kept = [w.clone() for w in weights]
    magnitudes = magnitudes[magnitudes > 0].sort().values
    bound = (1 + tolerance) * loss()

    def apply(count: int) -> float:
        threshold = float(magnitudes[count - 1]) if count else 0.0
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before).masked_fill_(before.abs() <= threshold, 0.0)
        return threshold

    low, high = 0, len(magnitudes)
    while high - low > max(1, len(magnitudes) // _PRECISION):
        middle = (low + high) // 2
        apply(middle)
        if loss() <= bound:
            low = middle
        else:
            high = middle
    return apply(low)
