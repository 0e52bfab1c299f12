"""A value of a recipe on one line, as YAML's flow style has it."""

from collections.abc import Mapping
from typing import Any

from sparsify.formatting.numbers import MISSING, format_plain


def to_flow(value: Any) -> str:
    """`{kind: magnitude, norm: 2}`; null values are left out of mappings."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return format_plain(value) if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        kind_first = sorted(value.items(), key=lambda item: item[0] != "kind")
        pairs = [f"{key}: {to_flow(entry)}" for key, entry in kind_first if entry is not None]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_flow, value)) + "]"
    return str(value)
