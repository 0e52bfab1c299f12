"""Which layers a rule speaks of.

A selector is a glob on module names (`layer?.*.conv1`), `re:` and a regular expression that must match the
whole name (in bounded time: see `whole_match`), or the name of a layer class (`Conv2d`): the layer's own, or
one that it is derived from, up to the class of torch.nn. A rule may list several; a layer is selected when
any of them matches.
"""

import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from sparsify_schemas.base import Text
from sparsify_schemas.whole_match import explain_refusal, matches_whole


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _check_patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        if text.startswith("re:"):
            try:
                refusal = explain_refusal(text[3:])
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"{text!r} is no regular expression: {error}") from None
            if refusal:
                raise ValueError(f"{text!r}: {refusal}")
    return value


def selects(patterns: Iterable[str], name: str, classes: Collection[str]) -> bool:
    """Whether any pattern matches a layer's name, or is one of the names of its classes."""
    return any(_matches_pattern(p, name, classes) for p in patterns)


def _matches_pattern(pattern: str, name: str, classes: Collection[str]) -> bool:
    if pattern.startswith("re:"):
        return matches_whole(pattern[3:], name)
    return pattern in classes or fnmatchcase(name, pattern)


Layers = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    AfterValidator(_check_patterns),
    BeforeValidator(_as_tuple, json_schema_input_type=Text | tuple[Text, ...]),
]
