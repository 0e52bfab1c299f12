"""What is advised where a budget cannot be reached."""

import pytest
import torch

import sparsify
from sparsify.models import digits_cnn
from sparsify.pruning.planning.feasibility import check_budget
from sparsify.pruning.planning.plan import Floor
from sparsify.recipe import load


@pytest.mark.parametrize(("least", "advice"), [(0.9, "raise it to 90.0%"), (1.012, "leave it out")])
def test_no_budget_above_the_dense_model_is_advised(least: float, advice: str) -> None:
    recipe = load(
        {
            "version": 1,
            "title": "t",
            "budget": {"latency": {"onnxruntime": "80%"}},
            "rules": [{"layers": "Conv2d", "group": "filter"}],
        }
    )
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "Conv2d", "group": "filter"}]},
        digits_cnn(),
        (torch.zeros(2, 1, 8, 8),),
    )
    (found,) = check_budget(
        recipe.positions,
        plan,
        "budget",
        recipe.recipe.budget,
        [Floor("latency.onnxruntime", 1.0, 0.8, least)],
    )
    assert found.hint.startswith(advice)
