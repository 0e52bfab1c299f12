"""growing_l2, agp and bn_scale: closed forms, and what becomes of a model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError, RecipeError
from sparsify.pruning.planning.plan import Plan
from sparsify.training.hooks import Hooks

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def plan(
    net: nn.Module, penalty: dict[str, Any], group: str = "neuron", layers: str = "0", **rest: Any
) -> Plan:
    rule = {
        "layers": layers,
        "group": group,
        "penalty": penalty,
        **({"sparsity": "50%"} if "budget" not in rest else {}),
    }
    return sparsify.make_plan({"version": 1, "title": "t", "rules": [rule], **rest}, net, (X,))


def still(net: nn.Module, own: Plan, steps: int, lr: float = 0.1, total: int = 10) -> Hooks:
    """Steps of plain gradient descent on a loss that is flat."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    hooks = sparsify.attach(own, net, optimizer, steps_per_epoch=total, steps=total)
    for _ in range(steps):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    return hooks


def unit_norms(net: nn.Sequential) -> Tensor:
    bn, first, last = net[1], net[0], net[3]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear) and isinstance(bn, nn.BatchNorm1d)
    return (
        torch.cat([first.weight, first.bias[:, None], bn.weight[:, None], bn.bias[:, None], last.weight.T], 1)
        .detach()
        .norm(dim=1)
    )


@pytest.mark.parametrize("budget", [None, {"macs": "50%"}])
def test_growing_l2_shrinks_what_a_cut_would_take_and_nothing_else(budget: dict[str, str] | None) -> None:
    net, start = model(), unit_norms(model())
    penalty = {"kind": "growing_l2", "delta": 0.5, "every": 2, "limit": 1.2}
    still(net, plan(net, penalty, **({"budget": budget} if budget else {})), 6)
    shrunk = 1.0
    for strength in (0.5, 0.5, 1.0, 1.0, 1.2, 1.2):
        shrunk *= 1 - 0.1 * strength
    going = set(start.argsort()[:4].tolist())
    wanted = torch.tensor([shrunk if unit in going else 1.0 for unit in range(8)])
    torch.testing.assert_close(unit_norms(net) / start, wanted)


def test_growing_l2_on_single_weights() -> None:
    net = model()
    start = net[0].weight.detach().clone()
    still(net, plan(net, {"kind": "growing_l2", "delta": 1.0, "every": 1, "limit": 1.0}, "weight"), 1)
    small = start.abs() <= start.abs().flatten().sort().values[23]
    torch.testing.assert_close(net[0].weight.detach(), torch.where(small, 0.9 * start, start))


@pytest.mark.parametrize(("steps", "gone"), [(1, 0), (3, 12), (4, 12), (5, 19), (9, 24), (10, 24)])
def test_agp_follows_its_curve_on_single_weights(steps: int, gone: int) -> None:
    """From 2 to 8 of 10 steps, in jumps of 2: after one, t = 0 and 1/3 -> 24 * (1 - (2/3)^3) = 16.9 of 48
    weights."""
    net = model()
    penalty = {"kind": "agp", "start": "0it", "end": "6it", "every": "2it"}
    start = net[0].weight.detach().clone()
    still(net, plan(net, penalty, "weight"), steps)
    t = min(1.0, (steps - 1) // 2 * 2 / 6)
    wanted = int(48 * 0.5 * (1 - (1 - t) ** 3) + 0.5)
    zero = net[0].weight.detach() == 0
    assert int(zero.sum()) == wanted
    assert torch.equal(zero, start.abs() < start.abs().flatten().sort().values[wanted])
    assert (steps in (1,)) == (wanted == gone == 0)


def test_agp_holds_what_has_gone_while_the_rest_trains() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    own = plan(net, {"kind": "agp", "start": "0it", "end": "20it", "every": "5it"})
    with sparsify.attach(own, net, optimizer) as hooks:
        before: Tensor | None = None
        for step in range(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X), Y).backward()
            optimizer.step()
            dead = unit_norms(net) == 0
            assert before is None or bool((dead | ~before).all()), "nothing comes back"
            before = dead
            if step == 7:
                state = hooks.state_dict()
                assert 0 < int(dead.sum()) < 4
        assert int(dead.sum()) == 4 and hooks.sparsity() == 0.5
    fresh = sparsify.attach(own, net, optimizer)
    fresh.load_state_dict(state)
    assert int(fresh.state_dict()["own"][0]["gone"]["0"].sum()) == int(state["own"][0]["gone"]["0"].sum()) > 0
    fresh.detach()


