"""The recipes that come with sparsify: each reads without a complaint, says how it was measured, and stands in README."""

from pathlib import Path

import pytest

from sparsify.load import load

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reads_and_its_header_carries_the_command_and_the_measurement(recipe: Path) -> None:
    load(recipe)
    header = recipe.read_text().split("\nversion:")[0]
    assert any("sparsify apply " in line and recipe.name in line for line in header.splitlines())
    assert "Measured" in header


def test_readme_lists_every_recipe() -> None:
    table = (ROOT / "README.md").read_text()
    assert [r.name for r in RECIPES if f"](recipes/{r.name})" not in table] == []
