"""Choose and order the rows of `sparsify runs`: --where "macs<50%", --sort metric."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

from sparsify.errors import RunError
from sparsify.runs.listing import RunRow

_FIELDS = {
    "name": "name",
    "run": "name",
    "state": "state",
    "title": "title",
    "created": "created",
    "macs": "macs",
    "params": "params",
    "metric": "metric",
    "speed": "speedup",
    "speedup": "speedup",
}
"""what a condition may name -> the field of a row; the metric goes by its own name too"""
_TEXTS = ("name", "state", "title", "created")
_DESCENDING = ("metric", "speedup", "created")
"""fields whose largest value comes first"""
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*([\w-]+)\s*(<=|>=|!=|<|>|==?)\s*(.+?)\s*")
_PARTS = re.compile(r"([0-9]+)")
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(%|x)?")


@dataclass(frozen=True)
class Condition:
    """One `--where`."""

    field: str
    holds: Callable[[Any, Any], bool]
    value: float | str
    metric: str | None = None
    """the name by which a metric was asked for; rows that are judged by another are left out"""

    def accepts(self, row: RunRow) -> bool:
        """Whether a row meets it; one whose value is unknown does not."""
        found = getattr(row, self.field)
        if self.metric is not None and row.judged_by != self.metric:
            return False
        return found is not None and self.holds(found, self.value)


def parse_condition(text: str, rows: Sequence[RunRow]) -> Condition:
    """`macs<50%`, `speed >= 1.5`, `state=complete`, `accuracy>0.9`. Raises RunError."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise RunError(f"--where {text!r} is no condition; write one such as 'macs<50%' or 'state=complete'")
    field = find_field(found[1], rows, "--where")
    holds = _OPERATORS["=" if found[2] == "==" else found[2]]
    if field in _TEXTS:
        return Condition(field, holds, found[3].strip("\"'"))
    number = _NUMBER.fullmatch(found[3])
    if number is None:
        raise RunError(f"--where {text!r}: '{found[3]}' is no number; write one such as 50%, 0.5 or 1.5x")
    named = _find_metric(found[1], rows)
    return Condition(field, holds, float(number[1]) / (100 if number[2] == "%" else 1), named)


def _find_order(field: str, row: RunRow) -> Any:
    """What rows are sorted by: numbers inside names count as numbers, so that run 10 comes after run 2."""
    if field != "name":
        return getattr(row, field)
    parts = _PARTS.split(row.name)
    texts, numbers = parts[::2], (*parts[1::2], "-1")
    return list(zip(texts, map(int, numbers), strict=True))


def _find_metric(name: str, rows: Sequence[RunRow]) -> str | None:
    """The metric that a word calls by its own name, with `-` for spaces; None for a field."""
    metrics = (row.judged_by for row in rows if row.judged_by is not None)
    return next((own for own in metrics if name not in _FIELDS and own.replace(" ", "-") == name), None)


def find_field(name: str, rows: Sequence[RunRow], option: str) -> str:
    """The field that a word names. Raises RunError."""
    metrics = {row.judged_by.replace(" ", "-"): "metric" for row in rows if row.judged_by is not None}
    known = _FIELDS | metrics
    if name in known:
        return known[name]
    near = get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    raise RunError(f"{option} names '{name}', which runs do not have; {hint}")


def choose_rows(rows: Sequence[RunRow], conditions: Sequence[str]) -> tuple[RunRow, ...]:
    """The rows that meet all conditions. Raises RunError."""
    parsed = [parse_condition(text, rows) for text in conditions]
    left = tuple(rows)
    for condition in parsed:
        left = tuple(filter(condition.accepts, left))
    return left


def sort_rows(rows: Sequence[RunRow], by: str) -> tuple[RunRow, ...]:
    """Sorted by a field: names and costs ascending, metric, speed and date from the largest on; `-` in front
    turns it round. Rows whose value is unknown come last. Raises RunError."""
    field = find_field(by.removeprefix("-"), rows, "--sort")
    descending = (field in _DESCENDING) != by.startswith("-")
    named = _find_metric(by.removeprefix("-"), rows)
    known: list[RunRow] = []
    unknown: list[RunRow] = []
    for row in rows:
        is_other = named is not None and row.judged_by != named
        (unknown if is_other or getattr(row, field) is None else known).append(row)
    if field == "metric" and known and known[0].better == "lower":
        descending = not descending
    known.sort(key=partial(_find_order, field), reverse=descending)
    return (*known, *unknown)
