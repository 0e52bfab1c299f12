"""Penalties: what drives groups towards zero while the model trains. They act through the optimizer's step hooks."""

from typing import Annotated, Literal

from pydantic import Field

from sparsify_schemas.base import Positive, Spec
from sparsify_schemas.schedule import Scheduled

Solver = Literal["proximal", "subgradient"]


class GroupLasso(Spec):
    """Group lasso: whole groups become exactly zero.

    R = sum over groups g of strength * sqrt(|g|) * ||w_g||_2
    proximal step, after the optimizer's:  w_g <- w_g * max(0, 1 - lr * strength * sqrt(|g|) / ||w_g||)
    sub-gradient, added before it:         strength * sqrt(|g|) * w_g / ||w_g||   (0 at 0)

    Coupled groups overlap where one layer's columns are another's rows; each entry is then multiplied by the factors of
    both its groups, taken at the same point (equal to the joint proximal step up to (lr * strength)^2).
    Source: Yuan & Lin 2006; Wen et al., arXiv:1608.03665.
    """

    kind: Literal["group_lasso"]
    strength: Scheduled
    """lambda, a number or a schedule"""
    scope: Literal["coupled", "layer"] = "coupled"
    """coupled: a group is every slice that leaves with the channel (filter, bias, normalisation, consumers' columns); layer: the matched layer's own weight slice, the form of the SSL paper"""
    solver: Solver = "proximal"
    """proximal reaches exact zeros; subgradient only comes near them"""
    every: Positive = 8
    """proximal solver: act on every n-th step with the lr * strength of the n steps added up; 1 acts on each step"""


class L1(Spec):
    """l1: single weights become exactly zero.

    R = strength * sum |w|
    proximal step:  w <- sign(w) * max(0, |w| - lr * strength)
    sub-gradient:   strength * sign(w)
    Source: Tibshirani 1996; Parikh & Boyd, Proximal Algorithms, 6.5.2.
    """

    kind: Literal["l1"]
    strength: Scheduled
    """lambda, a number or a schedule"""
    solver: Solver = "proximal"
    """proximal reaches exact zeros; subgradient only comes near them"""
    every: Positive = 8
    """proximal solver: act on every n-th step with the lr * strength of the n steps added up; 1 acts on each step"""


class L2(Spec):
    """l2: weights shrink in proportion, none becomes exactly zero.

    R = strength / 2 * sum w^2
    proximal step:  w <- w / (1 + lr * strength)
    gradient:       strength * w
    Source: Tikhonov regularisation; Parikh & Boyd, Proximal Algorithms, 6.1.1.
    """

    kind: Literal["l2"]
    strength: Scheduled
    """lambda, a number or a schedule"""
    solver: Solver = "proximal"
    """proximal is decoupled from momentum, subgradient is classical weight decay"""
    every: Positive = 8
    """proximal solver: act on every n-th step with the lr * strength of the n steps added up; 1 acts on each step"""


Penalty = Annotated[GroupLasso | L1 | L2, Field(discriminator="kind")]
