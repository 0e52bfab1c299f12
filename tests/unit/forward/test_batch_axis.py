"""The dimension that counts examples is stated, or none; nothing assumes that another number of examples
is legal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.exporters import export
from sparsify.forward.calls import resize_batch
from sparsify.reporting.report_file import read_report
from sparsify.runs.benchmark import read_candidates, time_pair
from sparsify_cli.app import exit_code
from sparsify_schemas.target import Cpu


def recipe(**more: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "title": "t",
        "targets": {"here": {"kind": "cpu"}},
        "rules": [{"layers": "hidden", "group": "neuron", "sparsity": "30%"}],
    } | more


def seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


class Graph(nn.Module):
    """Two rounds of messages along edges: the rows of x are nodes, and edges point to them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.hidden, self.two, self.head = (
            nn.Linear(5, 12),
            nn.Linear(12, 16),
            nn.Linear(16, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.one(x)
        for _ in range(2):
            x = x + torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])
            x = self.two(self.hidden(x).relu())
        return self.head(x)


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 6, 2], [1, 2, 3, 4, 5, 6, 0, 2, 5]])
GRAPH = {
    "x": {"shape": [7, 5], "batch": "none"},
    "edge_index": {"shape": [2, 9], "dtype": "int64", "batch": "none"},
}


class Frames(nn.Module):
    """Four frames of each clip lie in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.hidden, self.head = nn.Linear(4 * 8, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu().mean((2, 3))
        return self.head(self.hidden(y.reshape(-1, 4 * 8)).relu())


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.hidden, self.head = nn.LSTM(6, 8), nn.Linear(8, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.lstm(x)[0][-1]).relu())


def test_edges_of_a_recipe_point_to_nodes_and_no_batch_is_put_in() -> None:
    model = seeded(Graph())
    plan = sparsify.make_plan(recipe(inputs=GRAPH), model)
    edges = next(a.tensor for a in plan.map.inputs[0].arguments if a.name == "edge_index")
    assert edges is not None and (edges.kind, edges.high, edges.batch) == ("integers", 6, None)
    assert plan.map.macs == 7 * (5 * 12 + 2 * 2 * 12 * 16 + 12 * 3), (
        "nothing counts examples, so of the whole call"
    )
    assert not any("takes no other batch" in note for note in plan.notes)
    result = sparsify.cut(plan, model)
    assert result.verdicts[0].outcome == "equal"


def test_a_graph_of_which_nobody_said_so() -> None:
    model = seeded(Graph())
    x = torch.randn(7, 5)
    plan = sparsify.make_plan(recipe(), model, (x, EDGES))
    assert (
        "the model takes no other batch than the 7 examples that it was given, so it is timed, "
        "measured and exported with these"
    ) in plan.notes
    assert sparsify.cut(plan, model).verdicts[0].outcome == "equal"
    assert sparsify.cut(plan, model, inputs=(x, EDGES)).verdicts[0].outcome == "equal"


@pytest.mark.parametrize("stated", [True, False])
def test_a_graph_is_timed_saved_and_exported_with_the_given_inputs(stated: bool, tmp_path: Path) -> None:
    model, x = seeded(Graph()), torch.randn(7, 5)
    inputs = sparsify.Call("forward", (x, EDGES), batch=None) if stated else (x, EDGES)
    run = sparsify.save_run(
        sparsify.cut(sparsify.make_plan(recipe(), model, inputs), model), tmp_path / "run", timing=0.05
    )
    (timed,) = read_report(run).latency
    assert timed.description == (
        "cpu, eager, 1 thread, given inputs" if stated else "cpu, eager, 1 thread, given inputs (batch 7)"
    )
    made = export(run, "pt2", tmp_path / "graph.pt2", build=Graph)
    assert made.fixed and made.batches == (() if stated else (7,)) and (made.difference or 0) < 1e-5
    program = torch.export.load(made.path).module()
    torch.testing.assert_close(program(x, EDGES), sparsify.load_run(run, build=Graph)(x, EDGES))


OWN = """
import torch
from torch import nn


