"""MACs follow the cut, whatever spends them: plan, result and counter agree before and after it."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import sparsify
from sparsify.cost.cost_model import Costs
from sparsify.cost.measure import copy_model, count_macs
from sparsify.graph.surgery import operations
from sparsify.pruning.cut import measure_left
from sparsify.pruning.planning.plan import Plan
from sparsify_cli.app import exit_code


class Recurrent(nn.Module):
    """A recurrent layer of torch, batch first; its last state is read."""

    def __init__(self, rnn: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Cell(nn.Module):
    """A cell of an LSTM, called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0])


class BareConv(nn.Module):
    """A convolution by F.conv2d on parameters of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kernel = nn.Conv2d(3, 12, 3), nn.Parameter(torch.randn(16, 12, 3, 3) / 10)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(F.conv2d(torch.relu(self.first(x)), self.kernel)).mean((2, 3)))


class BareMatrices(nn.Module):
    """A layer by F.linear, one by einsum and one by @, on parameters of the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(20, 6)), nn.Parameter(torch.randn(20, 16))
        self.c, self.head = nn.Parameter(torch.randn(16, 10)), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(F.linear(x, self.a))
        x = torch.relu(torch.einsum("nti,ij->ntj", x, self.b))
        return self.head(torch.relu(x @ self.c).mean(1))


class Mixed(nn.Module):
    """Tokens mixed by convolutions of one place: their MACs follow the channels, which lie behind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.mix, self.back = nn.Conv1d(4, 12, 1), nn.Conv1d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(torch.relu(x + self.back(torch.relu(self.mix(x)))).mean(1))


class ChannelByChannel(nn.Module):
    """A filter that all channels share, which are put to the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Conv2d(3, 12, 1), nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.one(x.reshape(-1, 1, *x.shape[2:]))).view(x.shape).mean((2, 3)))


class Tied(nn.Module):
    """An embedding, and an output head of the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(11, 16), nn.Linear(16, 24)
        self.back, self.head = nn.Linear(24, 16), nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        return self.head(x + self.back(torch.relu(self.hidden(x))))


class TiedPair(nn.Module):
    """Two layers of one weight: the second is called by another module, and not on as many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.two.weight, self.head = self.one.weight, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.two(x[:, :2])).mean(1))


class Twice(nn.Module):
    """A layer that is called twice, once past its module, and its weight in a product of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.stem(x))))
        x = torch.relu(self.again.forward(x))
        return self.head(torch.relu(F.linear(x, self.again.weight)))


class Experts(nn.Module):
    """Experts of a mixture whose weights are stacked, by bmm, with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 16) / 4), nn.Parameter(torch.randn(4, 16, 8) / 4)
        self.gate, self.head = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        each = x.expand(4, *x.shape)
        made = torch.bmm(torch.relu(torch.bmm(each, self.up)), self.down)
        return self.head(torch.einsum("enf,ne->nf", made, self.gate(x).softmax(-1)))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class Heads(nn.Module):
    """Attention of four heads that share keys in so many groups, by products or by torch's operator."""

    def __init__(self, fused: bool = False, groups: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 4 * groups), nn.Linear(16, 4 * groups)
        self.out, self.head, self.fused, self.groups = nn.Linear(16, 16), nn.Linear(16, 3), fused, groups

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(4 // self.groups, 1) for t in (k, v))
        made = F.scaled_dot_product_attention(q, k, v) if self.fused else attended(q, k, v)
        return self.head(self.out(made.transpose(1, 2).flatten(2)).mean(1))


class Torchs(nn.Module):
    """torch's own attention, between layers that can be cut too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.att = nn.Linear(5, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.att(x, x, x)[0].mean(1))


class Pair(nn.Module):
    """A bilinear layer between others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(5, 8), nn.Linear(5, 6), nn.Bilinear(8, 6, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.both(torch.relu(self.a(x)), torch.relu(self.b(x)))))


class Gram(nn.Module):
    """A product of a layer's outputs with themselves: its MACs go with the square of their number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        own = torch.relu(self.conv(x)).flatten(2)
        by_channel = torch.bmm(own, own.transpose(1, 2)).softmax(-1) @ own
        return self.head(self.mix(by_channel.unflatten(2, (6, 6))).mean((2, 3)))


class Convs(nn.Module):
    """Convolutions in a row, and a Linear layer behind a flatten."""

    def __init__(self, *convs: nn.Module, size: int) -> None:
        super().__init__()
        self.convs, self.head = nn.ModuleList(convs), nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.head(x.flatten(1))


class Narrow(nn.Module):
    """Parts of one layer's outputs go different ways, and are put together in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(5, 24), nn.Linear(8, 10), nn.Linear(16, 12)
        self.head = nn.Linear(22, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.stem(x)).split((8, 16), -1)
        return self.head(torch.cat((torch.relu(self.right(b)), torch.relu(self.left(a))), -1))


