"""The optimizer that a recipe names."""

import pytest
from torch import nn

from sparsify.training.optimizers import make_optimizer
from sparsify_schemas.stage import Optimizer, Train

SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
ADAM = {"kind": "adam", "lr": 1e-2}


def optimizer_of(spec: dict) -> Optimizer:
    stage = {"kind": "train", "name": "learn", "epochs": 3, "batch": 16, "optimizer": spec}
    return Train.model_validate(stage).optimizer


@pytest.mark.parametrize(
    "spec", [SGD, ADAM, {"kind": "adamw", "betas": [0.8, 0.9], "weight_decay": 0.1}], ids=lambda o: o["kind"]
)
def test_optimizers_are_torchs_own(spec):
    made = make_optimizer(optimizer_of(spec), nn.Linear(2, 2))
    assert type(made).__name__.lower() == spec["kind"]
    for name in set(spec) - {"kind", "lr"}:
        found = made.param_groups[0][name]
        assert (list(found) if isinstance(found, tuple) else found) == spec[name]


def test_parameters_without_gradient_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert len(make_optimizer(optimizer_of(SGD), model).param_groups[0]["params"]) == 2