class Scored(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 16), nn.Linear(16, 3)

    def score(self, x, edges, twice):
        x = self.head(self.hidden(x).relu())
        return x + x[edges[0]].sum(0) * (2 if twice else 1)
"""


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_run_is_timed_against_its_fixed_file(
    order: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scored_graph.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    edges = {"shape": [2, 9], "dtype": "int64", "batch": "none"}
    inputs = [{"shape": [7, 5], "batch": "none"}, edges, {"value": True}]
    written = {"model": {"build": "scored_graph.Scored"}, "calls": [{"method": "score", "inputs": inputs}]}
    run = sparsify.apply(recipe(**written), from_scratch=True, out=tmp_path, timing=0.05)
    made = export(run, "pt2", tmp_path / "graph.pt2")
    paths = (run, made.path)
    a, b = read_candidates([paths[at] for at in order])
    contest = time_pair(a, b, "here", Cpu(kind="cpu"), 0.05)
    assert (contest.a, contest.b) == tuple(str(paths[at]) for at in order)


def test_frames_in_the_batch(tmp_path: Path) -> None:
    model, x = seeded(Frames()), torch.randn(8, 3, 6, 6)
    plan = sparsify.make_plan(recipe(), model, (x,))
    assert (
        "the model takes no other batch than the 8 examples that it was given, so it is timed, "
        "measured and exported with these"
    ) in plan.notes
    result = sparsify.cut(plan, model)
    assert result.verdicts[0].outcome == "equal"
    run = sparsify.save_run(result, tmp_path / "run", timing=0.05)
    assert read_report(run).latency[0].description == "cpu, eager, 1 thread, given inputs (batch 8)"
    made = export(run, "pt2", tmp_path / "frames.pt2", build=Frames)
    assert made.fixed and made.batches == (8,)


def test_frames_of_a_recipe_keep_the_shape_that_is_written() -> None:
    plan = sparsify.make_plan(recipe(inputs=[{"shape": [12, 3, 6, 6]}]), seeded(Frames()))
    assert [a.tensor.shape for a in plan.map.inputs[0].arguments if a.tensor] == [(12, 3, 6, 6)]


def test_time_comes_first(tmp_path: Path) -> None:
    model = seeded(TimeFirst())
    plan = sparsify.make_plan(recipe(inputs=[{"shape": [9, 3, 6], "batch": 1}]), model)
    assert [a.tensor.shape for a in plan.map.inputs[0].arguments if a.tensor] == [(9, 2, 6)], (
        "two examples of nine steps"
    )
    assert {layer.name: layer.macs for layer in plan.map.layers} == {
        "lstm": 9 * 4 * 8 * (6 + 8),
        "hidden": 80,
        "head": 20,
    }
    result = sparsify.cut(plan, model)
    assert result.verdicts[0].outcome == "equal"
    run = sparsify.save_run(result, tmp_path / "run", timing=0.05)
    assert read_report(run).latency[0].description == "cpu, eager, 1 thread, batch 1"
    made = export(run, "pt2", tmp_path / "time.pt2", build=TimeFirst)
    assert not made.fixed and made.batches == (1, 5)
    x = torch.randn(9, 7, 6)
    torch.testing.assert_close(
        torch.export.load(made.path).module()(x), sparsify.load_run(run, build=TimeFirst)(x)
    )


def test_with_batch_follows_what_is_stated() -> None:
    x, y = torch.arange(6.0).view(2, 3), torch.arange(3)
    (each,) = resize_batch((sparsify.Call("forward", (x, y), batch={"0": 1, "1": 0}),), 5)
    assert each.inputs[0].tolist() == [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4]] and each.inputs[1].tolist() == [
        0,
        1,
        2,
        0,
        1,
    ]
    assert [t.tolist() for t in resize_batch((x, y), 1)] == [[[0, 1, 2]], [0, 1, 2]], (
        "only what is as long as the first"
    )


class Branching(nn.Module):
    """Runs for any batch; a program of it holds one side of a branch on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x).relu()
        return self.head(y * 2 if x.shape[0] % 2 == 0 else y * 3)


