"""Wording of values and suggestions in messages."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

LONGEST = 60
"""Characters of a text that a message repeats."""


def quote_text(text: str) -> str:
    """Text in quotes, shortened, with control characters escaped."""
    return repr(text) if len(text) <= LONGEST else repr(text[:LONGEST]) + "…"


def describe_value(value: Any) -> str:
    """A value in words: `the text 'abc'`, `the number 3`, `a list`."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            if isinstance(value, int) and value.bit_length() >= 1000:
                return "a huge number"
            return f"the number {value}"
        case str():
            return f"the text {quote_text(value)}" if value else "an empty text"
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def suggest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, else the known names."""
    choices = list(dict.fromkeys(known))
    best = find_nearest(word, choices)
    if best:
        return f"did you mean '{best}'?"
    return f"known: {', '.join(choices)}" if choices else ""


def find_nearest(word: str, known: Iterable[str]) -> str:
    """The known word nearest to a misspelt one, '' where none is near."""
    return next(iter(get_close_matches(word, list(dict.fromkeys(known)), 1)), "")