def convs(*modules: nn.Module, size: int) -> Callable[[], nn.Module]:
    return lambda: Convs(*deepcopy(modules), size=size)


def grouped(groups: int) -> Callable[[], nn.Module]:
    middle = nn.Conv2d(12, 24, 3, groups=groups)
    return convs(nn.Conv2d(3, 12, 3), middle, nn.Conv2d(24, 8, 3), size=32)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 3))


def transposed() -> nn.Module:
    grouped = nn.ConvTranspose2d(16, 8, 3, groups=2)
    return Convs(nn.Conv2d(3, 12, 3), nn.ConvTranspose2d(12, 16, 3, 2), grouped, size=8 * 225)


def normed(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return Convs(wrap(nn.Conv2d(3, 12, 3)), wrap(nn.Conv2d(12, 16, 3)), size=16 * 16)


@dataclass(frozen=True)
class Case:
    """A network, the shape of one example, and the groups that a rule opens in it."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    group: str
    layers: str = "*"
    words: int = 0
    """of how many words the inputs are numbers, where they are"""

    def inputs(self) -> tuple[Tensor, ...]:
        shape = (2, *self.shape)
        return (torch.randint(self.words, shape),) if self.words else (torch.randn(shape),)


SERIES, IMAGE = (7, 5), (3, 8, 8)
TWO_WAYS = {"batch_first": True, "bidirectional": True}
CASES = {
    "lstm": Case(lambda: Recurrent(nn.LSTM(5, 12, 2, **TWO_WAYS), 24), SERIES, "hidden", "rnn"),
    "gru": Case(lambda: Recurrent(nn.GRU(5, 12, 2, batch_first=True), 12), SERIES, "hidden", "rnn"),
    "rnn": Case(lambda: Recurrent(nn.RNN(5, 12, **TWO_WAYS), 24), SERIES, "hidden", "rnn"),
    "cell": Case(Cell, SERIES, "hidden", "cell"),
    "functional convolution": Case(BareConv, IMAGE, "filter"),
    "bare parameters": Case(BareMatrices, (4, 6), "neuron"),
    "tokens mixed by convolutions": Case(Mixed, (4, 6), "neuron"),
    "channels among the examples": Case(ChannelByChannel, IMAGE, "filter"),
    "embedding and head tied": Case(Tied, (6,), "neuron", "Linear", words=11),
    "two layers tied": Case(TiedPair, SERIES, "neuron"),
    "a layer used twice": Case(Twice, (5,), "neuron"),
    "experts": Case(Experts, (8,), "neuron"),
    "heads": Case(Heads, (6, 16), "head", "q"),
    "heads of torch's operator": Case(lambda: Heads(fused=True), (6, 16), "head", "q"),
    "heads that share keys": Case(lambda: Heads(groups=2), (6, 16), "neuron"),
    "torch's attention": Case(Torchs, SERIES, "head", "att"),
    "a transformer": Case(transformer, SERIES, "neuron", "Linear"),
    "bilinear": Case(Pair, (5,), "neuron"),
    "gram": Case(Gram, IMAGE, "filter", "Conv2d"),
    "transposed": Case(transposed, IMAGE, "filter"),
    "grouped": Case(grouped(3), IMAGE, "filter"),
    "depthwise": Case(grouped(12), IMAGE, "filter"),
    "along one dimension": Case(convs(nn.Conv1d(7, 12, 2), nn.Conv1d(12, 8, 2), size=24), SERIES, "filter"),
    "weight norm": Case(lambda: normed(parametrizations.weight_norm), IMAGE, "filter", "convs.*"),
    "pruned": Case(lambda: normed(lambda conv: prune.l1_unstructured(conv, "weight", 0.3)), IMAGE, "filter"),
    "parts": Case(Narrow, (5,), "neuron"),
}


def planned(case: Case, model: nn.Module, inputs: tuple[Tensor, ...], budget: str) -> Plan:
    rules = [{"layers": case.layers, "group": case.group}]
    recipe = {"version": 1, "title": "t", "budget": {"macs": budget}, "rules": rules}
    return sparsify.make_plan(recipe, model, inputs)


@pytest.mark.parametrize("name", CASES)
def test_plan_result_and_counter_agree_before_and_after_the_cut(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[name].build(), CASES[name].inputs()
    plan = planned(CASES[name], model, inputs, "50%")
    result = sparsify.cut(plan, model)
    dense, left = count_macs(model, inputs)[0], count_macs(result.model, inputs)[0]
    assert Costs(plan.map).dense["macs"] == plan.map.macs == dense
    assert measure_left(plan, result.model, (result.cuts,))["macs"] == left
    assert 0.25 * dense < left <= 0.5 * dense


@pytest.mark.parametrize("name", CASES)
def test_any_unit_is_priced_by_what_goes_with_it(name: str) -> None:
    """Each group by itself, and not its first units only: they may go with different MACs."""
    torch.manual_seed(0)
    model, inputs = CASES[name].build(), CASES[name].inputs()
    map = planned(CASES[name], model, inputs, "99%").map
    open_groups = [group for group in map.coupled if group.protected is None]
    assert open_groups
    for group in open_groups:
        for kept in (list(range(group.width // 2)), list(range(group.width // 3, group.width))):
            thin, _ = operations.cut(copy_model(model), map, {group.name: kept}, "test")
            gone = sorted(set(range(group.width)) - set(kept))
            assert Costs(map).of({group.name: gone})["macs"] == count_macs(thin, inputs)[0], group.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gru", {f"rnn.weight_{part}_l{layer}": 7.0 for part in ("ih", "hh") for layer in (0, 1)}),
        ("two layers tied", {"stem.weight": 7.0, "one.weight": 7.0 + 2.0}),
        ("a layer used twice", {"stem.weight": 1.0, "again.weight": 3.0}),
        ("torch's attention", {"stem.weight": 7.0, "att.in_proj_weight": 7.0, "att.out_proj.weight": 7.0}),
        (
            "weight norm",
            {f"convs.{i}.parametrizations.weight.original1": each for i, each in ((0, 36.0), (1, 16.0))},
        ),
        ("pruned", {"convs.0.weight_orig": 36.0, "convs.1.weight_orig": 16.0}),
    ],
)
def test_a_weight_takes_the_macs_of_all_its_uses(name: str, expected: dict[str, float]) -> None:
    """Once for each of its steps, places or rows: what a penalty of `weight: macs` goes by."""
    torch.manual_seed(0)
    model, inputs = CASES[name].build(), CASES[name].inputs()
    each = Costs(planned(CASES[name], model, inputs, "99%").map).macs_per_weight()
    assert each == {**expected, "head.weight": 1.0}


TINY = """
import torch
from torch import nn

class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

def load():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 7, 5, generator=generator)
    y = x.mean((1, 2)).sign().long() + 1
    return (x[:30], y[:30]), (x[30:], y[30:])
