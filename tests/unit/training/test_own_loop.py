"""Hooks in every loop that people write: optimizers, mixed precision, accumulation, clipping, compilation,
averages, bf16."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparsify
from sparsify.errors import ModelError
from sparsify.pruning.planning.plan import Plan

X, Y = torch.randn(16, 6, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
LASSO = {"kind": "group_lasso", "strength": 0.2, "every": 1}
PENALTIES: dict[str, dict[str, Any]] = {
    f"{kind} {solver}": {
        "kind": kind,
        "strength": 0.2,
        "solver": solver,
        **({"every": 1} if solver == "proximal" else {}),
    }
    for kind in ("group_lasso", "l2")
    for solver in ("proximal", "subgradient")
} | {"group_lasso half_space": {"kind": "group_lasso", "strength": 0.2, "solver": "half_space"}}
NOT_DENSE = {"Optimizer", "SparseAdam"}
DENSE = sorted(
    n
    for n, c in vars(torch.optim).items()
    if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer) and n not in NOT_DENSE
)


def model(bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias))


def plan(net: nn.Module, penalty: dict[str, Any]) -> Plan:
    return sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "0", "group": "neuron", "penalty": penalty}]},
        net,
        (X,),
    )


def loss(net: nn.Module, part: slice = slice(None)) -> Tensor:
    return nn.functional.cross_entropy(net(X[part]).float(), Y[part])


def units(net: nn.Module) -> Tensor:
    first, last = net.get_submodule("0"), net.get_submodule("2")
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return (
        torch.cat([first.weight, first.bias[:, None], last.weight.T], 1).detach()
        if first.bias is not None
        else torch.cat([first.weight, last.weight.T], 1).detach()
    )


def shrunk(before: Tensor, amount: float) -> Tensor:
    """The proximal step of the group lasso, written anew."""
    return before * (1 - amount * math.sqrt(before.shape[1]) / before.norm(dim=1, keepdim=True)).clamp(min=0)


@pytest.mark.parametrize("kind", DENSE)
def test_after_the_step_of_every_optimizer_comes_the_shrinkage(kind: str) -> None:
    """hooked = optimizer's own step, then the proximal step with its learning rate; for two steps, as state
    is involved."""
    net, twin = model(bias=kind != "Muon"), model(bias=kind != "Muon")  # muon takes matrices only
    optimizers = [getattr(torch.optim, kind)(each.parameters(), lr=0.01) for each in (net, twin)]
    own = plan(net, LASSO)
    with sparsify.attach(own, net, optimizers[0]):
        for _ in range(2):
            for each, optimizer in zip((net, twin), optimizers, strict=True):

                def closure(each: nn.Module = each, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
                    optimizer.zero_grad()
                    value = loss(each)
                    value.backward()
                    return value

                optimizer.step(closure)
            wanted = shrunk(units(twin), 0.01 * 0.2)
            torch.testing.assert_close(units(net), wanted)
            with torch.no_grad():
                twin.load_state_dict(net.state_dict())


@pytest.mark.parametrize("kind", DENSE)
def test_every_optimizer_sees_the_gradient_of_the_penalty(kind: str) -> None:
    """hooked = the optimizer on loss + lambda / 2 * ||w||^2 of the covered weights."""
    net, twin = model(bias=kind != "Muon"), model(bias=kind != "Muon")
    optimizers = [getattr(torch.optim, kind)(each.parameters(), lr=0.01) for each in (net, twin)]
    with sparsify.attach(plan(net, PENALTIES["l2 subgradient"]), net, optimizers[0]):
        for each, optimizer in zip((net, twin), optimizers, strict=True):

            def closure(each: nn.Module = each, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
                optimizer.zero_grad()
                value = loss(each)
                term = 0.1 * each.get_parameter("0.weight").square().sum() if each is twin else 0.0
                (value + term).backward()
                return value

            for _ in range(2):
                optimizer.step(closure)
    torch.testing.assert_close(units(net), units(twin), rtol=1e-4, atol=1e-5)


def with_grad_scaler(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, unscale: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss(net)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_grad_scaler_changes_nothing(penalty: str, fused: bool, unscale: bool) -> None:
    """A fused optimizer unscales inside its kernel, so its pre-hook sees scaled gradients, unless unscale_
    was called."""
    nets = [model(), model()]
    for scaled, net in enumerate(nets):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=fused)
        with sparsify.attach(plan(net, PENALTIES[penalty]), net, optimizer) as hooks:
            if scaled:
                with_grad_scaler(net, optimizer, 4, unscale)
            else:
                for _ in range(4):
                    optimizer.zero_grad()
                    loss(net).backward()
                    optimizer.step()
            assert hooks.state_dict()["step"] == 4
    torch.testing.assert_close(units(nets[1]), units(nets[0]))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflowed_step_is_no_step(penalty: str, fused: bool) -> None:
    net = model()
    start = units(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with sparsify.attach(plan(net, PENALTIES[penalty]), net, optimizer) as hooks:
        scaler.scale(loss(net) * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 512.0
        assert hooks.state_dict()["step"] == 0
        assert torch.equal(units(net), start)
        optimizer.zero_grad()
        scaler.scale(loss(net)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert hooks.state_dict()["step"] == 1
    assert not torch.equal(units(net), start)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_accumulation_and_clipping(penalty: str) -> None:
    """Four micro-batches are one step; what is clipped is the loss' gradient, never the penalty's."""
    net, twin = model(), model()
    for each in (net, twin):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.5)
        with sparsify.attach(plan(each, PENALTIES[penalty]), each, optimizer) as hooks:
            for _ in range(3):
                optimizer.zero_grad()
                if each is net:
                    for i in range(4):
                        (loss(each, slice(4 * i, 4 * i + 4)) / 4).backward()
                else:
                    loss(each).backward()
                nn.utils.clip_grad_norm_(each.parameters(), 0.05)
                optimizer.step()
            assert hooks.state_dict()["step"] == 3
    torch.testing.assert_close(units(net), units(twin))
    moved = (units(net) - units(model())).norm()
    assert moved > 3 * 0.5 * 0.05, "the penalty moves more than the clipped gradient could"


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, while it compiles
@pytest.mark.parametrize("what", ["model", "step", "both"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_compiled_model_and_step(what: str, penalty: str) -> None:
    net, twin = model(), model()
    compiled = torch.compile(net, backend="aot_eager") if what != "step" else net
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.5, momentum=0.9)
    plain = torch.optim.SGD(twin.parameters(), lr=0.5, momentum=0.9)
    step = torch.compile(optimizer.step, backend="eager") if what != "model" else optimizer.step
    with (
        sparsify.attach(plan(net, PENALTIES[penalty]), compiled, optimizer) as hooks,
        sparsify.attach(plan(twin, PENALTIES[penalty]), twin, plain),
    ):
        for _ in range(4):
            optimizer.zero_grad()
            loss(compiled).backward()
            step()
            plain.zero_grad()
            loss(twin).backward()
            plain.step()
        assert hooks.state_dict()["step"] == 4
    torch.testing.assert_close(units(net), units(twin))


def test_an_average_of_the_weights_follows_what_the_penalty_left() -> None:
    net = model()
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    wanted = None
    with sparsify.attach(plan(net, LASSO), net, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            loss(net).backward()
            optimizer.step()
            ema.update_parameters(net)
            wanted = units(net) if wanted is None else 0.5 * wanted + 0.5 * units(net)
    torch.testing.assert_close(units(ema.module), wanted)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_bf16_parameters(penalty: str) -> None:
    """As in float32 up to bf16's rounding; what the lasso brings to zero is exactly zero."""
    results: list[Tensor] = []
    for dtype in (torch.float32, torch.bfloat16):
        net = model()
        own = plan(net, PENALTIES[penalty])
        net.to(dtype)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        with sparsify.attach(own, net, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(X.to(dtype)).float(), Y).backward()
                optimizer.step()
        results.append(units(net).float())
    torch.testing.assert_close(results[1], results[0], rtol=0.05, atol=0.02)
    dead = [(r == 0).all(1) for r in results]
    assert torch.equal(*dead)
    assert dead[0].any() == (penalty in ("group_lasso proximal", "group_lasso half_space"))


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel])
def test_wrapped_models_are_taken(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with sparsify.attach(plan(net, LASSO), wrap(net), optimizer) as hooks:
        loss(net).backward()
        optimizer.step()
        assert hooks.sparsity() == 0
        assert hooks.remaining() == {"macs": 1.0}


def test_fsdp_1_is_refused() -> None:
    wrapped = type("FullyShardedDataParallel", (nn.Module,), {})()
    net = model()
    with pytest.raises(
        ModelError,
        match=(
            r"whose flat parameters hold no groups; shard it by torch\.distributed\.fsdp\.fully_shard "
            r"instead$"
        ),
    ):
        sparsify.attach(plan(net, LASSO), wrapped, torch.optim.SGD(net.parameters(), lr=0.1))
