"""What `apply` adds to a recipe about its cut, and where messages about other stages point."""

from pathlib import Path

import pytest

from sparsify.recipe import load
from sparsify.recipe.cut_defaults import add_defaults

RECIPE = """version: 1
title: T
data: {source: digits}
rules: [{layers: "*", group: filter, sparsity: 50%}]
stages:
  - {kind: train, name: repair, epochs: 1, optimizer: {kind: adam}}
  - {kind: cut, name: half}
  - {kind: train, name: tune, epochs: 1, optimizer: {kind: adam}}
"""


def test_places_move_along_with_the_stages(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    loaded = add_defaults(load(file))
    assert [stage.name for stage in loaded.recipe.stages] == ["repair", "half", "repair of half", "tune"]
    problem = loaded.positions.problem("stages.3.epochs", "wrong")
    assert str(problem).startswith(f"{file}:8:")
    assert str(loaded.positions.problem("stages.1.name", "wrong")).startswith(f"{file}:7:")


def test_a_recipe_that_repairs_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE + "  - {kind: repair, name: again}\n")
    loaded = load(file)
    assert add_defaults(loaded) is loaded


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("group: filter, sparsity: 50%", "reconstruction"),
        ("group: neuron, sparsity: 50%", "reconstruction"),
        ("group: filter, sparsity: 50%, criterion: {kind: magnitude}", "magnitude"),
        ("group: filter, sparsity: 50%, penalty: {kind: group_lasso, strength: 0.1}", "magnitude"),
        ("group: weight, sparsity: 50%", "magnitude"),
        ("group: depth, sparsity: 50%", "reconstruction"),
        ("group: expert, sparsity: 50%", "reconstruction"),
        ("group: hidden, sparsity: 50%", "magnitude"),
        ("group: filter", "magnitude"),
    ],
)
def test_the_criterion_that_a_rule_leaves_open(tmp_path: Path, rule: str, kind: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("group: filter, sparsity: 50%", rule))
    (found,) = add_defaults(load(file)).recipe.rules
    assert found.criterion.kind == kind


@pytest.mark.parametrize(
    ("stages", "kind"),
    [
        ("[{kind: cut}]", "reconstruction"),
        ("[{kind: cut, repair: false}]", "magnitude"),
        ("[{kind: cut}, {kind: repair}]", "reconstruction"),
        ("[{kind: cut}, {kind: repair, method: batch_norm}]", "magnitude"),
    ],
)
def test_the_criterion_fits_the_repair(tmp_path: Path, stages: str, kind: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.partition("stages:")[0] + f"stages: {stages}\n")
    (found,) = add_defaults(load(file)).recipe.rules
    assert found.criterion.kind == kind
