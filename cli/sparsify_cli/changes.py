"""Changes as tables: recipe, figures, widths."""

from collections.abc import Sequence
from typing import Any

from sparsify.formatting.numbers import (
    accuracy,
    count,
    digits,
    fixed,
    milliseconds,
    plain,
    points,
    seconds,
    share,
    signed,
    size,
    times,
)
from sparsify.formatting.table import Table, columns
from sparsify.reporting.diff import Change
from sparsify_cli.flow import flow
from sparsify_schemas.task import BUILT_IN

_SECTIONS = (("metrics.", "Measured"), ("widths.", "Widths"), ("recipe.", "Recipe"))
_SHOWN = {
    "params": count,
    "nonzero": count,
    "macs": count,
    "bytes": size,
    "macs_left": share,
    "params_left": share,
    "dense_ms": milliseconds,
    "cut_ms": milliseconds,
    "speedup": times,
    "seconds": seconds,
}
_SHARES = ("macs_left", "params_left")


def tables(changes: Sequence[Change]) -> tuple[Table, ...]:
    """A table each for the recipe, the figures and the widths, without empty ones."""
    by_title: dict[str, list[tuple[str, Change]]] = {"Recipe": [], "Measured": [], "Widths": []}
    for c in changes:
        prefix, title = next(((p, t) for p, t in _SECTIONS if c.path.startswith(p)), ("", "Recipe"))
        by_title[title].append((c.path.removeprefix(prefix), c))
    return tuple(_table(title, rows) for title, rows in by_title.items() if rows)


def _table(title: str, found: list[tuple[str, Change]]) -> Table:
    if title == "Recipe":
        paths = tuple((path, flow(c.old), flow(c.new), _delta(c)) for path, c in found)
        return Table(title, columns("path", "old", "new", ">change"), paths)
    rows = [(path, _figure(path, c.old), _figure(path, c.new), _figure_delta(path, c)) for path, c in found]
    head = "figure" if title == "Measured" else "layer"
    if not any(c.remark for _, c in found):
        return Table(title, columns(head, ">old", ">new", ">change"), tuple(rows))
    remarked = tuple((*row, c.remark) for row, (_, c) in zip(rows, found, strict=True))
    return Table(title, columns(head, ">old", ">new", ">change", ""), remarked)


def _figure(path: str, value: Any) -> str:
    if value is None or isinstance(value, str | bool):
        return flow(value)
    field = path.rpartition(".")[2]
    if _is_metric_share(field):
        return accuracy(value)
    return _SHOWN.get(field, plain)(value)


def _is_metric_share(field: str) -> bool:
    """Whether a field is a metric that is a share: 'validation_accuracy', 'test_own (%)'."""
    which, _, name = field.partition("_")
    if which not in ("validation", "test"):
        return False
    return name.endswith(" (%)") or (name in BUILT_IN and BUILT_IN[name].percent)


def _figure_delta(path: str, c: Change) -> str:
    if c.delta is None or c.same:
        return ""
    field = path.rpartition(".")[2]
    if field == "speedup":
        return signed(f"{fixed(c.delta, 2)}x")
    return points(c.delta) if field in _SHARES or _is_metric_share(field) else signed(_figure(path, c.delta))


def _delta(c: Change) -> str:
    """'+5 ep', '-15 pp': the difference in the unit of both."""
    if c.delta is None or c.same:
        return ""
    unit = c.new.lstrip("0123456789.e+-") if isinstance(c.new, str) else ""
    text = signed(plain(float(digits(c.delta, 6)) if c.delta else 0.0))
    return f"{text} {'pp' if unit == '%' else unit}".rstrip()
