"""Turn recipes and mappings made in Python into a tree."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel

from sparsify.errors import RecipeError
from sparsify.recipe.dump_yaml import escape
from sparsify.recipe.nodes import DEEPEST, MOST, Items, Leaf, Node, Path, Place, Table, is_text
from sparsify.recipe.wording import describe_value
from sparsify_schemas.units import Quantity
from sparsify_schemas.written import to_written

HERE: Final = Place("<recipe>")
"""The place of values without a file."""


def from_python(
    value: Mapping[str, Any] | BaseModel,
    literal: bool = False,
    places: Mapping[Path, Place] = MappingProxyType({}),
) -> Node:
    """A tree of mappings, lists, scalars and quantities.

    literal: keep `${` as it is. places: known places of values. Raises RecipeError for what a recipe cannot
    hold.
    """
    return _Reader(literal, places).node(value, ())


class _Reader:
    """Counts values, so that a value that contains itself ends in a message."""

    def __init__(self, literal: bool, places: Mapping[Path, Place]) -> None:
        self.literal = literal
        self.places = places
        self.count = 0

    def place(self, path: Path) -> Place:
        return self.places.get(path, HERE)

    def node(self, value: Any, path: Path) -> Node:
        self.count += 1
        if self.count > MOST or len(path) > DEEPEST:
            raise _make_error(path[:4], f"more than {MOST} values, or nested more than {DEEPEST} levels deep")
        match value:
            case BaseModel():
                return self.node(to_written(value), path)
            case Mapping():
                return self.table(value, path)
            case list() | tuple():
                items = [self.node(item, (*path, i)) for i, item in enumerate(value)]
                return Items(tuple(items), self.place(path))
            case Quantity():
                return Leaf(str(value), self.place(path))
            case _:
                return self.leaf(value, path)

    def table(self, value: Mapping[Any, Any], path: Path) -> Table:
        for key in value:
            if not isinstance(key, str):
                raise _make_error(path, f"a key must be text, found {describe_value(key)}")
            self.leaf(key, path)
        entries = {str(key): self.node(entry, (*path, key)) for key, entry in value.items()}
        return Table(entries, self.place(path))

    def leaf(self, value: Any, path: Path) -> Leaf:
        match value:
            case str() if is_text(value):
                return Leaf(escape(str(value)) if self.literal else str(value), self.place(path))
            case None | bool() | float():
                return Leaf(value, self.place(path))
            case int() if value.bit_length() <= 1000:
                return Leaf(int(value), self.place(path))
            case str():
                raise _make_error(path, "half a character (a lone surrogate)", "write the whole character")
            case _:
                raise _make_error(
                    path,
                    f"a recipe cannot hold {describe_value(value)}",
                    "use mappings, lists, text, numbers, true, false and null",
                )


def _make_error(path: Path, message: str, hint: str = "") -> RecipeError:
    return RecipeError([HERE.problem(path, message, hint)])