@pytest.fixture
def branching(tmp_path: Path) -> Path:
    model = seeded(Branching())
    plan = sparsify.make_plan(recipe(), model, (torch.randn(4, 6),))
    return sparsify.save_run(sparsify.cut(plan, model), tmp_path / "run", timing=0.05)


def test_a_fixed_export_takes_the_place_of_one_that_fails(branching: Path, tmp_path: Path) -> None:
    made = export(branching, "pt2", tmp_path / "a.pt2", build=Branching)
    assert made.fixed and made.batches == (4,)
    assert made.notes[0].startswith(
        "the file takes inputs of 4x6 and nothing else, as the model cannot be exported for any "
        "batch size: torch.export cannot follow the model with a batch of any size:"
    )


def test_a_fixed_export_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = {
        "title": "fixed",
        "model": {"build": "sparsify.models.lenet5"},
        "inputs": [{"shape": [3, 1, 28, 28]}],
    }
    rules = [{"layers": "fc1", "group": "neuron", "sparsity": "50%"}]
    run = sparsify.apply(recipe(rules=rules) | written, from_scratch=True, out=tmp_path, timing=0.05)
    assert (
        exit_code(["export", str(run), "--format", "pt2", "--fixed", "--out", str(tmp_path / "f.pt2")]) == 0
    )
    assert "compared at batch 2: largest difference" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "f.pt2").module()
    program(torch.randn(2, 1, 28, 28))
    with pytest.raises((AssertionError, RuntimeError)):
        program(torch.randn(3, 1, 28, 28))


class Switched(nn.Module):
    """A list of tensors and a flag go in, a dataclass-like mapping comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, both: list[Tensor], twice: bool = False) -> dict[str, Tensor]:
        y = self.hidden(both[0] + both[1]).relu()
        return {"y": self.head(y * 2 if twice else y)}


def test_what_is_no_tensor_is_filled_in_by_the_file(tmp_path: Path) -> None:
    model, pair = seeded(Switched()), [torch.randn(4, 6), torch.randn(4, 6)]
    plan = sparsify.make_plan(recipe(), model, (pair, True))
    run = sparsify.save_run(sparsify.cut(plan, model), tmp_path / "run", timing=0.05)
    made = export(run, "pt2", tmp_path / "s.pt2", build=Switched)
    assert not made.fixed and made.batches == (1, 5)
    with torch.no_grad():
        wanted = sparsify.load_run(run, build=Switched)(pair, True)
    torch.testing.assert_close(torch.export.load(made.path).module()(*pair)["y"], wanted["y"])


def test_a_method_is_exported(tmp_path: Path) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 2)

        def encode(self, x: Tensor) -> Tensor:
            return self.head(self.hidden(x).relu())

        def score(self, x: Tensor) -> Tensor:
            return self.encode(x).sum(1)

    model, x = seeded(Encoder()), torch.randn(4, 6)
    plan = sparsify.make_plan(recipe(), model, [sparsify.Call("encode", (x,)), sparsify.Call("score", (x,))])
    run = sparsify.save_run(sparsify.cut(plan, model), tmp_path / "run", timing=0.05)
    made = export(run, "pt2", tmp_path / "e.pt2", build=Encoder)
    assert made.notes == ("the file holds the first of 2 calls, encode",)
    torch.testing.assert_close(
        torch.export.load(made.path).module()(x), sparsify.load_run(run, build=Encoder).encode(x)
    )


def test_a_model_that_takes_nothing_says_what_failed() -> None:
    with pytest.raises(ModelError, match="a forward call with inputs 8x3x6x7, 2 failed"):
        sparsify.make_plan(recipe(), seeded(Frames()), (torch.randn(8, 3, 6, 7), 2))
