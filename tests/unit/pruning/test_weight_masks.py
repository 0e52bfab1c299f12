"""Groups inside weight tensors: what becomes zero, which units die of it, what is stored and computed
then."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import VerificationError
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.verify import equivalence
from sparsify.pruning import layer_compaction
from sparsify.pruning.cut import Result
from sparsify.reporting.report_file import read_report
from sparsify_schemas.cuts import Gather

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def cut(net: nn.Module, rules: Sequence[Mapping[str, Any]], x: Tensor = X, **options: Any) -> Result:
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": list(rules)}, net, (x,))
    return sparsify.cut(plan, net, **options)


def widths(result: Result) -> dict[str, int]:
    return {w.group: w.kept for w in result.cuts.widths}


def linear(*sizes: int) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for i, o in pairwise(sizes):
        layers += [nn.Linear(i, o, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def chain() -> nn.Sequential:
    """Unit 2 of layer 2 hangs on one small weight of layer 4; unit 5 of layer 0 feeds nothing but it."""
    net = linear(6, 8, 8, 3)
    with torch.no_grad():
        for layer in net[::2]:
            layer.weight.copy_(torch.sign(layer.weight) * (layer.weight.abs() + 0.5))
        net[4].weight[:, 2] = torch.tensor([1e-3, 0.0, 0.0])
        net[2].weight[:, 5] = 0
        net[2].weight[2, 5] = 1.0
    return net


SINGLE = {"layers": "4", "group": "weight", "sparsity": "12.5%"}


def test_units_die_in_a_chain_until_no_more_die(tmp_path: Path) -> None:
    """Three zeros in the last layer take a unit of each of the two layers before it along."""
    net = chain()
    result = cut(net, [SINGLE])
    assert widths(result) == {"0": 7, "2": 7}
    assert [tuple(p.shape) for p in result.model.parameters()] == [(7, 6), (7, 7), (3, 7)]
    assert result.verdicts[0].outcome == "equal"
    left = sum(int(p.count_nonzero()) for p in result.model.parameters())
    with torch.no_grad():
        net[4].weight[:, 2] = 0
        torch.testing.assert_close(result.model(X), net(X))
    made = sparsify.save_run(result, tmp_path / "run", timing=0.1)
    rule, model = read_report(made).sparsities
    assert (rule.what, rule.nominal, rule.weights) == ("rules.0", 3 / 24, 24)
    assert rule.effective == pytest.approx(3 / 24)
    assert model.nominal == pytest.approx(3 / 136) and model.effective == pytest.approx(1 - left / 136)
    assert model.effective > 5 * model.nominal


def test_protected_layers_and_floors_keep_their_dead() -> None:
    assert widths(cut(chain(), [SINGLE, {"layers": "2", "protect": True}])) == {}
    held = [SINGLE, {"layers": "2", "group": "neuron", "keep": {"at_least": 8}}]
    assert widths(cut(chain(), held)) == {"2": 8}
    even = [SINGLE, {"layers": "0", "group": "neuron", "keep": {"multiple_of": 4}}]
    assert widths(cut(chain(), even)) == {"0": 8, "2": 7}


def test_never_the_last_unit() -> None:
    result = cut(linear(6, 8, 8, 3), [{"layers": ["0", "2", "4"], "group": "weight", "sparsity": "100%"}])
    assert widths(result) == {"0": 1, "2": 1}


class Normed(nn.Module):
    """A normalisation over the units that the zeros kill."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


def test_statistics_are_not_changed_by_zeros() -> None:
    net = Normed()
    with torch.no_grad():
        net.b.weight[:, 3] = 0
    result = cut(net, [{"layers": "b", "group": "weight", "sparsity": "12.5%"}])
    assert result.verdicts[0].outcome == "nothing cut" and result.model.b.weight.shape == (3, 8)


def convs(groups: int = 1) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 4),
    )


IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def test_the_lowest_over_all_layers_of_a_rule_go_and_each_keeps_its_floor() -> None:
    net = convs()
    with torch.no_grad():
        net[0].weight.mul_(1e-3)
    result = cut(
        net, [{"layers": ["0", "2"], "group": "shape", "sparsity": "30%", "keep": {"at_least": 5}}], IMAGE
    )
    (done,) = result.cuts.zeroed
    assert (done.groups, done.gone) == (36 + 72, 32)
    alive = [int((w != 0).flatten(1).any(0).sum()) for w in (result.model[0].weight, result.model[2].weight)]
    assert alive == [5, 71]


