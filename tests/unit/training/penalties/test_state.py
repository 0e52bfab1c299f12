"""What penalties remember goes through a cut, and on to other processes, by the names of tensors and
groups."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.graph.surgery import operations, transfer_state
from sparsify.pruning.planning.plan import Plan

X = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 3
FILTERS = {"layers": "0", "group": "filter", "sparsity": "50%"}
AUTO = {"kind": "group_lasso", "strength": {"kind": "auto", "start": "0dur"}, "every": 1}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def plan(net: nn.Module, *rules: dict[str, Any]) -> Plan:
    return sparsify.make_plan({"version": 1, "title": "t", "rules": list(rules)}, net, (X,))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()


def through_a_cut(rule: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """(what was remembered before a cut of half the filters of the first layer, after it, the filters that
    stayed)"""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    hooks = sparsify.attach(plan(net, rule), net, optimizer, steps_per_epoch=4, steps=8, until=4)
    train(net, optimizer, 4)
    before = hooks.state_dict()["own"][0]
    hooks.detach()
    result = sparsify.cut(plan(net, FILTERS), net, optimizer=optimizer)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    own = {
        key: transfer_state.transfer_named_values(value, result.cuts, shapes)
        if isinstance(value, dict)
        else value
        for key, value in before.items()
    }
    with sparsify.attach(
        plan(result.model, rule), result.model, optimizer, steps_per_epoch=4, steps=8
    ) as more:
        more.start_at(4, {0: own})
        after = more.state_dict()
        train(result.model, optimizer, 1)
    assert (after["step"], after["since"]) == (4, 4)
    (width,) = (w for w in result.cuts.widths if w.group == "0")
    return before, after["own"][0], operations.to_indices(width.keep).tolist()


def weights(of: dict[str, Tensor], kept: list[int]) -> dict[str, Tensor]:
    """The same by hand: rows of the first layer's weight and columns of the second's."""
    return {"0.weight": of["0.weight"][kept], "2.weight": of["2.weight"][:, kept], "5.weight": of["5.weight"]}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_found_strength_goes_on() -> None:
    before, after, kept = through_a_cut({**FILTERS, "penalty": AUTO})
    assert len(kept) == 3
    assert float(before["gain"]) != 1.0 and float(before["strength"]) > 0
    assert (after["gain"], after["strength"]) == (before["gain"], before["strength"])
    assert before["floor"]["0"].unique().numel() > 1
    assert same(after["floor"], {"0": before["floor"]["0"][kept]})


def test_which_weights_and_groups_gsm_left_active() -> None:
    before, after, kept = through_a_cut(
        {"layers": "*", "group": "weight", "sparsity": "50%", "penalty": {"kind": "gsm"}}
    )
    assert (
        same(after["active"], weights(before["active"], kept))
        and int(after["steps"]) == int(before["steps"]) == 4
    )
    before, after, kept = through_a_cut({**FILTERS, "penalty": {"kind": "gsm"}})
    assert (
        same(after["active"], {"0": before["active"]["0"][kept]}) and 0 < int(before["active"]["0"].sum()) < 6
    )


def test_groups_inside_a_tensor() -> None:
    before, after, kept = through_a_cut(
        {"layers": "2", "group": "shape", "sparsity": "50%", "penalty": {"kind": "gsm"}}
    )
    assert same(after["active"], {"2.weight": before["active"]["2.weight"].view(6, 9)[kept].flatten()})


def test_the_hidden_weights_of_surgery() -> None:
    before, after, kept = through_a_cut(
        {"layers": "*", "group": "weight", "penalty": {"kind": "dns", "c_rate": 0.0}}
    )
    assert same(after["dense"], weights(before["dense"], kept)) and same(
        after["mask"], weights(before["mask"], kept)
    )
    assert same(after["thresholds"], before["thresholds"]) and int(after["step"]) == 4


def test_gates_and_noise_with_the_weights_behind_them() -> None:
    before, after, kept = through_a_cut(
        {**FILTERS, "sparsity": "50%", "penalty": {"kind": "l0", "strength": 0.1, "rate": 0.2}}
    )
    assert same(after["open"], {"0": before["open"]["0"][kept]}) and same(
        after["first"], {"0": before["first"]["0"][kept]}
    )
    assert torch.equal(after["dense"]["2.weight"], before["dense"]["2.weight"][:, kept]) and bool(
        after["away"]
    )
    before, after, kept = through_a_cut(
        {"layers": "*", "group": "weight", "penalty": {"kind": "variational_dropout", "strength": 1e-3}}
    )
    assert torch.equal(
        after["spread"]["2.weight"], before["spread"]["2.weight"].view(4, 6, 9)[:, kept].flatten()
    )
    assert (
        same(after["dense"], weights(before["dense"], kept))
        and before["spread"]["2.weight"].unique().numel() > 1
    )


@pytest.mark.parametrize(
    "penalty", [{"kind": "agp", "start": "0it", "end": "8it", "every": "1it"}, {"kind": "growing_l2"}]
)
def test_what_works_towards_the_next_cut_chooses_anew(penalty: dict[str, Any]) -> None:
    before, after, _ = through_a_cut({**FILTERS, "penalty": penalty})
    key = "gone" if penalty["kind"] == "agp" else "chosen"
    assert int(before[key]["0"].sum()) > 0
    assert int(after[key]["0"].sum()) == (0 if key == "gone" else 2), (
        "half of the three that are left, rounded up"
    )


def test_what_does_not_fit_begins_anew() -> None:
    net = model()
    hooks = sparsify.attach(
        plan(net, {**FILTERS, "penalty": AUTO}),
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        steps_per_epoch=4,
        steps=8,
    )
    sound = hooks.state_dict()["own"][0]
    for own in (
        {},
        {0: None},
        {0: {}},
        {1: sound},
        {0: {**sound, "floor": {"0": torch.zeros(5)}}},
        {0: {**sound, "floor": None}},
        {0: {**sound, "gain": "2"}},
    ):
        hooks.start_at(4, own)
        assert float(hooks.state_dict()["own"][0]["gain"]) == 1.0
    hooks.start_at(4, {0: {**sound, "gain": torch.tensor(2.0)}})
    assert float(hooks.state_dict()["own"][0]["gain"]) == 2.0


def test_the_goal_is_reached_when_the_next_cut_comes() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    penalty = {"kind": "group_lasso", "strength": "auto", "every": 1}
    with sparsify.attach(
        plan(net, {**FILTERS, "penalty": penalty}), net, optimizer, steps_per_epoch=40, steps=400, until=80
    ) as hooks:
        hooks.start_at(40, {})
        assert hooks.goal() == (0.0, 0.0)
        train(net, optimizer, 20)
        halfway = hooks.goal()
        assert halfway is not None and halfway[0] == pytest.approx(0.5)
        train(net, optimizer, 20)
        assert hooks.goal() == (1.0, 1.0)


def test_agp_goes_its_way_from_cut_to_cut() -> None:
    """Steps 4 to 12 of 20 lie between two cuts: half of them are the window, in which 1 - (1 - t)^3 of the
    share goes."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    penalty = {"kind": "agp", "start": "0.25dur", "end": "0.75dur", "every": "1it"}
    with sparsify.attach(
        plan(net, {"layers": "*", "group": "weight", "sparsity": "50%", "penalty": penalty}),
        net,
        optimizer,
        steps_per_epoch=4,
        steps=20,
        until=12,
    ) as hooks:
        hooks.start_at(4, {})
        shares = []
        for _ in range(8):
            train(net, optimizer, 1)
            shares.append(hooks.sparsity())
    assert shares == pytest.approx(
        [0.5 * (1 - (1 - t) ** 3) for t in (0, 0, 0, 0.25, 0.5, 0.75, 1, 1)], abs=0.002
    )
