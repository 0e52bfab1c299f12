"""Sensitivity of outputs and of the loss, against derivatives taken one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.planning.plan import Plan

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def plan(net: nn.Module, **penalty: Any) -> Plan:
    rule = {
        "layers": "*",
        "group": "weight",
        "sparsity": "50%",
        "penalty": {"kind": "sensitivity", "strength": 0.25, **penalty},
    }
    return sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (X,))


def stepped(net: nn.Module, batches: int = 1, **penalty: Any) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with sparsify.attach(plan(net, **penalty), net, optimizer):
        for x, y in zip(X.chunk(batches), Y.chunk(batches), strict=True):
            (nn.functional.cross_entropy(net(x), y) / batches).backward()
        optimizer.step()


def slope(net: nn.Module, value: Tensor, name: str) -> Tensor:
    return torch.autograd.grad(value, net.get_parameter(name), retain_graph=True)[0].abs()


def shrunk(twin: nn.Module, sensitivities: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights after a plain step and w - 0.25 * w * max(0, 1 - S)."""
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    nn.functional.cross_entropy(twin(X), Y).backward()
    optimizer.step()
    return {
        n: w - 0.25 * w * (1 - s).clamp(min=0)
        for n, s in sensitivities.items()
        for w in [twin.get_parameter(n).detach()]
    }


NAMES = ("0.weight", "2.weight")


def check(net: nn.Module, wanted: dict[str, Tensor]) -> None:
    for name in NAMES:
        torch.testing.assert_close(net.get_parameter(name).detach(), wanted[name], rtol=1e-5, atol=1e-7)


def test_of_the_loss() -> None:
    net, twin = model(), model()
    with torch.no_grad():
        for each in (net, twin):
            each[2].weight.mul_(20)  # so that some slopes pass 1
    found = {n: slope(twin, nn.functional.cross_entropy(twin(X), Y), n) for n in NAMES}
    assert any(bool((s > 1).any()) for s in found.values())
    stepped(net)
    check(net, shrunk(twin, found))


def test_of_outputs_unspecific() -> None:
    net, twin = model(), model()
    outputs = twin(X).mean(0)
    found = {
        n: (slope(twin, outputs[0], n) + slope(twin, outputs[1], n) + slope(twin, outputs[2], n)) / 3
        for n in NAMES
    }
    stepped(net, of="outputs")
    check(net, shrunk(twin, found))


def test_of_outputs_specific() -> None:
    """Without being told the labels: cross-entropy's gradient is negative at the label alone."""
    net, twin = model(), model()
    own = torch.stack([row[label] for row, label in zip(twin(X), Y, strict=True)]).mean()
    stepped(net, of="outputs", mode="specific")
    check(net, shrunk(twin, {n: slope(twin, own, n) for n in NAMES}))


def test_over_accumulated_batches_it_is_the_mean() -> None:
    net, twin = model(), model()
    found: dict[str, Tensor] = {}
    for x in X.chunk(2):
        outputs = twin(x).mean(0)
        for n in NAMES:
            found[n] = found.get(n, torch.zeros(())) + sum(slope(twin, outputs[k], n) for k in range(3)) / 6
    stepped(net, batches=2, of="outputs")
    check(net, shrunk(twin, found))


def test_some_classes_stand_for_all() -> None:
    """One class a step, drawn anew: every class is looked at sooner or later, and the same ones on a second
    run."""
    ends = []
    for _ in range(2):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
        with sparsify.attach(plan(net, of="outputs", classes=1, strength=1e-3), net, optimizer):
            seen = set()
            for _ in range(12):
                before = net[2].weight.detach().clone()
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(X), Y).backward()
                optimizer.step()
                # only the drawn class's row of the last layer is sensitive, so it shrinks least
                seen.add(int((1 - net[2].weight.detach() / before).mean(1).argmin()))
        ends.append(net[0].weight.detach().clone())
        assert seen == {0, 1, 2}
    assert torch.equal(ends[0], ends[1])


def test_the_users_random_numbers_and_gradients_are_left_alone() -> None:
    plain, penalised = model(), model()
    results = []
    for net, strength in ((plain, None), (penalised, 0.0)):
        torch.manual_seed(5)
        if strength is None:
            nn.functional.cross_entropy(net(X), Y).backward()
        else:
            hooks = sparsify.attach(
                plan(net, of="outputs", classes=2), net, torch.optim.SGD(net.parameters(), lr=0.0)
            )
            nn.functional.cross_entropy(net(X), Y).backward()
            hooks.detach()
        results.append((net[0].weight.grad, torch.rand(3)))
    (gradient, drawn), (other_gradient, other_drawn) = results
    assert torch.equal(gradient, other_gradient)  # type: ignore[arg-type]
    assert torch.equal(drawn, other_drawn)


def test_evaluation_is_not_looked_at() -> None:
    net, twin = model(), model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with sparsify.attach(plan(net, of="outputs"), net, optimizer):
        net.eval()
        net(X * 100)
        net.train()
        with torch.no_grad():
            net(X * 100)
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()
    stepped(twin, of="outputs")
    assert torch.equal(net[0].weight, twin[0].weight)


def test_strength_does_not_follow_the_learning_rate() -> None:
    net = model()
    start = net[0].weight.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with sparsify.attach(plan(net), net, optimizer):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    torch.testing.assert_close(net[0].weight.detach(), 0.75 * start)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.a(x)}


def test_outputs_that_are_no_rows_are_refused() -> None:
    net = Named()
    with (
        sparsify.attach(plan(net, of="outputs"), net, torch.optim.SGD(net.parameters(), lr=0.1)),
        pytest.raises(
            ModelError,
            match=(
                r"^sensitivity of outputs needs a model that returns one row of outputs per example, "
                r"not a dict; write 'of: loss'$"
            ),
        ),
    ):
        net(X)


def test_a_torch_that_holds_its_shards_elsewhere_is_named_before_the_first_step() -> None:
    class Elsewhere(nn.Sequential):
        """Sharded by another version of FSDP."""

        def set_reshard_after_backward(self, flag: bool, *, recurse: bool = True) -> None:
            raise AssertionError

    net = Elsewhere(*model())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ModelError) as caught:
        sparsify.attach(plan(net, of="outputs"), net, optimizer)
    assert str(caught.value) == (
        f"a penalty on outputs cannot keep a sharded model gathered with torch {torch.__version__}: "
        "'Elsewhere' object has no attribute '_get_fsdp_state'; "
        "train without sharding (shard: true, fully_shard), or with torch 2.13"
    )
    sparsify.attach(plan(net, of="loss"), net, optimizer).detach()


def test_outputs_are_freed() -> None:
    """A step leaves nothing behind: neither the graph nor the outputs."""
    import gc
    import weakref

    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    gc.disable()
    try:
        with sparsify.attach(plan(net, of="outputs"), net, optimizer):
            outputs = net(X)
            alive = weakref.ref(outputs)
            nn.functional.cross_entropy(outputs, Y).backward()
            optimizer.step()
            del outputs
            assert alive() is None
    finally:
        gc.enable()
