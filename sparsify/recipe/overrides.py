"""Apply `--set path.to.key=value`."""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from sparsify.errors import Problem, RecipeError
from sparsify.recipe.nodes import DEEPEST, Items, Leaf, Node, Place, Table, find_child, join_path, to_plain
from sparsify.recipe.variables import declared_in
from sparsify.recipe.wording import describe_value, quote_text, suggest
from sparsify.recipe.yaml_parser import read_value
from sparsify_schemas.lookup import list_fields
from sparsify_schemas.recipe import Recipe

HERE: Final = Place("--set")
_PART: Final = r"""\"([^"]+)\"|'([^']+)'|([^."']+)"""
_PATH: Final = rf"""(?:{_PART})(?:\.(?:{_PART}))*"""


def apply_overrides(root: Table, overrides: Iterable[str]) -> tuple[Table, tuple[Problem, ...]]:
    """Apply the overrides in turn. Returns the tree and the problems of those that cannot be applied."""
    problems: list[Problem] = []
    for text in overrides:
        try:
            root = _apply_override(root, text)
        except RecipeError as error:
            problems += error.problems
    return root, tuple(problems)


def _apply_override(root: Table, text: str) -> Table:
    path, equals, value = text.partition("=")
    parts = _split_path(path.strip())
    if not equals or not all(parts) or len(parts) > DEEPEST:
        raise _make_problem(
            "", f"expected path.to.key=value, found {quote_text(text)}", "such as --set stages.0.epochs=3"
        )
    parts = _join_target(root, _resolve_variable(root, parts))
    changed = _put_value(root, parts, _read_value(join_path(tuple(parts)), value), ())
    assert isinstance(changed, Table)
    return changed


def _split_path(path: str) -> list[str]:
    """The parts between dots; a part in quotes may hold dots: `targets."a.b".threads`."""
    if not re.fullmatch(_PATH, path):
        return path.split(".")
    return [quoted or single or plain for quoted, single, plain in re.findall(_PART, path)]


def _join_known(known: Iterable[str], parts: list[str]) -> list[str]:
    """The parts with as many of the first ones as one as name a known key with dots."""
    for count in range(len(parts), 1, -1):
        name = ".".join(parts[:count])
        if parts[0] not in known and name in known:
            return [name, *parts[count:]]
    return parts


def _join_target(root: Table, parts: list[str]) -> list[str]:
    """`budget.latency.a.b` limits the target 'a.b' where the recipe has it, and no limit for it yet."""
    targets = root.entries.get("targets")
    if parts[:2] != ["budget", "latency"] or not isinstance(targets, Table):
        return parts
    return [*parts[:2], *_join_known(targets.entries, parts[2:])]


def _read_value(path: str, text: str) -> Node:
    try:
        document = read_value(text, HERE)
    except RecipeError as error:
        raise RecipeError([replace(problem, path=path) for problem in error.problems]) from None
    if document.problems:
        raise RecipeError([replace(problem, path=path) for problem in document.problems])
    return document.root or Leaf(None, HERE)


def _resolve_variable(root: Table, parts: list[str]) -> list[str]:
    """`epochs` means `vars.epochs` where there is such a variable and no such key of a recipe."""
    keys = [field.name for field in list_fields(Recipe)]
    variables = declared_in(root)
    match parts:
        case ["extends", *_]:
            raise _make_problem("extends", "cannot be set", "write it in a recipe")
        case ["vars", name] if name in variables:
            return parts
        case ["vars", name]:
            raise _make_problem(
                f"vars.{name}", "no such variable", suggest(name, variables) or "the recipe declares none"
            )
        case ["vars", *_]:
            raise _make_problem("vars", "one variable at a time", "such as --set vars.epochs=3")
        case [name] if name in variables and name not in keys:
            return ["vars", name]
        case [name, *_] if name not in keys:
            raise _make_problem(
                join_path(tuple(parts)), f"unknown key '{name}'", suggest(name, [*keys, *variables])
            )
    return parts


def _put_value(node: Node | None, parts: list[str], value: Node, above: tuple[str, ...]) -> Node:
    """Put a value at a path below a node. Missing mappings on the way are made."""
    if not parts:
        return value
    part, *rest = _join_known(node.entries, parts) if isinstance(node, Table) else parts
    here = (*above, part)
    match node:
        case Items(items=items):
            index = _read_index(part, len(items), above)
            changed = _put_value(items[index], rest, value, here)
            return replace(node, items=(*items[:index], changed, *items[index + 1 :]))
        case Table(entries=entries):
            below = _put_value(find_child(node, part), rest, value, here)
            return replace(
                node,
                entries={**entries, part: below},
                keys={**node.keys, part: node.keys.get(part, HERE) if rest else HERE},
            )
        case None | Leaf(value=None):
            return Table({part: _put_value(None, rest, value, here)}, HERE, {part: HERE})
        case _:
            raise _make_problem(
                join_path(here),
                f"'{join_path(above)}' is {describe_value(to_plain(node))} and has no keys",
                "set it as a whole",
            )


def _read_index(part: str, count: int, above: tuple[str, ...]) -> int:
    if not part.isdecimal() or len(part) > 6 or int(part) >= count:
        have = "no entries"
        if count == 1:
            have = f"one entry, {join_path((*above, 0))}"
        elif count > 1:
            have = f"entries {join_path((*above, 0))} to {join_path((*above, count - 1))}"
        raise _make_problem(
            join_path((*above, part)), "no such entry", f"'{join_path(above)}' is a list with {have}"
        )
    return int(part)


def _make_problem(path: str, message: str, hint: str = "") -> RecipeError:
    return RecipeError([HERE.problem(path, message, hint)])
