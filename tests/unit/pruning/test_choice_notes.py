"""The default bound on what a layer may lose, and the warnings where it is switched off or a criterion
says nothing."""

import pytest
import torch
from torch import nn

import sparsify
from sparsify.pruning.cut import Result


def network() -> nn.Module:
    """Its second layer has by far the smallest weights: ranked over all layers, it would be left with one
    unit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))
    with torch.no_grad():
        model[2].weight.mul_(0.01)
        model[4].weight.mul_(0.01)
    return model.eval()


def cut(model: nn.Module, batches: object = None, budget: str = "15%", **rule: object) -> Result:
    recipe = {
        "version": 1,
        "title": "t",
        "data": {"source": "digits"},
        "budget": {"params": budget},
        "rules": [{"layers": ["0", "2"], "group": "neuron", **rule}],
    }
    plan = sparsify.make_plan(recipe, model, (torch.randn(2, 8),))
    return sparsify.cut(plan, model, batches=batches)  # type: ignore[arg-type]


def widths(result: Result) -> tuple[int, int]:
    return result.model[0].out_features, result.model[2].out_features  # type: ignore[index, return-value]


def test_by_default_a_layer_keeps_a_tenth() -> None:
    result = cut(network())
    assert widths(result)[1] >= 4 and not any("keeps" in note for note in result.notes)


def test_by_default_a_layer_keeps_half_of_what_an_even_cut_leaves() -> None:
    """16 of 40 units in both layers leave 22.4 % of the parameters, 17 leave 24.5 %; half of that is 9."""
    kept = widths(cut(network(), budget="24%"))
    assert kept[1] == 9 and kept[0] > 17, kept
    assert widths(cut(network(), budget="24%", penalty={"kind": "group_lasso", "strength": 1e-3}))[1] == 4


def test_the_bound_follows_the_sparsity_of_a_rule() -> None:
    rules = [{"layers": ["0", "2"], "group": "neuron", "sparsity": "50%"}]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, network(), (torch.randn(2, 8),))
    assert widths(sparsify.cut(plan, network())) == (30, 10)


def test_where_the_bound_is_switched_off_the_result_warns() -> None:
    result = cut(network(), keep={"at_least": 1})
    assert widths(result)[1] == 1
    assert result.notes[0] == (
        "Warning: '2' keeps 1 of 40 units; so few may carry too little for the layers behind. "
        "Ask for less, bound the "
        "layers by keep.at_least, or choose by another criterion."
    )


def test_the_bound_gives_way_to_a_budget_that_cannot_be_met_otherwise() -> None:
    model = network()
    recipe = {
        "version": 1,
        "title": "t",
        "budget": {"params": "3%"},
        "rules": [{"layers": ["0", "2"], "group": "neuron"}],
    }
    plan = sparsify.make_plan(recipe, model, (torch.randn(2, 8),))
    result = sparsify.cut(plan, model)
    dense = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in result.model.parameters()) <= 0.03 * dense
    assert any("keeps" in note for note in result.notes)


def test_the_bound_gives_way_to_a_demand_of_its_own() -> None:
    model = network()
    rules = [{"layers": "2", "group": "neuron", "sparsity": "95%"}]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (torch.randn(2, 8),))
    assert sparsify.cut(plan, model).model[2].out_features == 2  # type: ignore[index]


def test_dead_units_leave_without_a_warning() -> None:
    model = network()
    with torch.no_grad():
        model[2].weight[1:] = 0  # type: ignore[index, operator]
        model[2].bias[1:] = 0  # type: ignore[index, operator]
    rules = [{"layers": "2", "group": "neuron"}]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (torch.randn(2, 8),))
    result = sparsify.cut(plan, model)
    assert result.model[2].out_features == 1  # type: ignore[index]
    assert not any("Warning" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_scores_that_say_nothing_are_told(kind: str) -> None:
    """Inputs of zero: no unit gets a gradient through its weights, and what arrives depends on biases
    alone."""
    model = network()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias.zero_()  # type: ignore[operator, union-attr]
    x = torch.zeros(16, 8)
    result = cut(model, batches=[(x, torch.zeros(16, dtype=torch.int64))], criterion={"kind": kind})
    assert any(
        note.startswith(
            f"Warning: criterion '{kind}' of rules.0 scores all units of 2 coupled groups alike ('0'"
        )
        for note in result.notes
    )
