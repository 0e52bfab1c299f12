"""`sparsify recipes`: list the recipes that ship with the package."""

import re
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from sparsify.formatting.table import Table, make_columns
from sparsify.recipe import load
from sparsify_cli.render import show, show_json
from sparsify_cli.shipped import SCHEMA_LINE, find_recipe, modules_beside, recipe_names

_COMMENT = re.compile(r"^# ?", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z])")
_NOTES = (
    "digits comes with scikit-learn. mnist and cifar10 are files; when they "
    "are missing, a run names the command "
    "that brings them.",
    "package:function is a Python file that is copied along (but for sparsify's own); "
    "its first lines name the data that it reads.",
    "Copy one: sparsify init --from NAME",
)


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe of the package, as it is listed."""

    name: str
    title: str
    about: str
    """first sentence of the comment at its head"""
    data: str | None
    """its `data.source`"""
    reference: str | None
    modules: tuple[str, ...]
    """Python files that are copied along"""


def command(
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """List the recipes that ship with the package: name, the data that each needs, title and purpose."""
    recipes = [_describe(name) for name in recipe_names()]
    if as_json:
        show_json([asdict(recipe) for recipe in recipes])
        return
    rows: list[tuple[str, ...]] = []
    for recipe in recipes:
        rows.append((recipe.name, recipe.data or "-", recipe.title))
        rows.append(("", "", recipe.about))
    show(Table("Recipes", make_columns("name", "data", "title and purpose"), tuple(rows), _NOTES))


def _describe(name: str) -> ShippedRecipe:
    file = find_recipe(name)
    recipe = load(file).recipe
    return ShippedRecipe(
        name=name,
        title=recipe.title,
        about=_first_sentence(file.read_text(encoding="utf-8")),
        data=recipe.data.source if recipe.data else None,
        reference=recipe.reference,
        modules=tuple(module.name for module in modules_beside(file)),
    )


def _first_sentence(text: str) -> str:
    """The first sentence of the comment below the line for editors."""
    comment = text.split("\nversion:")[0].removeprefix(SCHEMA_LINE)
    paragraphs = _COMMENT.sub("", comment).strip().split("\n\n")
    prose = " ".join(paragraphs[0].split())
    return _SENTENCE_END.split(prose)[0]
