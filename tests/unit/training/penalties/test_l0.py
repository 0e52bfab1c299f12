"""l0 and variational dropout: their formulas, gradients against autograd, and what a model holds before,
between and after steps."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.graph.group_layouts import element_layout, layer_layout
from sparsify.pruning.planning.plan import Plan
from sparsify.training.hooks import Hooks
from sparsify.training.penalties import Action, build, l0, variational_dropout
from sparsify.training.penalties.stochastic_weights import make_generator, make_penalty_parameters
from sparsify_schemas.penalty import L0, VariationalDropout

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3].argmax(1)).long()
L0_RULE = {"layers": "0", "group": "neuron", "penalty": {"kind": "l0", "strength": 1e-3}}
NOISE_RULE = {"layers": "*", "group": "weight", "penalty": {"kind": "variational_dropout", "strength": 1e-3}}
RULES = {
    "l0": [L0_RULE],
    "l0 on weights": [{**L0_RULE, "group": "weight"}],
    "variational_dropout": [NOISE_RULE],
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)
    )


def plan(net: nn.Module, rules: list[dict[str, Any]]) -> Plan:
    return sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, net, (X,))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(X), Y).backward()
    optimizer.step()


def states(hooks: Hooks) -> list[dict[str, dict[str, Tensor]]]:
    return list(hooks.state_dict()["own"].values())


def test_gates_are_hard_concrete() -> None:
    """The share of closed gates is 1 - P, and the slope is autograd's."""
    values = torch.full((200_000,), 0.7)
    z, slope = l0.sample_gates(values, torch.Generator().manual_seed(0))
    opened = 1 / (1 + math.exp(-(0.7 - 2 / 3 * math.log(0.1 / 1.1))))
    assert float((z > 0).float().mean()) == pytest.approx(opened, abs=3e-3)
    assert 0.0 == float(z.min()) < float(z.max()) == 1.0
    few = torch.linspace(-4, 4, 50, dtype=torch.float64, requires_grad=True)
    u = torch.rand(50, generator=torch.Generator().manual_seed(3)).double()
    reference = (torch.sigmoid((u.log() - (1 - u).log() + few) / (2 / 3)) * 1.2 - 0.1).clamp(0, 1)
    reference.sum().backward()
    z, slope = l0.sample_gates(few.detach(), torch.Generator().manual_seed(3))
    torch.testing.assert_close(z, reference.detach())
    torch.testing.assert_close(slope, few.grad)
    few.grad = None
    reference = (torch.sigmoid(few) * 1.2 - 0.1).clamp(0, 1)
    reference.sum().backward()
    torch.testing.assert_close(l0.expected_gates(few.detach()), (reference.detach(), few.grad))


def test_the_divergence_and_its_slope() -> None:
    t = torch.linspace(-12, 8, 41, dtype=torch.float64, requires_grad=True)
    alpha = t.detach().exp()
    wanted = 0.5 * (1 + 1 / alpha).log() - 0.63576 / (1 + (-(1.87320 + 1.48695 * t.detach())).exp())
    torch.testing.assert_close(variational_dropout.compute_divergence(t.detach()), wanted)
    variational_dropout.compute_divergence(t).sum().backward()
    torch.testing.assert_close(variational_dropout.compute_slope(t.detach()), t.grad)


def test_its_own_steps_are_adams() -> None:
    own, reference = (
        make_penalty_parameters(torch.tensor([1.0, -2.0])),
        torch.tensor([1.0, -2.0], requires_grad=True),
    )
    adam = torch.optim.Adam([reference], lr=0.03)
    for i in range(5):
        gradient = torch.tensor([0.3 * i, -0.1])
        own.pull.add_(gradient / 2)
        own.step(gradient / 2, 0.03)
        reference.grad = gradient
        adam.step()
    torch.testing.assert_close(own.values, reference.detach())


def shown(action: Action, weights: dict[str, Tensor]) -> None:
    assert action.show is not None
    action.show(weights, True)


