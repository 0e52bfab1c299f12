"""Strength auto: what has died follows the goal, whatever the network, without a strength being given."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.planning.plan import Plan
from sparsify.training.hooks import Hooks
from sparsify.training.penalties import auto_strength
from sparsify_schemas.schedule import Auto

X = torch.randn(256, 12, generator=torch.Generator().manual_seed(1))
Y = (X[:, :3].argmax(1)).long()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 300), nn.Tanh(), nn.Linear(300, 3))


def normed() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 24, 2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 16, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def plan(
    net: nn.Module, penalty: dict[str, Any] | None = None, budget: dict[str, str] | None = None, **rule: Any
) -> Plan:
    rules = [
        {
            "layers": "*",
            "group": group,
            "penalty": penalty or {"kind": "group_lasso", "strength": "auto"},
            **rule,
        }
        for group in rule.pop("groups", ["neuron"])
    ]
    return sparsify.make_plan({"version": 1, "title": "t", "budget": budget or {}, "rules": rules}, net, (X,))


def train(
    net: nn.Module,
    own: Plan,
    optimizer: torch.optim.Optimizer,
    epochs: int = 30,
    stop: int | None = None,
    state: Any = None,
) -> tuple[Hooks, list[tuple[float, float]]]:
    """Eight steps an epoch; what was due and what was reached after each."""
    path = []
    hooks = sparsify.attach(own, net, optimizer, steps_per_epoch=8, steps=8 * epochs)
    if state is not None:
        hooks.load_state_dict(state)
    start = hooks.state_dict()["step"] // 8
    for _ in range(start, epochs if stop is None else stop):
        for x, y in zip(X.chunk(8), Y.chunk(8), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        hooks.flush()
        found = hooks.goal()
        assert found is not None
        path.append(found)
    return hooks, path


CASES: list[tuple[Any, list[str], str, dict[str, str]]] = [
    (mlp, ["neuron"], "sgd", {"macs": "40%"}),
    (mlp, ["neuron"], "adam", {"params": "60%", "macs": "50%"}),
    (wide, ["neuron"], "sgd", {"bytes": "10%"}),
    (normed, ["filter"], "sgd", {"macs": "50%"}),
    (normed, ["filter"], "adam", {"macs": "30%"}),
]


@pytest.mark.parametrize(("build", "groups", "optimizer", "budget"), CASES)
def test_it_meets_every_budget_within_two_percent(
    build: Any, groups: list[str], optimizer: str, budget: dict[str, str]
) -> None:
    torch.manual_seed(0)
    net = build()
    make = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
        "adam": lambda: torch.optim.Adam(net.parameters(), lr=3e-3),
    }
    own = plan(net, None, budget, groups=groups)
    hooks, path = train(net, own, make[optimizer]())
    assert all(abs(reached - due) < 0.15 for due, reached in path), path
    left = hooks.remaining()
    worst = max(left[what] - float(limit[:-1]) / 100 for what, limit in budget.items())
    assert -0.02 < worst < 0.02
    hooks.detach()
    before = net(X).argmax(1)
    kept = sparsify.cut(own, net)
    assert float((kept.model(X).argmax(1) == before).float().mean()) > 0.97, (
        "what the cut takes was dead already"
    )


def test_a_rules_own_share_is_a_goal_too() -> None:
    torch.manual_seed(0)
    net = mlp()
    hooks, path = train(
        net, plan(net, sparsity="50%"), torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    )
    assert hooks.sparsity() == pytest.approx(0.5, abs=0.02)
    assert path[-1] == (1.0, pytest.approx(1.0, abs=0.04))


def test_single_weights() -> None:
    torch.manual_seed(0)
    net = mlp()
    own = plan(net, {"kind": "l1", "strength": "auto"}, groups=["weight"], sparsity="80%")
    hooks, path = train(net, own, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), epochs=40)
    assert hooks.sparsity() == pytest.approx(0.8, abs=0.02)
    assert all(abs(reached - due) < 0.2 for due, reached in path), path


def test_what_is_not_coming_is_left_alone() -> None:
    """Before the first group is near its time, training is as without a penalty."""
    results = []
    for penalised in (True, False):
        torch.manual_seed(0)
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        penalty = {"kind": "group_lasso", "strength": {"kind": "auto", "start": "0.5dur"}}
        hooks = sparsify.attach(
            plan(net, penalty, {"macs": "40%"}),
            net,
            optimizer,
            steps_per_epoch=8,
            steps=800,
            penalties=penalised,
        )
        for x, y in zip(X.chunk(16), Y.chunk(16), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        hooks.detach()
        results.append([p.detach() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_resumed_it_ends_the_same() -> None:
    def run(split: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        own = plan(net, None, {"macs": "40%"})
        if split:
            hooks, _ = train(net, own, optimizer, stop=13)
            state = hooks.state_dict()
            hooks.detach()
            train(net, own, optimizer, state=state)[0].detach()
        else:
            train(net, own, optimizer)[0].detach()
        return [p.detach() for p in net.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


@pytest.mark.parametrize(("step", "part"), [(0, 0.0), (10, 0.0), (50, 0.5), (90, 1.0), (99, 1.0)])
def test_the_goal_is_due_linearly(step: int, part: float) -> None:
    assert auto_strength.compute_due(Auto(kind="auto"), step, 10, 100) == pytest.approx(part)


def test_the_length_of_the_stage_must_be_known() -> None:
    net = mlp()
    with pytest.raises(
        ModelError,
        match=(
            r"^rules\.0\.penalty\.strength is 'auto', which needs to know how long the stage is: "
            r"pass steps_per_epoch=len\(loader\) and steps=epochs \* len\(loader\) to attach$"
        ),
    ):
        sparsify.attach(plan(net, None, {"macs": "40%"}), net, torch.optim.SGD(net.parameters(), lr=0.1))