@pytest.mark.parametrize("solver", ["proximal", "subgradient"])
def test_bn_scale_pulls_at_scales_alone(solver: str) -> None:
    net = model()
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(-1, 1, 8))
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    still(
        net,
        plan(
            net,
            {
                "kind": "bn_scale",
                "strength": 2.0,
                "solver": solver,
                **({"every": 1} if solver == "proximal" else {}),
            },
        ),
        1,
    )
    scale = start["1.weight"]
    wanted = (
        scale.sign() * (scale.abs() - 0.2).clamp(min=0)
        if solver == "proximal"
        else scale - 0.2 * scale.sign()
    )
    torch.testing.assert_close(net[1].weight.detach(), wanted)
    assert all(torch.equal(p, start[n]) for n, p in net.named_parameters() if n != "1.weight")


def test_silent_channels_go_by_criterion_bn_scale() -> None:
    net = model()
    with torch.no_grad():
        net[1].weight[[1, 4, 6, 7]] = 1e-4
    rule = {"layers": "0", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "bn_scale"}}
    own = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (X,))
    assert sparsify.cut(own, net).cuts.widths[0].keep == ((0, 1), (2, 4), (5, 6))


def test_bn_scale_without_a_scale_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(
        RecipeError,
        match=(
            r"rules\.0\.penalty: penalty bn_scale finds no normalisation with a scale in the rule's groups; "
            r"use group_lasso there$"
        ),
    ):
        plan(net, {"kind": "bn_scale", "strength": 0.1})


def test_agp_in_shares_of_a_stage_needs_its_length() -> None:
    net = model()
    with pytest.raises(
        ModelError,
        match=r"^rules\.0\.penalty counts in epochs or in shares of the stage: pass steps_per_epoch",
    ):
        sparsify.attach(plan(net, {"kind": "agp"}), net, torch.optim.SGD(net.parameters(), lr=0.1))


def test_dns_masks_what_is_small_and_splices_back_what_grows() -> None:
    """The masks by hand: t = mean + std of |w| at the start; a masked weight keeps learning from the gradient
    at w * mask."""
    net = model()
    first = net[0].weight
    start = first.detach().clone()
    threshold = float(start.abs().mean() + start.abs().std(unbiased=False))
    own = plan(net, {"kind": "dns", "gamma": 0.0}, "weight")
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    pushes = [torch.zeros(8, 6) for _ in range(3)]
    small = (start.abs() <= 0.9 * threshold).nonzero()
    grows, stays = tuple(small[0].tolist()), tuple(small[1].tolist())
    pushes[1][grows] = -2 * threshold * float(start[grows].sign())
    pushes[2][grows] = 0.05 * threshold * float(start[grows].sign())
    with sparsify.attach(own, net, optimizer) as hooks:
        for push in pushes:
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
            first.grad = push
            optimizer.step()
            held = first.detach().clone()
            if push is pushes[0]:
                assert torch.equal(
                    held,
                    torch.where(
                        start.abs() > 1.1 * threshold,
                        start,
                        torch.where(start.abs() <= 0.9 * threshold, 0.0, start),
                    ),
                )
                assert float(held[grows]) == 0.0
        state = hooks.state_dict()
    value = float(start[grows]) + 1.95 * threshold * float(start[grows].sign())
    assert float(held[grows]) == pytest.approx(value, rel=1e-5), (
        "the hidden weight had kept its value and moved on"
    )
    assert float(held[stays]) == 0.0
    assert float(state["own"][0]["dense"]["0.weight"][stays]) == pytest.approx(float(start[stays]))


def test_dns_masks_come_to_rest() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with sparsify.attach(plan(net, {"kind": "dns", "stop": 5}, "weight"), net, optimizer):
        zeros = []
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X), Y).backward()
            optimizer.step()
            zeros.append(net[0].weight.detach() == 0)
    assert all(torch.equal(zeros[5], later) for later in zeros[6:])
    assert 0 < int(zeros[5].sum()) < 48
