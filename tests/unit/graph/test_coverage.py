"""What no call has shown is named in the plan, and an error under --strict."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import RecipeError
from sparsify_cli.app import exit_code

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
REACH = "; write 'calls' that reach it, protect what it reads, or run without --strict"


def recipe(layers: str = "stem", **more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "title": "t",
        "rules": [{"layers": layers, "group": "neuron", "sparsity": "50%"}],
    } | more


class Switch(nn.Module):
    """Every row goes to the one expert that a router chooses by value; where the last is barred, only
    outliers go there."""

    def __init__(self, barred: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.barred = barred
        self.stem, self.router = nn.Linear(8, 16), nn.Linear(8, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores, h = self.router(x), self.stem(x).relu()
        choice = scores[:, :3].argmax(1) if self.barred else scores.argmax(1)
        choice = torch.where(x[:, 0] > 1e6, 3, choice)
        made = x.new_zeros(len(x), 3)
        for at, expert in enumerate(self.experts):
            rows = (choice == at).nonzero().flatten()
            if len(rows):
                made = made.index_copy(0, rows, expert(h[rows]))
        return made


def test_an_expert_that_no_example_is_routed_to_is_named() -> None:
    model = Switch(barred=True).eval()
    plan = sparsify.make_plan(recipe(), model, (X,))
    assert plan.map.unreached == ("experts.3.0", "experts.3.2")
    assert "rules.0: expert 'experts.3' was not visited, and what it reads is narrowed" in plan.notes
    with pytest.raises(RecipeError) as refused:
        sparsify.make_plan(recipe(), model, (X,), strict=True)
    assert str(refused.value) == (
        f"<recipe>: rules.0.layers: expert 'experts.3' was not visited, and what it reads is narrowed{REACH}"
    )


def test_experts_that_other_examples_visit_are_narrowed_too() -> None:
    model, one = Switch(barred=False).eval(), X[:1]
    plan = sparsify.make_plan(recipe(), model, (one,))
    assert plan.map.unreached == () and not any("visited" in note for note in plan.notes)
    assert len(plan.map.inputs) == 1, "timed and saved with the call that was given"
    thin = sparsify.cut(plan, model).model
    assert [expert[0].in_features for expert in thin.experts] == [8, 8, 8, 8]
    assert thin(torch.randn(200, 8)).shape == (200, 3)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.extra, self.other = nn.Linear(16, 5), nn.Linear(7, 2)
        self.aux = nn.Linear(16, 3)

    def forward(self, x: Tensor, extra: bool = False) -> Any:
        h = self.stem(x).relu()
        if self.training:
            return self.head(h), self.aux(h)
        return self.extra(h) if extra else self.head(h)


def test_layers_that_no_call_reaches_or_only_training_does() -> None:
    model = Heads().eval()
    plan = sparsify.make_plan(recipe(), model, (X,))
    assert (plan.map.unreached, plan.map.in_training) == (("extra", "other"), ("aux",))
    assert [note for note in plan.notes if note.startswith("rules.0: ")] == [
        "rules.0: no call reaches 'extra', and what it reads may be narrowed",
        "rules.0: 'aux' runs in train mode alone: it is narrowed, and what it computes is not compared",
    ], "what 'other' reads has another width"
    with pytest.raises(RecipeError) as refused:
        sparsify.make_plan(recipe(), model, (X,), strict=True)
    assert set(str(refused.value).splitlines()) == {
        f"<recipe>: rules.0.layers: no call reaches 'extra', and what it reads may be narrowed{REACH}",
        (
            "<recipe>: rules.0.layers: 'aux' runs in train mode alone: it is narrowed, "
            "and what it computes is not compared; protect what it reads, or run without --strict"
        ),
    }


def test_a_call_that_reaches_it_is_the_way_out() -> None:
    model = Heads().eval()
    calls = [sparsify.Call("forward", (X,)), sparsify.Call("forward", (X, True))]
    plan = sparsify.make_plan(recipe(), model, calls)
    assert plan.map.unreached == ("other",)
    assert sparsify.cut(plan, model).model.extra.in_features == 8


def test_nothing_is_said_where_nothing_is_narrowed() -> None:
    protected = {
        "version": 1,
        "title": "t",
        "rules": [{"layers": "*", "protect": True}, {"layers": "head", "group": "weight", "sparsity": "50%"}],
    }
    plan = sparsify.make_plan(protected, Heads().eval(), (X,), strict=True)
    assert not any("reaches" in note for note in plan.notes)


DEEP = """
import torch
from torch import nn


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head, self.rare = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(16, 16)

    def forward(self, x):
        h = self.stem(x).relu()
        if float(x.abs().max()) > 1e6:
            h = self.rare(h)
        return self.head(h)
"""
"""a branch on data that ordinary examples do not take"""


def test_a_branch_on_data_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rarely_deep.py").write_text(DEEP)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "r.yaml"
    path.write_text(
        "version: 1\n"
        "title: t\n"
        "model: {build: rarely_deep.Deep}\n"
        "inputs: [{shape: [2, 8]}]\n"
        "rules: [{layers: stem, group: neuron, sparsity: 50%}]\n"
    )
    assert exit_code(["plan", str(path), "--from-scratch"]) == 0
    assert "rules.0: no call reaches 'rare', and what it reads may be narrowed" in " ".join(
        capsys.readouterr().out.split()
    )
    assert exit_code(["plan", str(path), "--from-scratch", "--strict"]) == 1
    assert f"rules.0.layers: no call reaches 'rare', and what it reads may be narrowed{REACH}" in " ".join(
        capsys.readouterr().err.split()
    )
