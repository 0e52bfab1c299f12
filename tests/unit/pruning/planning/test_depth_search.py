"""The search for the deepest cut within an accuracy_drop: the bisection, and whole runs on digits, killed
and gone on with."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sparsify
from sparsify.errors import ModelError, RecipeError
from sparsify.models import digits_cnn
from sparsify.pruning.planning.depth_search import choose_best, choose_next_depth
from sparsify.recipe import load
from sparsify.reporting.report_file import read_report
from sparsify.runs import accuracy_search
from sparsify.runs import stages as stages_module
from sparsify_schemas.budget import AccuracyDrop, Budget
from sparsify_schemas.report import Report, Search, Trial
from sparsify_schemas.units import Points

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits"},
    "budget": {"accuracy_drop": {"at_most": "3pp", "trials": 4}},
    "rules": [{"layers": "Conv2d", "group": "filter", "criterion": {"kind": "magnitude"}}],
    "stages": [
        {
            "kind": "train",
            "name": "learn",
            "epochs": 3,
            "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        },
        {"kind": "cut"},
        {
            "kind": "train",
            "name": "finetune",
            "epochs": 1,
            "optimizer": {"kind": "sgd", "lr": 0.02, "momentum": 0.9},
        },
    ],
}


def searched(edge: float, *, other: bool = False, **asked: Any) -> Search:
    """A whole search where every depth up to the edge is inside."""
    spec = Budget.model_validate({"accuracy_drop": {"at_most": "1pp", **asked}}).accuracy_drop
    assert spec is not None
    search = Search(dense=0.9)
    while (depth := choose_next_depth(search, spec, other)) is not None:
        assert len(search.trials) < spec.trials, "never more than asked"
        trial = Trial(
            depth=depth,
            macs=1,
            params=1,
            validation_metric=0.9,
            drop=0.0,
            inside=depth <= edge,
            seconds=1.0,
        )
        search = search.model_copy(update={"trials": (*search.trials, trial)})
    return search


def depths(search: Search) -> list[float]:
    return [t.depth for t in search.trials]


def test_bisection_comes_as_near_as_asked() -> None:
    assert depths(searched(0.4)) == [0.5, 0.25, 0.375, 0.4375, 0.40625]
    assert choose_best(searched(0.4)).depth == 0.375
    assert depths(searched(0.4, within="20%")) == [0.5, 0.25, 0.375]
    assert depths(searched(1.0, trials=3)) == [0.5, 0.75, 0.875]


def test_other_budgets_are_met_first_and_the_search_ends_where_they_cost_too_much() -> None:
    assert depths(searched(0.6, other=True, trials=4)) == [0.0, 0.5, 0.75, 0.625]
    lost = searched(-1.0, other=True)
    assert depths(lost) == [0.0] and choose_best(lost).depth == 0.0


def test_where_nothing_is_inside_nothing_is_cut() -> None:
    assert depths(searched(0.0, trials=3)) == [0.5, 0.25, 0.0]
    assert choose_best(searched(0.0, trials=3)).depth == 0.0
    assert depths(searched(-1.0, trials=1)) == [0.0]


def test_points_may_be_written_alone() -> None:
    for text in ("1%", "1pp"):
        assert load({**RECIPE, "budget": {"accuracy_drop": text}}).recipe.budget == Budget(
            accuracy_drop=AccuracyDrop(at_most=Points(1.0, "pp"))
        )
    assert str(Points.parse("0.5pp")) == "0.5pp"


def refused(**more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load({**RECIPE, **more})
    return str(caught.value)


def test_what_cannot_be_searched() -> None:
    assert refused(budget={"accuracy_drop": 0.01}) == (
        "<recipe>: budget.accuracy_drop: expected percentage points such as 0.5pp, not the bare number 0.01"
    )
    assert refused(data={"source": "digits", "validation": "0%"}) == (
        "<recipe>: budget.accuracy_drop: accuracy_drop is judged on validation data; "
        "write 'data' with 'validation' above 0%"
    )
    gradual = {**RECIPE["stages"][0], "cuts": {"every": "1ep"}}
    assert refused(stages=[gradual]) == (
        "<recipe>: stages.0.cuts: budget.accuracy_drop tries whole cuts, and 'learn' cuts between its "
        "epochs; write a 'cut' stage in place of its 'cuts'"
    )
    assert refused(
        stages=[{"kind": "cut", "budget": {"accuracy_drop": "1pp"}}, {"kind": "cut", "name": "last"}]
    ) == (
        "<recipe>: stages.0.budget.accuracy_drop: only the recipe's own budget names an accuracy_drop; "
        "leave it out"
    )


def test_by_hand_nothing_can_be_searched() -> None:
    plan = sparsify.make_plan(RECIPE, digits_cnn(), (torch.zeros(2, 1, 8, 8),))
    page = " ".join(sparsify.describe(plan).split())
    assert (
        "drop at most 3 pp" in page
        and "accuracy_drop: at most 4 trials find how deep to cut; this plan shows the shallowest cut" in page
    )
    with pytest.raises(ModelError) as caught:
        sparsify.cut(plan, digits_cnn())
    assert str(caught.value) == (
        "budget.accuracy_drop is found by going through the recipe's stages; call sparsify.apply, "
        "or leave it out of a plan that is cut by hand"
    )


def applied(folder: Path, **more: Any) -> Report:
    return read_report(sparsify.apply({**RECIPE, **more}, from_scratch=True, out=folder, timing=0.01))


def test_the_deepest_cut_inside_is_what_the_run_leaves(tmp_path: Path) -> None:
    report = applied(tmp_path)
    assert report.search is not None and report.search.depth is None
    taken = choose_best(report.search)
    assert report.search.trials[0].depth == 0.5
    assert {t.inside for t in report.search.trials} == {True, False}, "the edge lies between"
    assert (report.cut.macs, report.cut.params, report.cut.validation_metric) == (
        taken.macs,
        taken.params,
        taken.validation_metric,
    )
    (limit,) = report.limits
    assert (limit.what, limit.asked, limit.limit, limit.met) == ("budget.accuracy_drop", "3pp", 0.03, True)
    assert (
        limit.achieved
        == pytest.approx(taken.drop)
        == pytest.approx(report.dense.validation_metric - report.cut.validation_metric)
    )
    assert all(t.macs > taken.macs for t in report.search.trials if t.depth < taken.depth)
    assert [s.name for s in report.stages] == ["learn", "cut", "repair", "finetune"] and len(
        report.history
    ) == 4, "of the trial that was taken"
    assert not [p for p in (tmp_path / "digits-1").iterdir() if p.suffix == ".pt"]
    assert "Search" in (tmp_path / "digits-1" / "report.md").read_text()


@pytest.mark.nightly
def test_a_search_goes_on_after_a_kill_and_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{**s, "epochs": 1} if s["kind"] == "train" else s for s in RECIPE["stages"]]
    budget = {"accuracy_drop": {"at_most": "8pp", "trials": 3}, "params": "80%"}
    whole = applied(tmp_path / "whole", stages=stages, budget=budget)
    for kill in (2, 4):
        calls: list[int] = []
        cut_model, judge = stages_module._cut_model, accuracy_search._judge_trial

        def dying(run: Any, *given: Any, real: Any, calls: list[int] = calls, kill: int = kill) -> Any:
            calls.append(1)
            if len(calls) == kill:
                raise KeyboardInterrupt
            return real(run, *given)

        with monkeypatch.context() as patch:
            patch.setattr(stages_module, "_cut_model", lambda *a, real=cut_model, d=dying: d(*a, real=real))
            patch.setattr(accuracy_search, "_judge_trial", lambda *a, real=judge, d=dying: d(*a, real=real))
            with pytest.raises(KeyboardInterrupt):
                applied(tmp_path / str(kill), stages=stages, budget=budget)
        folder = tmp_path / str(kill) / "digits-1"
        report = read_report(sparsify.apply(resume=folder, timing=0.01))
        assert [t.model_copy(update={"seconds": 0}) for t in report.search.trials] == [
            t.model_copy(update={"seconds": 0}) for t in whole.search.trials
        ]
        assert report.files["model.safetensors"] == whole.files["model.safetensors"]
    assert whole.search.trials[0].depth == 0.0 and whole.cut.params <= 0.8 * whole.dense.params


@pytest.mark.nightly
def test_a_kill_at_any_write_of_the_search_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{**RECIPE["stages"][0], "epochs": 1}, RECIPE["stages"][1]]
    budget = {"accuracy_drop": {"at_most": "50pp", "trials": 2}}
    write, done = accuracy_search._write, list[int]()
    monkeypatch.setattr(accuracy_search, "_write", lambda *given: (done.append(1), write(*given))[1])
    whole = applied(tmp_path / "whole", stages=stages, budget=budget)
    for kill in range(1, len(done) + 1):
        left = [kill]

        def dying(*given: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            write(*given)

        monkeypatch.setattr(accuracy_search, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            applied(tmp_path / str(kill), stages=stages, budget=budget)
        report = read_report(sparsify.apply(resume=tmp_path / str(kill) / "digits-1", timing=0.01))
        assert report.files["model.safetensors"] == whole.files["model.safetensors"]
        assert [t.depth for t in report.search.trials] == [t.depth for t in whole.search.trials]


def test_budgets_that_cost_too_much_accuracy_are_met_and_the_drop_is_reported_as_missed(
    tmp_path: Path,
) -> None:
    report = applied(tmp_path, budget={"accuracy_drop": "0.1pp", "macs": "6%"}, stages=RECIPE["stages"][:2])
    assert [t.depth for t in report.search.trials] == [0.0]
    met = {limit.what: limit.met for limit in report.limits}
    assert met == {"budget.macs": True, "budget.accuracy_drop": False}
