"""scikit-learn's 1,797 digits of 8x8 pixels (UCI ML hand-written digits)."""

import torch

from sparsify.data.examples import Examples
from sparsify.errors import DataError

_TEST = 0.2


def read_digits() -> tuple[Examples, Examples]:
    """1,438 training and 359 test examples of 1x8x8 in 0..1.

    A fifth of each digit is the test set, drawn with a fixed seed, so it is the same for every recipe.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "data source digits needs scikit-learn, which is not installed: "
            "pip install 'sparsify-recipes[demo]'"
        ) from None
    loaded = load_digits()
    inputs = torch.from_numpy(loaded.images).float().div_(16)[:, None]
    examples = Examples(inputs, torch.from_numpy(loaded.target).long())
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(1797))
    by_class = [order[examples.targets[order] == c] for c in range(10)]
    kept = [round(len(members) * (1 - _TEST)) for members in by_class]
    train = torch.cat([m[:k] for m, k in zip(by_class, kept, strict=True)]).sort().values
    test = torch.cat([m[k:] for m, k in zip(by_class, kept, strict=True)]).sort().values
    return examples[train], examples[test]
