"""Criteria: the importance of a group when it must be decided which go."""

from typing import Annotated, Literal

from pydantic import Field

from sparsify_schemas.base import Positive, Spec


class Magnitude(Spec):
    """s_g = sum over w in g of |w|^p, over every slice of the group.

    Additive over the slices, as the cost is that a budget compares it with. `size` divides by |g|, `mean` by the mean
    of the layer's own scores. Source: Li et al., arXiv:1608.08710 (p = 1, the filter alone).
    """

    kind: Literal["magnitude"]
    norm: Literal[1, 2] = 2
    """p: 1 sums magnitudes, 2 sums squares"""
    normalize: Literal["none", "size", "mean"] = "none"
    """how scores of different layers are made comparable"""


class Taylor(Spec):
    """s_g = mean over batches of | sum over w in g of w * dL/dw |, the first-order change of the loss when g goes.

    Needs training data. Source: Molchanov et al., arXiv:1906.10771, equation 8 (absolute value in place of the square).
    """

    kind: Literal["taylor"]
    batches: Positive = 16
    """how many training batches are looked at"""


class Random(Spec):
    """s_g uniform in (0, 1) from the recipe's seed: the baseline every other criterion has to beat."""

    kind: Literal["random"]


Criterion = Annotated[Magnitude | Taylor | Random, Field(discriminator="kind")]
