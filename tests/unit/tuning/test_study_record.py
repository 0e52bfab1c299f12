"""What is best among trials, by definition; the record's tables and page."""

import random

import pytest

from sparsify.formatting.table import as_text
from sparsify.reporting.html.study_page import study_html
from sparsify.reporting.study_tables import list_study_tables, write_study_headline
from sparsify.tuning.study_record import find_best, find_front, list_reasons
from sparsify_schemas.study import DenseModel, Study, StudyTrial, TrialCosts, find_cost
from sparsify_schemas.task import Facts

ERROR = Facts(name="rmse", better="lower", percent=False)


def make_trial(number: int, metric: float, macs: int, state: str = "complete") -> StudyTrial:
    costs = TrialCosts(macs=macs, params=macs // 2, bytes=2 * macs, latency={"here": macs / 1000})
    return StudyTrial(
        number=number,
        state=state,  # type: ignore[arg-type]
        parameters={"budget.macs": f"{macs}%", "lr": metric},
        metric=metric,
        costs=costs,
        reason="" if state == "complete" else f"missed: MACs {macs} % (limit 3 %)",
    )


@pytest.mark.parametrize("judged_by", [Facts(), ERROR])
def test_the_front_is_what_no_other_trial_beats(judged_by: Facts) -> None:
    draw = random.Random(7)
    for _ in range(50):
        rows = [
            make_trial(
                number, draw.randrange(6) / 6, draw.randrange(1, 7), draw.choice(["complete", "failed"])
            )
            for number in range(12)
        ]
        complete = [row for row in rows if row.state == "complete"]

        def is_beaten(row: StudyTrial, rows: list[StudyTrial]) -> bool:
            for other in rows:
                gain = judged_by.worse_by(other.metric or 0, row.metric or 0)
                cheaper = find_cost(row.costs, "macs") - find_cost(other.costs, "macs")
                if gain >= 0 and cheaper >= 0 and (gain > 0 or cheaper > 0):
                    return True
            return False

        points = {
            (row.metric, row.costs.macs) for row in complete if row.costs if not is_beaten(row, complete)
        }
        front = find_front(rows, judged_by, "macs")
        assert {(row.metric, row.costs.macs) for row in front if row.costs} == points
        assert len(front) == len(points), "of equal trials one"
        best = find_best(rows, judged_by)
        assert (best is None) == (not complete)
        assert all(judged_by.worse_by(best.metric or 0, row.metric or 0) >= 0 for row in complete if best)


def test_costs_are_found_by_name() -> None:
    costs = make_trial(0, 0.5, 40).costs
    assert [find_cost(costs, name) for name in ("macs", "params", "bytes", "latency.here")] == [
        40,
        20,
        80,
        0.04,
    ]
    assert str(find_cost(costs, "latency.there")) == "nan" and str(find_cost(None, "macs")) == "nan"


def test_reasons_are_counted_without_their_figures() -> None:
    rows = [make_trial(number, 0.5, number, "failed") for number in range(4)]
    rows.append(rows[0].model_copy(update={"number": 4, "reason": "the loss is not finite"}))
    assert list_reasons(rows) == [("missed: MACs 0 % (limit 3 %)", 4), ("the loss is not finite", 1)]


def make_study(cost: str | None) -> Study:
    rows = [make_trial(number, 0.5 + number / 20, 10 * number + 10) for number in range(5)]
    rows.append(make_trial(5, 0.4, 30, "failed"))
    rows.append(rows[0].model_copy(update={"number": 6, "state": "stopped", "reason": "stopped early"}))
    return Study(
        title="a <b> study",
        created="2026-01-02T03:04:05+00:00",
        recipe_digest="0",
        model_digest=None,
        sampler="tpe",
        early_stopping="none",
        seed=1,
        recipe_seed=0,
        wanted=7,
        cost=cost,
        dense=DenseModel(metric=0.75, test_metric=0.7, costs=TrialCosts(macs=100, params=50, bytes=200)),
        trials=tuple(rows),
        chosen=(4,) if cost is None else (0, 1, 2, 3, 4),
        recipes={"4": "best.yaml"},
        importance={"budget.macs": 0.75, "lr": 0.25},
        notes=("every trial ran with the recipe's seed 0",),
    )


def test_tables_of_a_study() -> None:
    study = make_study(None)
    assert write_study_headline(study) == (
        "7 trials: 5 complete, 1 stopped early, 1 failed. Best: trial 4, validation accuracy 70.00 %."
    )
    front = make_study("macs")
    assert write_study_headline(front).endswith("5 trials on the front of validation accuracy against macs.")
    text = as_text(list_study_tables(study), 120)
    assert "dense                   75 %           70 %      100 %" in text
    assert "trial 4                 70 %              -     50.0 %" in text
    assert "    5  failed             40 %     30.0 %" in text and "missed: MACs 30 % (limit 3 %)" in text
    assert "budget.macs  75.0 %" in text


@pytest.mark.parametrize("cost", [None, "macs", "bytes", "latency.here"])
def test_the_page_shows_front_course_and_importance_and_escapes_text(cost: str | None) -> None:
    page = study_html(make_study(cost), "rules: <script>")
    assert page.startswith("<!doctype html>") and "<script>" not in page and "a &lt;b&gt; study" in page
    for heading in ("Trade-off", "Chosen", "Importance of parameters", "Trials", "Notes", "Recipe"):
        assert f"<h2>{heading}</h2>" in page
    across = {None: "MACs left", "macs": "MACs left", "bytes": "size of the file left"}.get(
        cost, "time on here"
    )
    assert f"Validation accuracy against {across}" in page
    assert "trial 4: 70.00 % at" in page and "best so far" in page
    if cost != "latency.here":
        assert "dense: 75.00 % at" in page


def test_a_study_without_a_complete_trial_has_a_page() -> None:
    study = make_study(None)
    failed = study.model_copy(
        update={"trials": study.trials[5:6], "chosen": (), "dense": None, "importance": {}, "recipes": {}}
    )
    page = study_html(failed)
    assert "1 trial: 1 failed." in page and "<h2>Chosen</h2>" not in page
