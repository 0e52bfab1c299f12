"""A forward call that calls other methods of modules inside it: these read the numbers of their own modules.

Every cut is compared with tests/reference.py, which zeroes the logged indices in the dense model.
"""

from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

import sparsify

ROWS = (torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)),)
PLACES = 5


class Positions(nn.Module):
    """A bias for each head and pair of places, as an MLP computes it."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, heads)
        self.num_heads = heads
        self.register_buffer("offsets", torch.randn(PLACES * PLACES, 2))

    def get_bias(self) -> Tensor:
        return self._arrange(self.layer(self.offsets))

    def _arrange(self, bias: Tensor) -> Tensor:
        return bias.view(PLACES, PLACES, self.num_heads).permute(2, 0, 1)

    def forward(self, scores: Tensor) -> Tensor:
        return scores + self.get_bias()


class Attention(nn.Module):
    def __init__(self, heads: int, calls_method: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 3 * 4 * heads), nn.Linear(4 * heads, 6)
        self.positions = Positions(heads)
        self.calls_method = calls_method

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), PLACES, 3, -1, 4).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1)
        scores = scores + self.positions.get_bias() if self.calls_method else self.positions(scores)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("calls_method", [True, False])
def test_heads_leave_and_the_number_that_a_method_reads_follows(calls_method: bool) -> None:
    torch.manual_seed(0)
    model = Attention(6, calls_method).eval()
    rule = {"layers": "qkv", "group": "head", "sparsity": "50%", "criterion": {"kind": "random"}}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, ROWS)
    result = sparsify.cut(plan, model)
    thin: Any = result.model
    assert (thin.positions.num_heads, thin.positions.layer.out_features, thin.out.in_features) == (3, 3, 12)
    for seed, batch in ((1, 1), (2, 4)):
        assert reference.difference(result, model, reference.fresh(ROWS, batch, seed)) <= 1e-9
