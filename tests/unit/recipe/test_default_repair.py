"""The repair that `apply` puts behind a cut: where it stands, and where messages about other stages point."""

from pathlib import Path

from sparsify.recipe import load
from sparsify.recipe.default_repair import add_default_repair

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
    loaded = add_default_repair(load(file))
    assert [stage.name for stage in loaded.recipe.stages] == ["repair", "half", "repair of half", "tune"]
    problem = loaded.positions.problem("stages.3.epochs", "wrong")
    assert str(problem).startswith(f"{file}:8:")
    assert str(loaded.positions.problem("stages.1.name", "wrong")).startswith(f"{file}:7:")


def test_a_recipe_that_repairs_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE + "  - {kind: repair, name: again}\n")
    loaded = load(file)
    assert add_default_repair(loaded) is loaded
