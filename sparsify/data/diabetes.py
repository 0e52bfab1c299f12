"""Tables that come with scikit-learn: rows of numbers, and a number for each row."""

import torch
from torch import Tensor

from sparsify.errors import DataError

Pair = tuple[Tensor, Tensor]
"""rows [N, F] and targets [N, 1]"""


def diabetes() -> tuple[Pair, Pair]:
    """353 and 89 patients: ten measurements, each of mean 0 and deviation 1, and how the disease went on a
    year later.

    Targets are in units of the deviation of all targets, 77.1, from their mean. The test set is drawn with a
    fixed seed. Source: Efron et al., Least Angle Regression, 2004.

    Raises DataError without scikit-learn.
    """
    try:
        from sklearn.datasets import load_diabetes
    except ImportError:
        raise DataError(
            "sparsify.data.diabetes:diabetes needs scikit-learn, which is not installed: "
            "pip install 'sparsify-recipes[demo]'"
        ) from None
    rows, targets = load_diabetes(return_X_y=True)
    x, y = _scale(torch.from_numpy(rows)), _scale(torch.from_numpy(targets)[:, None])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(442))
    train, test = order[:353], order[353:]
    return (x[train], y[train]), (x[test], y[test])


def _scale(columns: Tensor) -> Tensor:
    return ((columns - columns.mean(dim=0)) / columns.std(dim=0)).float()
