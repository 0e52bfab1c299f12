"""Several recipes or runs beside each other: the values of every path that differs from the first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsify.reporting.diff import Change, are_equal


@dataclass(frozen=True)
class Values:
    """One path, and its value in each recipe or run, in their order; None is absence."""

    path: str
    values: tuple[Any, ...]

    @property
    def same(self) -> bool:
        """Whether all are equal."""
        return all(are_equal(self.values[0], other) for other in self.values[1:])


def join_changes(found: Sequence[Sequence[Change]], *, unchanged: bool = False) -> tuple[Values, ...]:
    """Lists of all changes from the first to each of the others, as one row for each path.

    Args:
        found: For each of the others, what `diff_recipes` or `diff_runs` gives with `unchanged=True`.
        unchanged: Keep the paths whose values are all equal.
    """
    by_path = [_index_changes(changes) for changes in found]
    rows = []
    for path in dict.fromkeys(path for changes in by_path for path in changes):
        first = next(changes[path].old for changes in by_path if path in changes)
        others = [_find_new(changes, path) for changes in by_path]
        rows.append(Values(path, (first, *others)))
    order = {prefix: place for place, prefix in enumerate(("recipe", "metrics", "widths"))}
    rows.sort(key=lambda row: order.get(row.path.partition(".")[0], 0))
    return tuple(row for row in rows if unchanged or not row.same)


def _index_changes(changes: Sequence[Change]) -> dict[str, Change]:
    return {change.path: change for change in changes}


def _find_new(changes: dict[str, Change], path: str) -> Any:
    return changes[path].new if path in changes else None
