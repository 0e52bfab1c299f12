"""Compose a tree from PyYAML's events. Duplicate keys, tags and oversized documents are refused."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import yaml
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from sparsify.errors import Problem, RecipeError
from sparsify.recipe.nodes import DEEPEST, MOST, Items, Leaf, Node, Path, Place, Table, is_text, to_plain
from sparsify.recipe.wording import describe_value
from sparsify.recipe.yaml_errors import explain_yaml_error
from sparsify.recipe.yaml_scalars import read_scalar


@dataclass(frozen=True)
class Document:
    """The content of a text, as far as it could be read, and its problems."""

    root: Node | None
    """None where the text holds only comments."""
    problems: tuple[Problem, ...] = ()


def read_text(text: str, file: str) -> Document:
    """Compose one YAML document. Raises RecipeError where the rest cannot be read."""
    return _read_document(text, lambda line, column: Place(file, line, column))


def read_value(text: str, place: Place) -> Document:
    """Compose a value from the command line, which has no lines."""
    return _read_document(text, lambda line, column: place)  # noqa: ARG005


At = Callable[[int, int], Place]


def _read_document(text: str, at: At) -> Document:
    odd = Reader.NON_PRINTABLE.search(text)
    if odd:
        line = text.count("\n", 0, odd.start()) + 1
        column = odd.start() - text.rfind("\n", 0, odd.start())
        message = f"the character U+{ord(odd[0]):04X} is not allowed in YAML"
        raise RecipeError([at(line, column).problem("", message)])
    events = _Events(text)
    composer = _Composer(events, at)
    try:
        root = composer.document()
    except yaml.YAMLError as error:
        line, column, message, hint = explain_yaml_error(error, text)
        raise RecipeError([*composer.problems, at(line, column).problem("", message, hint)]) from None
    except (ValueError, OverflowError):  # chr() of an escape such as "\UFFFFFFFF", int() of a %YAML version
        place = at(events.line + 1, events.column + 1)
        problem = place.problem("", "an escape or number that YAML does not know")
        raise RecipeError([*composer.problems, problem]) from None
    except RecipeError as error:
        raise RecipeError([*composer.problems, *error.problems]) from None
    return Document(root, tuple(composer.problems))


class _Events(Reader, Scanner, Parser):
    """PyYAML's own reader, scanner and parser, without its resolver and constructor."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)

    def take(self) -> yaml.Event:
        event: yaml.Event = self.get_event()  # type: ignore[no-untyped-call]
        return event

    def ahead(self) -> yaml.Event:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        return event


@dataclass(frozen=True)
class _Anchored:
    node: Node
    size: int
    height: int


