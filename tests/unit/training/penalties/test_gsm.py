"""Global sparse momentum: which gradients stay, what becomes of the others, and that it is one ranking."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.graph.group_layouts import layer_layout
from sparsify.pruning.planning.plan import Plan
from sparsify.training.penalties.gsm import EXACT
from sparsify.training.penalties.gsm import make_action as gsm_action
from sparsify.training.penalties.topk import flag_lowest, kth_largest

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 3


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def plan(net: nn.Module, *rules: dict[str, Any]) -> Plan:
    return sparsify.make_plan({"version": 1, "title": "t", "rules": list(rules)}, net, (X,))


def gsm(layers: Any, group: str = "weight", sparsity: str = "75%") -> dict[str, Any]:
    return {"layers": layers, "group": group, "sparsity": sparsity, "penalty": {"kind": "gsm"}}


def backward(net: nn.Module) -> None:
    net.zero_grad()
    nn.functional.cross_entropy(net(X), Y).backward()


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    backward(net)
    optimizer.step()


def gradients(net: nn.Sequential, own: Plan, scaled: Tensor | None = None) -> dict[str, Tensor]:
    """What the optimizer gets to see of one batch's gradient."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, fused=True)
    backward(net)
    with sparsify.attach(own, net, optimizer):
        if scaled is not None:
            for p in net.parameters():
                assert p.grad is not None
                p.grad.mul_(scaled)
            optimizer.grad_scale = scaled  # type: ignore[attr-defined]
            optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
        optimizer.step()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "rules", [[gsm("*")], [gsm("0"), gsm("2")]], ids=["one rule", "two rules of one sparsity"]
)
def test_the_q_most_important_weights_of_all_layers_keep_their_gradient(rules: list[dict[str, Any]]) -> None:
    net, free = model(), model()
    kept = gradients(net, plan(net, *rules))
    backward(free)
    true = {n: p.grad for n, p in free.named_parameters() if p.grad is not None}
    # every weight as (T, tensor, place), largest first; 48 + 24 weights, of which a quarter stays
    ranked = sorted(
        (
            (abs(float(free.get_parameter(n).detach().flatten()[i]) * float(true[n].flatten()[i])), n, i)
            for n in ("0.weight", "2.weight")
            for i in range(true[n].numel())
        ),
        reverse=True,
    )
    active = {(n, i) for _, n, i in ranked[:18]}
    assert {n for n, _ in active} == {"0.weight", "2.weight"}
    for name, grad in kept.items():
        for i, value in enumerate(grad.flatten().tolist()):
            stays = name.endswith("bias") or (name, i) in active
            assert value == (float(true[name].flatten()[i]) if stays else 0.0)


def test_rules_of_different_sparsity_rank_by_themselves() -> None:
    net = model()
    kept = gradients(net, plan(net, gsm("0", sparsity="50%"), gsm("2", sparsity="75%")))
    assert int((kept["0.weight"] != 0).sum()) == 24
    assert int((kept["2.weight"] != 0).sum()) == 6


def test_scaled_gradients_rank_alike() -> None:
    net, own = model(), plan(model(), gsm("*"))
    plain, scaled = gradients(net, own), gradients(model(), own, torch.tensor(4096.0))
    assert all(torch.equal(plain[n] != 0, scaled[n] != 0) for n in plain)


def test_groups_rank_by_the_sum_over_the_group() -> None:
    net, free = model(), model()
    kept = gradients(net, plan(net, gsm("0", "neuron", "50%")))
    backward(free)
    products = {n: p.detach() * p.grad for n, p in free.named_parameters() if p.grad is not None}
    importance = [
        abs(float(products["0.weight"][u].sum() + products["0.bias"][u] + products["2.weight"][:, u].sum()))
        for u in range(8)
    ]
    active = sorted(range(8), key=lambda u: -importance[u])[:4]
    for u in range(8):
        gone = u not in active
        assert (float(kept["0.weight"][u].abs().sum()) == 0) == gone
        assert (float(kept["2.weight"][:, u].abs().sum()) == 0) == gone
        assert not gone or float(kept["0.bias"][u]) == 0
    assert torch.equal(kept["2.bias"], free[2].bias.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_passive_weight_decays_as_foretold(nesterov: bool) -> None:
    """Decay and momentum act on a weight whose gradient is always left out: after n steps exp(-n lr wd / (1 -
    momentum)) of it is left."""
    net = model()
    with torch.no_grad():
        net[0].weight[0, 0] = 1e-6  # so small that it is never among the largest
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.02, nesterov=nesterov)
    with sparsify.attach(plan(net, gsm("0", sparsity="50%")), net, optimizer):
        for _ in range(500):
            step(net, optimizer)
    assert float(net[0].weight.detach()[0, 0]) == pytest.approx(
        1e-6 * math.exp(-500 * 0.01 * 0.02 / 0.1), rel=0.05
    )


