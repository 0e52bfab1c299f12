"""Ridge regression towards given outputs, pulled to the weights that a layer has."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify.distributed import add_over_processes

CG_STEPS, CG_PRECISION = 100, 1e-6
"""conjugate gradients: steps at most, and the relative residual at which they end"""
TINY = 1e-12
"""added to the ridge, so that inputs that are zero throughout leave a system that can be solved"""


@dataclass(frozen=True)
class Fit:
    """A linear map per group of a layer.

    weight: [groups, inputs, outputs]; intercept: [groups, outputs], in float64.
    """

    weight: Tensor
    intercept: Tensor


def fit_ridge(
    inputs: Tensor,
    targets: Tensor,
    start: Fit,
    ridge: float,
    *,
    intercept: bool = True,
    mask: Tensor | None = None,
    processes: Any = None,
    weights: Tensor | None = None,
) -> Fit:
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
        mask: which weights may change, of the shape of W0; the others, which are zero in W0, stay.
        processes: process group, each of which has other rows; their Gram matrices are summed.
        weights: [rows], how often each row counts; means and sums are weighed by them.

    Source: ridge regression (Hoerl and Kennard 1970), with a prior mean of W0.
    """
    x, y = inputs.transpose(0, 1), targets.transpose(0, 1)
    if intercept:
        x_mean, y_mean = _mean_row(x, processes, weights), _mean_row(y, processes, weights)
        x, y = x - x_mean.to(x.dtype), y - y_mean.to(y.dtype)
    else:
        y = y - start.intercept[:, None].to(y.dtype)
    if weights is not None:
        root = weights.sqrt().to(x.dtype)[:, None]
        x, y = x * root, y * root
    residual = y - x @ start.weight.to(x.dtype)
    rows, columns = x.shape[1], x.shape[2]
    if mask is not None:
        change = _masked(x, residual, ridge, mask, processes)
    elif columns <= rows or processes is not None:
        change = _from_columns(x, residual, ridge, processes)
    else:
        change = _from_rows(x, residual, ridge)
    weight = start.weight + change
    if not intercept:
        return Fit(weight, start.intercept)
    return Fit(weight, (y_mean - x_mean @ weight)[:, 0])


def fit_intercept(inputs: Tensor, targets: Tensor, start: Fit, processes: Any = None) -> Fit:
    """Keep the weights and fit the intercept alone: b = mean(Y) - mean(X) W0.

    It puts the mean of what the removed inputs contributed back into the bias.
    """
    x_mean, y_mean = (_mean_row(rows.transpose(0, 1), processes) for rows in (inputs, targets))
    return Fit(start.weight, (y_mean - x_mean @ start.weight)[:, 0])


def mean_square(
    inputs: Tensor, targets: Tensor, fit: Fit, processes: Any = None, scales: Tensor | None = None
) -> float:
    """Mean of (Y - X W - b)^2 over rows, of all processes, and outputs; scales: [rows], multiplies each row's
    difference."""
    made = inputs.transpose(0, 1) @ fit.weight.to(inputs.dtype) + fit.intercept[:, None].to(inputs.dtype)
    missed = targets.transpose(0, 1) - made
    return mean_of_all((missed if scales is None else missed * scales[:, None]).square(), processes)


def mean_of_all(values: Tensor, processes: Any = None) -> float:
    """Mean over the elements of the tensors of all processes."""
    if processes is None:
        return float(values.mean())
    sums = torch.stack([values.double().sum(), values.new_tensor(values.numel(), dtype=torch.float64)])
    total, count = add_over_processes(sums, processes)
    return float(total / count)


def _mean_row(rows: Tensor, processes: Any, weights: Tensor | None = None) -> Tensor:
    """[groups, rows, numbers] -> their mean over the rows of all processes, [groups, 1, numbers]."""
    if processes is None and weights is None:
        return rows.double().mean(1, keepdim=True)
    counted = torch.ones(rows.shape[1], device=rows.device) if weights is None else weights
    counted = counted.double()
    total = add_over_processes((rows.double() * counted[:, None]).sum(1, keepdim=True), processes)
    return total / add_over_processes(counted.sum(), processes)


def _from_columns(x: Tensor, residual: Tensor, ridge: float, processes: Any) -> Tensor:
    """(X'X + l I)^-1 X'R, by a Cholesky decomposition in float64."""
    gram = add_over_processes((x.transpose(1, 2) @ x).double(), processes)
    toward = add_over_processes((x.transpose(1, 2) @ residual).double(), processes)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    strength = ridge * diagonal.mean(1) + TINY
    diagonal += strength[:, None]
    return _solve_system(gram, toward)


def _masked(x: Tensor, residual: Tensor, ridge: float, mask: Tensor, processes: Any) -> Tensor:
    """The same for some weights of each output alone, by conjugate gradients on all outputs at once."""
    gram = add_over_processes((x.transpose(1, 2) @ x).double(), processes)
    toward = add_over_processes((x.transpose(1, 2) @ residual).double(), processes) * mask
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal += (ridge * diagonal.mean(1) + TINY)[:, None]
    found = torch.zeros_like(toward)
    rest, direction = toward.clone(), toward.clone()
    size = start = rest.square().sum(1, keepdim=True)
    for _ in range(min(CG_STEPS, x.shape[2])):
        if bool((size <= CG_PRECISION**2 * start).all()):
            break
        step = (gram @ direction) * mask
        length = size / (direction * step).sum(1, keepdim=True).clamp_min(TINY**2)
        found += length * direction
        rest -= length * step
        smaller = rest.square().sum(1, keepdim=True)
        direction = rest + smaller / size.clamp_min(TINY**2) * direction
        size = smaller
    return found


def _from_rows(x: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """X'(X X' + l I)^-1 R, which is the same."""
    gram = (x @ x.transpose(1, 2)).double()
    diagonal = gram.diagonal(dim1=1, dim2=2)
    strength = ridge * diagonal.sum(1) / x.shape[2] + TINY
    diagonal += strength[:, None]
    return x.transpose(1, 2).double() @ _solve_system(gram, residual.double())


def _solve_system(gram: Tensor, right: Tensor) -> Tensor:
    """Of a symmetric, positive definite system; by LU where rounding has made it indefinite."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if bool(failed.any()):
        solution: Tensor = torch.linalg.solve(gram, right)
    else:
        solution = torch.cholesky_solve(right, factor)
    return solution