"""
RECIPE = """
version: 1
title: tiny
model: {build: "tiny_series:Lstm"}
data: {source: "tiny_series:load"}
budget: {macs: 50%}
rules: [{layers: rnn, group: hidden}]
stages: [{kind: cut}]
"""


def macs_of(width: int) -> int:
    """Seven steps of an LSTM of 5 inputs, and a linear layer of 3 outputs on its last state."""
    return 7 * 4 * width * (5 + width) + 3 * width


def test_the_command_line_cuts_a_recurrent_layer_to_a_budget_of_macs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny_series.py").write_text(TINY)
    Path("recipe.yaml").write_text(RECIPE)
    assert exit_code(["plan", "recipe.yaml", "--from-scratch"]) == 0
    left = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("MACs"))
    assert exit_code(["apply", "recipe.yaml", "--from-scratch", "--quiet", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    width = next(layer["outputs_after"] for layer in report["layers"] if layer["name"] == "rnn")
    assert report["dense"]["macs"] == macs_of(12) == sum(layer["macs"] for layer in report["layers"])
    assert report["cut"]["macs"] == macs_of(width) == sum(layer["macs_after"] for layer in report["layers"])
    assert macs_of(width) <= macs_of(12) / 2 < macs_of(width + 1)
    assert left[5:7] == [f"{100 * macs_of(width) / macs_of(12):.1f}", "%"]
