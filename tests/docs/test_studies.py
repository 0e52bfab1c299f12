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
    assert study_page.PAGE.read_text() == study_page.write_page(study_page.read_studies()), (
        "run `make reference`"
    )


def test_every_report_belongs_to_a_study_and_to_its_seed() -> None:
    studies = study_page.read_studies()
    named = [name for study in studies for name in study.runs.values()]
    assert sorted(named) == sorted(path.name for path in study_page.FOLDER.glob("*.json"))
    for study in studies:
        assert not study.runs or study.command
        for seed, name in study.runs.items():
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
    text = study_page.write_page([study, study_page.Study("U", "P", "none")])
    assert "| 3 | 8.00 % | 9.50 % | 60.0 % | 40.0 % | 1.50x | 40 | 1.0 |" in text
    assert said in text and "    sparsify apply r.yaml" in text
    assert "## U\n\nPublished (P): none.\n\n**Not yet run at full length.**" in text
