"""Checks of a recipe as a whole that need no model."""

from collections.abc import Iterator

from sparsify.errors import Problem
from sparsify.recipe.builders import find_problem
from sparsify.recipe.nodes import Table, find_place
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.rule import Rule


def check_recipe(recipe: Recipe, root: Table) -> list[Problem]:
    """Problems of rules that repeat the layers and group of an earlier one, and of an unknown builder."""
    problems = list(_check_builder(recipe, root))
    for later, rule in enumerate(recipe.rules):
        earlier = next((i for i, other in enumerate(recipe.rules[:later]) if _are_same(other, rule)), None)
        if earlier is not None and not rule.override:
            path = ("rules", later)
            what = f"claims the same layers and group '{rule.group}'"
            if rule.protect:
                what = "protects the same layers"
            problems.append(
                find_place(root, path).problem(
                    path,
                    f"{what} as rules.{earlier}",
                    "remove one of the two, or write 'override: true' in the later one",
                )
            )
    return problems


def _check_builder(recipe: Recipe, root: Table) -> Iterator[Problem]:
    message, hint = find_problem(recipe.model.build) if recipe.model is not None else ("", "")
    if message:
        yield find_place(root, ("model", "build")).problem("model.build", message, hint)


def _are_same(a: Rule, b: Rule) -> bool:
    return set(a.layers) == set(b.layers) and a.group == b.group and a.protect == b.protect
