"""Tables over seeds of a metric that is no share and is better when lower."""

from pathlib import Path
from typing import Any

import pytest

import sparsify
from sparsify.reporting.report_file import read_report
from sparsify.runs.seed_statistics import summarize_seeds
from sparsify_cli.app import exit_code

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "numbers",
    "model": {"build": "sparsify.models.mlp", "args": {"widths": [10, 8, 1]}},
    "data": {"source": "sparsify.data.diabetes:diabetes", "validation": "20%"},
    "task": {"kind": "regression", "metrics": ["rmse"]},
    "budget": {"params": "60%"},
    "rules": [{"layers": "layers.0", "group": "neuron", "criterion": {"kind": "magnitude"}}],
    "baselines": ["random"],
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 1, "optimizer": {"kind": "adam", "lr": 0.01}},
        {"kind": "cut", "repair": False},
    ],
}


def test_runs_from_random_weights_are_grouped_without_a_training_before_the_cut(
    tmp_path: Path,
) -> None:
    recipe = {**RECIPE, "baselines": [], "stages": RECIPE["stages"][1:]}
    recipe["targets"] = {"here": {"kind": "cpu", "threads": 1}}
    for seed in (0, 1):
        sparsify.apply(recipe | {"seed": seed}, from_scratch=True, out=tmp_path, timing=0.01)
    assert [row.seeds for row in summarize_seeds(tmp_path)] == [(0, 1), (0, 1)]
    notes = read_report(tmp_path / "numbers-1").notes
    assert notes[0] == (
        "the run began with random weights, and its dense model has them: "
        "no epoch of training came before the cut"
    )
    for seed in (0, 1):  # those of two given models are apart
        given = tmp_path / f"numbers-{seed + 1}" / "dense.safetensors"
        sparsify.apply(recipe | {"seed": seed}, given, out=tmp_path / "given", timing=0.01)
    assert [row.seeds for row in summarize_seeds(tmp_path / "given")] == [(0,), (0,), (1,), (1,)]


def test_deviations_and_leads_have_the_unit_and_the_direction_of_the_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        sparsify.apply(RECIPE | {"seed": seed}, from_scratch=True, out=tmp_path, timing=0.02)
    dense, cut, random = summarize_seeds(tmp_path)
    assert cut.metric is not None and random.metric is not None and random.behind is not None
    assert random.behind.mean == pytest.approx(random.metric.mean - cut.metric.mean)
    assert dense.metric is not None and dense.metric.deviation is not None
    assert exit_code(["runs", str(tmp_path), "--seeds"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dense"))
    shown = [float(part.split()[0]) for part in row.split("±")[-2:]]
    assert dense.behind is not None
    assert shown == pytest.approx([dense.metric.deviation, dense.behind.deviation], rel=0.06)
