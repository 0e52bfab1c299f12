"""Criteria: the importance of a group when it must be decided which go."""

from typing import Annotated, Literal

from pydantic import Field

from sparsify_schemas.base import Positive, Spec


class Magnitude(Spec):
    """s_g = ||w_g||_p / n(g), over every slice of the group.

    n(g) = |g|^(1/p) for `size`, the mean of the layer's own scores for `mean`, 1 for `none`.
    Source: Li et al., arXiv:1608.08710 (p = 1).
    """

    kind: Literal["magnitude"]
    norm: Literal[1, 2] = 2
    """p of the norm"""
    normalize: Literal["size", "mean", "none"] = "size"
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