def test_woken_weights_are_counted() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    with sparsify.attach(plan(net, gsm("*")), net, optimizer) as hooks:
        active, flips = [], 0
        for _ in range(6):
            step(net, optimizer)
            grads = [net.get_parameter(n).grad for n in ("0.weight", "2.weight")]
            active.append(torch.cat([g.flatten() != 0 for g in grads if g is not None]))
        flips = sum(int((b & ~a).sum()) for a, b in pairwise(active))
        assert flips > 0, "otherwise the test says nothing"
        assert hooks.reactivated() == pytest.approx(flips / (6 * 72))
        assert hooks.reactivated() == 0.0, "counted anew"


def test_the_cut_keeps_the_largest_of_all_rules_together() -> None:
    net = model()
    with torch.no_grad():
        net[0].weight.mul_(100)
    result = sparsify.cut(plan(net, gsm("0", sparsity="50%"), gsm("2", sparsity="50%")), net)
    (deed,) = result.cuts.zeroed
    assert (deed.rule, deed.groups, deed.gone) == (0, 72, 36), (
        "half of all together: every weight of layer 2 and twelve of layer 0"
    )
    assert (
        int((result.model.get_parameter("2.weight") == 0).sum())
        == result.model.get_parameter("2.weight").numel()
    )


@pytest.mark.parametrize("n", [1, 5, 1000, 70000])
@pytest.mark.parametrize("ties", [False, True])
def test_the_threshold_is_the_kth_largest(n: int, ties: bool) -> None:
    values = torch.randn(n, generator=torch.Generator().manual_seed(n)).abs().pow(3)
    if ties:
        values = values.mul(4).round()
    ordered = sorted(values.tolist(), reverse=True)
    for k in {1, 2, n // 3 + 1, n - 1, n} & set(range(1, n + 1)):
        assert float(kth_largest(values, k)) == ordered[k - 1]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_of_many_weights_a_sample_says_which_are_the_largest(memory: torch.memory_format) -> None:
    """Q within 3 %, over tensors of very different scales; what stays are the largest, whole."""
    own = torch.Generator().manual_seed(3)
    shapes = {"a": (512, 256, 3, 3), "b": (700, 301), "c": (1000,), "d": (32, 3, 5, 5)}
    weights = {n: torch.randn(shape, generator=own) * 10**i for i, (n, shape) in enumerate(shapes.items())}
    weights = {n: w.to(memory_format=memory) if w.dim() == 4 else w for n, w in weights.items()}
    before = {n: torch.randn(w.shape, generator=own).to(w.dtype) for n, w in weights.items()}
    gradients = {n: g.clone() for n, g in before.items()}
    action = gsm_action([layer_layout([(n, 0) for n in weights], weights)], weights, 0.8, True)
    assert action.before is not None
    action.before(weights, gradients, 1.0)
    importance = torch.cat([(weights[n] * before[n]).abs().flatten() for n in weights])
    stays = torch.cat([gradients[n].flatten() != 0 for n in weights])
    assert len(stays) > EXACT
    assert int(stays.sum()) == pytest.approx(0.2 * len(stays), rel=0.03)
    assert float(importance[stays].min()) > float(importance[~stays].max())
    assert all(bool(((gradients[n] == before[n]) | (gradients[n] == 0)).all()) for n in weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_masked_alike(dtype: torch.dtype) -> None:
    weights = {"w": torch.randn(40, 30, generator=torch.Generator().manual_seed(5)).to(dtype)}
    gradients = {"w": weights["w"].flip(0).clone()}
    importance = (weights["w"].double() * gradients["w"].double()).abs()
    action = gsm_action([layer_layout([("w", 0)], weights)], weights, 0.75, True)
    assert action.before is not None
    action.before(weights, gradients, 1.0)
    stays = gradients["w"] != 0
    assert 300 <= int(stays.sum()) <= 310, "ties in half precision stay together"
    assert float(importance[stays].min()) > float(importance[~stays].max())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_lowest_are_so_many_and_of_equal_ones_the_first(share: float) -> None:
    weights = [
        torch.randn(size, generator=torch.Generator().manual_seed(size)).mul(3).round()
        for size in (40, 1, 59)
    ]
    order = sorted(range(100), key=lambda i: (float(torch.cat(weights).abs()[i]), i))
    assert torch.nonzero(flag_lowest(weights, share)).flatten().tolist() == sorted(
        order[: round(100 * share)]
    )


def test_state_goes_on_where_it_was() -> None:
    def run(resumed: bool) -> tuple[Tensor, float | None]:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        own = plan(net, gsm("*"))
        hooks = sparsify.attach(own, net, optimizer)
        for _ in range(3):
            step(net, optimizer)
        if resumed:
            state = hooks.state_dict()
            hooks.detach()
            hooks = sparsify.attach(own, net, optimizer)
            hooks.load_state_dict(state)
        for _ in range(3):
            step(net, optimizer)
        return net[0].weight.detach(), hooks.reactivated()

    (whole, woken), (parts, again) = run(False), run(True)
    assert torch.equal(whole, parts) and woken == again
