"""The recipes that come with sparsify: each reads without a complaint, says how it was measured, and
stands in the docs."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from torch import nn

import sparsify
from sparsify.pruning.cut import Result
from sparsify.recipe import load
from sparsify_schemas.cuts import Zero
from sparsify_schemas.task import Task

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
sys.path.append(str(ROOT / "recipes"))

SHAPES = {
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "digits": (1, 8, 8),
    "ecg5000:load": (140, 1),
    "sparsify.data.scenes:digit_boxes": (3, 64, 64),
    "sparsify.data.scenes:digit_masks": (3, 64, 64),
    "sparsify.data.scenes:digit_labels": (3, 32, 32),
    "sparsify.data.diabetes:diabetes": (10,),
}
"""What one example of a recipe's data looks like."""
OF_TRANSFORMERS = {"minilm-movie-reviews", "llama-movie-reviews"}
"""recipes of large networks: tests/integration/test_hugging_face.py compares such cuts with the reference"""
DEAR = {"resnet18-fashion-mnist", "resnet56-cifar10-latency", "resnet56-cifar10-oneshot"}
"""recipes whose cut takes long: the largest network, one that times layers, and one of 110 layers"""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reads_and_its_header_carries_the_command_and_the_measurement(recipe: Path) -> None:
    load(recipe)
    header = recipe.read_text().split("\nversion:")[0]
    assert any("sparsify apply " in line and recipe.name in line for line in header.splitlines())
    assert "Measured" in header


def test_the_docs_list_every_recipe() -> None:
    table = (ROOT / "docs" / "figures" / "recipes.md").read_text()
    assert [r.name for r in RECIPES if f"](../../recipes/{r.name})" not in table] == []


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(path, marks=pytest.mark.nightly if path.stem in DEAR else ())
        for path in RECIPES
        if path.stem not in OF_TRANSFORMERS
    ],
    ids=lambda path: path.stem,
)
def test_the_cut_of_a_recipe_agrees_with_the_reference(recipe: Path) -> None:
    """On random weights, planned with one example, on fresh inputs at batch 1 and 4; see
    tests/reference.py."""
    plain = load(recipe).recipe
    assert plain.model is not None and plain.data is not None
    module, _, builder = plain.model.build.replace(":", ".").rpartition(".")
    torch.manual_seed(0)
    model = getattr(import_module(module), builder)(**plain.model.args).eval()
    with torch.no_grad():  # of one scale, or a rule on the smallest weights of all layers empties one of them
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
    shape = SHAPES[str(plain.data.source)]
    inputs = [torch.randn(2, *shape) for _ in range(20)]
    batches = [(x, targets_of(plain.task, x)) for x in inputs]
    plan = sparsify.make_plan(recipe, model, (torch.randn(1, *shape),))
    result = sparsify.cut(plan, model, batches=batches)
    for batch in (1, 4):
        x = (torch.randn(batch, *shape),)
        if all(rule.group == "weight" for rule in plain.rules):
            assert reference.to_dense(result, without_small_weights(model, result), x) <= 1e-6
        else:
            assert reference.difference(result, model, x) <= 1e-6


def targets_of(task: Task, x: torch.Tensor) -> Any:
    """Targets of two examples, as the task takes them."""
    match task.kind:
        case "multilabel":
            return torch.randint(2, (2, 10)).float()
        case "regression":
            return x if x.dim() == 4 else torch.randn(2, 1)
        case "segmentation":
            return torch.randint(11, (2, *x.shape[2:]))
        case "own":
            one = {"boxes": torch.tensor([[4.0, 8, 24, 30]]), "labels": torch.tensor([3])}
            return [one, one]
        case _:
            return torch.tensor([0, 1])


def without_small_weights(model: nn.Module, result: Result) -> nn.Module:
    """The dense model without as many of its smallest weights as the rule set to zero. Units that are dead
    by then emit constants, which go into the biases of their consumers."""
    (done,) = result.cuts.zeroed or [None]
    if done is None or not done.zeros:
        return model
    ruled = [model.get_parameter(op.tensor) for op in result.cuts.operations if isinstance(op, Zero)]
    sizes = torch.cat([weight.detach().abs().flatten() for weight in ruled])
    least = sizes.kthvalue(done.zeros).values
    with torch.no_grad():
        for weight in ruled:
            weight.mul_(weight.abs() > least)
    return model
