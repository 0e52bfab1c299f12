"""From recipe text to a validated Recipe, with every complaint at its line and column. Imports no torch.

reading -> composing -> merging -> overrides -> variables -> presets -> limits -> pydantic -> explaining -> checks
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as File
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from sparsify.errors import Problem, RecipeError
from sparsify.recipe.checks import check
from sparsify.recipe.dump_yaml import dump
from sparsify.recipe.extends import Merged, merge, read
from sparsify.recipe.from_python import HERE, from_python
from sparsify.recipe.limits_file import Origin, limited
from sparsify.recipe.nodes import Node, Path, Place, Table, places, plain
from sparsify.recipe.overrides import override
from sparsify.recipe.target_presets import named, presets
from sparsify.recipe.validation_messages import explain
from sparsify.recipe.variables import Filled, fill, unused
from sparsify.recipe.wording import found
from sparsify_schemas.recipe import Recipe

__all__ = ["NOWHERE", "Loaded", "Origin", "Place", "Positions", "dump", "load", "presets"]


@dataclass(frozen=True)
class Positions:
    """Where each part of a recipe is written, for messages; nowhere where it was made in Python."""

    file: str = HERE.file
    """as the user named it; `<recipe>` for one made in Python"""
    places: Mapping[Path, Place] = field(default_factory=dict)
    origins: tuple[Origin, ...] = ()
    """where limits are from, of rules that name a file"""

    def problem(self, path: str, message: str, hint: str = "") -> Problem:
        """A complaint about `rules.0.layers`, at its line or that of the nearest entry around it."""
        known = {".".join(map(str, parts)): place for parts, place in self.places.items()}
        around = path
        while around not in known and around:
            around = around.rpartition(".")[0]
        return known.get(around, Place(self.file)).problem(path, message, hint)


NOWHERE = Positions()


@dataclass(frozen=True)
class Loaded:
    """A valid recipe as it was read."""

    recipe: Recipe
    data: dict[str, Any]
    """the resolved mapping: parents merged, variables filled in, overrides applied"""
    positions: Positions


def load(
    source: str | File | Mapping[str, Any] | Recipe | Loaded,
    overrides: Sequence[str] = (),
    *,
    limits: bool = True,
) -> Loaded:
    """Read, resolve and check a recipe. No model is needed, and torch is not imported.

    Args:
        source: The path of a YAML file, a mapping, or a recipe that is loaded already.
        overrides: `path.to.key=value` pairs that replace values of the recipe.
        limits: Whether files of limits (`keep: {limits: FILE}`) are read. Else such limits are left out.

    Returns:
        The valid recipe with variables, parents and presets resolved, and the line and column of every key.

    Raises:
        RecipeError: Something is wrong. It carries every problem found, each with its place.

    Examples:
        >>> loaded = sparsify.load_recipe(recipe, ["title=smaller", "rules.0.sparsity=75%"])
        >>> loaded.recipe.title
        'smaller'
        >>> sparsify.load_recipe({**recipe, "budgte": {"macs": "40%"}})
        Traceback (most recent call last):
        sparsify.errors.RecipeError: <recipe>: budgte: unknown key; did you mean 'budget'?
    """
    if isinstance(source, Loaded) and not overrides:
        return source
    merged = _merged(source)
    root, refused = override(merged.root, overrides)
    filled = fill(root, unused(merged.root, merged.own))
    placed, unnamed = named(filled.root)
    whole = limited(placed, limits)
    filled = replace(filled, root=whole.root)
    problems = [*merged.problems, *refused, *filled.problems, *unnamed, *whole.problems]
    recipe = _validated(filled, problems)
    file = (
        source.positions.file
        if isinstance(source, Loaded)
        else str(source)
        if isinstance(source, str | File)
        else HERE.file
    )
    known = MappingProxyType(dict(places(filled.root)))
    return Loaded(recipe, plain(filled.root), Positions(file, known, whole.origins))


def _merged(source: str | File | Mapping[str, Any] | Recipe | Loaded) -> Merged:
    match source:
        case Loaded(data=data, positions=Positions(places=known)):
            return Merged(_table(from_python(data, literal=True, places=known)), ())
        case Recipe():
            return Merged(_table(from_python(source, literal=True)), ())
        case Mapping():
            return merge(_table(from_python(source)), HERE.file)
        case str() | File():
            return read(str(source))
    raise RecipeError([HERE.problem("", f"expected a file, a mapping or a recipe, found {found(source)}")])


def _table(root: Node) -> Table:
    assert isinstance(root, Table)
    return root


def _validated(filled: Filled, problems: list[Problem]) -> Recipe:
    """The recipe, or every problem at once: those found before, pydantic's, and those of the whole."""
    try:
        recipe = Recipe.model_validate(plain(filled.root), by_alias=True, by_name=False)
    except ValidationError as error:
        told = {problem.path for problem in problems if problem.path}
        raise RecipeError([*problems, *(p for p in explain(error, filled) if p.path not in told)]) from None
    problems += check(recipe, filled.root)
    if problems:
        raise RecipeError(problems)
    return recipe
