"""Tensors that no weights file holds, positions that a module computes when it is built.

They are narrowed with the layers that they meet, and the rebuilt model has them narrowed too.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import RunError
from sparsify.graph.surgery.replay import replay_cuts

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    "Positions of 5 places are added to 24 channels."
    def __init__(self, how="attribute", width=24):
        super().__init__()
        self.embed, self.mid, self.out = nn.Linear(8, width), nn.Linear(width, 32), nn.Linear(32, 3)
        at = torch.sin(torch.arange(5 * width).view(5, width) * 0.7)
        if how == "attribute":
            self.at = at
        else:
            self.register_buffer("at", at, persistent=False)
    def forward(self, x):
        return self.out(torch.relu(self.mid(torch.tanh(self.embed(x) + self.at))).mean(1))
"""


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_with_positions.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nets_with_positions", raising=False)


def make(how: str) -> Any:
    from nets_with_positions import Net  # type: ignore[import-not-found]

    torch.manual_seed(0)
    return Net(how)


def cut_half(model: nn.Module, how: str) -> Any:
    recipe = {
        "version": 1,
        "title": "Positions",
        "model": {"build": "nets_with_positions.Net", "args": {"how": how}},
        "rules": [{"layers": "embed", "group": "neuron", "sparsity": "50%"}],
    }
    return sparsify.cut(sparsify.make_plan(recipe, model, (torch.randn(1, 5, 8),)), model)


def compute_without(model: Any, kept: Tensor, x: Tensor) -> Tensor:
    """What the network computes from some of its channels, written out."""
    channels = torch.tanh(x @ model.embed.weight[kept].T + model.embed.bias[kept] + model.at[:, kept])
    middle = torch.relu(channels @ model.mid.weight[:, kept].T + model.mid.bias)
    return (middle @ model.out.weight.T + model.out.bias).mean(1)


@pytest.mark.parametrize("how", ["attribute", "buffer"])
def test_they_are_narrowed_rebuilt_and_exported(how: str) -> None:
    model = make(how)
    before = model.at.clone()
    result = cut_half(model, how)
    assert torch.equal(model.at, before)
    (width,) = result.cuts.widths
    kept = torch.tensor([i for start, end in width.keep for i in range(start, end)])
    assert len(kept) == 12 and result.model.at.shape == (5, 12)
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = compute_without(model, kept, x)
        assert torch.allclose(result.model(x), wanted, atol=1e-5)
        run = sparsify.save_run(result, "run", timing=0.01)
        assert torch.equal(sparsify.load_run(run)(x), result.model(x))
        exported = sparsify.export(run, "pt2", "m.pt2")
        assert exported.difference is not None and exported.difference < 1e-5
        assert torch.allclose(torch.export.load("m.pt2").module()(x), wanted, atol=1e-5)


def test_a_log_that_narrows_what_a_model_does_not_hold_is_refused() -> None:
    model = make("attribute")
    cuts = cut_half(model, "attribute").cuts
    del model.at
    with pytest.raises(RunError) as caught:
        replay_cuts(model, cuts)
    assert str(caught.value) == (
        "the cut log narrows 'at', which this model does not have; was it built by the same recipe?"
    )
