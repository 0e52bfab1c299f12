"""Penalties on two processes, under DDP and under FSDP 2, leave the weights that one process would have left."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PENALTIES: dict[str, dict[str, Any]] = {
    "group_lasso coupled": {"kind": "group_lasso", "strength": 0.3, "every": 2},
    "group_lasso layer": {"kind": "group_lasso", "strength": 0.3, "scope": "layer", "every": 1},
    "group_lasso sub-gradient": {"kind": "group_lasso", "strength": 0.3, "solver": "subgradient"},
    "group_lasso half-space": {"kind": "group_lasso", "strength": 0.3, "solver": "half_space", "weight": "macs"},
    "l1": {"kind": "l1", "strength": 0.05, "every": 1},
    "l1 sub-gradient": {"kind": "l1", "strength": 0.05, "solver": "subgradient"},
    "l2": {"kind": "l2", "strength": 0.5, "every": 1},
    "l2 sub-gradient": {"kind": "l2", "strength": 0.5, "solver": "subgradient"},
}
CODE = """
import json, os, sys, warnings
import torch
from torch import nn
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
import sparsify

def net():
    torch.manual_seed(0)
    # 7 and 5 rows do not divide by two, 3 classes neither; the one row of the last weight leaves a process with nothing
    return nn.Sequential(nn.Conv2d(2, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(28, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3), nn.Linear(3, 1))

RULES = {
    "structured": [{"layers": "0", "group": "filter"}, {"layers": "3", "group": "neuron"}],
    "channels": [{"layers": "6", "group": "neuron"}],
    "weights": [{"layers": "*", "group": "weight", "sparsity": "50%"}],
}
how, penalties, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if how != "one":
    dist.init_process_group("gloo")
x = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(1))
y = torch.randn(16, 1, generator=torch.Generator().manual_seed(2))
mine = slice(rank * 16 // world, (rank + 1) * 16 // world)
found = {}
for name, penalty in penalties.items():
    for covered, rules in RULES.items():
        if covered == "weights" and penalty["kind"] == "group_lasso":
            continue
        model = net().eval()  # each process would normalise by its own half of the batch
        plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [{**rule, "penalty": penalty} for rule in rules]}, model, (x[:2],))
        if covered == "weights":
            with torch.no_grad():
                model[3].weight[:, ::2] = 0
        outer = model
        if how == "ddp":
            outer = nn.parallel.DistributedDataParallel(model)
        if how == "fsdp":
            fully_shard(model[0])
            fully_shard(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        with sparsify.attach(plan, outer, optimizer, hold_zeros=covered == "weights") as hooks:
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.mse_loss(outer(x[mine]), y[mine]).backward()
                optimizer.step()
            hooks.flush()
            state = hooks.state_dict()
            hooks.load_state_dict(state)
            told = [hooks.sparsity(), *hooks.remaining().values()]
        if how == "fsdp":
            try:
                sparsify.cut(plan, model, inputs=(x[:2],))
            except sparsify.errors.ModelError as error:
                assert "'0.weight' is sharded over processes" in str(error)
            else:
                raise AssertionError("a sharded model was cut")
        whole = {n: (p.full_tensor() if how == "fsdp" else p).detach().clone() for n, p in model.named_parameters()}
        found[f"{name}, {covered}"] = (whole, told)
if rank == 0:
    torch.save(found, out)
if how != "one":
    dist.destroy_process_group()
"""


def start(how: str, out: Path, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore", "-c", CODE, how, json.dumps(PENALTIES), str(out)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env=os.environ | environment)


def world() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("one") / "one.pt"
    process = start("one", out)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    found: dict[str, Any] = torch.load(out)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_equal_one(how: str, one: dict[str, Any], tmp_path: Path) -> None:
    processes = [start(how, tmp_path / "two.pt", RANK=r, LOCAL_RANK=r, **world_) for world_ in [world()] for r in "01"]
    said = [p.communicate(timeout=180)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], said
    two = torch.load(tmp_path / "two.pt")
    assert two.keys() == one.keys()
    for case, (weights, told) in one.items():
        for name, weight in weights.items():
            torch.testing.assert_close(two[case][0][name], weight, rtol=1e-5, atol=1e-6, msg=f"{case}: {name}")
        assert two[case][1] == pytest.approx(told), case
    dead = {case: told[0] for case, (_, told) in one.items()}
    assert dead["group_lasso coupled, structured"] > 0 and dead["l1, weights"] > 0.2
