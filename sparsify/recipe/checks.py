"""Checks of a recipe as a whole that need no model."""

from collections.abc import Iterator

from sparsify.errors import Problem
from sparsify.recipe.builders import find_problem
from sparsify.recipe.nodes import Table, find_place
from sparsify_schemas.recipe import Recipe


def check_recipe(recipe: Recipe, root: Table) -> list[Problem]:
    """Problems of rules that repeat the layers and group of an earlier one, and of an unknown builder."""
    problems = list(_check_builder(recipe, root))
    first: dict[tuple[frozenset[str], object, bool], int] = {}
    for later, rule in enumerate(recipe.rules):
        earlier = first.setdefault((frozenset(rule.layers), rule.group, rule.protect), later)
        if earlier != later and not rule.override:
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