def test_what_is_zero_already_goes_first_and_all_of_it() -> None:
    net = convs()
    with torch.no_grad():
        net[2].weight[:, :, 0] = 0
        net[2].weight[:, :, 1:].abs_().add_(1e-6)
    for extra in ({"sparsity": "10%"}, {"penalty": {"kind": "group_lasso", "strength": 1e-3}}):
        result = cut(net, [{"layers": "2", "group": "tap", **extra}], IMAGE)
        assert result.cuts.zeroed[0].gone == 3
        assert tuple(result.model[2].weight.shape) == (8, 8, 2, 3)
        assert result.verdicts[0].outcome == "equal" and result.verdicts[0].groups == ()


def test_a_pattern_holds_in_what_is_stored() -> None:
    """2 of 4 along the inputs, at every kernel position, also where a rule narrows the inputs."""
    rules = [
        {"layers": "0", "group": "filter", "sparsity": "50%", "keep": {"multiple_of": 4}},
        {"layers": "2", "group": "2:4"},
        {"layers": "5", "group": "1:4"},
    ]
    result = cut(convs(), rules, IMAGE)
    weight = result.model[2].weight
    assert weight.shape == (8, 4, 3, 3)
    assert bool(((weight != 0).sum(1) == 2).all())
    runs = result.model[5].weight.detach().view(4, -1, 4)
    assert bool(((runs != 0).sum(-1) == 1).all())
    dense = convs()[5].weight.detach().view(4, -1, 4)
    assert torch.equal(runs.abs().amax(-1), dense.abs().amax(-1)), "the largest stays"


def test_blocks_are_zero_as_a_whole() -> None:
    result = cut(convs(), [{"layers": "2", "group": "4x3", "sparsity": "50%"}], IMAGE)
    blocks = (result.model[2].weight.detach().reshape(2, 4, 24, 3) != 0).float().mean((1, 3))
    assert set(blocks.flatten().tolist()) == {0.0, 1.0} and int((blocks == 0).sum()) == 24
    magnitudes = convs()[2].weight.detach().reshape(2, 4, 24, 3).square().sum((1, 3))
    assert float(magnitudes[blocks == 0].max()) <= float(magnitudes[blocks == 1].min())


def test_filters_shapes_and_weights_together() -> None:
    rules = [
        {"layers": "0", "group": "filter", "sparsity": "25%"},
        {"layers": "2", "group": "shape", "sparsity": "60%"},
        {"layers": "2", "group": "tap", "sparsity": "30%"},
        {"layers": "5", "group": "weight", "sparsity": "80%"},
    ]
    result = cut(convs(), rules, IMAGE)
    assert [v.outcome for v in result.verdicts] == ["equal"]
    assert result.verdicts[0].difference <= 1e-9 < result.verdicts[0].control


def test_grouped_convolutions_crop_and_do_not_gather() -> None:
    net = convs(groups=4)
    with torch.no_grad():
        net[2].weight[:, :, 2] = 0
        net[2].weight[:, :, 0, 0] = 0
    result = cut(net, [{"layers": "2", "group": "tap", "sparsity": "10%"}], IMAGE)
    (how,) = result.cuts.executions
    assert (how.form, how.columns, how.live) == ("cropped", 18, 12)
    assert (
        how.why
        == "the kernel shrinks from 3 x 3 to 2 x 3; a convolution with groups cannot gather; its zeros stay"
    )


@pytest.fixture
def eager_to_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GAIN", 0.0), ("SURE", 0.0), ("SECONDS", 0.01)):
        monkeypatch.setattr(layer_compaction, name, value)


@pytest.mark.usefixtures("eager_to_gather")
def test_a_gathered_model_replays_and_keeps_training() -> None:
    net = convs()
    rules = [{"layers": layer, "group": "shape", "sparsity": "40%"} for layer in ("0", "2", "5")]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    net(IMAGE).sum().backward()
    optimizer.step()
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, net, (IMAGE,))
    result = sparsify.cut(plan, net, optimizer=optimizer)
    assert [e.form for e in result.cuts.executions] == ["gathered", "gathered", "gathered"]
    assert sum(isinstance(op, Gather) for op in result.cuts.operations) == 3
    assert result.verdicts[0].outcome == "equal"
    again = replay_cuts(convs(), result.cuts)
    again.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(again(IMAGE), result.model(IMAGE))
    before = result.model[2].weight.detach().clone()
    result.model(IMAGE).sum().backward()
    optimizer.step()
    assert not torch.equal(before, result.model[2].weight)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in result.model.parameters()
    }


