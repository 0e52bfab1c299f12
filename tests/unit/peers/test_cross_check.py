"""Our coupled groups beside those of torch-pruning, difference by difference."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsify.graph.build_map import build_map
from sparsify.peers.cross_check import cross_check
from sparsify.peers.requests import Limits
from sparsify_cli.app import exit_code

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def compare(net: nn.Module, *inputs: Tensor) -> dict[str, tuple[str, ...]]:
    found = cross_check(net, build_map(net, inputs, {}), inputs)
    assert not found.failure
    return {comparison.group: comparison.differences for comparison in found.groups}


class Changed(nn.Module):
    """Two convolutions, and what happens to the channels between them."""

    def __init__(self, change: Any, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(width, 4, 3)
        self.fc = nn.Linear(16, 2)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.change(self.a(x))).flatten(1))


def test_both_agree_on_what_both_follow() -> None:
    assert compare(Changed(torch.relu), X) == {"a": (), "b": (), "fc": ()}


def test_channels_in_another_order() -> None:
    found = compare(Changed(lambda x: x.flip(1)), X)
    assert found == {"a": ("couples other channels of the inputs of 'b'",), "b": (), "fc": ()}


def test_two_halves_that_are_added() -> None:
    """One unit here is a channel of each half, as both reach the same input of b."""

    def add(x: Tensor) -> Tensor:
        first, second = x[:, :4], x[:, 4:]
        return first + second

    assert compare(Changed(add, 4), X)["a"] == ()


def test_layers_that_one_of_both_does_not_couple() -> None:
    class Twice(Changed):
        def __init__(self) -> None:
            super().__init__(torch.relu)
            self.c = nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.fc((self.b(x) + self.c(x.detach())).flatten(1))

    assert compare(Twice(), X)["a"] == ("does not couple the inputs of 'c'",)


def test_a_layer_that_its_graph_does_not_have() -> None:
    class Detached(Changed):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.a(x)
            return self.fc(self.b(x).flatten(1))

    assert compare(Detached(torch.relu), X)["a"] == ("does not follow 'a'",)


def test_a_model_that_it_cannot_follow() -> None:
    class NoOutput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.GRU(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.fc(self.rnn(x)[0]).split(1, -1)
            if x.requires_grad or torch.is_grad_enabled():
                raise ValueError("gradients are not wanted")
            return first + second

    net = NoOutput()
    with torch.no_grad():
        map = build_map(net, (torch.randn(2, 2, 3),), {})
    found = cross_check(net, map, (torch.randn(2, 2, 3),))
    assert (found.groups, found.failure) == ((), "raised: ValueError: gradients are not wanted")


def test_the_process_is_limited() -> None:
    net = Changed(torch.relu)
    map = build_map(net, (X,), {})
    net.change = lambda x: x + torch.zeros(2**28).sum()
    found = cross_check(net, map, (X,), Limits(60.0, 2.0**28))
    assert found.failure == "raised: it takes more than 256 MiB of memory"


RECIPE = """
version: 1
title: t
model: {build: changed.Net}
inputs: [{shape: [2, 3, 6, 6]}]
rules: [{layers: [a, b], group: filter, sparsity: 50%}]
"""
MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Linear(16, 2)
    def forward(self, x):
        return self.fc(self.b(CHANGE).flatten(1))
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(change: str, module: str, *options: str) -> str:
        (tmp_path / f"{module}.py").write_text(MODULE.replace("CHANGE", change))
        (tmp_path / "recipe.yaml").write_text(RECIPE.replace("changed", module))
        monkeypatch.chdir(tmp_path)
        assert exit_code(["plan", "recipe.yaml", "--from-scratch", "--cross-check", *options]) == 0
        return capsys.readouterr().out

    return run


def test_the_plan_shows_differences(plan: Any) -> None:
    said = plan("self.a(x).flip(1)", "flipped")
    assert said.endswith(
        "Coupled groups beside torch-pruning's\n"
        "coupled group  units  torch-pruning\n"
        "-----------------------------------------------------------------\n"
        "a                  8  couples other channels of the inputs of 'b'\n"
        "2 of 3 coupled groups are the same in torch-pruning's dependency graph.\n"
    )


def test_the_plan_says_that_all_are_the_same(plan: Any) -> None:
    said = plan("self.a(x)", "plain")
    assert said.endswith("\n3 of 3 coupled groups are the same in torch-pruning's dependency graph.\n")


def test_json_has_the_comparison(plan: Any) -> None:
    found = json.loads(plan("self.a(x).flip(1)", "flipped_too", "--json"))["cross_check"]
    assert found["failure"] == ""
    assert found["groups"][0] == {
        "group": "a",
        "width": 8,
        "differences": ["couples other channels of the inputs of 'b'"],
        "protected": None,
    }
