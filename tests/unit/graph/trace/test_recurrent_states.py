"""States of recurrent networks: LSTMs that project them, and cells that read input and state side by side.

Judged by tests/reference.py, which zeroes the logged indices in the dense model.
"""

from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import RecipeError
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.cuts import Narrow

ROWS = (torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)),)


def make(build: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return build().eval()


def plan_of(model: nn.Module, *rules: dict[str, Any]) -> Plan:
    own = [{"group": "hidden", "sparsity": "50%", "criterion": {"kind": "random"}, **rule} for rule in rules]
    return sparsify.make_plan({"version": 1, "title": "t", "rules": own}, model, ROWS)


def cut(model: nn.Module, *rules: dict[str, Any]) -> Result:
    result = sparsify.cut(plan_of(model, *rules), model)
    for seed, batch in ((1, 1), (2, 4)):
        assert reference.difference(result, model, reference.fresh(ROWS, batch, seed)) <= 1e-9
    again = replay_cuts(model, result.cuts)
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again.eval()(*ROWS), result.model.eval()(*ROWS))
    return result


class Projecting(nn.Module):
    def __init__(self, hidden: int = 16, projected: int = 6, **more: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, hidden, proj_size=projected, batch_first=True, **more)
        self.fc = nn.Linear(projected * (2 if more.get("bidirectional") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rnn(x)[0].mean(1))


@pytest.mark.parametrize(
    "more",
    [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True, "bias": False}],
    ids=str,
)
def test_hidden_and_projected_units_leave(more: dict[str, Any]) -> None:
    model = make(lambda: Projecting(**more))
    result = cut(model, {"layers": "rnn"})
    rnn: Any = result.model.get_submodule("rnn")
    assert {(op.group, op.width) for op in result.cuts.widths} == {("rnn", 16), ("rnn#2", 6)}
    hidden, projected = rnn.hidden_size, rnn.proj_size
    assert hidden + projected == 11 and projected < 6 and hidden > 6
    for n in range(more.get("num_layers", 1)):
        assert rnn.get_parameter(f"weight_hr_l{n}").shape == (projected, hidden)
        assert rnn.get_parameter(f"weight_hh_l{n}").shape == (4 * hidden, projected)
    assert result.model.get_submodule("fc").in_features == projected * (2 if rnn.bidirectional else 1)
    fresh = nn.LSTM(
        6, hidden, proj_size=projected, batch_first=True, **more
    )  # torch builds one of these sizes
    fresh.load_state_dict(rnn.state_dict())
    assert torch.equal(fresh(*ROWS)[0], rnn(*ROWS)[0])


def test_more_hidden_units_stay_than_are_projected_to() -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(make(Projecting), {"layers": "rnn", "sparsity": "90%"})
    assert (
        "90% cannot be reached: as 'rnn' runs with 7 of 16 units or more, at most 63.6% of the groups can go"
        in (str(caught.value))
    )
    rnn: Any = cut(make(Projecting), {"layers": "rnn", "sparsity": "63%"}).model.get_submodule("rnn")
    assert (rnn.hidden_size, rnn.proj_size) == (7, 1)


def test_dead_hidden_units_leave_as_far_as_it_runs() -> None:
    model = make(Projecting)
    with torch.no_grad():
        model.rnn.weight_hr_l0[:, 2:] = 0  # nobody reads 14 of the 16
        for name, parameter in model.rnn.named_parameters():
            if name != "weight_hr_l0":
                parameter.view(4, 16, -1)[:, 2:] = 0
    result = sparsify.cut(
        sparsify.make_plan(
            {"version": 1, "title": "t", "rules": [{"layers": "rnn", "group": "hidden"}]}, model, ROWS
        ),
        model,
    )
    assert result.model.get_submodule("rnn").hidden_size == 7
    assert reference.to_dense(result, model, reference.fresh(ROWS, 4, 1)) <= 1e-6


def test_no_hidden_unit_can_leave_where_one_more_than_projected_is_there() -> None:
    plan = plan_of(make(lambda: Projecting(7, 6)), {"layers": "rnn", "sparsity": "30%"})
    kept = {group.name: group.protected for group in plan.map.coupled if group.name.startswith("rnn")}
    assert kept == {"rnn": "an LSTM needs more hidden units than it projects to", "rnn#2": None}


class Cell(nn.Module):
    """state = tanh(W [x, state]), read after all steps; `start` makes the first state."""

    def __init__(self, start: Callable[["Cell", Tensor], Tensor], norm: bool = False) -> None:
        super().__init__()
        self.hidden_size, self.start = 12, start
        self.layer = nn.Linear(6 + 12, 12)
        self.norm = nn.LayerNorm(6 + 12) if norm else nn.Identity()
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = self.start(self, x)
        for t in range(x.shape[1]):
            state = self.layer(self.norm(torch.cat([x[:, t], state], 1))).tanh()
        return self.fc(state)


