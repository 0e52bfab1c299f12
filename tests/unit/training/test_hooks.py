"""Penalties in a plain training loop: what attached hooks do, what their state is, what they leave behind."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.planning.plan import Plan


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


DATA = (torch.randn(16, 6, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3)


def plan(net: nn.Module, penalty: dict[str, Any] | None, **rule: Any) -> Plan:
    rules = [{"layers": "0", "group": "neuron", **({} if penalty is None else {"penalty": penalty}), **rule}]
    return sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, net, (DATA[0],))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(DATA[0]), DATA[1]).backward()
        optimizer.step()


def units(net: nn.Sequential) -> Tensor:
    """The weights of each hidden unit as rows: incoming row, bias, outgoing column."""
    first, last = net[0], net[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return torch.cat([first.weight, first.bias[:, None], last.weight.T], 1).detach()


def test_one_step_is_sgd_then_shrinkage() -> None:
    net, twin = model(), model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with sparsify.attach(plan(net, {"kind": "group_lasso", "strength": 0.2, "every": 1}), net, optimizer):
        train(net, optimizer, 1)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.5), 1)
    before = units(twin)
    factor = (1 - 0.5 * 0.2 * math.sqrt(before.shape[1]) / before.norm(dim=1, keepdim=True)).clamp(min=0)
    torch.testing.assert_close(units(net), before * factor)
    assert torch.equal(net[2].bias, twin[2].bias), "what is in no group is not touched"


def test_subgradient_goes_through_the_optimizer() -> None:
    net, twin = model(), model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    start = units(net)
    with sparsify.attach(
        plan(net, {"kind": "group_lasso", "strength": 0.2, "solver": "subgradient"}), net, optimizer
    ):
        train(net, optimizer, 1)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.5), 1)
    wanted = units(twin) - 0.5 * 0.2 * math.sqrt(start.shape[1]) * start / start.norm(dim=1, keepdim=True)
    torch.testing.assert_close(units(net), wanted)


@pytest.mark.parametrize(
    "kind",
    ["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"],
)
@pytest.mark.parametrize("solver", ["proximal", "subgradient"])
def test_every_optimizer(kind: str, solver: str) -> None:
    """Strong enough a lasso kills units whatever takes the steps; the loss is never touched."""
    net, free = model(), model()
    optimizer = getattr(torch.optim, kind)(net.parameters(), lr=0.01)
    with sparsify.attach(
        plan(net, {"kind": "group_lasso", "strength": 3.0, "solver": solver}), net, optimizer
    ) as hooks:
        train(net, optimizer, 60)
        hooks.flush()  # between two actions of the penalty the optimizer may wake a dead unit a little
        dead = hooks.sparsity()
    train(free, getattr(torch.optim, kind)(free.parameters(), lr=0.01), 60)
    if solver == "proximal":
        assert dead > 0
    assert float(units(net).norm(dim=1).mean()) < float(units(free).norm(dim=1).mean())


def test_every_saves_up_and_detaching_pays() -> None:
    """Acting on every 4th step with the sum; a remainder of 2 steps is paid when the hooks are removed."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-9  # the gradient moves nothing, the lasso's strength makes up for it
    start = units(net)
    with sparsify.attach(
        plan(net, {"kind": "group_lasso", "strength": 1e7, "every": 4}), net, optimizer
    ) as hooks:
        train(net, optimizer, 3)
        torch.testing.assert_close(units(net), start)
        train(net, optimizer, 3)
        assert hooks.state_dict() == {
            "step": 6,
            "pending": [[pytest.approx(0.02)]],
            "held": {},
            "own": {0: {}},
            "since": 0,
        }
    after = start
    for steps in (4, 2):
        after = after * (
            1 - steps * 0.01 * math.sqrt(after.shape[1]) / after.norm(dim=1, keepdim=True)
        ).clamp(min=0)
    torch.testing.assert_close(units(net), after, rtol=1e-5, atol=1e-6)


def test_state_goes_on_where_it_was() -> None:
    """Three steps, save, load into fresh hooks, three more: equal to six in one go."""
    penalty = {
        "kind": "group_lasso",
        "strength": {"kind": "linear", "from": 0, "to": 0.3, "start": "0it", "end": "6it"},
    }
    whole, parts = model(), model()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.3, momentum=0.9)
    with sparsify.attach(plan(whole, penalty), whole, optimizer):
        train(whole, optimizer, 6)
    optimizer = torch.optim.SGD(parts.parameters(), lr=0.3, momentum=0.9)
    own = plan(parts, penalty)
    first = sparsify.attach(own, parts, optimizer)
    train(parts, optimizer, 3)
    state = first.state_dict()
    for handle in first._handles:  # as a killed process would: nothing is paid
        handle.remove()
    second = sparsify.attach(own, parts, optimizer)
    second.load_state_dict(state)
    train(parts, optimizer, 3)
    second.detach()
    assert torch.equal(units(whole), units(parts))
    with pytest.raises(ModelError, match="the saved penalty state belongs to another recipe"):
        second.load_state_dict({"step": 1, "pending": []})


def test_detached_hooks_are_gone() -> None:
    net, twin = model(), model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with sparsify.attach(plan(net, {"kind": "group_lasso", "strength": 100.0}), net, optimizer):
        pass
    train(net, optimizer, 2)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), 2)
    assert torch.equal(units(net), units(twin))


