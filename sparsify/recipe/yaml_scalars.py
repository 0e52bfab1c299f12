"""Plain YAML scalars by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema)."""

import re
from typing import Final

NULL: Final = re.compile(r"~|null|Null|NULL|")
TRUE: Final = re.compile(r"true|True|TRUE")
FALSE: Final = re.compile(r"false|False|FALSE")
DECIMAL: Final = re.compile(r"[-+]?[0-9]+")
OCTAL: Final = re.compile(r"0o[0-7]+")
HEXADECIMAL: Final = re.compile(r"0x[0-9a-fA-F]+")
FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
INFINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)")
NOT_A_NUMBER: Final = re.compile(r"\.(?:nan|NaN|NAN)")

LONGEST_NUMBER: Final = 300
"""Characters of a number; Python refuses to print whole numbers beyond 4300."""


def read_scalar(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar. Raises ValueError for a number that is too long."""
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text):
        return True
    if FALSE.fullmatch(text):
        return False
    number = _read_number(text)
    return text if number is None else number


def _read_number(text: str) -> int | float | None:
    for pattern, read in (
        (DECIMAL, int),
        (OCTAL, _read_octal),
        (HEXADECIMAL, _read_hexadecimal),
        (FLOAT, float),
    ):
        if pattern.fullmatch(text):
            if len(text) > LONGEST_NUMBER:
                raise ValueError(f"a number of {len(text)} characters")
            return read(text)
    if INFINITE.fullmatch(text):
        return float("-inf") if text.startswith("-") else float("inf")
    return float("nan") if NOT_A_NUMBER.fullmatch(text) else None


def _read_octal(text: str) -> int:
    return int(text[2:], 8)


def _read_hexadecimal(text: str) -> int:
    return int(text[2:], 16)
