"""A dense model that computes NaN or infinity is refused when it is planned, with the true cause."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError

RECIPE = {"version": 1, "title": "x", "rules": [{"layers": "0", "group": "filter"}]}
DAMAGED = "the weights are damaged, or the training that made them failed"


class Blow(nn.Module):
    """Multiplies by what overflows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1e30 * 1e30


def net(last: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    head = nn.Conv2d(8, 4, 3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), head, last or nn.Identity())


def fill(name: str, value: float, count: int | None = None) -> Callable[[nn.Module], Any]:
    return lambda model: model.state_dict()[name].view(-1)[:count].fill_(value)


CASES: dict[str, tuple[Callable[[nn.Module], Any], nn.Module | None, str]] = {
    "a variance below zero": (
        fill("1.running_var", -1.0, 1),
        None,
        f"'1.running_var' is not above zero in 1 of 8 channels, and the layer divides by its root; {DAMAGED}",
    ),
    "all variances below zero": (
        fill("1.running_var", -1e-3),
        None,
        f"'1.running_var' is not above zero in 8 of 8 channels, and the layer divides by its root; {DAMAGED}",
    ),
    "weights of 1e30": (
        fill("3.weight", 1e30, 1),
        None,
        f"'3.weight' holds weights as large as 1.0e+30, whose squares float32 cannot hold; {DAMAGED}",
    ),
    "a bias of 3e38": (
        fill("0.bias", -3e38, 1),
        None,
        f"'0.bias' holds weights as large as 3.0e+38, whose squares float32 cannot hold; {DAMAGED}",
    ),
    "outputs that overflow": (
        lambda model: None,
        Blow(),
        "the outputs of the dense model are not finite: '4' is the first layer to compute NaN or infinity; "
        "the training that made the weights may have failed, or the inputs are not its own",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cause_is_named(name: str) -> None:
    change, last, message = CASES[name]
    model = net(last)
    change(model)
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(RECIPE, model, (torch.rand(2, 3, 6, 6),))
    assert str(caught.value) == message


def test_inputs_that_are_not_finite() -> None:
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(RECIPE, net(), (torch.full((2, 3, 6, 6), torch.inf),))
    assert str(caught.value) == (
        "the example inputs are not finite ('0'); are they too large once they are normalised?"
    )
    mask = torch.zeros(2, 3, 6, 6)
    mask[..., 0] = -torch.inf
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(RECIPE, net(), (mask,))
    assert str(caught.value) == (
        "the example inputs are not finite ('0'); write -inf of a mask as booleans, or as a large negative "
        "number such as -1e9"
    )


@pytest.mark.parametrize(
    "change", [fill("1.running_var", 0.0), fill("1.running_var", 1e38), fill("1.running_mean", 1e38)]
)
def test_what_is_odd_and_computes_is_let_through(change: Callable[[nn.Module], Any]) -> None:
    model = net()
    change(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    sparsify.make_plan(RECIPE, model, (torch.rand(2, 3, 6, 6),))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(x > 0, -torch.inf)


def test_masked_outputs_are_let_through() -> None:
    sparsify.make_plan(RECIPE, net(Masked()), (torch.rand(2, 3, 6, 6),))
