"""What a recipe must fulfil beyond the shape of each entry, and needs no model to be judged."""

from collections.abc import Iterator

from sparsify.errors import Problem
from sparsify.recipe.builders import missing
from sparsify.recipe.nodes import Table, place_of
from sparsify_schemas.recipe import Recipe, Rule


def check(recipe: Recipe, root: Table) -> list[Problem]:
    """Rules that speak of the same layers and group as an earlier one, and a builder that sparsify does not have."""
    problems = list(_builder(recipe, root))
    for later, rule in enumerate(recipe.rules):
        earlier = next((i for i, other in enumerate(recipe.rules[:later]) if _same(other, rule)), None)
        if earlier is not None and not rule.override:
            path = ("rules", later)
            what = (
                "protects the same layers"
                if rule.protect
                else f"claims the same layers and group '{rule.group}'"
            )
            problems.append(
                place_of(root, path).problem(
                    path,
                    f"{what} as rules.{earlier}",
                    "remove one of the two, or write 'override: true' into the later one",
                )
            )
    return problems


def _builder(recipe: Recipe, root: Table) -> Iterator[Problem]:
    message, hint = missing(recipe.model.build) if recipe.model is not None else ("", "")
    if message:
        yield place_of(root, ("model", "build")).problem("model.build", message, hint)


def _same(a: Rule, b: Rule) -> bool:
    return set(a.layers) == set(b.layers) and a.group == b.group and a.protect == b.protect
