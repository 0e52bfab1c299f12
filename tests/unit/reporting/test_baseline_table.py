"""The column that says whether the cut of a baseline of another package computes what it should."""

from pathlib import Path
from typing import Any

import pytest

from sparsify.reporting.baseline_table import baseline_table
from sparsify.reporting.html import to_html
from sparsify.reporting.report_tables import to_markdown
from sparsify_schemas.report import Baseline, FailedBaseline, Report, StageRow, Verdict

GOLDEN = Path(__file__).parents[2] / "golden/lenet5.report.json"
NOTE = (
    "MetaPruner with MagnitudeImportance at ratio 0.3, the smallest found that leaves at most 50 % of the "
    "MACs"
)


def make_report(**changes: Any) -> Report:
    return Report.model_validate_json(GOLDEN.read_bytes()).model_copy(update=changes)


def make_baseline(outcome: str, difference: float = 0.0) -> Baseline:
    verdict = Verdict.model_validate(
        {"outcome": outcome, "difference": difference, "control": 1.0, "note": NOTE}
    )
    return Baseline(kind="torch_pruning", side=make_report().cut, verdict=verdict)


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        ("equal", "exact"),
        ("statistics change", "statistics"),
        ("wrong", "wrong"),
        ("nothing cut", "nothing cut"),
    ],
)
def test_its_row_says_what_the_check_found(outcome: str, word: str) -> None:
    table = baseline_table(make_report(baselines=(make_baseline(outcome),)))
    assert table.columns[-1].title == "its cut"
    assert [row[-1] for row in table.rows] == ["", "exact", word]
    assert f"torch_pruning: {NOTE}." in table.notes


def test_a_wrong_cut_is_a_warning() -> None:
    table = baseline_table(make_report(baselines=(make_baseline("wrong", 0.062),)))
    assert (
        "Warning: torch_pruning: cut is wrong: it differs from the masked model by 6e-2 of the largest "
        "output. What it was trained to is shown all the same."
    ) in table.notes


def test_a_row_of_what_came_to_no_model() -> None:
    failed = FailedBaseline(kind="torch_pruning", outcome="timed out after 600 s")
    table = baseline_table(make_report(failed=(failed,)))
    *dashes, word = table.rows[-1][1:]
    assert (table.rows[-1][0], set(dashes), word) == ("torch_pruning", {"-"}, "timed out after 600 s")
    assert len({len(row) for row in (*table.rows, table.columns)}) == 1
    assert "torch_pruning: what its own pruner chooses and cuts" in table.notes[0]


def test_a_repair_that_it_did_not_get_is_told() -> None:
    row = StageRow(name="repair", kind="repair", seconds=1.0)
    table = baseline_table(make_report(baselines=(make_baseline("equal"),), stages=(row,)))
    assert f"torch_pruning: {NOTE}; not repaired, as a repair goes by coupled groups." in table.notes


def test_other_baselines_have_no_such_column() -> None:
    ours = make_baseline("equal").model_copy(update={"kind": "magnitude"})
    assert baseline_table(make_report(baselines=(ours,))).columns[-1].title == "epochs"


def test_both_pages_show_it() -> None:
    failed = FailedBaseline(kind="torch_pruning", outcome="raised: IndexError: list index out of range")
    for page in (to_markdown(make_report(failed=(failed,))), to_html(make_report(failed=(failed,)), "")):
        assert "raised: IndexError: list index out of range" in page


def test_a_report_without_failures_is_written_as_before() -> None:
    assert "failed" not in make_report().model_dump(mode="json")
