"""Group depth from end to end: trained, cut, tuned, reported, reloaded, exported; and that work really
goes."""

import json
from pathlib import Path

import pytest
import torch

import sparsify
from sparsify.cost.measure import count_macs
from sparsify.reporting.diff import diff_runs, resolve_recipe
from sparsify.reporting.report_file import read_report
from sparsify.reporting.report_tables import to_markdown
from sparsify.runs.apply import apply
from sparsify.runs.run_folder import read_recipe
from sparsify.runs.save_load import load_run

NETS = """
import torch
from torch import nn

class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
    def forward(self, hidden):
        q, k, v = self.qkv(hidden).chunk(3, -1)
        return self.out((q @ k.transpose(1, 2)).softmax(-1) @ v), None

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixed, self.norm1, self.norm2 = Mixed(), nn.LayerNorm(8), nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    def forward(self, x):
        x = self.norm1(x + self.mixed(hidden=x)[0])
        return self.norm2(x + self.mlp(x))

class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.last = nn.Sequential(*[Block() for _ in range(4)]), nn.Linear(8, 10)
    def forward(self, x):
        return self.last(self.blocks(x.flatten(0, 1).view(-1, 8, 8)).mean(1))

class Around(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))

class Residual(nn.Module):
    def __init__(self, width=8, depth=4, inputs=1):
        super().__init__()
        self.first, self.last = nn.Conv2d(inputs, width, 3, padding=1), nn.Linear(width, 10)
        self.blocks = nn.Sequential(*[Around(width) for _ in range(depth)])
    def forward(self, x):
        return self.last(self.blocks(torch.relu(self.first(x))).mean((2, 3)))
"""
SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
RECIPE = {
    "version": 1,
    "title": "Residual",
    "model": {"build": "depth_nets.Residual"},
    "data": {"source": "digits", "validation": "60%"},
    "rules": [
        {
            "layers": "blocks.*",
            "group": "depth",
            "sparsity": "50%",
            "penalty": {"kind": "group_lasso", "strength": 1e-4},
        },
        {"layers": "re:blocks.[0-3].conv1", "group": "filter", "sparsity": "25%"},
    ],
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 1, "optimizer": SGD},
        {"kind": "cut"},
        {"kind": "train", "name": "finetune", "epochs": 1, "optimizer": SGD},
    ],
}
WORDS = {
    **RECIPE,
    "title": "Words",
    "model": {"build": "depth_nets.PostNorm"},
    "rules": [{"layers": "Block", "group": "depth", "sparsity": "50%"}],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("depth_nets.py").write_text(NETS)


def go(recipe: dict) -> Path:
    return apply(recipe, None, timing=0.05, from_scratch=True)


def test_apply_trains_cuts_tunes_reports_and_reloads():
    run = go(RECIPE)
    report, cuts = read_report(run), json.loads((run / "cuts.json").read_text())
    gone = [op["module"] for op in cuts["operations"] if op["op"] == "bypass"]
    assert len(gone) == 2 and report.verdict.outcome == "equal"
    assert {m.what: m.met for m in report.limits} == {"rules.0.sparsity": True, "rules.1.sparsity": True}
    removed = [layer.name for layer in report.layers if layer.removed]
    assert removed == [
        f"{block}.{name}" for block in sorted(gone) for name in ("conv1", "bn1", "conv2", "bn2")
    ]
    assert all(
        layer.params_after == layer.macs_after == layer.outputs_after == 0
        for layer in report.layers
        if layer.removed
    )
    assert f"rules.0: 2 of 4 residual blocks were removed: {', '.join(gone)}" in report.notes
    assert "| 8 -> removed |" in to_markdown(report)
    model = load_run(run)
    assert sum(p.numel() for p in model.parameters()) == report.cut.params < report.dense.params
    assert not [n for n in model.state_dict() if n.startswith(tuple(f"{block}." for block in gone))]


@pytest.mark.nightly
def test_a_rule_that_speaks_only_of_what_left_is_done_with():
    rules = [
        {"layers": "blocks.1", "group": "depth", "sparsity": "100%"},
        {"layers": "blocks.1.conv*", "group": "filter", "penalty": {"kind": "l1", "strength": 1e-4}},
    ]
    assert read_report(go({**RECIPE, "rules": rules})).cut.epochs == 2
    again = [
        RECIPE["stages"][0],
        {"kind": "cut", "name": "first", "budget": {"params": "100%"}},
        RECIPE["stages"][2],
        {"kind": "cut"},
    ]
    report = read_report(go({**RECIPE, "rules": rules, "stages": again}))
    assert [r.verdict.outcome for r in report.rounds] == ["equal", "nothing cut"]


def test_blocks_leave_round_by_round_while_training():
    """One of four blocks after half of the way, two at the end; their filters count as removed with them."""
    stage = {
        "kind": "train",
        "name": "shrink",
        "epochs": 3,
        "optimizer": SGD,
        "cuts": {"schedule": "linear", "end": "2ep"},
    }
    run = go({**RECIPE, "stages": [stage]})
    report, log = read_report(run), json.loads((run / "cuts.json").read_text())
    gone = [[op["module"] for op in cuts["operations"] if op["op"] == "bypass"] for cuts in log["rounds"]]
    assert [len(names) for names in gone] == [1, 1] and gone[0] != gone[1]
    assert [r.verdict.outcome for r in report.rounds] == ["equal", "equal"]
    assert {m.what: m.met for m in report.limits} == {"rules.0.sparsity": True, "rules.1.sparsity": True}
    assert (
        f"rules.0: 2 of 4 residual blocks were removed: {', '.join(sorted(gone[0] + gone[1]))}"
        in report.notes
    )
    assert sum(p.numel() for p in load_run(run).parameters()) == report.cut.params


@pytest.mark.nightly
def test_a_diff_of_runs_shows_what_left():
    one, none = go(RECIPE), go({**RECIPE, "rules": [{**RECIPE["rules"][0], "sparsity": "0%"}]})
    gone = [layer.name for layer in read_report(one).layers if layer.removed and layer.macs]
    changes = {
        c.path: (c.old, c.new)
        for c in diff_runs(
            read_report(none),
            read_report(one),
            resolve_recipe(read_recipe(none)),
            resolve_recipe(read_recipe(one)),
        )
    }
    assert len(gone) == 4 and all(changes[f"widths.{name}"] == (8, 0) for name in gone)


@pytest.mark.parametrize("recipe", [RECIPE, WORDS], ids=["residual", "post-norm"])
@pytest.mark.parametrize("format", ["pt2", "onnx", "safetensors"])
def test_exports_reload_equal(recipe, format):
    run = go({**recipe, "stages": [{"kind": "cut"}]} | {"data": None, "inputs": [{"shape": [2, 1, 8, 8]}]})
    if format == "onnx":
        pytest.importorskip("onnxscript")
    assert sparsify.export(run, format).difference <= 1e-5


def test_work_goes_with_the_blocks():
    import depth_nets

    torch.manual_seed(0)
    model, x = depth_nets.Residual(32, 8, 3).eval(), torch.randn(4, 3, 32, 32)
    recipe = {
        "version": 1,
        "title": "t",
        "rules": [{"layers": "blocks.*", "group": "depth", "sparsity": "75%"}],
    }
    thin = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model).model.eval()

    def work(net: torch.nn.Module) -> int:
        """What is computed in a forward call, as torch's dispatcher sees it."""
        return count_macs(net, (x,))[0]

    def layers_called(net: torch.nn.Module) -> int:
        called = []
        handles = [
            m.register_forward_hook(lambda *_: called.append(0))
            for m in net.modules()
            if isinstance(m, torch.nn.Conv2d)
        ]
        with torch.no_grad():
            net(x)
        for handle in handles:
            handle.remove()
        return len(called)

    assert work(model) > 3 * work(thin), "three quarters of the work are gone"
    assert layers_called(model) - layers_called(thin) == 2 * 6, "both convolutions of six of the eight blocks"
