"""Ridge regression against its definition: the gradient of the penalised sum of squares is zero."""

import pytest
import torch

from sparsify.pruning.repair.regression import Fit, fit_intercept, fit_ridge, mean_square

GENERATOR = torch.Generator().manual_seed(0)


def problem(
    rows: int, columns: int, groups: int = 1, outputs: int = 3
) -> tuple[torch.Tensor, torch.Tensor, Fit]:
    x = torch.randn(rows, groups, columns, generator=GENERATOR) + 1
    y = torch.randn(rows, groups, outputs, generator=GENERATOR) - 2
    weight = torch.randn(groups, columns, outputs, generator=GENERATOR, dtype=torch.float64)
    return x, y, Fit(weight, torch.zeros(groups, outputs, dtype=torch.float64))


@pytest.mark.parametrize(("rows", "columns"), [(50, 7), (7, 50), (20, 20)])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_the_fit_is_the_minimum_of_the_penalised_squares(
    rows: int, columns: int, groups: int, ridge: float
) -> None:
    """|Yc - Xc W|^2 + l |W - W0|^2 has no gradient at W, group by group, with centred Xc and Yc."""
    x, y, start = problem(rows, columns, groups)
    fit = fit_ridge(x, y, start, ridge)
    for group in range(groups):
        xc = x[:, group].double() - x[:, group].double().mean(0)
        yc = y[:, group].double() - y[:, group].double().mean(0)
        strength = ridge * xc.square().sum(0).mean()
        weight = fit.weight[group].clone().requires_grad_()
        loss = (yc - xc @ weight).square().sum() + strength * (weight - start.weight[group]).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        assert float(gradient.abs().max()) < 1e-4 * float(loss.detach())
        residual = y[:, group].double() - x[:, group].double() @ fit.weight[group] - fit.intercept[group]
        assert torch.allclose(residual.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5)


def test_without_an_intercept_the_present_one_is_used() -> None:
    x, y, start = problem(60, 4)
    start = Fit(start.weight, torch.full((1, 3), 0.5, dtype=torch.float64))
    fit = fit_ridge(x, y, start, 1e-9, intercept=False)
    wanted = torch.linalg.lstsq(x[:, 0].double(), y[:, 0].double() - 0.5).solution
    assert torch.equal(fit.intercept, start.intercept)
    assert torch.allclose(fit.weight[0], wanted, atol=1e-4)


def test_what_the_weights_explain_already_stays() -> None:
    x, _, start = problem(40, 6)
    y = torch.einsum("rgc,gco->rgo", x.double(), start.weight).float() + 3
    fit = fit_ridge(x, y, start, 0.01)
    assert torch.allclose(fit.weight, start.weight, atol=1e-4)
    assert torch.allclose(fit.intercept, torch.full((1, 3), 3.0, dtype=torch.float64), atol=1e-4)


def test_the_intercept_alone_puts_the_mean_back() -> None:
    x, y, start = problem(40, 6, groups=2)
    fit = fit_intercept(x, y, start)
    made = torch.einsum("rgc,gco->rgo", x.double(), start.weight) + fit.intercept
    assert torch.equal(fit.weight, start.weight)
    assert torch.allclose(made.mean(0), y.double().mean(0), atol=1e-5)


def test_columns_that_are_zero_keep_their_weights() -> None:
    x, y, start = problem(40, 6)
    x[:, :, 2] = 0
    fit = fit_ridge(x, y, start, 0.01)
    assert torch.allclose(fit.weight[0, 2], start.weight[0, 2])
    assert bool(torch.isfinite(fit.weight).all())


def test_the_mean_square_is_that_of_the_residual() -> None:
    x, y, start = problem(10, 4, groups=2)
    residual = y.double() - torch.einsum("rgc,gco->rgo", x.double(), start.weight) - start.intercept
    assert mean_square(x, y, start) == pytest.approx(float(residual.square().mean()), rel=1e-4)
