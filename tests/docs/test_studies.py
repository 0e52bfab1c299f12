"""The page of studies says what the reports say."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "scripts"))
study_page = import_module("study_page")


def test_the_page_is_current() -> None:
    assert study_page.PAGE.read_text() == study_page.write_page(
        study_page.read_studies(), study_page.read_contests()
    ), "run `make reference`"


def test_every_report_belongs_to_a_study_and_to_its_seed() -> None:
    studies = study_page.read_studies()
    named = [name for study in studies for name in study.runs.values()]
    budgets = [entries for contest in study_page.read_contests() for entries in contest.runs.values()]
    contests = [runs for entries in budgets for runs in entries.values()]
    named += [name for runs in contests for name in runs.values()]
    assert sorted(named) == sorted(path.name for path in study_page.FOLDER.glob("*.json"))
    for study in studies:
        assert not study.runs or study.command
    for runs in [*(study.runs for study in studies), *contests]:
        for seed, name in runs.items():
            assert json.loads((study_page.FOLDER / name).read_text())["seed"] == seed


MISSED = "**Missed** (8.00 % was asked): too short."


@pytest.mark.parametrize(("goal", "said"), [(8.0, MISSED), (9.5, "**Met**")])
def test_what_is_missed_is_said_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goal: float, said: str
) -> None:
    stage = {"seconds": 1800.0, "epochs": 20}
    report = {
        "dense": {"macs": 100, "params": 50, "test_metric": 0.92},
        "cut": {"macs": 60, "params": 20, "test_accuracy": 0.905},
        "stages": [stage, stage],
        "latency": [{"speedup": 1.5}],
    }
    (tmp_path / "one.json").write_text(json.dumps(report))
    monkeypatch.setattr(study_page, "FOLDER", tmp_path)
    study = study_page.Study("T", "P", "8 %", goal, "sparsify apply r.yaml", {3: "one.json"}, "too short")
    text = study_page.write_page([study, study_page.Study("U", "P", "none")], [])
    assert "| 3 | 8.00 % | 9.50 % | 60.0 % | 40.0 % | 1.50x | 40 | 1.0 |" in text
    assert said in text and "    sparsify apply r.yaml" in text
    assert "## U\n\nPublished (P): none.\n\n**Not yet run at full length.**" in text


def test_a_contest_has_a_row_for_each_model_and_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means over the seeds that have the model; the first model of the same seed is subtracted."""

    def side(metric: float) -> dict[str, object]:
        return {"macs": 50, "test_metric": metric}

    def timed(speedup: float) -> list[dict[str, float]]:
        return [{"speedup": speedup}]

    dense, small = {"macs": 100}, {"kind": "magnitude", "side": side(0.89), "latency": timed(2)}
    other = {"kind": "random", "side": side(0.88), "latency": timed(2.5)}
    reports = {
        "a0": {"dense": dense, "cut": side(0.92), "latency": timed(2), "baselines": []},
        "a1": {"dense": dense, "cut": side(0.90), "latency": timed(2), "baselines": []},
        "b0": {"dense": dense, "cut": side(0.91), "latency": timed(4), "baselines": [small]},
        "b1": {"dense": dense, "cut": side(0.90), "latency": timed(4), "baselines": [other, small]},
    }
    for name, report in reports.items():
        (tmp_path / name).write_text(json.dumps(report))
    monkeypatch.setattr(study_page, "FOLDER", tmp_path)
    runs = {"50%": {"blocks": {0: "a0", 1: "a1"}, "filters": {0: "b0", 1: "b1"}}}
    page = study_page.write_page([], [study_page.Contest("T", "Which is best?", "sparsify apply", runs)])
    assert [line for line in page.splitlines() if line.startswith("| 50%")] == [
        "| 50% | blocks | 50.0 % | 50.0 % | 9.00 ± 1.41 % |  | 2 |",
        "| 50% | filters | 25.0 % | 50.0 % | 9.50 ± 0.71 % | 0.50 ± 0.71 points | 2 |",
        "| 50% | magnitude | 50.0 % | 50.0 % | 11.00 ± 0.00 % | 2.00 ± 1.41 points | 2 |",
        "| 50% | random | 40.0 % | 50.0 % | 12.00 % | 2.00 points | 1 |",
    ]
