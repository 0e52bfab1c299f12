"""A value of a recipe on one line, as YAML's flow style has it."""

from collections.abc import Mapping
from typing import Any

from sparsify.formatting.numbers import MISSING, plain


def flow(value: Any) -> str:
    """`{kind: magnitude, norm: 2}`; what is null is left out of mappings."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return plain(value) if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(
                f"{k}: {flow(v)}"
                for k, v in sorted(value.items(), key=lambda kv: kv[0] != "kind")
                if v is not None
            )
            + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return str(value)
