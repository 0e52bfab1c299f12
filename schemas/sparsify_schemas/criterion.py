"""Criteria: the importance of a group when it must be decided which go."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, final

from pydantic import Field, field_validator, model_validator

from sparsify_schemas.base import AtKey, Callable, Flag, Positive, Spec, Text, Weigh, Whole

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

    def count_batches(self) -> int:
        """How many training batches it looks at; 0 where it needs none."""
        return 0


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

    def count_batches(self) -> int:
        return self.batches


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
    Weighed by places, H = sum w X'X / sum w with w as in a repair, and G is of the logarithm of the
    probability of classes drawn from the predictions, one for each place of these, in place of the outputs.
    Of a residual branch, group depth: the squared change of the model's outputs with a linear map of the
    shortcut, fitted to the branch, in its place. Of an expert of a mixture: the squared change of the
    outputs, to first order, with the scores that its router gives it at minus infinity.
    Needs training data, no labels. Sees groups that convolutions (without groups) or Linear layers read.
    Source: optimal brain surgeon (Hassibi and Stork 1993) on groups of weights.
    """

    kind: Literal["reconstruction"]
    ridge: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 0.01
    """added to the diagonal of H, relative to its mean"""
    weigh: Weigh | None = None
    """places: each place of what such a layer gives, as a pixel, counts in H and G by how much the
    predictions of classes depend on it; none: all count alike, and G is of the outputs. Left out: places
    where the task is segmentation and has no loss of its own"""
    required: Flag = True
    """whether a group that it cannot score is an error: no such layer reads it, the matrices H take more than
    2 GiB, or the module of a mixture is not called. false: magnitude then chooses among the groups of all
    rules that say so, and the report says why"""

    def facts(self) -> Facts:
        return Facts(sees="model")


Gradients = Literal["weights", "gradients", "gradients of examples"]
IMPORTANCES: Mapping[str, tuple[Gradients, int]] = {
    "MagnitudeImportance": ("weights", 0),
    "GroupMagnitudeImportance": ("weights", 0),
    "BNScaleImportance": ("weights", 0),
    "LAMPImportance": ("weights", 0),
    "FPGMImportance": ("weights", 0),
    "RandomImportance": ("weights", 0),
    "TaylorImportance": ("gradients", 16),
    "GroupTaylorImportance": ("gradients", 16),
    "OBDCImportance": ("gradients of examples", 4),
}
"""importance of torch-pruning -> what it looks at, and at how many batches if nothing is said"""
_OWN: tuple[Gradients, int] = ("gradients", 16)
_LAST_EXAMPLE = (
    "keeps the gradients of the last example alone: its dictionary has parameters as keys and is asked for "
    "names; use 'kind: fisher', which looks at every example"
)
_LAST_BATCH = (
    "keeps what the last batch sent alone; use 'kind: activation', which takes the mean over the batches"
)
_REFUSED: Mapping[str, str] = {
    "HessianImportance": _LAST_EXAMPLE,
    "GroupHessianImportance": _LAST_EXAMPLE,
    "ActivationImportance": _LAST_BATCH,
}


@final
class TorchPruning(CriterionSpec):
    """s_u = mean over the channels of unit u of what an importance of torch-pruning says of them.

    The importance runs as it is, on the coupled groups of this package. `TaylorImportance` finds the gradient
    of the loss in the weights, mean over the batches; `OBDCImportance` the squares of the gradients of each
    example, summed, F = sum over examples of (dL/dW)^2. A class of your own finds the former.
    Sees convolutions, Linear layers, BatchNorm and LayerNorm.
    Source: torch-pruning 1.6 (Fang et al., arXiv:2301.12900); OBDC: Wang et al., arXiv:1905.05934.
    """

    kind: Literal["torch_pruning"]
    importance: Callable
    """a class of torch-pruning: MagnitudeImportance, TaylorImportance, OBDCImportance, LAMPImportance,
    FPGMImportance, BNScaleImportance or RandomImportance; or package.module:Class of your own, called with a
    group of torch-pruning, which returns one score a channel"""
    args: dict[Text, Any] = {}
    """keyword arguments of the class, such as {p: 1, group_reduction: first, normalizer: null}"""
    batches: Whole | None = None
    """how many training batches are looked at. Left out: 16; 4, example by example, of OBDCImportance; none
    of those that look at the weights alone. 0 of a class of your own: it needs no training data"""

    @field_validator("importance")
    @classmethod
    def _is_known(cls, importance: str) -> str:
        check_importance(importance)
        return importance

    @model_validator(mode="after")
    def _looks_at_batches(self) -> "TorchPruning":
        sees, _ = IMPORTANCES.get(self.importance, _OWN)
        if sees == "weights" and self.batches is not None:
            raise AtKey("batches", f"{self.importance} looks at the weights alone; leave 'batches' out")
        if self.batches == 0 and self.importance in IMPORTANCES:
            raise AtKey("batches", f"{self.importance} looks at gradients; write at least one batch")
        return self

    def facts(self) -> Facts:
        sees, _ = IMPORTANCES.get(self.importance, _OWN)
        return Facts(sees=sees if self.count_batches() else "weights")

    def count_batches(self) -> int:
        _, usual = IMPORTANCES.get(self.importance, _OWN)
        return usual if self.batches is None else self.batches


def check_importance(name: str) -> None:
    """Refuse what is no importance of torch-pruning that can be used, and no package.module:Class. Raises
    ValueError."""
    if name in _REFUSED:
        raise ValueError(f"{name} {_REFUSED[name]}")
    if name in IMPORTANCES or ":" in name:
        return
    near = get_close_matches(name, [*IMPORTANCES, *_REFUSED], 1)
    known = f"known: {', '.join(IMPORTANCES)}, or package.module:Class"
    hint = f"did you mean '{near[0]}'?" if near else known
    raise ValueError(f"torch-pruning has no importance {name!r} that can be used; {hint}")


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
    | TorchPruning
    | Random,
    Field(discriminator="kind"),
]