def test_two_gates_on_one_weight_learn_as_autograd_says() -> None:
    """Rows by one rule, columns by another, as where two gated layers meet: gradients of the weight and of
    both gates."""
    weights = {"w": torch.randn(4, 3, generator=torch.Generator().manual_seed(5))}
    true, target = (
        weights["w"].clone().requires_grad_(),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(6)),
    )
    rows, columns = (
        build(L0(kind="l0", strength=0.1, closed="40%"), [layer_layout([("w", dim)], weights)], weights)
        for dim in (0, 1)
    )
    for action in (rows, columns):
        shown(action, weights)
    a, b = (action.state["open"].clone().requires_grad_() for action in (rows, columns))
    z, y = (
        l0._clip_gates(torch.sigmoid((torch.logit(_u(len(v), "w")) + v) / l0.BETA), l0.BETA)[0]
        for v in (a, b)
    )
    effective = true * z[:, None] * y
    torch.testing.assert_close(weights["w"], effective.detach())
    (effective - target).square().sum().backward()
    gradients = {"w": 2 * (weights["w"] - target)}
    for action in (columns, rows):
        assert action.restore is not None
        action.restore(weights, gradients, 1.0)
    assert torch.equal(weights["w"], true.detach())
    torch.testing.assert_close(gradients["w"], true.grad)
    torch.testing.assert_close(rows.state["pull"], a.grad)
    torch.testing.assert_close(columns.state["pull"], b.grad)
    assert a.grad is not None and float(a.grad.abs().max()) > 0


def _u(count: int, name: str) -> Tensor:
    return torch.rand(count, generator=make_generator(name, 0)).clamp(1e-6, 1 - 1e-6)


def test_noise_learns_as_autograd_says() -> None:
    weights = {"w": torch.randn(4, 3, generator=torch.Generator().manual_seed(5))}
    true, target = (
        weights["w"].clone().requires_grad_(),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(6)),
    )
    action = build(
        VariationalDropout(kind="variational_dropout", strength=0.1),
        [element_layout(["w"], weights)],
        weights,
    )
    action.state["spread"].fill_(-2.0)
    shown(action, weights)
    spread = action.state["spread"].clone().requires_grad_()
    effective = true + ((spread / 2).exp() * action.state["noise"])[:-1].view(4, 3)
    torch.testing.assert_close(weights["w"], effective.detach())
    kl = variational_dropout.compute_divergence(spread[:-1].view(4, 3) - true.square().log()).sum()
    ((effective - target).square().sum() + 0.1 * kl).backward()
    gradients = {"w": 8 * 2 * (weights["w"] - target)}  # as a fused optimizer's, scaled by 8
    assert action.restore is not None and action.gradient is not None
    action.restore(weights, gradients, 8.0)
    action.gradient(weights, gradients, 0.1 * 8)
    assert true.grad is not None and spread.grad is not None
    torch.testing.assert_close(gradients["w"] / 8, true.grad)
    own = action.state["pull"] + 0.1 * variational_dropout.compute_slope(
        spread.detach() - torch.cat([true.detach().square().log().flatten(), torch.zeros(1)])
    )
    torch.testing.assert_close(own[:-1], spread.grad[:-1])


