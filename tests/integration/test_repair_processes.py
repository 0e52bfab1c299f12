"""Repair on two processes, each with half of the examples: the weights that one process would have found."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from apart import Apart, free_port

METHODS = ("least_squares", "mean", "batch_norm")
CODE = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
import sparsify

torch.set_num_threads(1)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    dist.init_process_group("gloo")
group = dist.group.WORLD if world > 1 else None

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.mix, self.rnn = nn.MultiheadAttention(12, 3, batch_first=True), nn.GRU(12, 8, batch_first=True)
        self.wide, self.head = nn.Linear(8, 40), nn.Linear(40, 4)

    def forward(self, x):
        y = self.norm(self.stem(x)).relu().flatten(2).transpose(1, 2)
        y = self.rnn(self.mix(y, y, y)[0] + y)[0]
        return self.head(self.wide(y[:, -1]).relu())

torch.manual_seed(0)
model = Net().eval()
x = torch.randn(320, 2, 4, 4, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    model.norm.momentum = None
    model.train()(x)
    model.eval()
    model.wide.weight[:, 1:] *= 0.3
rules = [{"layers": name, "group": "neuron" if name == "wide" else "hidden" if name == "rnn" else "filter",
          "sparsity": "50%"} for name in ("stem", "rnn", "wide")]
plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (x[:2],))
found = {}
for method in sys.argv[2:]:
    result = sparsify.cut(plan, model)
    # the last tenth of all, and of each half, is held out; 64 examples are one batch of the statistics
    fitted, held = (range(288), range(288, 320)) if method != "batch_norm" else (range(256), range(256, 284))
    mine = [*fitted[rank::world], *held[rank::world]]
    repaired = sparsify.repair(result, [x[mine]], method=method, processes=group)
    if world > 1:
        told = [None] * world
        dist.all_gather_object(told, repr(repaired))
        assert told == [repr(repaired)] * world, told
    figures = [repaired.examples, *dict(repaired.before).values(), *dict(repaired.after).values()]
    outcomes = [(layer.layer, layer.outcome) for layer in repaired.layers]
    found[method] = (result.model.state_dict(), figures, outcomes)
if rank == 0:
    torch.save(found, sys.argv[1])
try:
    sparsify.repair(result, [x[: 20 if rank else 2]], processes=group)
except sparsify.errors.ModelError as error:
    print(error)
if world > 1:
    dist.destroy_process_group()
"""


def run(out: Path, **environment: str) -> Apart:
    return Apart(CODE, str(out), *METHODS, environment=os.environ | environment)


@pytest.mark.slow
def test_two_processes_repair_as_one(tmp_path: Path) -> None:
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    world["MASTER_PORT"] = free_port()
    two = [run(tmp_path / "two.pt", RANK=rank, LOCAL_RANK=rank, **world) for rank in "01"]
    one = run(tmp_path / "one.pt")
    said = [process.communicate() for process in (*two, one)]
    assert [process.returncode for process in (*two, one)] == [0, 0, 0], said
    assert {out for out, _ in said[:2]} == {"repair needs at least 3 examples of each process, found 2\n"}
    wanted: dict[str, Any] = torch.load(tmp_path / "one.pt", weights_only=False)
    found: dict[str, Any] = torch.load(tmp_path / "two.pt", weights_only=False)
    for method in METHODS:
        tolerance = 0.1 if method == "batch_norm" else 1e-3  # its batches are others
        for name, value in wanted[method][0].items():
            own = found[method][0][name]
            torch.testing.assert_close(own, value, rtol=tolerance, atol=tolerance, msg=f"{method}: {name}")
        assert found[method][1] == pytest.approx(wanted[method][1], rel=tolerance), method
        assert found[method][2] == wanted[method][2]
    changed = {layer for layer, outcome in wanted["least_squares"][2] if outcome == "refitted"}
    assert {"mix.values", "mix.out_proj", "rnn.l0", "wide", "head"} <= changed
