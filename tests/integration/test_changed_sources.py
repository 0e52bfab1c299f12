"""A run goes on with the data and the code that it began with, or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsify.errors import RunError
from sparsify.events import EpochDone
from sparsify.runs import run_folder
from sparsify.runs.apply import apply
from sparsify.runs.save_load import verify_run

MODULES = {
    "the_data": """
import csv, pathlib, torch
def rows():
    lines = pathlib.Path("rows.txt").read_text().splitlines()
    table = torch.tensor([[float(v) for v in row] for row in csv.reader(lines)])
    return (table[:40, :4], table[:40, 4:]), (table[40:, :4], table[40:, 4:])
""",
    "the_net": """
from torch import nn
def net(width=12):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))
""",
    "the_loss": "def loss(outputs, targets): return (outputs - targets).abs().mean(dim=1)\n",
    "the_metric": "def metric(outputs, targets): return float((outputs - targets).abs().mean())\n",
    "the_collate": """
import torch
def collate(examples):
    return torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])
""",
    "the_optimizer": """
import torch
def optimizer(parameters, lr):
    return torch.optim.SGD(parameters, lr)
""",
    "all_of_it": "from the_loss import loss\n",
}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Change",
    "model": {"build": "the_net.net"},
    "data": {"source": "the_data:rows"},
    "task": {
        "loss": "all_of_it:loss",
        "metrics": [{"use": "the_metric:metric", "better": "lower"}],
        "collate": "the_collate:collate",
    },
    "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}],
    "stages": [
        {
            "kind": "train",
            "name": "learn",
            "epochs": 2,
            "optimizer": {"kind": "other", "use": "the_optimizer:optimizer", "lr": 0.01},
        },
        {"kind": "cut"},
    ],
}


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    write_rows()


def write_rows(seed: int = 0, test_target: float = 0.0) -> None:
    rows = np.random.default_rng(seed).normal(size=(50, 5)).round(4)
    rows[-1, 4] = test_target
    np.savetxt("rows.txt", rows, delimiter=",")


def stop_after_an_epoch(given: dict[str, Any]) -> Path:
    def stop(event: object) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(given, from_scratch=True, timing=0.02, listener=stop)
    return Path("runs/change-1")


def refused(folder: Path) -> str:
    with pytest.raises(RunError) as caught:
        apply(resume=folder, timing=0.02)
    return str(caught.value)


def test_nothing_was_changed() -> None:
    whole = verify_run(apply(RECIPE, from_scratch=True, out="whole", timing=0.02))
    folder = stop_after_an_epoch(RECIPE)
    resumed = verify_run(apply(resume=folder, timing=0.02))
    assert [row.loss for row in resumed.history] == [row.loss for row in whole.history]
    assert resumed.cut.test_metric == whole.cut.test_metric


CHANGED = {
    "the_data": ("{file}", "data.source 'the_data:rows'"),
    "the_net": ("{file}", "model.build 'the_net.net'"),
    "the_metric": ("{file}", "task.metrics.0 'the_metric:metric'"),
    "the_collate": ("{file}", "task.collate 'the_collate:collate'"),
    "the_optimizer": ("{file}", "stages.0.optimizer 'the_optimizer:optimizer'"),
    "the_loss": ("{folder}/all_of_it.py, {file}", "task.loss 'all_of_it:loss'"),  # named through another
}


@pytest.mark.parametrize("module", CHANGED)
def test_code_that_the_recipe_names_was_changed(module: str, tmp_path: Path) -> None:
    folder = stop_after_an_epoch(RECIPE)
    file = tmp_path / f"{module}.py"
    before = file.read_text()
    file.write_text(before + "# a change\n")
    files, key = CHANGED[module]
    assert refused(folder) == (
        f"{files.format(file=file, folder=tmp_path)} ({key}) was changed since the run began; start a new "
        "run "
        "with it"
    )
    file.write_text(before)
    assert apply(resume=folder, timing=0.02) == folder


def test_what_a_callable_reads_was_changed() -> None:
    folder = stop_after_an_epoch(RECIPE)
    write_rows(test_target=0.5)
    assert refused(folder) == (
        "the test targets of data.source 'the_data:rows' were changed since the run began; start a new run "
        "with "
        "them"
    )
    write_rows(seed=1)
    assert refused(folder) == (
        "the training inputs and the training targets and the test inputs and the test targets of "
        "data.source "
        "'the_data:rows' were changed since the run began; start a new run with them"
    )
    write_rows()
    apply(resume=folder, timing=0.02)


def change_table() -> None:
    text = Path("table.csv").read_text()
    Path("table.csv").write_text(text.replace("3,9,1", "3,9,2"))


def change_text() -> None:
    Path("text.jsonl").write_text(Path("text.jsonl").read_text().replace("words 7", "words 8"))


SOURCES: dict[str, tuple[Any, str, Callable[[], None], str]] = {
    "a table": (
        {"source": "table.csv", "test": "20%", "split": "last", "target": "y"},
        "table.csv",
        change_table,
        "the training targets of data.source 'table.csv' were changed since the run began; start a new run "
        "with "
        "them",
    ),
    "text": (
        {"source": "text.jsonl", "test": "20%", "split": "last", "target": "y"},
        "text.jsonl",
        change_text,
        "the training inputs of data.source 'text.jsonl' were changed since the run began; start a new run "
        "with "
        "them",
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_files_were_changed(kind: str) -> None:
    data, name, change, message = SOURCES[kind]
    Path("table.csv").write_text("a,b,y\n" + "".join(f"{i},{3 * i},{i % 2}\n" for i in range(20)))
    lines = [json.dumps({"text": f"words {i} and more", "y": i % 2}) for i in range(20)]
    Path("text.jsonl").write_text("\n".join(lines))
    Path("file_nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def table(): return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))\n"
        "class Mean(nn.Module):\n    def forward(self, x): return x.mean(dim=1)\n"
        "def text():\n"
        "    return nn.Sequential(nn.Embedding(256, 8), Mean(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, "
        "2))\n"
    )
    given = {
        "version": 1,
        "title": "Change",
        "model": {"build": f"file_nets.{Path(name).stem}"},
        "data": data,
        "rules": [{"layers": "Linear", "group": "neuron", "sparsity": "50%"}],
        "stages": [
            {"kind": "train", "name": "learn", "epochs": 2, "optimizer": {"kind": "adam"}},
            {"kind": "cut"},
        ],
    }
    folder = stop_after_an_epoch(given)
    change()
    assert refused(folder) == message


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Its state.json has no digests."""
    folder = stop_after_an_epoch(RECIPE)
    state = json.loads((folder / run_folder.STATE).read_text())
    assert set(state["data"]) == {"training inputs", "training targets", "test inputs", "test targets"}
    assert len(state["sources"]) == 6
    del state["data"], state["sources"]
    (folder / run_folder.STATE).write_text(json.dumps(state))
    write_rows(test_target=0.5)
    (tmp_path / "the_net.py").write_text(MODULES["the_net"] + "# a change\n")
    assert apply(resume=folder, timing=0.02) == folder


def test_damaged_digests_are_said() -> None:
    folder = stop_after_an_epoch(RECIPE)
    state = json.loads((folder / run_folder.STATE).read_text())
    (folder / run_folder.STATE).write_text(json.dumps({**state, "sources": 3}))
    assert refused(folder) == (
        f"{folder}/state.json is damaged ('data' and 'sources' must be mappings); the run cannot be resumed, "
        "start a new one"
    )
