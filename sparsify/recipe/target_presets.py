"""Presets of targets, built in or from the user's file; and replacing their names in a recipe."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path as File

from pydantic import TypeAdapter, ValidationError

from sparsify.errors import Problem, RecipeError
from sparsify.recipe.from_python import from_python
from sparsify.recipe.nodes import Leaf, Node, Path, Place, Table, find_place, to_plain
from sparsify.recipe.yaml_parser import read_text
from sparsify_schemas.target import Target

SHIPPED = File(__file__).with_name("presets.yaml")
_TARGET: TypeAdapter[Target] = TypeAdapter(Target)


def user_file() -> File:
    """The file of a user's presets.

    $SPARSIFY_TARGETS, or sparsify/targets.yaml in the configuration folder.
    """
    named = os.environ.get("SPARSIFY_TARGETS")
    config = os.environ.get("XDG_CONFIG_HOME") or File.home() / ".config"
    return File(named) if named else File(config) / "sparsify" / "targets.yaml"


def list_presets() -> dict[str, Target]:
    """Every preset by name; those of the user replace built-in ones.

    Raises RecipeError with the line of a bad one.
    """
    own = user_file()
    found = _read_presets(SHIPPED)
    return found | _read_presets(own) if own.is_file() else found


def _read_presets(file: File) -> dict[str, Target]:
    try:
        root = read_text(file.read_text(encoding="utf-8"), str(file)).root
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Place(str(file)).problem("", f"cannot be read: {error}")]) from None
    if root is None:
        return {}
    if not isinstance(root, Table):
        raise RecipeError(
            [
                root.place.problem(
                    "", "expected a mapping of names to targets", "write 'mine: {kind: cpu, threads: 4}'"
                )
            ]
        )
    found, problems = {}, []
    for name, node in root.entries.items():
        try:
            found[name] = _TARGET.validate_python(to_plain(node))
        except ValidationError as error:
            problems += [node.place.problem(name, _describe_error(error))]
    if problems:
        raise RecipeError(problems)
    return found


def _describe_error(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("cpu", "cuda"))
    said = first["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said


def replace_presets(root: Table) -> tuple[Table, list[Problem]]:
    """Replace names of presets by their targets. A name in `budget.latency` alone becomes a target too."""
    targets, budget = root.entries.get("targets"), root.entries.get("budget")
    written = dict(targets.entries) if isinstance(targets, Table) else {}
    latency = budget.entries.get("latency") if isinstance(budget, Table) else None
    entries = latency.entries if isinstance(latency, Table) else {}
    wanted = [name for name in entries if name not in written]
    if not wanted and not any(map(_is_name, written.values())):
        return root, []
    if not (targets is None or isinstance(targets, Table)):
        return root, []
    known = list_presets()
    problems = list(_list_unknown(root, written, wanted, known))
    filled = {name: _fill_preset(node, known) for name, node in written.items()}
    filled |= {name: from_python(known[name]) for name in wanted if name in known}
    kept = {name: node for name, node in filled.items() if not _is_name(node)}
    place = targets.place if targets is not None else root.place
    entries = {
        **root.entries,
        "targets": Table(kept, place, targets.keys if isinstance(targets, Table) else {}),
    }
    if isinstance(budget, Table) and isinstance(latency, Table):
        entries["budget"] = replace(
            budget,
            entries={**budget.entries, "latency": latency.without(*(n for n in wanted if n not in known))},
        )
    return replace(root, entries=entries), problems


def _is_name(node: Node) -> bool:
    return isinstance(node, Leaf) and isinstance(node.value, str)


def _fill_preset(node: Node, known: Mapping[str, Target]) -> Node:
    name = to_plain(node)
    return replace(from_python(known[name]), place=node.place) if _is_name(node) and name in known else node


def _list_unknown(
    root: Table, written: Mapping[str, Node], wanted: list[str], known: Mapping[str, Target]
) -> Iterator[Problem]:
    for name, node in written.items():
        if _is_name(node) and to_plain(node) not in known:
            path: Path = ("targets", name)
            yield find_place(root, path).problem(
                path, f"there is no preset '{to_plain(node)}'", _suggest_preset(str(to_plain(node)), [*known])
            )
    for name in wanted:
        if name not in known:
            path = ("budget", "latency", name)
            yield find_place(root, path).problem(
                path,
                f"the recipe has no target '{name}', and there is no such preset",
                _suggest_preset(name, [*written, *known]),
            )


def _suggest_preset(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, 1)
    return f"did you mean '{close[0]}'?" if close else "`sparsify targets` lists the presets"
