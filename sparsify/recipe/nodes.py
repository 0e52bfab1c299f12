"""Recipe data with its place in the file: leaf, items, table; and bounds on its size."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sparsify.errors import Problem

DEEPEST = 64
"""Levels of nesting."""
MOST = 200_000
"""Values in a recipe, aliases expanded."""

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where a value is written. Line and column start at 1; None for values from Python or --set."""

    file: str
    line: int | None = None
    column: int | None = None

    def problem(self, path: Path | str, message: str, hint: str = "") -> Problem:
        """A problem of the value that is written here."""
        name = path if isinstance(path, str) else join_path(path)
        return Problem(self.file, self.line, self.column, name, message, hint)


@dataclass(frozen=True)
class Leaf:
    """A number, text, true, false or nothing."""

    value: str | int | float | bool | None
    place: Place


@dataclass(frozen=True)
class Items:
    """A list."""

    items: "tuple[Node, ...]"
    place: Place


@dataclass(frozen=True)
class Table:
    """A mapping; `keys` holds where each key is written."""

    entries: "Mapping[str, Node]"
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)

    def key_place(self, key: str) -> Place:
        return self.keys.get(key, self.place)

    def without(self, *gone: str) -> "Table":
        return replace(self, entries={k: v for k, v in self.entries.items() if k not in gone})


Node = Leaf | Items | Table


def join_path(path: Path) -> str:
    """`rules.0.layers`"""
    return ".".join(str(part) for part in path)


def to_plain(node: Node) -> Any:
    """The same data as dicts, lists and scalars."""
    match node:
        case Leaf(value=value):
            return value
        case Items(items=items):
            return [to_plain(item) for item in items]
        case Table(entries=entries):
            return {key: to_plain(entry) for key, entry in entries.items()}


def list_places(node: Node, path: Path = ()) -> Iterator[tuple[Path, Place]]:
    """Every path of the data and its place."""
    yield path, node.place
    match node:
        case Items(items=items):
            for index, item in enumerate(items):
                yield from list_places(item, (*path, index))
        case Table(entries=entries):
            for key, entry in entries.items():
                yield from list_places(entry, (*path, key))


def find_child(node: Node | None, part: str | int) -> Node | None:
    """The entry or item of that name or number, if there is one."""
    if isinstance(node, Table) and isinstance(part, str):
        return node.entries.get(part)
    if isinstance(node, Items) and isinstance(part, int) and 0 <= part < len(node.items):
        return node.items[part]
    return None


def find_place(root: Node, path: Path) -> Place:
    """The place of a path, or of its nearest ancestor that is written."""
    node = root
    for part in path:
        deeper = find_child(node, part)
        if deeper is None:
            break
        node = deeper
    return node.place


def is_text(value: str) -> bool:
    """Whether a text can be written as UTF-8, which has no lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in value)
