"""Match a regular expression against a whole name in bounded time.

`re` tries one way after the other, and the ways through `(a+)+b` double with each letter. Such patterns are
followed here through all ways at once: the places of the name where each part may end, given those where it
may begin (https://swtch.com/~rsc/regexp/regexp1.html). A name of n characters and a pattern of m parts take
at most about n^2 m steps.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from re import _compiler, _parser  # type: ignore[attr-defined]
from typing import Any, Final

_REPEATS: Final = (_parser.MAX_REPEAT, _parser.MIN_REPEAT)
_ORDERED: Final = ("POSSESSIVE_REPEAT", "ATOMIC_GROUP", "GROUPREF", "GROUPREF_EXISTS")
"""parts whose match depends on which way was tried first, or on what an earlier part matched"""
_MOST: Final = 2
"""loose repeats of a pattern that `re` may match itself: its steps grow with this power of the length"""
_CHOICES: Final = 8
"""`|` and `?` of such a pattern: each may double its steps"""
_LONGEST: Final = 1000
"""repetitions that a count may ask for where ways are followed at once"""

Places = frozenset[int]


def explain_refusal(pattern: str) -> str:
    """Why a regular expression is not matched, '' where it is.

    Raises re.error, OverflowError and RecursionError where it is none.
    """
    tree, is_quick = _parse(pattern)
    if is_quick:
        return ""
    if any(str(op) in _ORDERED for op, _ in _list_parts(tree)):
        return (
            "repeats or choices inside repeats, beside a back reference or an atomic group, may take "
            "for ever; list several patterns"
        )
    if any(
        op in _REPEATS and max(_finite(args[0]), _finite(args[1])) > _LONGEST
        for op, args in _list_parts(tree)
    ):
        return f"repeats inside repeats, and one counts beyond {_LONGEST}; write '*' or '+'"
    return ""


def matches_whole(pattern: str, name: str) -> bool:
    """Whether a regular expression that is not refused matches a whole name, as `re.fullmatch` says."""
    tree, is_quick = _parse(pattern)
    if is_quick:
        return re.fullmatch(pattern, name) is not None
    return len(name) in _find_ends(tree, tree.state.flags, name, frozenset((0,)))


@lru_cache(maxsize=1024)
def _parse(pattern: str) -> tuple[Any, bool]:
    """The parts of a pattern, and whether `re` matches it quickly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `[[` and its like: odd, not wrong
        re.compile(pattern)
        tree = _parser.parse(pattern)
    return tree, _is_quick(tree)


def _finite(count: Any) -> int:
    return 0 if count is _parser.MAXREPEAT else int(count)


def _list_parts(tree: Any) -> Iterator[tuple[Any, Any]]:
    for op, args in tree:
        yield op, args
        for inner in _list_inner(op, args):
            yield from _list_parts(inner)


def _list_inner(op: Any, args: Any) -> Iterable[Any]:
    """The patterns inside a part."""
    match str(op):
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            return (args[2],)
        case "SUBPATTERN":
            return (args[3],)
        case "BRANCH":
            return tuple(args[1])
        case "ASSERT" | "ASSERT_NOT":
            return (args[1],)
        case "ATOMIC_GROUP":
            return (args,)
        case "GROUPREF_EXISTS":
            return tuple(inner for inner in args[1:] if inner is not None)
    return ()


def _is_quick(tree: Any) -> bool:
    """Whether the ways through a pattern are few: no choice is repeated, and few repeats are loose."""
    loose = choices = 0
    for op, args in _list_parts(tree):
        choices += str(op) == "BRANCH" or (op in _REPEATS and args[1] == 1)
        if str(op) in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and args[1] != 1:
            loose += args[0] != args[1]
            if any(str(inner) not in ("LITERAL", "NOT_LITERAL", "ANY", "IN") for inner, _ in args[2]):
                return False
    return loose <= _MOST and choices <= _CHOICES


def _find_ends(tree: Any, flags: int, name: str, starts: Places) -> Places:
    """Where a sequence of parts may end that begins at one of the places."""
    for op, args in tree:
        if not starts:
            break
        starts = _find_part_ends(op, args, flags, name, starts)
    return starts


def _find_part_ends(op: Any, args: Any, flags: int, name: str, starts: Places) -> Places:
    match str(op):
        case "SUBPATTERN":
            _, added, removed, inner = args
            return _find_ends(inner, (flags | added) & ~removed, name, starts)
        case "BRANCH":
            found = [_find_ends(inner, flags, name, starts) for inner in args[1]]
            return frozenset().union(*found)
        case "MAX_REPEAT" | "MIN_REPEAT":
            return _repeat(args, flags, name, starts)
        case "ASSERT" | "ASSERT_NOT":
            wanted = str(op) == "ASSERT"
            return frozenset(at for at in starts if _holds(args, flags, name, at) == wanted)
    part = _compile_part(op, args, flags)
    ends = (part.match(name, at) for at in starts)
    return frozenset(found.end() for found in ends if found)


def _repeat(args: Any, flags: int, name: str, starts: Places) -> Places:
    least, most, inner = args
    for _ in range(least):
        ends = _find_ends(inner, flags, name, starts)
        if ends == starts:
            break
        starts = ends
    found, fresh, count = starts, starts, _finite(least)
    while fresh and (most is _parser.MAXREPEAT or count < most):
        fresh = _find_ends(inner, flags, name, fresh) - found
        found |= fresh
        count += 1
    return found


def _holds(args: Any, flags: int, name: str, at: int) -> bool:
    """Whether a look ahead or behind finds its pattern at a place."""
    direction, inner = args
    if direction > 0:
        return bool(_find_ends(inner, flags, name, frozenset((at,))))
    return any(at in _find_ends(inner, flags, name, frozenset((start,))) for start in range(at + 1))


def _compile_part(op: Any, args: Any, flags: int) -> re.Pattern[str]:
    """One character, or a place such as `^` and `\\b`."""
    state = _parser.State()
    state.flags = flags
    return _compiler.compile(_parser.SubPattern(state, [(op, args)]), flags)  # type: ignore[no-any-return]
