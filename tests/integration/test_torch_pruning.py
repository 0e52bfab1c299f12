"""torch-pruning beside a run, as a user asks for it: criterion, baseline, resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import make_recipe

import sparsify
from sparsify.runs import peer_baseline
from sparsify_cli.app import exit_code
from sparsify_schemas.report import Report


def recipe_with(*baselines: Any, **given: Any) -> dict[str, Any]:
    recipe = make_recipe(1)
    recipe["stages"].append(
        {"kind": "train", "name": "tune", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.01}}
    )
    return {**recipe, "rules": [{"layers": "conv*", "group": "filter"}], "budget": {"macs": "50%"}} | {
        "baselines": list(baselines),
        **given,
    }


def read(run: Path) -> Report:
    return Report.model_validate_json((run / "report.json").read_bytes())


def test_its_row_stands_in_the_table(tmp_path: Path) -> None:
    options = {"kind": "torch_pruning", "importance": "TaylorImportance", "batches": 1}
    run = sparsify.apply(recipe_with("random", options), out=tmp_path, from_scratch=True, timing=0.01)
    report = read(run)
    ours, theirs = report.baselines
    assert theirs.kind == "torch_pruning" and theirs.verdict.outcome == "equal"
    assert 0.3 * report.dense.macs < theirs.side.macs <= report.cut.macs
    assert theirs.side.epochs == ours.side.epochs == 2
    assert theirs.verdict.note.startswith("MetaPruner with TaylorImportance at ratio 0.")
    text = (run / "report.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| torch_pruning")]
    assert rows[0][-1].strip() == "exact"
    assert f"torch_pruning: {theirs.verdict.note}.\n" in text, "the run has no repair either"


def test_a_row_says_what_was_raised(tmp_path: Path) -> None:
    options = {"kind": "torch_pruning", "args": {"round_to": 64}}
    run = sparsify.apply(recipe_with(options), out=tmp_path, from_scratch=True, timing=0.01)
    report = read(run)
    assert report.baselines == ()
    (failed,) = report.failed
    assert failed.kind == "torch_pruning"
    assert failed.outcome.startswith("raised: no ratio comes down to ")
    rows = [line for line in (run / "report.md").read_text().splitlines() if "raised: " in line]
    assert rows[0].startswith("| torch_pruning | - | - |") and rows[0].endswith("the least is 100 % |")


WRONG = '''
import torch
from torch import nn

class Shuffled(nn.Module):
    """Channels change their places between two convolutions."""
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
    def forward(self, x):
        x = self.a(x).relu().roll(3, 1)
        return self.fc(self.b(x).relu().mean((2, 3)))
'''


def test_a_wrong_cut_is_called_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shuffled.py").write_text(WRONG)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = recipe_with("torch_pruning", model={"build": "shuffled.Shuffled"})
    recipe["rules"] = [{"layers": ["a", "b"], "group": "filter"}]
    run = sparsify.apply(recipe, out=tmp_path, from_scratch=True, timing=0.01)
    (made,) = read(run).baselines
    assert made.verdict.outcome == "wrong" and made.verdict.difference > 1e-3
    text = (run / "report.md").read_text()
    assert "Warning: torch_pruning: cut is wrong: it differs from the masked model by " in text
    rows = [line for line in text.splitlines() if line.startswith("| torch_pruning")]
    assert rows[0].endswith("| wrong |")


@pytest.mark.nightly
def test_a_run_that_was_interrupted_goes_on_with_the_same_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sparsify.apply(recipe_with("torch_pruning"), out=tmp_path / "a", from_scratch=True, timing=0.01)
    begin = peer_baseline.begin_peer_baseline

    def stop(*given: Any) -> None:
        begin(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sparsify.runs.baselines.begin_peer_baseline", stop)
        with pytest.raises(KeyboardInterrupt):
            sparsify.apply(recipe_with("torch_pruning"), out=tmp_path / "b", from_scratch=True, timing=0.01)
    (run,) = (tmp_path / "b").iterdir()
    monkeypatch.setattr(peer_baseline, "cut_by_peer", None)  # it is not asked again
    sparsify.apply(resume=run, timing=0.01)
    for name in ("cuts.json", "model.safetensors"):
        own = Path("baselines/torch_pruning") / name
        assert (run / own).read_bytes() == (whole / own).read_bytes()


def test_the_criterion_by_the_command_line(tmp_path: Path) -> None:
    recipe = recipe_with()
    criterion = {"kind": "torch_pruning", "importance": "OBDCImportance", "batches": 1}
    recipe["rules"] = [{"layers": "conv*", "group": "filter", "criterion": criterion}]
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    assert exit_code(["apply", str(file), "--from-scratch", "--out", str(tmp_path)]) == 0
    (run,) = tmp_path.glob("small-*")
    assert read(run).verdict.outcome == "equal"
    torch.testing.assert_close(read(run).cut.macs / read(run).dense.macs, 0.5, rtol=0.1, atol=0)


def test_explain_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["explain", "criterion.torch_pruning"]) == 0
    assert "OBDCImportance" in capsys.readouterr().out
    assert exit_code(["explain", "baseline.torch_pruning"]) == 0
    assert "GroupNormPruner" in capsys.readouterr().out


def test_layers_that_a_rule_protects_stay(tmp_path: Path) -> None:
    recipe = recipe_with("torch_pruning", budget={"macs": "70%"})
    recipe["rules"] = [{"layers": "conv3", "protect": True}, *recipe["rules"]]
    run = sparsify.apply(recipe, out=tmp_path, from_scratch=True, timing=0.01)
    cuts = json.loads((run / "baselines/torch_pruning/cuts.json").read_bytes())
    narrowed = {(op["tensor"], op["dim"]) for op in cuts["operations"] if op["op"] == "narrow"}
    assert ("conv2.weight", 0) in narrowed and ("conv3.weight", 0) not in narrowed


def test_the_share_of_the_macs_counts_where_memory_is_limited(tmp_path: Path) -> None:
    recipe = recipe_with("torch_pruning", budget={"peak_memory": "85%"})
    run = sparsify.apply(recipe, out=tmp_path, from_scratch=True, timing=0.01)
    report = read(run)
    (made,) = report.baselines
    assert made.side.macs <= report.cut.macs < report.dense.macs
    assert made.verdict.note.endswith(" of the MACs")
