"""Merging without data: a removed unit that is a multiple of a kept one is made up for exactly."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.cut import Result


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut_half(model: nn.Module, x: Tensor, group: str = "filter", sparsity: str = "50%") -> Result:
    rule = {"layers": "0", "group": group, "sparsity": sparsity, "criterion": {"kind": "magnitude"}}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model.eval(), (x[:2],))
    return sparsify.cut(plan, model)


def scale_second_half(layer: nn.Module, factor: float) -> None:
    """The second half of the units is a small multiple of the first."""
    with torch.no_grad():
        for parameter in layer.parameters():
            half = len(parameter) // 2
            parameter[half:] = factor * parameter[:half]


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...], str]]:
    torch.manual_seed(0)
    flattened = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    depthwise = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    scale_second_half(depthwise[2], 0.5)
    normed = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    norm: Any = normed[1]
    with torch.no_grad():
        norm.running_mean[:4], norm.running_var[:4] = draw(4, seed=2), draw(4, seed=3).square() + 0.5
        norm.weight[:4], norm.bias[:4] = draw(4, seed=4).abs(), draw(4, seed=5)
        # twice what the first half gives, with small weights and other statistics behind them
        norm.running_mean[4:], norm.running_var[4:] = 0.1 * norm.running_mean[:4], 1.0
        gain = norm.weight[:4] / (norm.running_var[:4] + norm.eps).sqrt()
        norm.weight[4:] = 20 * gain * (1 + norm.eps) ** 0.5
        norm.bias[4:] = 2 * norm.bias[:4]
    found = {
        "linear": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), (6,), "neuron"),
        "transposed": (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2)),
            (3, 5, 5),
            "filter",
        ),
        "flattened": (flattened, (3, 5, 5), "filter"),
        "depthwise": (depthwise, (3, 5, 5), "filter"),
        "batch norm": (normed, (3, 5, 5), "filter"),
    }
    for model, _, _ in found.values():
        scale_second_half(model[0], 0.1)
    return found


@pytest.mark.parametrize("name", ["linear", "transposed", "flattened", "depthwise", "batch norm"])
def test_multiples_of_kept_units_are_made_up_for_without_data(name: str) -> None:
    model, shape, group = networks()[name]
    x = draw(20, *shape, seed=7)
    result = cut_half(model, x, group)
    before = float((result.model(x) - model(x)).abs().max().detach())
    repaired = sparsify.repair(result, method="merge")
    assert repaired.before is None and repaired.after is None and repaired.examples == 0
    assert repr(repaired) == "<Repaired by merge: 1 of 1 layers changed, without data>"
    assert [one.reason for one in repaired.layers] == ["4 of the 4 units that it lost"]
    after = float((result.model(x) - model(x)).abs().max().detach())
    assert after < 1e-5 < 1e-2 < before


def test_units_that_are_opposite_or_unlike_are_not_merged() -> None:
    """Rows (1, 0) and (0, 1) stay; -0.1 (1, 0) has no partner, (0.03, 0.04) is scaled onto (0, 1) by 0.04."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-0.1, 0], [0.03, 0.04]]))
        model[2].weight.copy_(torch.tensor([[1.0, 2, 0.3, 0.5]]))
    result = cut_half(model, draw(4, 2), "neuron")
    (row,) = sparsify.repair(result, method="merge").layers
    assert (row.layer, row.outcome, row.reason) == ("2", "merged", "1 of the 2 units that it lost")
    assert torch.allclose(result.model[2].weight, torch.tensor([[1.0, 2 + 0.04 * 0.5]]))  # type: ignore[index,union-attr]


def test_units_that_several_layers_make_are_left_alone() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down(self.gate(x).relu() * self.up(x))
            return y

    model, x = Gated().eval(), draw(4, 6)
    rule = {"layers": "gate", "group": "neuron", "sparsity": "50%"}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (x,))
    result = sparsify.cut(plan, model)
    weight = result.model.get_parameter("down.weight").detach().clone()
    (row,) = sparsify.repair(result, method="merge").layers
    assert (row.outcome, row.reason) == ("skipped", "2 layers make the units together")
    assert torch.equal(result.model.get_parameter("down.weight"), weight)


def test_constant_units_are_not_added_twice() -> None:
    """A dead unit's bias was folded into the layer behind."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([3.0, 1.0]))
    x = draw(50, 2)
    result = cut_half(model, x, "neuron")
    sparsify.repair(result, method="merge")
    assert torch.allclose(result.model(x), model(x), atol=1e-6)


def test_examples_judge_a_merge() -> None:
    """Half of a number is a 16th of its fourth power, so a merge adds far too much."""

    class FourthPower(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**4

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), FourthPower(), nn.Linear(8, 4)).eval()
    scale_second_half(model[0], 0.5)
    x = draw(100, 6)
    result = cut_half(model, x, "neuron")
    state = {name: value.clone() for name, value in result.model.state_dict().items()}
    repaired = sparsify.repair(result, [x], method="merge")
    assert repaired.reverted and repaired.before == repaired.after and repaired.examples == 100
    assert all(torch.equal(value, state[name]) for name, value in result.model.state_dict().items())


def test_a_layer_that_is_not_as_the_cut_left_it_is_not_merged_into() -> None:
    """A second merge would add the same units again, and so would one after another repair or training."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    scale_second_half(model[0], 0.1)
    x = draw(50, 6)
    result = cut_half(model, x, "neuron")
    sparsify.repair(result, method="merge")
    made = result.model(x)
    assert torch.allclose(made, model(x), atol=1e-6)
    again = sparsify.repair(result, method="merge")
    assert torch.equal(result.model(x), made)
    assert [(row.layer, row.outcome, row.reason) for row in again.layers] == [
        (
            "2",
            "skipped",
            "its weights are no longer those that the cut left: merge right after the cut, before any other "
            "repair or training",
        )
    ]


def test_a_layer_whose_kernel_the_cut_made_smaller_says_that_nothing_is_merged_into_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    scale_second_half(model[0], 0.1)
    with torch.no_grad():
        model[2].get_parameter("weight")[:, :, 1:] = 0
    rules = [
        {"layers": "0", "group": "filter", "sparsity": "50%", "criterion": {"kind": "magnitude"}},
        {"layers": "2", "group": "tap", "sparsity": "50%", "criterion": {"kind": "magnitude"}},
    ]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (draw(2, 3, 5, 5),))
    result = sparsify.cut(plan, model)
    assert result.model.get_parameter("2.weight").shape == (4, 4, 1, 3)
    (row,) = sparsify.repair(result, method="merge").layers
    assert (row.layer, row.outcome) == ("2", "skipped")
    assert row.reason == "since the cut it has a smaller kernel, or gathers its inputs"


def test_other_methods_need_examples() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with pytest.raises(ModelError) as caught:
        sparsify.repair(cut_half(model, draw(4, 6), "neuron"))
    assert str(caught.value) == (
        "a repair by 'least_squares' needs unlabelled training examples: pass batches; method 'merge' alone "
        "takes none"
    )