def kept_of(result: Result, tensor: str, dim: int) -> list[int]:
    """Indices that the log keeps of a dimension."""
    ops = [op for op in result.cuts.operations if isinstance(op, Narrow)]
    (kept,) = [op.keep for op in ops if (op.tensor, op.dim) == (tensor, dim)]
    return [place for start, end in kept for place in range(start, end)]


STARTS = {
    "new_zeros": lambda m, x: x.new_zeros(len(x), m.hidden_size),
    "zeros": lambda m, x: torch.zeros(len(x), m.hidden_size, dtype=x.dtype, device=x.device),
    "ones": lambda m, x: torch.ones((len(x), m.hidden_size), dtype=x.dtype, device=x.device),
    "full": lambda m, x: x.new_full((len(x), m.hidden_size), 0.5),
    "expanded": lambda m, x: x.new_zeros(1, m.hidden_size).expand(len(x), -1),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_state_of_equal_numbers_follows_the_hidden_size(start: str) -> None:
    result = cut(make(lambda: Cell(STARTS[start])), {"layers": "layer", "group": "neuron"})
    thin: Any = result.model
    assert (thin.hidden_size, thin.layer.out_features, thin.layer.in_features) == (6, 6, 12)
    rows, columns = (kept_of(result, "layer.weight", dim) for dim in (0, 1))
    assert columns == [*range(6), *(6 + unit for unit in rows)]


def test_a_state_of_a_written_size_keeps_the_units() -> None:
    model = make(lambda: Cell(lambda m, x: x.new_zeros(len(x), 12)))
    with pytest.raises(RecipeError, match="'layer' keeps its width: it is tied to something of fixed size"):
        plan_of(model, {"layers": "layer", "group": "neuron"})


def test_two_layers_of_one_cell_follow_one_state() -> None:
    """The state is multiplied before anything else meets it."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = 12
            self.of_input, self.of_state = nn.Linear(6, 12), nn.Linear(12, 12, bias=False)
            self.fc = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), self.n)
            for t in range(x.shape[1]):
                state = (self.of_input(x[:, t]) + self.of_state(state)).tanh()
            return self.fc(state)

    thin: Any = cut(make(Two), {"layers": "of_input", "group": "neuron"}).model
    assert thin.n == 6 and thin.of_state.weight.shape == (6, 6)


def test_zeros_beside_channels_that_keep_their_number_stay() -> None:
    """A shortcut that is widened by written zeros: what stands beside the zeros stays, all else leaves."""

    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).relu()
            return self.fc((self.b(y) + torch.cat([y, y.new_zeros(*y.shape[:-1], 4)], -1)).mean(1))

    model = make(Widened)
    rules = [{"layers": "*", "group": "neuron"}]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, ROWS)
    found = {group.name: group.protected for group in plan.map.coupled}
    assert found["a"] is None and found["b"] == "it is tied to something of fixed size"
    thin: Any = cut(model, {"layers": "a", "group": "neuron"}).model
    assert (thin.a.out_features, thin.b.out_features, thin.fc.in_features) == (4, 8, 8)


def test_equal_sizes_in_a_list_follow_together() -> None:
    """Three layers whose states are added up: a list holds the size of each."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_sizes = [12, 12, 12]
            self.a, self.fc = nn.Linear(6, 12), nn.Linear(12, 3)
            self.cells = nn.ModuleList(nn.Linear(12 + size, size) for size in self.hidden_sizes)

        def forward(self, x: Tensor) -> Tensor:
            states = [x.new_zeros(len(x), size) for size in self.hidden_sizes]
            for t in range(x.shape[1]):
                y = self.a(x[:, t])
                for place, cell in enumerate(self.cells):
                    states[place] = cell(torch.cat([y, states[place]], 1)).tanh()
                    y = y + states[place]
            return self.fc(y)

    thin: Any = cut(make(Deep), {"layers": "a", "group": "neuron"}).model
    assert thin.hidden_sizes == [6, 6, 6] and thin.a.out_features == 6


@pytest.mark.parametrize("start", ["new_zeros", "full"])
def test_a_norm_over_input_and_state_leaves_removed_units_out_from_the_first_step(start: str) -> None:
    """The first state has no labels until the layer behind the norm reads it."""
    model = make(lambda: Cell(STARTS[start], norm=True))
    result = cut(model, {"layers": "layer", "group": "neuron"})
    assert result.verdicts[0].outcome == "statistics change"
    assert result.model.get_submodule("norm").weight.shape == (12,)