def test_a_gate_pays_for_all_that_leaves_with_its_unit() -> None:
    """The first step of Adam is as long as the rate for every gate: the pull shows in its first moment."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with sparsify.attach(
        plan(net, [{**L0_RULE, "penalty": {"kind": "l0", "strength": 0.5}}]), net, optimizer
    ) as hooks:
        step(net, optimizer)
        (state,) = states(hooks)
    opened = 1 / (1 + math.exp(-(math.log(0.95 / 0.05) - 2 / 3 * math.log(0.1 / 1.1))))
    members = 6 + 1 + 2 + 5  # a neuron, its bias, its normalisation, its column
    assert state["first"]["0"].tolist() == pytest.approx(
        [0.1 * 0.5 * members * opened * (1 - opened)] * 8, rel=1e-4
    )
    assert state["open"]["0"].tolist() == pytest.approx([math.log(19) - 0.02] * 8)


@pytest.mark.parametrize("name", RULES)
def test_what_the_model_holds(name: str) -> None:
    """Gated or noisy between steps, the same without a draw after flush, again and again; the optimizer moves
    the weights behind it."""
    net, free = model(), model()
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (net, free))
    hooks = sparsify.attach(plan(net, RULES[name]), net, optimizer)
    step(net, optimizer)
    step(free, other)
    kept = states(hooks)[0]["dense"]
    covered = [
        p.detach().flatten()
        for n, p in free.named_parameters()
        if (
            n == "3.weight"
            if name == "l0"
            else n == "0.weight"
            if "weights" in name
            else n.endswith("weight") and p.dim() > 1
        )
    ]
    torch.testing.assert_close(
        torch.cat([own.flatten() for own in kept.values()]), torch.cat(covered), rtol=1e-2, atol=2e-2
    )
    noisy = [p.detach().clone() for p in net.parameters()]
    hooks.flush()
    still = [p.detach().clone() for p in net.parameters()]
    hooks.flush()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), still, strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(noisy, still, strict=True))
    for _ in range(3):
        step(net, optimizer)
    hooks.detach()
    last = [p.detach().clone() for p in net.parameters()]
    hooks.detach()
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), last, strict=True))


def test_after_flush_the_columns_are_scaled_by_the_gates_expected() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    hooks = sparsify.attach(
        plan(net, [{**L0_RULE, "penalty": {"kind": "l0", "strength": 1e-3, "closed": "40%"}}]), net, optimizer
    )
    step(net, optimizer)
    hooks.flush()
    (state,) = states(hooks)
    z, _ = l0.expected_gates(state["open"]["0"])
    assert 0.5 < float(z.min()) <= float(z.max()) < 0.7
    torch.testing.assert_close(net.get_parameter("3.weight").detach(), state["dense"]["3.weight"] * z)


@pytest.mark.parametrize("name", RULES)
def test_state_goes_on_where_it_was(name: str) -> None:
    """Also from a checkpoint that holds the model without noise, as `sparsify apply` writes it; momentum,
    draws and all."""

    def run(resumed: bool) -> list[Tensor]:
        net = model()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        own = plan(net, RULES[name])
        hooks = sparsify.attach(own, net, optimizer)
        for _ in range(4):
            step(net, optimizer)
        hooks.flush()
        if resumed:
            saved, weights, moments = (
                hooks.state_dict(),
                {k: v.clone() for k, v in net.state_dict().items()},
                optimizer.state_dict(),
            )
            net = model()
            net.load_state_dict(weights)
            optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
            optimizer.load_state_dict(moments)
            hooks = sparsify.attach(own, net, optimizer)
            hooks.load_state_dict(saved)
        for _ in range(4):
            step(net, optimizer)
        hooks.detach()
        return [p.detach() for p in net.parameters()]

    assert all(torch.equal(p, q) for p, q in zip(run(False), run(True), strict=True))


@pytest.mark.parametrize("name", RULES)
def test_with_much_strength_all_goes_and_with_little_what_is_not_needed(name: str) -> None:
    shares, losses = [], []
    for strength in (1e-3 if name == "variational_dropout" else 2e-2, 10.0):
        net = model()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        rules = [
            {**rule, "penalty": {**rule["penalty"], "strength": strength, "rate": 0.05}}
            for rule in RULES[name]
        ]
        with sparsify.attach(plan(net, rules), net, optimizer) as hooks:
            for _ in range(300):
                step(net, optimizer)
            hooks.flush()
            shares.append(hooks.sparsity())
        losses.append(nn.functional.cross_entropy(net.eval()(X), Y).item())
        assert hooks.sparsity() == shares[-1], "what was zero after flush is zero in the end"
    assert 0.0 < shares[0] < 0.95 and shares[1] == 1.0
    assert losses[0] < 0.3 < losses[1], "what went was not needed"


def test_an_optimizer_that_looks_several_times() -> None:
    """LBFGS calls its closure again with weights of its own: only the first gradient is by gated weights."""
    net = model()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(X), Y)
        loss.backward()
        return loss

    first = float(closure().detach())
    with sparsify.attach(plan(net, [L0_RULE]), net, optimizer):
        for _ in range(5):
            optimizer.step(closure)
    assert float(closure().detach()) < first


@pytest.mark.parametrize(
    "wrap", [lambda net: net, lambda net: torch.compile(net, backend="eager")], ids=["plain", "compiled"]
)
def test_a_cut_takes_the_closed_ones(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = model()
    outer = wrap(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    own = plan(net, [{**L0_RULE, "penalty": {"kind": "l0", "strength": 2e-2, "rate": 0.05}}])
    with sparsify.attach(own, outer, optimizer):
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(outer(X), Y).backward()
            optimizer.step()
    dead = int((net[3].weight == 0).all(0).sum())  # type: ignore[union-attr]
    result = sparsify.cut(own, net.eval())
    assert 0 < dead < 8 and result.cuts.widths[0].kept == 8 - dead
    torch.testing.assert_close(result.model(X), net(X))
