"""Changes as tables: recipe, figures, widths; of two, or of several beside each other."""

from collections.abc import Sequence
from typing import Any

from sparsify.formatting.numbers import (
    add_sign,
    format_accuracy,
    format_count,
    format_digits,
    format_fixed,
    format_milliseconds,
    format_plain,
    format_points,
    format_seconds,
    format_share,
    format_size,
    format_times,
)
from sparsify.formatting.table import Table, make_columns
from sparsify.reporting.diff import Change
from sparsify.reporting.many import Values
from sparsify_cli.flow import to_flow
from sparsify_schemas.task import BUILT_IN

_SECTIONS = (("metrics.", "Measured"), ("widths.", "Widths"), ("experts.", "Experts"), ("recipe.", "Recipe"))
_TITLES = ("Recipe", "Measured", "Widths", "Experts")
_SHOWN = {
    "params": format_count,
    "nonzero": format_count,
    "macs": format_count,
    "bytes": format_size,
    "macs_left": format_share,
    "params_left": format_share,
    "dense_ms": format_milliseconds,
    "cut_ms": format_milliseconds,
    "speedup": format_times,
    "seconds": format_seconds,
}
_SHARES = ("macs_left", "params_left")


def list_tables(changes: Sequence[Change]) -> tuple[Table, ...]:
    """A table each for the recipe, the figures, the widths and the experts, without empty ones."""
    by_title: dict[str, list[tuple[str, Change]]] = {title: [] for title in _TITLES}
    for c in changes:
        prefix, title = next(((p, t) for p, t in _SECTIONS if c.path.startswith(p)), ("", "Recipe"))
        by_title[title].append((c.path.removeprefix(prefix), c))
    return tuple(_make_table(title, rows) for title, rows in by_title.items() if rows)


def list_tables_of_many(names: Sequence[str], found: Sequence[Values]) -> tuple[Table, ...]:
    """The same of several recipes or runs: a column for each."""
    by_title: dict[str, list[tuple[str, Values]]] = {title: [] for title in _TITLES}
    for row in found:
        prefix, title = next(((p, t) for p, t in _SECTIONS if row.path.startswith(p)), ("", "Recipe"))
        by_title[title].append((row.path.removeprefix(prefix), row))
    return tuple(_make_wide_table(title, names, rows) for title, rows in by_title.items() if rows)


def _make_wide_table(title: str, names: Sequence[str], found: list[tuple[str, Values]]) -> Table:
    head = {"Recipe": "path", "Measured": "figure"}.get(title, "layer")
    if title == "Recipe":
        rows = tuple((path, *map(to_flow, row.values)) for path, row in found)
        return Table(title, make_columns(head, *names), rows)
    figures = tuple((path, *_format_figures(path, row)) for path, row in found)
    return Table(title, make_columns(head, *(f">{name}" for name in names)), figures)


def _format_figures(path: str, row: Values) -> list[str]:
    return [_format_figure(path, value) for value in row.values]


def _make_table(title: str, found: list[tuple[str, Change]]) -> Table:
    if title == "Recipe":
        paths = tuple((path, to_flow(c.old), to_flow(c.new), _format_delta(c)) for path, c in found)
        return Table(title, make_columns("path", "old", "new", ">change"), paths)
    rows = [
        (path, _format_figure(path, c.old), _format_figure(path, c.new), _figure_delta(path, c))
        for path, c in found
    ]
    head = "figure" if title == "Measured" else "layer"
    if not any(c.remark for _, c in found):
        return Table(title, make_columns(head, ">old", ">new", ">change"), tuple(rows))
    remarked = tuple((*row, c.remark) for row, (_, c) in zip(rows, found, strict=True))
    return Table(title, make_columns(head, ">old", ">new", ">change", ""), remarked)


def _format_figure(path: str, value: Any) -> str:
    if value is None or isinstance(value, str | bool):
        return to_flow(value)
    field = path.rpartition(".")[2]
    if _is_metric_share(field):
        return format_accuracy(value)
    return _SHOWN.get(field, format_plain)(value)


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
        return add_sign(f"{format_fixed(c.delta, 2)}x")
    return (
        format_points(c.delta)
        if field in _SHARES or _is_metric_share(field)
        else add_sign(_format_figure(path, c.delta))
    )


def _format_delta(c: Change) -> str:
    """'+5 ep', '-15 pp': the difference in the unit of both."""
    if c.delta is None or c.same:
        return ""
    unit = c.new.lstrip("0123456789.e+-") if isinstance(c.new, str) else ""
    text = add_sign(format_plain(float(format_digits(c.delta, 6)) if c.delta else 0.0))
    return f"{text} {'pp' if unit == '%' else unit}".rstrip()
