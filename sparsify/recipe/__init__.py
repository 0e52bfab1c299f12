"""From recipe text to a validated Recipe, with every problem at its line and column. Imports no torch.

read -> compose -> merge parents -> overrides -> variables -> presets -> limits -> teachers -> pydantic ->
explain -> check
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as File
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from sparsify.errors import Problem, RecipeError
from sparsify.recipe.checks import check_recipe
from sparsify.recipe.dump_yaml import dump, dump_plain
from sparsify.recipe.extends import Merged, merge_parents, read_with_parents
from sparsify.recipe.from_python import HERE, from_python
from sparsify.recipe.limits_file import Origin, replace_limits
from sparsify.recipe.nodes import Node, Path, Place, Table, list_places, to_plain
from sparsify.recipe.overrides import apply_overrides
from sparsify.recipe.search_space import check_parameters
from sparsify.recipe.target_presets import list_presets, replace_presets
from sparsify.recipe.teacher_files import resolve_teachers
from sparsify.recipe.validation_messages import explain_errors
from sparsify.recipe.variables import Filled, fill_variables, find_unused
from sparsify.recipe.wording import describe_value
from sparsify_schemas.recipe import Recipe

__all__ = [
    "NOWHERE",
    "Loaded",
    "Origin",
    "Place",
    "Positions",
    "dump",
    "list_presets",
    "load",
    "write_source",
]


@dataclass(frozen=True)
class Positions:
    """Where each part of a recipe is written, for messages; nowhere where it was made in Python."""

    file: str = HERE.file
    """As the user named it; `<recipe>` for a recipe made in Python."""
    places: Mapping[Path, Place] = field(default_factory=dict)
    origins: tuple[Origin, ...] = ()
    """Limits files that rules name."""

    def problem(self, path: str, message: str, hint: str = "") -> Problem:
        """A problem of a path such as `rules.0.layers`, at its line or that of the nearest parent."""
        known = {".".join(map(str, parts)): place for parts, place in self.places.items()}
        enclosing = path
        while enclosing not in known and enclosing:
            enclosing = enclosing.rpartition(".")[0]
        return known.get(enclosing, Place(self.file)).problem(path, message, hint)


NOWHERE = Positions()


@dataclass(frozen=True)
class Loaded:
    """A valid recipe as it was read."""

    recipe: Recipe
    data: dict[str, Any]
    """The resolved mapping: parents merged, variables filled in, overrides applied"""
    positions: Positions


def load(
    source: str | File | Mapping[str, Any] | Recipe | Loaded,
    overrides: Sequence[str] = (),
    *,
    limits: bool = True,
    needs_rules: bool = True,
) -> Loaded:
    """Read, resolve and check a recipe. No model is needed, and torch is not imported.

    Args:
        source: The path of a YAML file, a mapping, or a recipe that is loaded already.
        overrides: `path.to.key=value` pairs that replace values of the recipe.
        limits: Whether files of limits (`keep: {limits: FILE}`) are read. Else such limits are left out.
        needs_rules: Whether the recipe must have rules. Else one that protects every layer stands in.

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
    merged = _read_source(source)
    if not needs_rules and "rules" not in merged.root.entries:
        overrides = (*overrides, 'rules=[{layers: "*", protect: true}]')
    root, override_problems = apply_overrides(merged.root, overrides)
    idle = find_unused(merged.root, merged.own)
    recipe, filled, origins = _resolve(root, idle, limits, [*merged.problems, *override_problems])
    if recipe.search is not None and not isinstance(source, Loaded | Recipe):
        # Those were checked with their variables, which are gone.
        check_parameters(recipe, root, lambda changed: _resolve(changed, (), limits, [])[0])
    known_places = MappingProxyType(dict(list_places(filled.root)))
    positions = Positions(_file_of(source), known_places, origins)
    return Loaded(recipe, to_plain(filled.root), positions)


def write_source(source: str | File | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> str:
    """A recipe as one YAML text that reads as the same recipe from anywhere.

    Parents are merged, overrides applied, limits filled in and paths of teachers absolute; variables stay.
    Raises RecipeError.
    """
    merged = _read_source(source)
    root, override_problems = apply_overrides(merged.root, overrides)
    limited = replace_limits(resolve_teachers(root), True)
    problems = [*merged.problems, *override_problems, *limited.problems]
    if problems:
        raise RecipeError(problems)
    return dump_plain(to_plain(limited.root))


def _resolve(
    root: Table, idle: Sequence[str], limits: bool, problems: list[Problem]
) -> tuple[Recipe, Filled, tuple[Origin, ...]]:
    """The recipe of a tree with its variables, that tree without them, and the limits files that it names.

    idle: variables to report if they are unused. Raises RecipeError with these and earlier problems.
    """
    filled = fill_variables(root, idle)
    placed, preset_problems = replace_presets(filled.root)
    limited = replace_limits(placed, limits)
    filled = replace(filled, root=resolve_teachers(limited.root))
    found = [*problems, *filled.problems, *preset_problems, *limited.problems]
    return _validate(filled, found), filled, limited.origins


def _file_of(source: str | File | Mapping[str, Any] | Recipe | Loaded) -> str:
    if isinstance(source, Loaded):
        return source.positions.file
    return str(source) if isinstance(source, str | File) else HERE.file


def _read_source(source: str | File | Mapping[str, Any] | Recipe | Loaded) -> Merged:
    match source:
        case Loaded(data=data, positions=Positions(places=known)):
            return Merged(_table(from_python(data, literal=True, places=known)), ())
        case Recipe():
            return Merged(_table(from_python(source, literal=True)), ())
        case Mapping():
            return merge_parents(_table(from_python(source)), HERE.file)
        case str() | File():
            return read_with_parents(str(source))
    raise RecipeError(
        [HERE.problem("", f"expected a file, a mapping or a recipe, found {describe_value(source)}")]
    )


def _table(root: Node) -> Table:
    assert isinstance(root, Table)
    return root


def _validate(filled: Filled, problems: list[Problem]) -> Recipe:
    """The recipe.

    Raises RecipeError with every problem: those found before, pydantic's, and those of the whole.
    """
    try:
        recipe = Recipe.model_validate(to_plain(filled.root), by_alias=True, by_name=False)
    except ValidationError as error:
        reported = {problem.path for problem in problems if problem.path}
        problems += [problem for problem in explain_errors(error, filled) if problem.path not in reported]
        raise RecipeError(problems) from None
    problems += check_recipe(recipe, filled.root)
    if problems:
        raise RecipeError(problems)
    return recipe
