"""Every group type, on real data, from a recipe to three kinds of file that a fresh process reads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsify
from sparsify.artefact import checked, load_run
from sparsify.run import apply
from sparsify_schemas import group

NETS = """
import torch
from torch import nn
from torchlike import Encoder

def convolutional():
    from sparsify.models import digits_cnn
    return digits_cnn()

def perceptron():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))

def attention():
    return Encoder()

class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 24, 2, batch_first=True, bidirectional=True), nn.Linear(48, 10)
    def forward(self, x):
        return self.head(self.rnn(x.squeeze(1))[0][:, -1])

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
    def forward(self, x):
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(16) for _ in range(4)))
        self.head = nn.Linear(16, 10)
    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))
"""
TORCHLIKE = """
from torch import nn

class Encoder(nn.Module):
    "Each row of an image is a token; torch's own encoder layers."
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(32, 10)
    def forward(self, x):
        x = self.embed(x.squeeze(1))
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))
"""
FRESH = """
import sys, numpy, onnxruntime, torch
x, expected = torch.load("x.pt")
found = {"pt2": torch.export.load("m.pt2").module()(x)}
session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
found["onnx"] = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
assert "sparsify" not in sys.modules
import sparsify
from safetensors.torch import load_file
found["run"] = sparsify.load_run(sys.argv[1])(x)
model = sparsify.load_run(sys.argv[1])
weights = load_file("m.safetensors")
model.load_state_dict({name: torch.zeros_like(value) for name, value in weights.items()})
model.load_state_dict(weights)
found["safetensors"] = model(x)
for name, value in found.items():
    print(name, float((value - expected).abs().max() / expected.abs().max()))
"""

# group type -> (network, the layers that a rule names, how much goes)
SHOWN: dict[str, tuple[str, object, dict[str, object]]] = {
    "filter": ("convolutional", "conv*", {"sparsity": "50%"}),
    "channel": ("convolutional", ["conv2", "conv3"], {"sparsity": "50%"}),
    "neuron": ("perceptron", "Linear", {"sparsity": "50%"}),
    "head": ("attention", "layers.*.self_attn", {"sparsity": "50%"}),
    "hidden": ("Lstm", "rnn", {"sparsity": "50%"}),
    "depth": ("Residual", "blocks.*", {"sparsity": "50%"}),
    "weight": ("perceptron", "Linear", {"sparsity": "90%"}),
    "shape": ("convolutional", "conv4", {"sparsity": "90%"}),
    "tap": ("convolutional", "conv*", {"sparsity": "60%"}),
    "block": ("perceptron", "[13]", {"sparsity": "75%", "group": "4x1"}),
    "n:m": ("perceptron", "[13]", {"group": "2:4"}),
}


@pytest.mark.parametrize("kind", group.KINDS)
def test_from_a_recipe_to_files_that_a_fresh_process_reads(kind, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("group_nets.py").write_text(NETS)
    Path("torchlike.py").write_text(TORCHLIKE)
    monkeypatch.delitem(sys.modules, "group_nets", raising=False)
    monkeypatch.delitem(sys.modules, "torchlike", raising=False)
    build, layers, more = SHOWN[kind]
    sgd = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
    recipe = {
        "version": 1,
        "title": "Every group",
        "model": {"build": f"group_nets.{build}"},
        "data": {"source": "digits", "validation": "10%"},
        "rules": [{"layers": layers, "group": kind, **more}],
        "stages": [
            {"kind": "train", "name": "learn", "epochs": 1, "optimizer": sgd},
            {"kind": "cut"},
            {"kind": "train", "name": "tune", "epochs": 1, "optimizer": sgd},
        ],
    }
    run = tmp_path / apply(recipe, from_scratch=True, timing=0.05)
    report = checked(run)
    assert all(limit.met for limit in report.limits)
    assert report.cut.nonzero < 0.9 * report.dense.nonzero
    for form in ("pt2", "onnx", "safetensors"):
        sparsify.export(run, form, f"m.{form}")
    x = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_run(run)(x)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-3
    torch.save((x, expected), "x.pt")
    done = subprocess.run([sys.executable, "-c", FRESH, str(run)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    gaps = {name: float(gap) for name, gap in (line.split() for line in done.stdout.splitlines())}
    assert set(gaps) == {"pt2", "onnx", "run", "safetensors"}
    assert gaps["run"] == gaps["safetensors"] == 0 and gaps["pt2"] < 1e-5 and gaps["onnx"] < 1e-4