@pytest.mark.usefixtures("eager_to_gather")
def test_a_cut_model_is_planned_and_cut_again() -> None:
    """Its layers keep the names of their kinds, its gathered inputs are protected, its filters can leave."""
    net = convs()
    with torch.no_grad():
        net[0].weight[:, :, 0] = 0
    first = cut(
        net,
        [
            {"layers": "0", "group": "tap", "sparsity": "30%"},
            {"layers": "2", "group": "shape", "sparsity": "70%"},
        ],
        IMAGE,
    ).model
    assert [type(first[i]).__name__ for i in (0, 2)] == ["CroppedConv2d", "GatheredConv2d"]
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "Conv2d", "group": "filter", "sparsity": "25%"}]},
        first,
        (IMAGE,),
    )
    assert [layer.type for layer in plan.map.layers] == ["Conv2d", "Conv2d", "Linear"]
    assert plan.map.by_name["0"].protected and not plan.map.by_name["2"].protected
    result = sparsify.cut(plan, first)
    assert result.verdicts[0].outcome == "equal" and result.model[2].weight.shape[0] == 6


def test_zeros_are_held_while_training_goes_on() -> None:
    result = cut(
        convs(), [{"layers": "2", "group": "4x3", "sparsity": "50%"}, {"layers": "5", "group": "2:4"}], IMAGE
    )
    net = result.model
    rules = [{"layers": "2", "group": "4x3", "sparsity": "50%"}, {"layers": "5", "group": "2:4"}]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, net, (IMAGE,))
    zeros = [p.detach() == 0 for p in (net[2].weight, net[5].weight)]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with sparsify.attach(plan, net, optimizer, hold_zeros=True) as hooks:
        for _ in range(3):
            optimizer.zero_grad()
            net(IMAGE).square().sum().backward()
            optimizer.step()
        assert hooks.sparsity() == pytest.approx(0.5, abs=0.05)
    assert [bool((p[z] == 0).all()) for p, z in zip((net[2].weight, net[5].weight), zeros, strict=True)] == [
        True,
        True,
    ]


def test_taylor_scores_shapes_by_the_loss() -> None:
    """A shape whose input channel is dark costs nothing to lose, however large its weights."""
    net = convs()
    with torch.no_grad():
        net[0].weight[:, 1] *= 100
    dark = IMAGE.clone()
    dark[:, 1] = 0
    rules = [
        {"layers": "0", "group": "shape", "sparsity": "25%", "criterion": {"kind": "taylor", "batches": 1}}
    ]
    recipe = {"version": 1, "title": "t", "rules": rules, "data": {"source": "digits"}}
    plan = sparsify.make_plan(recipe, net, (dark,))
    result = sparsify.cut(plan, net, batches=[(dark, torch.tensor([0, 1]))])
    assert torch.equal(
        (result.model[0].weight == 0).flatten(2).all(2).all(0), torch.tensor([False, True, False, False])
    )


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    result = cut(Tied(), [{"layers": "b", "group": "shape", "sparsity": "50%"}])
    assert result.model.a.weight is result.model.b.weight
    assert int((result.model.a.weight != 0).any(0).sum()) == 3
    assert [e.why for e in result.cuts.executions] == [
        "its weight is shared with another layer; its zeros stay"
    ]


def test_zeros_that_narrow_nothing_are_proven_too() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    result = cut(dense, [{"layers": "Linear", "group": "2x1", "sparsity": "50%"}])
    (verdict,) = result.verdicts
    assert verdict.outcome == "nothing cut" and verdict.difference == 0 and verdict.control > 1e-3
    spoilt = deepcopy(result.model)
    with torch.no_grad():
        spoilt.get_parameter("2.bias")[0] += 1.0
    with pytest.raises(
        VerificationError, match=r"^the cut model differs from the masked one by \S+ of the largest output$"
    ):
        equivalence.verify_cut(result.model, spoilt, result.plan.map, {}, (X,))