class _Composer:
    """Turns events into a tree. Depth and size are checked on the way, so nothing large is built."""

    def __init__(self, events: _Events, at: At) -> None:
        self.events = events
        self.at = at
        self.problems: list[Problem] = []
        self.anchors: dict[str, _Anchored | None] = {}
        self.size = 0

    def document(self) -> Node | None:
        self.events.take()  # stream start
        if isinstance(self.events.ahead(), yaml.StreamEndEvent):
            return None
        self.events.take()  # document start
        root, _ = self.node((), 0)
        self.events.take()  # document end
        if not isinstance(self.events.ahead(), yaml.StreamEndEvent):
            raise self.complaint(
                self.events.ahead(),
                (),
                "a second document",
                "a recipe is one YAML document; remove this '---'",
            )
        return root

    def place(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        return self.at(0, 0) if mark is None else self.at(mark.line + 1, mark.column + 1)

    def complaint(self, event: yaml.Event, path: Path, message: str, hint: str = "") -> RecipeError:
        return RecipeError([self.place(event).problem(path, message, hint)])

    def grow(self, event: yaml.Event, path: Path, size: int, depth: int) -> None:
        self.size += size
        if depth > DEEPEST:
            raise self.complaint(event, path[:4], f"nested more than {DEEPEST} levels deep")
        if self.size > MOST:
            raise self.complaint(event, path[:4], f"more than {MOST} values, aliases expanded")

    def node(self, path: Path, depth: int) -> tuple[Node, int]:
        """The next node and its height."""
        event = self.events.take()
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, path, depth)
        assert isinstance(event, yaml.NodeEvent)
        self.grow(event, path, 1, depth)
        self.refuse_tag(event, path)
        before = self.size
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node, height = self.fresh(event, path, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = _Anchored(node, 1 + self.size - before, height)
        return node, height

    def fresh(self, event: yaml.NodeEvent, path: Path, depth: int) -> tuple[Node, int]:
        match event:
            case yaml.ScalarEvent():
                return self.leaf(event, path), 0
            case yaml.SequenceStartEvent():
                return self.items(event, path, depth)
            case _:
                return self.table(event, path, depth)

    def refuse_tag(self, event: yaml.NodeEvent, path: Path) -> None:
        tag = getattr(event, "tag", None)
        if tag is not None:
            hint = "write the value without it" if tag != "!" else "quote the text"
            self.problems.append(self.place(event).problem(path, f"the tag {tag!r} is not read", hint))

    def alias(self, event: yaml.AliasEvent, path: Path, depth: int) -> tuple[Node, int]:
        name = str(event.anchor)
        if name not in self.anchors:
            raise self.complaint(
                event, path, f"unquoted '*{name}'", f'YAML reads it as an alias; quote it: "*{name}"'
            )
        anchored = self.anchors[name]
        if anchored is None:
            raise self.complaint(event, path, f"'*{name}' stands inside the value that it repeats")
        self.grow(event, path, anchored.size, depth + anchored.height)
        return replace(anchored.node, place=self.place(event)), anchored.height

    def leaf(self, event: yaml.ScalarEvent, path: Path) -> Leaf:
        place = self.place(event)
        if not is_text(event.value):
            self.problems.append(
                place.problem(path, "half a character (a lone surrogate)", "write the whole character")
            )
            return Leaf("\ufffd", place)
        if event.style is not None:
            return Leaf(event.value, place)
        try:
            return Leaf(read_scalar(event.value), place)
        except ValueError as error:
            self.problems.append(place.problem(path, str(error)))
            return Leaf(0, place)

    def items(self, event: yaml.SequenceStartEvent, path: Path, depth: int) -> tuple[Items, int]:
        items: list[Node] = []
        height = 0
        while not isinstance(self.events.ahead(), yaml.SequenceEndEvent):
            item, below = self.node((*path, len(items)), depth + 1)
            items.append(item)
            height = max(height, below + 1)
        self.events.take()
        return Items(tuple(items), self.place(event)), height

    def table(self, event: yaml.NodeEvent, path: Path, depth: int) -> tuple[Table, int]:
        entries: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        height = 0
        while not isinstance(self.events.ahead(), yaml.MappingEndEvent):
            merges = _is_merge(self.events.ahead())
            key, below_key = self.node(path, depth + 1)
            name = self.key(key, path, keys, merges)
            value, below = self.node((*path, name or "?"), depth + 1)
            height = max(height, below + 1, below_key + 1)
            if name is not None:
                keys[name] = key.place
                entries[name] = _place_at_key(value, key.place)
        self.events.take()
        return Table(entries, self.place(event), keys), height

    def key(self, key: Node, path: Path, known: dict[str, Place], merges: bool) -> str | None:
        """The name, or None (and a complaint) where it cannot be one."""
        name = to_plain(key)
        if merges:
            self.problems.append(
                key.place.problem(
                    path,
                    "'<<' (a YAML 1.1 merge key) is not read",
                    "use 'extends: other.yaml', or write the keys out",
                )
            )
        elif not isinstance(name, str):
            self.problems.append(
                key.place.problem(path, f"a key must be text, found {describe_value(name)}", _key_hint(name))
            )
        elif name in known:
            first = known[name]
            where = f"; it stands first in line {first.line}" if first.line else ""
            self.problems.append(
                key.place.problem((*path, name), f"duplicate key{where}", "remove one of the two")
            )
        else:
            return name
        return None


def _is_merge(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.style is None


def _key_hint(name: object) -> str:
    match name:
        case None:
            return ""
        case list() | dict():
            return "unquoted '{' and '[' start a mapping or a list"
        case bool():
            return f'quote it: "{str(name).lower()}"'
        case _:
            return f'quote it: "{name}"'


def _place_at_key(value: Node, key: Place) -> Node:
    """A list or mapping that begins on a later line is found at its key."""
    return (
        replace(value, place=key) if not isinstance(value, Leaf) and value.place.line != key.line else value
    )
