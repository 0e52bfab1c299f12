"""Heads that are mixed with each other, lie in blocks, or meet edge by edge; judged by the dense model with
the heads at zero, made by hand."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.graph.model_map import Coupled
from sparsify.pruning.planning.plan import Plan

HEADS, PLACES, WIDTH, TOKENS = 4, 6, 10, 5


def empty_heads(weight: Tensor, gone: list[int], heads: int) -> None:
    """Zero the columns of a layer that reads all heads, one after the other."""
    weight.data.view(len(weight), heads, -1)[:, gone] = 0


class Talking(nn.Module):
    """Heads are mixed before and after the softmax (CaiT), by layers over the last dimension; tokens have
    learnt positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEADS * PLACES) for _ in range(3))
        self.before, self.after = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)
        self.out = nn.Linear(HEADS * PLACES, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, PLACES).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = self.before((q @ k.transpose(2, 3)).permute(0, 2, 3, 1)).softmax(2)
        return self.out((self.after(mixed).permute(0, 3, 1, 2) @ v).transpose(1, 2).flatten(2))

    def empty(self, gone: Mapping[str, list[int]]) -> None:
        self.before.weight.data[:, gone["q"]] = 0
        empty_heads(self.out.weight, gone["v"], HEADS)


class TalkingByEinsum(nn.Module):
    """The same by matrices of its own, which the module that counts the heads multiplies by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.out = nn.Linear(WIDTH, 3 * HEADS * PLACES), nn.Linear(HEADS * PLACES, 3)
        self.before, self.after = (nn.Parameter(torch.randn(HEADS, HEADS)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = torch.einsum("bhqk,hg->bgqk", q @ k.transpose(2, 3), self.before).softmax(-1)
        mixed = torch.einsum("bhqk,hg->bgqk", mixed, self.after)
        return self.out((mixed @ v).transpose(1, 2).flatten(2))

    def empty(self, gone: Mapping[str, list[int]]) -> None:
        self.before.data[gone["qkv"]] = 0
        empty_heads(self.out.weight, gone["qkv"], HEADS)


class InBlocks(nn.Module):
    """Queries, values and keys of a quarter of the heads in each of four blocks (CodeGen)."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, PLACES
        self.qkv, self.out = (
            nn.Linear(WIDTH, 3 * num_heads * PLACES),
            nn.Linear(num_heads * PLACES, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        packed = self.qkv(x).reshape(b, t, 4, -1)
        parts = packed.split(self.num_heads * self.head_dim // 4, -1)
        heads = [part.reshape(b, t, 4, self.num_heads // 4, self.head_dim) for part in parts]
        q, v, k = (part.reshape(b, t, -1, self.head_dim).transpose(1, 2) for part in heads)
        return self.out(((q @ k.transpose(2, 3)).softmax(-1) @ v).transpose(1, 2).flatten(2))

    def empty(self, gone: Mapping[str, list[int]]) -> None:
        empty_heads(self.out.weight, [2 * block + unit for block in range(4) for unit in gone["qkv"]], 8)


class AlongEdges(nn.Module):
    """Attention over the edges of a graph (Shi et al., arXiv:2009.03509), by gathers and scatters."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.out_channels = HEADS, PLACES
        self.k, self.q, self.v, self.skip = (nn.Linear(WIDTH, HEADS * PLACES) for _ in range(4))
        self.out = nn.Linear(HEADS * PLACES, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        start, end = edges
        q, k, v = (layer(x).view(-1, self.heads, self.out_channels) for layer in (self.q, self.k, self.v))
        scores = ((q[end] * k[start]).sum(-1) / self.out_channels**0.5).exp()
        total = scores.new_zeros(len(x), self.heads).index_add(0, end, scores)
        messages = v[start] * (scores / (total[end] + 1e-16)).view(-1, self.heads, 1)
        met = messages.new_zeros(len(x), self.heads, self.out_channels).index_add(0, end, messages)
        return self.out((met.view(-1, self.heads * self.out_channels) + self.skip(x)).tanh())

    def empty(self, gone: Mapping[str, list[int]]) -> None:
        empty_heads(self.out.weight, gone["k"], HEADS)


ROWS = (torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0)),)
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 3], [1, 2, 3, 4, 0, 3, 1]])
CASES: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...], dict[str, int]]] = {
    "talking": (Talking, ROWS, {"q": 4, "v": 4}),
    "talking by einsum": (TalkingByEinsum, ROWS, {"qkv": 4}),
    "two in each block": (lambda: InBlocks(8), ROWS, {"qkv": 2}),
    "along edges": (AlongEdges, (ROWS[0][0], EDGES), {"k": 4}),
}


def plan_heads(model: nn.Module, inputs: tuple[Tensor, ...], layers: list[str]) -> Plan:
    rule = {"layers": layers, "group": "head", "sparsity": "50%", "criterion": {"kind": "random"}}
    return sparsify.make_plan({"version": 1, "title": "heads", "rules": [rule]}, model, inputs)


@pytest.mark.parametrize("name", CASES)
def test_heads_leave(name: str) -> None:
    torch.manual_seed(0)
    make, inputs, widths = CASES[name]
    model = make().eval()
    plan = plan_heads(model, inputs, list(widths))
    result = sparsify.cut(plan, model)
    assert [verdict.outcome for verdict in result.verdicts] == ["equal"]
    gone = {}
    for group in result.cuts.widths:
        assert (group.width, group.kept) == (widths[group.group], widths[group.group] // 2)
        kept = {unit for first, end in group.keep for unit in range(first, end)}
        gone[group.group] = sorted(set(range(group.width)) - kept)
    masked = deepcopy(model).double()
    masked.empty(gone)
    x, *others = inputs
    given = (torch.randn(x.shape, dtype=torch.float64), *others)
    assert torch.allclose(result.model.double()(*given), masked(*given), atol=1e-12)
    assert not torch.allclose(model.double()(*given), masked(*given), atol=1e-3)


def find_groups(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Coupled]:
    rule = {"layers": "*", "group": "weight", "sparsity": "50%"}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model.eval(), inputs)
    return plan.map.by_name


def test_one_head_in_each_block_stays() -> None:
    torch.manual_seed(0)
    group = find_groups(InBlocks(4), ROWS)["qkv"]
    assert group.width == 4 and group.protected is not None
    assert group.protected.startswith(
        "a trial cut failed: the cut model does not run: RuntimeError: shape '[2, 5, 4, 0, 6]' is invalid"
    )


class MixedTokens(nn.Module):
    """A layer over the tokens, which have learnt positions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.mix, self.out = nn.Linear(TOKENS, TOKENS), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        return self.out(x + self.mix(x.transpose(1, 2)).transpose(1, 2))


def test_tokens_with_positions_stay() -> None:
    torch.manual_seed(0)
    assert find_groups(MixedTokens(), ROWS)["mix"].protected == "it is combined with something of fixed size"
