"""Strengths and learning rates in words."""

from typing import assert_never

from sparsify.formatting.numbers import (
    format_plain,
)
from sparsify_schemas.schedule import Strength


def describe_strength(value: Strength) -> str:
    match value.kind:
        case "auto":
            return value.kind
        case "constant":
            return format_plain(value.value)
        case "step":
            at = ", ".join(map(str, value.at))
            return f"{format_plain(value.value)} times {format_plain(value.factor)} at {at}"
        case "one_shot":
            return f"{format_plain(value.from_)}, {format_plain(value.to)} from {value.at} on"
        case "linear" | "cosine" | "cubic" | "exponential":
            span = f"{format_plain(value.from_)} to {format_plain(value.to)}"
            return f"{span} ({value.kind}, {value.start} to {value.end})"
        case _:
            assert_never(value)
