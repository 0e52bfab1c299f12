"""Metrics whose own names hold hyphens."""

from sparsify.runs.listing import RunRow
from sparsify.runs.row_filter import choose_rows, sort_rows

ROWS = (
    RunRow("a-1", "complete", metric=3.0, judged_by="mad-5", percent=False, better="lower"),
    RunRow("a-2", "complete", metric=1.0, judged_by="mad-5", percent=False, better="lower"),
    RunRow("b-1", "complete", metric=0.5, judged_by="mean overlap", percent=False),
)


def names(rows: tuple[RunRow, ...]) -> list[str]:
    return [row.name for row in rows]


def test_a_metric_is_asked_for_by_its_name_with_hyphens_or_spaces() -> None:
    assert names(choose_rows(ROWS, ["mad-5<2"])) == ["a-2"]
    assert names(choose_rows(ROWS, ["mean-overlap>0"])) == ["b-1"]
    assert names(sort_rows(ROWS, "mad-5")) == ["a-2", "a-1", "b-1"]
    assert names(sort_rows(ROWS, "-mad-5")) == ["a-1", "a-2", "b-1"]
    assert names(choose_rows(ROWS, ["metric<=1"])) == ["a-2", "b-1"]


def test_names_are_sorted_by_their_numbers() -> None:
    rows = tuple(RunRow(name, "complete") for name in ("hy-10", "2", "hy-2", "hy", "hy-2b"))
    assert names(sort_rows(rows, "name")) == ["2", "hy", "hy-2", "hy-2b", "hy-10"]
