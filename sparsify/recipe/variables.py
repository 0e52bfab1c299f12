"""Evaluate each variable of `vars:` once, and replace each `${...}` by its value."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sparsify.errors import Problem
from sparsify.recipe.expressions import FUNCTIONS, ExpressionError, Value, evaluate_expression
from sparsify.recipe.nodes import Items, Leaf, Node, Path, Table, to_plain
from sparsify.recipe.wording import describe_value, quote_text, suggest

_HOLE: Final = re.compile(r"\$(\$+)\{|\$\{([^{}]*)\}|(\$\{)")
"""An escaped `$${`, an expression, or one that is never closed."""
LONGEST_TEXT: Final = 4_000
"""Characters of a text with its variables filled in."""
LONGEST_CHAIN: Final = 50
"""Variables that refer to each other in a row."""


@dataclass(frozen=True)
class Filled:
    """The tree without variables, the paths where that failed, and why."""

    root: Table
    broken: frozenset[Path] = frozenset()
    problems: tuple[Problem, ...] = ()
    texts: Mapping[Path, str] = field(default_factory=dict)
    """Texts whose expressions were replaced."""


def find_unused(root: Table, names: Iterable[str]) -> tuple[str, ...]:
    """The variables that the recipe does not use."""
    reached = _find_used(root.without("vars"), declared_in(root))
    return tuple(name for name in names if name not in reached)


def fill_variables(root: Table, idle: Iterable[str]) -> Filled:
    """Replace every expression. idle: variables to report if they are still unused."""
    table = root.entries.get("vars", Table({}, root.place))
    if not isinstance(table, Table):
        problem = table.place.problem(
            "vars", f"expected a mapping of names to numbers or text, found {describe_value(to_plain(table))}"
        )
        return Filled(root.without("vars"), problems=(problem,))
    scope = _Scope(table)
    filled = scope.node(root.without("vars"), ())
    assert isinstance(filled, Table)
    scope.judge(find_unused(root, idle))
    return Filled(filled, frozenset(scope.broken), tuple(scope.problems), scope.texts)


class _Scope:
    """The variables of one recipe, evaluated when they are first needed."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.values: dict[str, Value] = {}
        self.failed: set[str] = set()
        self.chain: list[str] = []
        self.broken: set[Path] = set()
        self.texts: dict[Path, str] = {}
        self.problems: list[Problem] = []

    def node(self, node: Node, path: Path) -> Node:
        match node:
            case Leaf(value=str(text)):
                return self.leaf(node, text, path)
            case Items(items=items):
                return replace(node, items=tuple(self.node(item, (*path, i)) for i, item in enumerate(items)))
            case Table(entries=entries):
                filled = {key: self.node(entry, (*path, key)) for key, entry in entries.items()}
                return replace(node, entries=filled)
            case _:
                return node

    def leaf(self, node: Leaf, text: str, path: Path) -> Leaf:
        if "${" not in text:
            return node
        self.texts[path] = text
        try:
            return replace(node, value=substitute_expressions(text, self.look))
        except ExpressionError as error:
            self.broken.add(path)
            if error.message:
                self.problems.append(node.place.problem(path, error.message, error.hint))
            return node

    def look(self, name: str) -> Value:
        """The value of a variable. An error in one is reported once, where it is declared."""
        if name not in self.table.entries:
            raise ExpressionError(
                f"undefined variable '{name}'",
                suggest(name, self.table.entries) or "declare it under 'vars:'",
            )
        if name in self.chain:
            circle = [*self.chain[self.chain.index(name) :], name]
            raise ExpressionError(f"variables refer to each other in a circle: {' -> '.join(circle)}")
        if len(self.chain) >= LONGEST_CHAIN:
            raise ExpressionError(f"more than {LONGEST_CHAIN} variables refer to each other in a row")
        if name not in self.values and name not in self.failed:
            self.declare(name)
        if name in self.failed:
            raise ExpressionError("")
        return self.values[name]

    def declare(self, name: str) -> None:
        node = self.table.entries[name]
        self.chain.append(name)
        try:
            self.values[name] = self.declared(name, node)
        except ExpressionError as error:
            self.failed.add(name)
            if error.message:
                self.problems.append(node.place.problem(("vars", name), error.message, error.hint))
        finally:
            self.chain.pop()

    def declared(self, name: str, node: Node) -> Value:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ExpressionError(
                f"{quote_text(name)} is not a name for a variable",
                "letters, digits and '_', not beginning with a digit",
            )
        if name in FUNCTIONS:
            raise ExpressionError(f"'{name}' is a function", "give the variable another name")
        if not isinstance(node, Leaf) or node.value is None:
            raise ExpressionError(
                f"a variable is a number, text, true or false, found {describe_value(to_plain(node))}"
            )
        return substitute_expressions(node.value, self.look) if isinstance(node.value, str) else node.value

    def judge(self, idle: Iterable[str]) -> None:
        """Report unused variables, and errors in those that only unused variables use."""
        for name in self.table.entries:
            if name not in self.values and name not in self.failed:
                self.declare(name)
        for name in idle:
            hint = f"write ${{{name}}} where it belongs, or remove it"
            self.problems.append(
                self.table.key_place(name).problem(("vars", name), f"unused variable '{name}'", hint)
            )


def _find_used(body: Table, declared: Mapping[str, Node]) -> frozenset[str]:
    """The variables that the recipe uses, directly or through others, whether or not they have a value."""
    reached: set[str] = set()
    waiting: list[Node] = [body]
    while waiting:
        match waiting.pop():
            case Leaf(value=str(text)):
                expressions = " ".join(hole[2] or "" for hole in _HOLE.finditer(text))
                fresh = set(re.findall(r"[A-Za-z_]\w*", expressions)) - reached
                reached |= fresh
                waiting += [declared[name] for name in fresh if name in declared]
            case Items(items=items):
                waiting += items
            case Table(entries=entries):
                waiting += entries.values()
    return frozenset(reached)


def substitute_expressions(text: str, look: Callable[[str], Value]) -> Value:
    """The value of a text that is one expression; else the text with its expressions replaced."""
    whole = _HOLE.fullmatch(text)
    if whole and whole[2] is not None:
        return evaluate_expression(whole[2], look)
    result = ""
    end = 0
    for hole in _HOLE.finditer(text):
        result += text[end : hole.start()] + _fill_expression(hole, look)
        end = hole.end()
        if len(result) > max(LONGEST_TEXT, len(text)):
            raise ExpressionError(
                f"a text of more than {LONGEST_TEXT} characters once its variables are filled in"
            )
    return result + text[end:]


def _fill_expression(hole: re.Match[str], look: Callable[[str], Value]) -> str:
    if hole[1] is not None:
        return hole[1] + "{"
    if hole[3] is not None:
        raise ExpressionError("'${' without its '}'", "close it, or write $${ for the characters themselves")
    return in_text(evaluate_expression(hole[2], look))


def in_text(value: Value) -> str:
    """A value inside a text: `${epochs}ep` with 5 is `5ep`."""
    match value:
        case bool():
            return str(value).lower()
        case float() if math.isfinite(value):
            return repr(value).removesuffix(".0")
        case _:
            return str(value)


def declared_in(root: Node) -> Mapping[str, Node]:
    """The variables that one file declares."""
    table = root.entries.get("vars") if isinstance(root, Table) else None
    return table.entries if isinstance(table, Table) else {}
