"""Calls that need values, on a model that has only shapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.planning.plan import Plan

RECIPE = {
    "version": 1,
    "title": "shapes",
    "rules": [
        {
            "layers": "0",
            "group": "neuron",
            "sparsity": "50%",
            "penalty": {"kind": "group_lasso", "strength": 0.1},
        }
    ],
}
REASON = (
    "on the meta device, without values: '0.weight' and 3 others; such a model can be planned and "
    "nothing else; load its weights first (model.to_empty(device='cpu'), then model.load_state_dict)"
)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "use",
    [
        lambda plan, model, x: sparsify.cut(plan, model),
        lambda plan, model, x: sparsify.attach(plan, model, make_optimizer(model)),
        lambda plan, model, x: sparsify.evaluate(model, [(x, torch.tensor([0, 1]))]),
        lambda plan, model, x: sparsify.calibrate(model, [x]),
        lambda plan, model, x: sparsify.bench(model, model, (x,), seconds=0.01),
    ],
    ids=["cut", "attach", "evaluate", "calibrate", "bench"],
)
def test_what_needs_values_says_so_of_a_model_on_the_meta_device(
    use: Callable[[Plan, nn.Module, torch.Tensor], Any],
) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to("meta")
    x = torch.zeros(2, 4)
    plan = sparsify.make_plan(RECIPE, model, (x.to("meta"),))
    with pytest.raises(ModelError) as raised:
        use(plan, model, x)
    assert str(raised.value) == REASON


def test_one_tensor_without_values_is_named_alone() -> None:
    model = nn.Linear(4, 2)
    model.bias = nn.Parameter(torch.empty(2, device="meta"))
    with pytest.raises(ModelError, match=r"^on the meta device, without values: 'bias'; such a model"):
        sparsify.evaluate(model, [(torch.zeros(1, 4), torch.tensor([0]))])
