"""Figures of the page as short text."""

from collections.abc import Callable

from sparsify.formatting.numbers import (
    drop_zeros,
    format_accuracy,
    metric,
)
from sparsify_schemas.report import Report

_UNITS = ("ms", "us", "s", "B", "KiB", "MiB", "GiB")
"""Units that two figures may share; the suffix of a count stays with its figure."""


def format_percent(value: float) -> str:
    return drop_zeros(format_accuracy(value))


def format_metric(report: Report) -> Callable[[float], str]:
    """How the deciding metric is written."""
    return lambda value: drop_zeros(metric(value, report.metric.percent))


def format_pair(before: float, after: float, show: Callable[[float], str]) -> str:
    """'2.29 M to 396 k', '0.412 to 0.217 ms'; one figure where they are the same."""
    first, last = show(before), show(after)
    if first == last:
        return last
    number, _, unit = first.partition(" ")
    share_unit = unit in _UNITS and unit == last.rpartition(" ")[2]
    return f"{number if share_unit else first} to {last}"
