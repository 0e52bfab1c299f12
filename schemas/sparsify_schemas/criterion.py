"""Criteria: the importance of a group when it must be decided which go."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, final

from pydantic import Field

from sparsify_schemas.base import Flag, Positive, Spec

Role = Literal["in", "out", "whole"]
Divisor = Literal["none", "mean", "max", "sum", "l2"]
Normalize = Literal[Divisor, "size"]
"""what the scores of a layer are divided by, so that those of different layers are comparable"""


@dataclass(frozen=True)
class Facts:
    """What a criterion says of itself, so that nothing else needs to know which criterion it is."""

    roles: frozenset[Role] = frozenset({"in", "out", "whole"})
    """the slices by which it judges a unit: of its producers ("out"), of its consumers ("in"), of a residual
    branch"""
    sees: Literal["weights", "gradients", "gradients of examples", "inputs", "model"] = "weights"
    """what it looks at: the weights alone; the gradients of the loss on each batch, or on each example; the
    root mean square of what arrives at each layer; or the model, in ways of its own"""


class CriterionSpec(Spec):
    """What every criterion has: the facts that the rest of the program asks for."""

    @abstractmethod
    def facts(self) -> Facts:
        """What is to be known of it besides the scores, which `group_scores` and `weight_scores` of sparsify
        compute."""


@final
class Magnitude(CriterionSpec):
    """s_g = sum over w in g of |w|^p, over every slice of the group.

    Additive over the slices, as the cost is that a budget compares it with. `size` divides by |g|, `mean`,
    `max`, `sum` and `l2` by the mean, the largest, the sum and the Euclidean norm of the layer's own scores.
    Source: Li et al., arXiv:1608.08710 (p = 1, the filter alone).
    """

    kind: Literal["magnitude"]
    norm: Literal[1, 2] = 2
    """p: 1 sums magnitudes, 2 sums squares"""
    normalize: Normalize = "none"
    """how scores of different layers are made comparable"""

    def facts(self) -> Facts:
        return Facts()


@final
class Lamp(CriterionSpec):
    """s_u = n_u / sum over v of the same layer with n_v >= n_u of n_v,   n = w^2, or the sum of squares of a
    group.

    Makes layers comparable without a knob: the last one standing of each layer scores 1.
    Source: Lee et al., arXiv:2010.07611, equation 4 (single weights).
    """

    kind: Literal["lamp"]

    def facts(self) -> Facts:
        return Facts()


@final
class BnScale(CriterionSpec):
    """s_g = sum of |scale| of the normalisations whose channel leaves with the group.

    For coupled groups that all have such a normalisation. Source: Liu et al., arXiv:1708.06519.
    """

    kind: Literal["bn_scale"]

    def facts(self) -> Facts:
        return Facts()


@final
class Fpgm(CriterionSpec):
    """s_g = D_g / mean of D over the layer,   D_g = sum over the other filters h of the layer of ||w_g -
    w_h||_2.

    What lies near the geometric median of its layer can be replaced by the others, however large it is.
    Filters, neurons,
    heads, hidden units by the weights that produce them; groups inside a tensor among themselves.
    Source: He et al., arXiv:1811.00250, equation 6 (the mean makes layers comparable).
    """

    kind: Literal["fpgm"]

    def facts(self) -> Facts:
        return Facts(roles=frozenset({"out"}))


class FromData(CriterionSpec):
    """What every criterion has that looks at training data."""

    batches: Positive = 16
    """how many training batches are looked at"""


@final
class Taylor(FromData):
    """s_g = mean over batches of | sum over w in g of w * dL/dw |, the first-order change of the loss when g
    goes.

    `size` divides by |g|, `mean`, `max`, `sum` and `l2` by the mean, the largest, the sum and the Euclidean
    norm of the layer's own scores; each layer then counts alike, however much the loss feels of it.
    Needs training data. Source: Molchanov et al., arXiv:1906.10771, equation 8 (absolute value in place of
    the square); `l2` is that of arXiv:1611.06440, section 2.2.
    """

    kind: Literal["taylor"]
    normalize: Normalize = "none"
    """how scores of different layers are made comparable"""

    def facts(self) -> Facts:
        return Facts(sees="gradients")


@final
class Fisher(FromData):
    """s_g = mean over examples of 1/2 * ( sum over w in g of w * dL/dw )^2, the second-order change of the
    loss when g goes.

    Needs training data, one backward pass an example. Source: Theis et al., arXiv:1801.05787 (without its
    term of cost, which a budget weighs).
    """

    kind: Literal["fisher"]
    batches: Positive = 4
    """how many training batches are looked at, example by example"""

    def facts(self) -> Facts:
        return Facts(sees="gradients of examples")


@final
class Sensitivity(FromData):
    """s_g = mean over batches of sum over w in g of | w * dL/dw |, what the loss feels of each weight by
    itself.

    Needs training data. Source: Lee et al., arXiv:1810.02340 (at initialisation); |dL/dw| alone is the
    sensitivity of Tartaglione et al., arXiv:2011.09905.
    """

    kind: Literal["sensitivity"]

    def facts(self) -> Facts:
        return Facts(sees="gradients")


@final
class Activation(FromData):
    """s_g = mean over the consumers' input slices of the root mean square of what arrives there: units that
    send little go.

    `mean`, `max`, `sum` and `l2` divide by the mean, the largest, the sum and the Euclidean norm of the
    layer's own scores.
    Needs training data, no labels. Source: as Hu et al., arXiv:1607.03250, with the mean square in place of
    the share above zero.
    """

    kind: Literal["activation"]
    normalize: Divisor = "none"
    """how scores of different layers are made comparable"""

    def facts(self) -> Facts:
        return Facts(roles=frozenset({"in", "whole"}), sees="inputs")


@final
class Wanda(FromData):
    """s_g = sum over w in the consumers' input slices of |w| * the root mean square of the input that w
    multiplies: units that the layers behind feel little of go.

    `size` divides by |g|, `mean`, `max`, `sum` and `l2` by the mean, the largest, the sum and the Euclidean
    norm of the layer's own scores.
    Needs training data, no labels; sees convolutions and Linear layers. Source: Sun et al., arXiv:2306.11695,
    for groups as Wanda-sp of An et al., arXiv:2312.11983.
    """

    kind: Literal["wanda"]
    normalize: Normalize = "none"
    """how scores of different layers are made comparable"""

    def facts(self) -> Facts:
        return Facts(roles=frozenset({"in", "whole"}), sees="inputs")


@final
class Reconstruction(FromData):
    """s_u = what the layers that read unit u lose for good when it goes, after the best refit of their other
    inputs.

    With X the inputs of such a layer, H = X'X / n, W its weight and G the Gauss-Newton matrix of the model's
    outputs at
    its output: e_u = tr(W_u' [(H^-1)_uu]^-1 W_u G). Units go one by one, the cheapest first, and W and H^-1
    are updated;
    s_u is the slope of the curve of errors where u goes. Made for a `repair` stage behind the cut.
    Needs training data, no labels. Sees groups that convolutions (without groups) or Linear layers read.
    Source: optimal brain surgeon (Hassibi and Stork 1993) on groups of weights.
    """

    kind: Literal["reconstruction"]
    ridge: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 0.01
    """added to the diagonal of H, relative to its mean"""
    required: Flag = True
    """whether a group that it cannot score is an error: no such layer reads it, or the matrices H take more
    than 2 GiB. false: magnitude then chooses among the groups of all rules that say so, and the report says
    why"""

    def facts(self) -> Facts:
        return Facts(sees="model")


@final
class Random(CriterionSpec):
    """s_g uniform in (0, 1) from the recipe's seed: the baseline every other criterion has to beat."""

    kind: Literal["random"]

    def facts(self) -> Facts:
        return Facts()


Criterion = Annotated[
    Magnitude
    | Taylor
    | Fisher
    | Sensitivity
    | Activation
    | Wanda
    | Reconstruction
    | Lamp
    | BnScale
    | Fpgm
    | Random,
    Field(discriminator="kind"),
]
