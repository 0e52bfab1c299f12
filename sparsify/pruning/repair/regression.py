"""Ridge regression towards given outputs, pulled to the weights that a layer has."""

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-12
"""added to the ridge, so that inputs that are zero throughout leave a system that can be solved"""


@dataclass(frozen=True)
class Fit:
    """A linear map per group of a layer.

    weight: [groups, inputs, outputs]; intercept: [groups, outputs], in float64.
    """

    weight: Tensor
    intercept: Tensor


def fit_ridge(inputs: Tensor, targets: Tensor, start: Fit, ridge: float, *, intercept: bool = True) -> Fit:
    """Fit W and b of `targets = inputs W + b`, pulled towards the weights `start` has.

        W = W0 + (X'X + l I)^-1 X'(Y - X W0),    b = mean(Y) - mean(X) W,    l = ridge * mean(diag X'X)

    X and Y are centred where there is an intercept. Where there are more inputs than rows the same W is found
    from the rows: X'(X X' + l I)^-1 (Y - X W0).

    Args:
        inputs: X, [rows, groups, inputs].
        targets: Y, [rows, groups, outputs].
        start: W0; its intercept is used where the layer cannot take another one.
        ridge: relative to the mean diagonal of X'X.
        intercept: whether b may change.

    Source: ridge regression (Hoerl and Kennard 1970), with a prior mean of W0.
    """
    x, y = inputs.transpose(0, 1), targets.transpose(0, 1)
    if intercept:
        x_mean, y_mean = x.double().mean(1, keepdim=True), y.double().mean(1, keepdim=True)
        x, y = x - x_mean.to(x.dtype), y - y_mean.to(y.dtype)
    else:
        y = y - start.intercept[:, None].to(y.dtype)
    residual = y - x @ start.weight.to(x.dtype)
    rows, columns = x.shape[1], x.shape[2]
    solve = _from_columns if columns <= rows else _from_rows
    change = solve(x, residual, ridge)
    weight = start.weight + change
    if not intercept:
        return Fit(weight, start.intercept)
    return Fit(weight, (y_mean - x_mean @ weight)[:, 0])


def fit_intercept(inputs: Tensor, targets: Tensor, start: Fit) -> Fit:
    """Keep the weights and fit the intercept alone: b = mean(Y) - mean(X) W0.

    It puts the mean of what the removed inputs contributed back into the bias.
    """
    x_mean, y_mean = inputs.double().mean(0), targets.double().mean(0)
    return Fit(start.weight, y_mean - (x_mean[:, None] @ start.weight)[:, 0])


def mean_square(inputs: Tensor, targets: Tensor, fit: Fit) -> float:
    """Mean of (Y - X W - b)^2 over rows and outputs."""
    made = inputs.transpose(0, 1) @ fit.weight.to(inputs.dtype) + fit.intercept[:, None].to(inputs.dtype)
    return float((targets.transpose(0, 1) - made).square().mean())


def _from_columns(x: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """(X'X + l I)^-1 X'R, by a Cholesky decomposition in float64."""
    gram = (x.transpose(1, 2) @ x).double()
    toward = (x.transpose(1, 2) @ residual).double()
    diagonal = gram.diagonal(dim1=1, dim2=2)
    strength = ridge * diagonal.mean(1) + TINY
    diagonal += strength[:, None]
    return _solve(gram, toward)


def _from_rows(x: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """X'(X X' + l I)^-1 R, which is the same."""
    gram = (x @ x.transpose(1, 2)).double()
    diagonal = gram.diagonal(dim1=1, dim2=2)
    strength = ridge * diagonal.sum(1) / x.shape[2] + TINY
    diagonal += strength[:, None]
    return x.transpose(1, 2).double() @ _solve(gram, residual.double())


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """Of a symmetric, positive definite system; by LU where rounding has made it indefinite."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):
        solution: Tensor = torch.linalg.solve(gram, right)
    else:
        solution = torch.cholesky_solve(right, factor)
    return solution
