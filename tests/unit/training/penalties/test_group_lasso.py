"""Group lasso beyond the plain one: what norms are weighed by, the half-space step, and the threshold of the
sub-gradient."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.graph.group_index import Layout
from sparsify.graph.group_layouts import coupled_layout, layer_layout
from sparsify.pruning.planning.plan import Plan
from sparsify.training.penalties import group_lasso
from sparsify.training.penalties.group_weights import weigh_groups
from sparsify_schemas.penalty import GroupLasso

X = torch.randn(8, 2, 12, 12, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two convolutions, the second on a fourth of the pixels, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def plan(model: nn.Module, penalty: dict[str, Any], group: str = "filter", **more: Any) -> Plan:
    rule = {
        "layers": "Conv2d",
        "group": group,
        "penalty": {"kind": "group_lasso", "strength": 0.1, **penalty},
    }
    return sparsify.make_plan({"version": 1, "title": "t", "rules": [rule], **more}, model, (X,))


def of_groups(model: nn.Module, own: Plan) -> tuple[Layout, Tensor]:
    """The layout and v_g of every group."""
    parameters = dict(model.named_parameters())
    layout = coupled_layout(own.map, own.assignments[0].coupled, parameters)
    spec = own.recipe.rules[0].penalty
    assert isinstance(spec, GroupLasso)
    found = weigh_groups(spec, own, layout, parameters)
    assert float(found[-1]) == 0.0 or spec.weight == "size"
    return layout, found[:-1]


def sizes(model: nn.Module, layout: Layout) -> Tensor:
    return layout.sizes(dict(model.named_parameters()))[:-1]


def test_by_macs_a_group_weighs_what_its_weights_compute() -> None:
    model = net()
    layout, found = of_groups(model, plan(model, {"weight": "macs"}))
    macs = layout.split(torch.zeros(layout.count))
    # a: 18 weights at 144 pixels and 54 in b at 36; b: 36 weights at 36 pixels and 3 in c, once
    macs["a"].fill_(18 * 144 + 54 * 36)
    macs["b"].fill_(36 * 36 + 3)
    prices, size = torch.cat([macs[name] for name, _, _ in layout.names]), sizes(model, layout)
    assert size.unique().tolist() == [40, 73], "biases count as weights that cost nothing"
    torch.testing.assert_close(found, size.sqrt() * (prices / size) / (prices.sum() / size.sum()))
    assert float(found[0] / size[0].sqrt()) > float(found[-1] / size[-1].sqrt())


def test_by_size_it_is_the_square_root() -> None:
    model = net()
    layout, found = of_groups(model, plan(model, {}))
    assert torch.equal(found, sizes(model, layout).sqrt())


def test_by_macs_filter_shapes_of_the_larger_map_weigh_more() -> None:
    model = net()
    own = plan(model, {"weight": "macs"}, "shape")
    rules = own.recipe.rules
    assert isinstance(rules[0].penalty, GroupLasso) and rules[0].penalty.scope == "layer"
    parameters = dict(model.named_parameters())
    layout = layer_layout([("a.weight", 1), ("b.weight", 1)], parameters)
    found = (
        weigh_groups(rules[0].penalty, own, layout, parameters)[:-1] / layout.sizes(parameters)[:-1].sqrt()
    )
    assert float(found[0] / found[-1]) == pytest.approx(144 / 36)


def test_by_latency_a_group_weighs_what_its_units_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prices are the plan's; a unit that saves nothing still weighs a little."""
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    model = net()
    own = plan(model, {"weight": "latency"}, targets={"here": {"kind": "cpu", "threads": 1}})
    assert {(target, name) for target, name, _ in own.prices} == {("here", "a"), ("here", "b")}
    assert all(0 <= price < 1 for _, _, price in own.prices) and sum(price for _, _, price in own.prices) > 0
    own = replace(own, prices=(("here", "a", 0.0), ("here", "b", 0.1)))
    layout, found = of_groups(model, own)
    size = sizes(model, layout)
    mean = 6 * 0.1 / float(size.sum())
    by_name = layout.split(found / size.sqrt())
    assert by_name["b"].tolist() == pytest.approx([0.1 / 40 / mean] * 6)
    assert by_name["a"].tolist() == pytest.approx([1 / 20] * 4)


def test_the_weighing_is_what_trains() -> None:
    """One proximal step: every group shrinks by lr * strength * v_g."""
    model, before = net(), net()
    own = plan(model, {"weight": "macs", "every": 1})
    layout, found = of_groups(before, own)
    norms = group_lasso.group_norms(layout, {n: p.detach() for n, p in before.named_parameters()})[:-1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sparsify.attach(own, model, optimizer):
        sum((0 * p).sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
        optimizer.step()
    by_name = layout.split(1 - 0.01 * 0.1 * found / norms)
    wanted = before.a.weight * by_name["a"].view(-1, 1, 1, 1)
    torch.testing.assert_close(model.a.weight, wanted)
    torch.testing.assert_close(
        model.b.weight, before.b.weight * by_name["b"].view(-1, 1, 1, 1) * by_name["a"].view(1, -1, 1, 1)
    )


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_the_half_space_step_element_by_element(epsilon: float) -> None:
    """Groups that a step turns round become zero, all others take the sub-gradient step alone."""
    torch.manual_seed(2)
    before = torch.randn(40, 3, dtype=torch.float64)
    before[7] = 0.0
    weights, gradients = {"w": before.clone()}, {"w": torch.randn(40, 3, dtype=torch.float64)}
    slope = gradients["w"].clone()
    layout = layer_layout([("w", 0)], weights)
    action = group_lasso.half_space(layout, layout.sizes(weights).sqrt().double(), ("w",), epsilon)
    assert action.before is not None and action.gradient is not None and action.after is not None
    action.before(weights, gradients, 1.0)
    action.gradient(weights, gradients, 0.2)
    weights["w"].sub_(gradients["w"])
    action.after(weights, 0.2)
    gone = []
    for row in range(40):
        norm = float(before[row].norm())
        moved = before[row] - slope[row] - (0.2 * 3**0.5 * before[row] / norm if norm else 0.0)
        gone.append(float(moved @ before[row]) <= epsilon * norm**2)
        torch.testing.assert_close(
            weights["w"][row], torch.zeros(3, dtype=torch.float64) if gone[-1] else moved
        )
    assert gone[7] and 3 < sum(gone) < 35, "otherwise the test says little"


def test_half_space_reaches_zero_and_stays_there() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    shares = []
    with sparsify.attach(plan(model, {"solver": "half_space", "strength": 0.3}), model, optimizer) as hooks:
        for _ in range(60):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
            shares.append(hooks.sparsity())
    assert shares[0] == 0.0 and shares[-1] > 0.5
    assert all(before <= after for before, after in pairwise(shares))


def test_the_sub_gradient_sets_small_weights_to_zero() -> None:
    """Single weights, after the step, wherever they lie: as the SSL paper's code does."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with sparsify.attach(plan(model, {"solver": "subgradient", "zero_below": 0.1}), model, optimizer):
        model(X).square().mean().backward()
        optimizer.step()
    for name in ("a.weight", "a.bias", "b.weight", "c.weight"):
        assert torch.equal(
            model.get_parameter(name).detach(), torch.where(before[name].abs() < 0.1, 0.0, before[name])
        )
    assert torch.equal(model.c.bias.detach(), before["c.bias"]), "it belongs to no group"
    assert bool((model.b.weight == 0).any())
