"""Modules that take their own heads of what they are given for all."""

import pytest
import torch
from torch import Tensor, nn

from sparsify.nn.selected import select_given


class Given(nn.Module):
    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
        return bias


@pytest.mark.parametrize("argument", [1, "bias"])
def test_runs_of_places_repeat_for_each_example(argument: int | str) -> None:
    module = Given()
    select_given(module, argument, 0, 3, [0, 2])
    bias = torch.arange(12.0).view(6, 1, 2)
    found = module(bias, bias) if argument == 1 else module(bias, bias=bias)
    assert torch.equal(found, bias[[0, 2, 3, 5]])


def test_what_has_no_such_places_passes() -> None:
    module = Given()
    select_given(module, "bias", 1, 3, [1])
    x = torch.zeros(2)
    one = torch.ones(2, 1, 4)
    assert module(x) is None and module(x, one) is one  # given by place, not by name
    assert module(x, bias=one) is one and module(x, bias=x) is x
    assert module(x, bias=torch.zeros(2, 3)).shape == (2, 1)


def test_selections_follow_each_other() -> None:
    module = Given()
    select_given(module, 0, 0, 4, [0, 1, 3])
    select_given(module, 0, 0, 3, [1, 2])
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    module(torch.arange(4.0))
    assert seen[0].tolist() == [1.0, 3.0]
