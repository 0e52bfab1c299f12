"""The parameters of a search as overrides of the recipe, and whether every one of them can be set."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sparsify.errors import Problem, RecipeError
from sparsify.recipe.dump_yaml import escape
from sparsify.recipe.nodes import Place, Table, find_child
from sparsify.recipe.overrides import apply_overrides
from sparsify_schemas.recipe import Recipe

Read = Callable[[Table], Recipe]
"""Reads the recipe of a tree; raises RecipeError."""


def write_overrides(values: Mapping[str, Any]) -> list[str]:
    """`path.to.key=value` for each parameter, as `load` takes them."""
    return [
        f"{name}={json.dumps(_escape_texts(value), ensure_ascii=False)}" for name, value in values.items()
    ]


def _escape_texts(value: Any) -> Any:
    match value:
        case str():
            return escape(value)
        case list() | tuple():
            return list(map(_escape_texts, value))
        case dict():
            return {key: _escape_texts(entry) for key, entry in value.items()}
        case _:
            return value


def check_parameters(recipe: Recipe, root: Table, read: Read) -> None:
    """Raises RecipeError where a parameter of the search names no key, takes a value that does not fit it, or
    changes what trials are judged by.

    Each end of a range and each choice is set alone, in the recipe as it is written.
    """
    assert recipe.search is not None
    problems = [
        problem
        for name, parameter in recipe.search.parameters.items()
        for problem in _check_parameter(name, parameter.list_extremes(), recipe, root, read)
    ]
    if problems:
        raise RecipeError(problems)


def _check_parameter(
    name: str, values: tuple[Any, ...], recipe: Recipe, root: Table, read: Read
) -> Iterator[Problem]:
    path, place = f"search.parameters.{name}", _find_place(root, name)
    plain = root.without("search")
    for value in values:
        changed, problems = apply_overrides(plain, write_overrides({name: value}))
        if problems:
            yield place.problem(path, problems[0].message, problems[0].hint)
            return
        if "search" in changed.entries:
            yield place.problem(path, "a search cannot change itself", "leave it out")
            return
        try:
            found = read(changed)
        except RecipeError as error:
            own = [one for one in error.problems if _is_about(one, name)]
            if own:
                shown = json.dumps(value, ensure_ascii=False)
                yield place.problem(path, f"with {shown}: {own[0].path}: {own[0].message}", own[0].hint)
                return
            continue
        fixed = _find_fixed(recipe, found)
        if fixed:
            yield place.problem(
                path,
                f"it changes '{fixed}', which all trials have in common, as they are compared by it",
                "leave it out",
            )
            return


def _find_place(root: Table, name: str) -> Place:
    """Where the recipe names a parameter."""
    parameters = find_child(find_child(root, "search"), "parameters")
    return parameters.key_place(name) if isinstance(parameters, Table) else root.place


def _is_about(problem: Problem, name: str) -> bool:
    """Whether a problem is of what a parameter sets; that of a variable may be anywhere."""
    is_variable = "." not in name or name.startswith("vars.")
    return is_variable or f"{problem.path}.".startswith(f"{name}.")


def _find_fixed(recipe: Recipe, changed: Recipe) -> str:
    """The key of what trials are judged by that a parameter has changed, '' where there is none."""
    for key in ("version", "title", "seed", "task"):
        if getattr(recipe, key) != getattr(changed, key):
            return key
    for key in ("source", "root", "validation", "split"):
        if getattr(recipe.data, key) != getattr(changed.data, key):
            return f"data.{key}"
    return ""
