"""Layers of einops hold the lengths that they are given by the names of axes; they follow the widths."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.graph.surgery.replay import replay_cuts

sys.path.append(str(Path(__file__).parents[2]))

import reference

layers = pytest.importorskip("einops.layers.torch")


class Attention(nn.Module):
    """As MONAI writes it: one layer of einops parts queries, keys and values, and the heads of each."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.part = layers.Rearrange("b n (which h d) -> which b h n d", which=3, h=heads)
        self.join = layers.Rearrange("b h n d -> b n (h d)")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.part(self.qkv(x))
        attention = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        return self.out(self.join(attention @ v))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = Attention(), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.attention(x)).mean(1))


def cut_heads() -> tuple[Net, Any]:
    torch.manual_seed(0)
    model = Net().eval()
    recipe = {
        "version": 1,
        "title": "Heads",
        "rules": [{"layers": "attention.qkv", "group": "head", "sparsity": "50%"}],
    }
    return model, sparsify.cut(sparsify.make_plan(recipe, model, (torch.randn(1, 5, 24),)), model)


def test_whole_heads_leave_and_the_layer_is_called_with_those_that_stay() -> None:
    model, result = cut_heads()
    part = result.model.attention.part
    assert result.model.attention.qkv.weight.shape == (36, 24)
    assert part.axes_lengths == {"which": 3, "h": 2} and "h=2" in repr(part)
    assert model.attention.part.axes_lengths == {"which": 3, "h": 4}
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))
    assert reference.difference(result, model, (x,)) < 1e-12
    with torch.no_grad():
        again = replay_cuts(model, result.cuts)
        again.load_state_dict(result.model.state_dict())
        assert torch.equal(again(x), result.model(x))
        assert torch.equal(copy.deepcopy(result.model)(x), result.model(x))


def test_a_log_cannot_set_more_than_the_model_has() -> None:
    model, result = cut_heads()
    wide = [op.model_copy(update={"value": 8}) if op.op == "set" else op for op in result.cuts.operations]
    assert wide != list(result.cuts.operations)
    with pytest.raises(sparsify.SparsifyError, match=r"sets 'attention\.part\.axes_lengths\.h' to 8"):
        replay_cuts(model, result.cuts.model_copy(update={"operations": tuple(wide)}))
