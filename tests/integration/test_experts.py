"""Whole experts through the commands: trained with a lasso, cut in rounds, stopped and continued, compared,
written."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
import yaml
from reference import CutModel, Experts

from sparsify.runs.save_load import load_run
from sparsify_cli.app import exit_code
from sparsify_schemas.cuts import Cuts

NET = """
import torch
from torch import nn

class Mixture(nn.Module):
    def __init__(self, count=8, top_k=2):
        super().__init__()
        self.num_experts, self.top_k = count, top_k
        self.gate = nn.Linear(24, count, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24)) for _ in range(count)
        )
    def forward(self, x):
        shares, chosen = self.gate(x).softmax(-1).topk(self.top_k, -1)
        made = torch.zeros_like(x)
        for number in range(self.num_experts):
            token, place = torch.where(chosen == number)
            made = made.index_add(0, token, self.experts[number](x[token]) * shares[token, place, None])
        return made

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(64, 24), nn.Linear(24, 10)
        self.blocks = nn.ModuleList(Mixture() for _ in range(2))
    def forward(self, x):
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.relu())
"""
ROUTERS = Experts({"blocks.0.gate.weight": 0, "blocks.1.gate.weight": 0})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "moe_net", raising=False)
    Path("moe_net.py").write_text(NET)


def write(name: str, stages: list[dict[str, Any]], **more: Any) -> None:
    lasso = {"kind": "group_lasso", "strength": 1e-3}
    body = {
        "version": 1,
        "title": name,
        "model": {"build": "moe_net:Net"},
        "data": {"source": "digits", "validation": "60%"},
        "rules": [{"layers": "blocks.*", "group": "expert", "sparsity": "50%", "penalty": lasso}],
        "stages": stages,
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(body | more))


def train(name: str, epochs: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "name": name,
        "epochs": epochs,
        "optimizer": {"kind": "adam", "lr": 3e-3},
        **more,
    }


def test_a_mixture_is_trained_cut_repaired_and_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    write("moe", [train("learn", 3), {"kind": "cut"}, train("tune", 1, penalties=False)])
    assert exit_code(["plan", "moe.yaml", "--from-scratch"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 mixtures of experts" in shown
    assert re.search(r"blocks\.0 +Mixture +[0-9.]+ % +8 +4 +2\n", shown)
    assert exit_code(["apply", "moe.yaml", "--from-scratch", "--quiet"]) == 0, capsys.readouterr().err
    report = json.loads(Path("runs/moe-1/report.json").read_text())
    assert report["verdict"]["outcome"] == "equal" and report["limits"][0]["met"]
    after = [row.pop("experts_after") for row in report["mixtures"]]
    assert report["mixtures"] == [
        {"name": name, "type": "Mixture", "experts": 8, "least": 2} for name in ("blocks.0", "blocks.1")
    ]
    assert sum(after) == 8
    rows = {row["name"]: row for row in report["layers"]}
    assert rows["blocks.0.gate"]["protected"] is None and rows["head"]["protected"] is not None
    assert sum(rows[f"blocks.0.experts.{at}.0"].get("removed", False) for at in range(8)) == 8 - after[0]
    assert report["cut"]["params"] < 0.6 * report["dense"]["params"]
    repaired = next(stage["repair"] for stage in report["stages"] if stage["kind"] == "repair")
    outcomes = {layer["layer"]: layer["outcome"] for layer in repaired["layers"]}
    assert outcomes["head"] in ("refitted", "reverted") and outcomes["blocks.0.experts.0.0"] == "skipped"
    capsys.readouterr()
    assert exit_code(["report", "runs/moe-1"]) == 0
    assert re.search(rf"blocks\.0 +Mixture +8 -> {after[0]} +2\n", capsys.readouterr().out)
    assert exit_code(["apply", "moe.yaml", "--from-scratch", "--quiet", "--set", "rules.0.sparsity=25%"]) == 0
    capsys.readouterr()
    assert exit_code(["diff", "runs/moe-1", "runs/moe-2"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"Experts\n.*\n-+\nblocks\.0 +{after[0]} +[0-9] +\+[0-9]\n", shown)


@pytest.mark.nightly
def test_rounds_stop_and_go_on_with_the_numbers_that_experts_have(capsys: pytest.CaptureFixture[str]) -> None:
    rules = [
        {"layers": "blocks.*", "group": "expert", "sparsity": "50%"},
        {"layers": "blocks.*.experts.*.0", "group": "neuron", "sparsity": "25%"},
    ]
    stages = [
        train("learn", 1),
        {"kind": "cut", "name": "first", "way": "50%", "repair": False},
        train("shrink", 3, cuts={"every": "1ep"}),
    ]
    write("rounds", stages, rules=rules)
    assert exit_code(["apply", "rounds.yaml", "--from-scratch", "--quiet"]) == 0, capsys.readouterr().err
    log = json.loads(Path("runs/rounds-1/cuts.json").read_text())
    lists = [[op for op in one["operations"] if op["op"] == "shorten"] for one in log["rounds"]]
    assert sum(map(bool, lists)) > 1  # experts left in more than one round
    again = load_run(Path("runs/rounds-1"))
    own: Any = again
    assert [len(block.experts) for block in own.blocks] == [block.num_experts for block in own.blocks]
    assert sum(len(block.experts) for block in own.blocks) == 8
    for block in own.blocks:
        for expert in block.experts:
            assert expert[0].out_features == expert[0].weight.shape[0] == expert[2].weight.shape[1]


def test_how_much_a_mixture_can_lose_is_measured_down_to_what_its_router_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import moe_net

    torch.manual_seed(0)
    torch.save(moe_net.Net().state_dict(), "dense.pt")
    write("how-much", [{"kind": "cut", "repair": False}])
    assert exit_code(["sensitivity", "how-much.yaml", "dense.pt"]) == 0, capsys.readouterr().err
    found = json.loads(Path("sensitivity.json").read_text())
    curves = {curve["group"]: curve["points"] for curve in found["curves"]}
    assert curves.keys() == {"blocks.0", "blocks.1"}
    assert max(point["removed"] for point in curves["blocks.0"]) == 6


def test_one_cut_is_judged_by_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    """Weights from a file are cut at once, so that the run's dense model is known."""
    import moe_net

    torch.manual_seed(0)
    dense = moe_net.Net().eval()
    torch.save(dense.state_dict(), "dense.pt")
    write("once", [{"kind": "cut", "repair": False}])
    assert exit_code(["apply", "once.yaml", "dense.pt", "--quiet"]) == 0, capsys.readouterr().err
    cuts = Cuts.model_validate_json(Path("runs/once-1/cuts.json").read_text())
    result = CutModel(load_run(Path("runs/once-1")), cuts)
    found = reference.compare(result, dense, (torch.randn(9, 1, 8, 8),), experts=ROUTERS)
    assert found.difference < 1e-12 and found.to_dense > 1e-3
