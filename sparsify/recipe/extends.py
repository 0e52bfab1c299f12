"""`extends:`: a recipe on top of another, merged by key."""

import os
from dataclasses import dataclass, replace
from pathlib import Path as File

from sparsify.errors import Problem, RecipeError
from sparsify.recipe.nodes import Leaf, Node, Place, Table, to_plain
from sparsify.recipe.source_text import read_file
from sparsify.recipe.variables import declared_in
from sparsify.recipe.wording import describe_value
from sparsify.recipe.yaml_parser import read_text


@dataclass(frozen=True)
class Merged:
    """A recipe with its parents, and which variables it declares itself."""

    root: Table
    own: tuple[str, ...]
    problems: tuple[Problem, ...] = ()


def read_with_parents(file: str) -> Merged:
    """Read a recipe and what it extends; raises RecipeError where a file cannot be read at all."""
    document = read_text(read_file(file), file)
    root = _as_table(document.root, Place(file))
    try:
        return merge_parents(root, file, document.problems)
    except RecipeError as error:
        raise RecipeError([*document.problems, *error.problems]) from None


def merge_parents(root: Table, file: str, problems: tuple[Problem, ...] = ()) -> Merged:
    """Put a recipe on top of what it extends; `file` is the recipe's own, for paths relative to it."""
    own = tuple(declared_in(root))
    chain = [file]
    while "extends" in root.entries:
        parent, file, more = _read_parent(root, file, chain)
        root = _merge_nodes(root.without("extends"), parent)
        problems += more
        chain.append(file)
    return Merged(root, own, problems)


def _read_parent(root: Table, file: str, chain: list[str]) -> tuple[Table, str, tuple[Problem, ...]]:
    named = root.entries["extends"]
    if (
        not isinstance(named, Leaf)
        or not isinstance(named.value, str)
        or not named.value
        or "\0" in named.value
    ):
        raise RecipeError(
            [
                named.place.problem(
                    "extends", f"expected one file name, found {describe_value(to_plain(named))}"
                )
            ]
        )
    parent = os.path.normpath(File(file).parent / named.value)
    if _same_file(parent, chain):
        raise RecipeError(
            [named.place.problem("extends", f"goes round in a circle: {' -> '.join([*chain, parent])}")]
        )
    try:
        document = read_text(read_file(parent), parent)
    except RecipeError as error:
        problems = []
        for problem in error.problems:
            problems.append(_move_problem(named.place, problem) if problem.line is None else problem)
        raise RecipeError(problems) from None
    return _as_table(document.root, Place(parent)), parent, document.problems


def _move_problem(place: Place, problem: Problem) -> Problem:
    return place.problem("extends", f"{problem.file}: {problem.message}", problem.hint)


def _same_file(file: str, chain: list[str]) -> bool:
    return os.path.realpath(file) in [os.path.realpath(earlier) for earlier in chain]


def _as_table(root: Node | None, place: Place) -> Table:
    if root is None or (isinstance(root, Leaf) and root.value is None):
        raise RecipeError([place.problem("", "an empty recipe", "`sparsify init` writes one to start from")])
    if not isinstance(root, Table):
        raise RecipeError(
            [
                root.place.problem(
                    "",
                    f"expected a mapping at the top, found {describe_value(to_plain(root))}",
                    "a recipe begins with 'version: 1'",
                )
            ]
        )
    return root


def _merge_nodes(child: Node, parent: Node) -> Table:
    """Deep merge by key; lists, scalars and `null` replace."""
    assert isinstance(child, Table)
    assert isinstance(parent, Table)
    entries = dict(parent.entries)
    for key, entry in child.entries.items():
        below = entries.get(key)
        entries[key] = (
            _merge_nodes(entry, below) if isinstance(entry, Table) and isinstance(below, Table) else entry
        )
    return replace(child, entries=entries, keys={**parent.keys, **child.keys})
