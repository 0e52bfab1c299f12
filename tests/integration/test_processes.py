"""apply on two processes: one run folder, and the weights that one process would have trained."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparsify import folder as files
from sparsify.artefact import checked, load_dense, load_run

NET = """
from torch import nn
def net(): return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
"""
SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.9}
RECIPE = {
    "version": 1,
    "title": "Two",
    "model": {"build": "mynet.net"},
    "data": {"source": "data.npz", "validation": "25%", "split": "last"},
    "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%", "penalty": {"kind": "group_lasso", "strength": 1e-2}}],
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 2, "batch": 32, "optimizer": SGD},
        {"kind": "cut"},
        {"kind": "train", "name": "tune", "epochs": 1, "batch": 32, "penalties": False, "optimizer": SGD},
    ],
}
CODE = """
import json, sys, torch
from sparsify.run import apply
torch.set_num_threads(1)
print(apply(json.loads(sys.argv[1]), from_scratch=True, timing=0.01, out=sys.argv[2]))
"""


def start(out: str, **environment: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CODE, json.dumps(RECIPE), out]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, env=os.environ | {"ACCELERATE_USE_CPU": "true"} | environment
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(NET)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((192, 6)).astype("float32")
    y = (x[:, 0] > 0).astype("int64") + (x[:, 1] > 0)
    np.savez("data.npz", x_train=x[:128], y_train=y[:128], x_test=x[128:], y_test=y[128:])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [start("two", RANK=r, LOCAL_RANK=r, **world) for r in "01"] + [start("one")]
    said = [p.communicate(timeout=120)[0].split() for p in started]
    assert said == [["two/two-1"], ["two/two-1"], ["one/two-1"]]

    two, one = Path("two/two-1"), Path("one/two-1")
    assert [p.name for p in Path("two").iterdir()] == ["two-1"]
    torch.testing.assert_close(weights(load_dense(two)), weights(load_dense(one)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights(load_run(two)), weights(load_run(one)), rtol=1e-4, atol=1e-6)
    for a, b in zip(checked(two).history, checked(one).history, strict=True):
        assert (a.epoch, a.train_accuracy, a.validation_accuracy) == (b.epoch, b.train_accuracy, b.validation_accuracy)
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
    log = [json.loads(line)["event"] for line in (two / files.LOG).read_text().splitlines()]
    assert log.count("EpochDone") == 3