def test_each_parameter_shrinks_with_its_own_learning_rate() -> None:
    net = model()
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "lr": 1e-9}, {"params": net[2].parameters(), "lr": 0.0}]
    )
    start = units(net)
    with sparsify.attach(plan(net, {"kind": "group_lasso", "strength": 1e8, "every": 1}), net, optimizer):
        train(net, optimizer, 1)
    factor = (1 - 0.1 * math.sqrt(start.shape[1]) / start.norm(dim=1, keepdim=True)).clamp(min=0)
    torch.testing.assert_close(units(net)[:, :7], start[:, :7] * factor)
    assert torch.equal(units(net)[:, 7:], start[:, 7:])


def test_frozen_parameters_are_left_alone() -> None:
    net = model()
    net[2].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    start = units(net)
    with sparsify.attach(plan(net, {"kind": "group_lasso", "strength": 1.0, "every": 1}), net, optimizer):
        train(net, optimizer, 3)
    assert torch.equal(units(net)[:, 7:], start[:, 7:])
    assert float(units(net)[:, :7].norm()) < float(start[:, :7].norm())


def test_a_skipped_step_is_skipped() -> None:
    """A fused optimizer under a GradScaler runs its hooks although it found infinities."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    start = units(net)
    with sparsify.attach(
        plan(net, {"kind": "group_lasso", "strength": 1.0, "every": 1}), net, optimizer
    ) as hooks:
        for p in net.parameters():
            p.grad = torch.full_like(p, float("inf"))
        optimizer.grad_scale = torch.tensor(1024.0)  # type: ignore[attr-defined]
        optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
        optimizer.step()
        assert hooks.state_dict()["step"] == 0
    assert torch.equal(units(net), start)


def test_scaled_gradients_get_a_scaled_penalty() -> None:
    results = []
    for scale in (None, torch.tensor(1024.0)):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
        start = net[0].weight.detach().clone()
        with sparsify.attach(
            plan(net, {"kind": "l2", "strength": 0.5, "solver": "subgradient"}), net, optimizer
        ):
            if scale is not None:
                optimizer.grad_scale = scale  # type: ignore[attr-defined]
                optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        results.append(net[0].weight.detach() / start)
    torch.testing.assert_close(results[0], torch.full_like(results[0], 1 - 0.1 * 0.5))
    torch.testing.assert_close(results[1], results[0])


def test_zeroed_weights_stay_zero() -> None:
    net = model()
    own = plan(net, {"kind": "l1", "strength": 0.01}, group="weight", sparsity="50%")
    result = sparsify.cut(own, net)
    optimizer = torch.optim.Adam(result.model.parameters(), lr=0.05)
    zero = result.model.get_parameter("0.weight") == 0
    assert int(zero.sum()) == 24
    with sparsify.attach(own, result.model, optimizer, penalties=False, hold_zeros=True) as hooks:
        train(result.model, optimizer, 5)
        assert hooks.sparsity() == 0.5
    assert torch.equal(result.model.get_parameter("0.weight") == 0, zero)


def test_what_cannot_be_attached_is_refused() -> None:
    net = model()
    other = torch.optim.SGD(model().parameters(), lr=0.1)
    with pytest.raises(ModelError, match="the optimizer holds none of the model's parameters"):
        sparsify.attach(plan(net, {"kind": "l1", "strength": 0.1}), net, other)
    scheduled = plan(net, {"kind": "l1", "strength": {"kind": "linear", "from": 0, "to": 1, "end": "3ep"}})
    with pytest.raises(
        ModelError,
        match=r"rules\.0\.penalty\.strength counts in epochs .* pass steps_per_epoch=len\(loader\)",
    ):
        sparsify.attach(scheduled, net, torch.optim.SGD(net.parameters(), lr=0.1))
    old = plan(net, {"kind": "l1", "strength": 0.1}, sparsity="50%")
    thin = sparsify.cut(old, net).model
    with pytest.raises(ModelError, match=r"the plan was made of another model: '0\.weight'"):
        sparsify.attach(old, thin, torch.optim.SGD(thin.parameters(), lr=0.1))


@pytest.mark.parametrize("keyword", [False, True])
def test_gradients_made_inside_a_closure_get_the_penalty(keyword: bool) -> None:
    """step(closure) makes them after the step began, as Lightning and LBFGS do."""
    net, twin = model(), model()
    penalty = {"kind": "group_lasso", "strength": 0.2, "solver": "subgradient"}
    for each, closed in ((net, True), (twin, False)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.5)

        def loss(each: nn.Module = each, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(each(DATA[0]), DATA[1])
            value.backward()
            return value

        with sparsify.attach(plan(each, penalty), each, optimizer):
            if not closed:
                loss()
                optimizer.step()
            elif keyword:
                assert optimizer.step(closure=loss) > 0
            else:
                assert optimizer.step(loss) > 0
    assert torch.equal(units(net), units(twin))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"step": 0},
        {"step": 0, "pending": [[0.0], [0.0]], "held": {}, "own": {0: {}}, "since": 0},
        {"step": None, "pending": None, "held": None},
    ],
)
def test_a_state_of_something_else_is_refused(state: dict[str, Any]) -> None:
    net = model()
    hooks = sparsify.attach(
        plan(net, {"kind": "l1", "strength": 0.1}), net, torch.optim.SGD(net.parameters(), lr=0.1)
    )
    with pytest.raises(ModelError, match="the saved penalty state belongs to another recipe"):
        hooks.load_state_dict(state)
    assert hooks.state_dict()["step"] == 0
