"""Every criterion against its formula, written out element by element."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsify
from sparsify.errors import DataError, ModelError, RecipeError
from sparsify.graph.group_layouts import coupled_layout, inner_layout
from sparsify.objective.objective import CLASSIFICATION, objective_of_loss
from sparsify.pruning.criteria.scores import group_scores, weight_scores
from sparsify.pruning.criteria.statistics import gather_statistics
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.criterion import (
    Activation,
    BnScale,
    Criterion,
    Fisher,
    Fpgm,
    Lamp,
    Sensitivity,
    Taylor,
    Wanda,
)
from sparsify_schemas.group import Group

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 3
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]


class Net(nn.Module):
    """Two convolutions, the second grouped, a normalisation behind the first, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b, self.c = (
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 6, 2, groups=2),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.n(self.a(x)).relu()).relu().mean((2, 3)))


class Padded(nn.Module):
    """An encoder of torch, whose fused path fails where hooks watch a layer inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        made: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return made.mean(1)


@pytest.mark.parametrize("kind", ["wanda", "activation"])
def test_criteria_see_the_layers_of_a_padded_encoder_of_torch(kind: str) -> None:
    net = Padded().eval()
    x = {"x": torch.randn(4, 5, 8), "padding": torch.arange(5) >= torch.tensor([[3], [4], [2], [1]])}
    rule = {"layers": "*linear1", "group": "neuron", "sparsity": "50%", "criterion": {"kind": kind}}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, x)
    result = sparsify.cut(plan, net, batches=[(x, torch.zeros(4, dtype=torch.long))])
    assert result.model.encoder.layers[0].linear1.out_features == 6


def model() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.normal_(net.n.weight)
    return net


def of_last(spec: Criterion) -> tuple[Net, Tensor]:
    """The scores of the six channels of b: its filters and biases, and the columns of c."""
    net = model()
    map = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "b", "group": "filter"}]}, net, (X,)
    ).map
    parameters = dict(net.named_parameters())
    name = next(c.name for c in map.coupled if any(s.tensor == "c.weight" for s in c.slices))
    return net, group_scores(
        spec,
        coupled_layout(map, [name], parameters, spec.facts().roles),
        parameters,
        gather_statistics(net, spec, BATCHES, CLASSIFICATION),
        0,
    )


def members(net: Net, channel: int) -> list[tuple[Tensor, tuple[Any, ...]]]:
    """What leaves with unit `channel` of b: it is grouped in two, so that units n and n + 3 leave
    together."""
    return [
        (p, at)
        for n in (channel, channel + 3)
        for p, at in ((net.b.weight, (n,)), (net.b.bias, (n,)), (net.c.weight, (slice(None), n)))
    ]


def gradients(net: Net, x: Tensor, y: Tensor) -> None:
    net.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()


def products(net: Net, channel: int) -> list[Tensor]:
    return [(p.detach()[at] * p.grad[at]).flatten() for p, at in members(net, channel) if p.grad is not None]


def by_hand(spec: Criterion) -> list[float]:
    """Means over batches (fisher: examples) of what the loss feels of each group."""
    net = model()
    rounds = [(X[i : i + 1], Y[i : i + 1]) for i in range(8)] if isinstance(spec, Fisher) else BATCHES
    totals = [0.0, 0.0, 0.0]
    for x, y in rounds:
        gradients(net, x, y)
        for channel in range(3):
            own = torch.cat(products(net, channel)).double()
            match spec:
                case Fisher():
                    totals[channel] += float(own.sum()) ** 2 / 2
                case Sensitivity():
                    totals[channel] += float(own.abs().sum())
                case _:
                    totals[channel] += abs(float(own.sum()))
    return [total / len(rounds) for total in totals]


@pytest.mark.parametrize(
    "spec",
    [Taylor(kind="taylor"), Fisher(kind="fisher"), Sensitivity(kind="sensitivity")],
    ids=lambda s: s.kind,
)
def test_what_the_loss_feels(spec: Criterion) -> None:
    _, scores = of_last(spec)
    assert scores.tolist() == pytest.approx(by_hand(spec), rel=1e-4)
    weight = model().c.weight
    net = model()
    found = weight_scores(spec, net.c.weight, gather_statistics(net, spec, BATCHES, CLASSIFICATION), 0)
    one = 0.0
    rounds = [(X[i : i + 1], Y[i : i + 1]) for i in range(8)] if isinstance(spec, Fisher) else BATCHES
    for x, y in rounds:
        own = model()
        gradients(own, x, y)
        assert own.c.weight.grad is not None
        product = float(weight.detach()[1, 2] * own.c.weight.grad[1, 2])
        one += product**2 / 2 if isinstance(spec, Fisher) else abs(product)
    assert float(found[1, 2]) == pytest.approx(one / len(rounds), rel=1e-4)


def arrivals(net: Net) -> list[dict[str, Tensor]]:
    """Per batch what arrives at b and at c."""
    found = []
    for x, _ in BATCHES:
        hidden = net.n(net.a(x)).relu().detach()
        found.append({"b": hidden, "c": net.b(hidden).relu().mean((2, 3)).detach()})
    return found


def test_wanda_is_the_weight_times_what_it_multiplies() -> None:
    spec = Wanda(kind="wanda")
    net, scores = of_last(spec)
    wanted = []
    for channel in range(3):
        total = 0.0
        for seen in arrivals(net):
            for n in (channel, channel + 3):
                total += math.sqrt(float(seen["c"][:, n].square().mean())) * float(
                    net.c.weight[:, n].detach().abs().sum()
                )
        wanted.append(total / 2)
    assert scores.tolist() == pytest.approx(wanted, rel=1e-4)
    single = weight_scores(spec, net.c.weight, gather_statistics(net, spec, BATCHES, CLASSIFICATION), 0)
    rms = sum(math.sqrt(float(seen["c"][:, 4].square().mean())) for seen in arrivals(net)) / 2
    assert float(single[1, 4]) == pytest.approx(rms * abs(float(net.c.weight.detach()[1, 4])), rel=1e-4)


class Steps(nn.Module):
    """A layer that is called once for each step of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.first(x[:, 0]).relu()) + self.last(self.first(x[:, 1]).relu())
        return made


@pytest.mark.parametrize("kind", ["wanda", "activation"])
def test_what_arrives_is_that_of_all_calls_of_a_layer(kind: str) -> None:
    net, x = Steps().eval(), torch.randn(9, 2, 2) * torch.tensor([[5.0], [0.1]])
    spec = {"wanda": Wanda(kind="wanda"), "activation": Activation(kind="activation")}[kind]
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "first", "group": "neuron"}]}, net, (x,)
    )
    parameters = dict(net.named_parameters())
    layout = coupled_layout(plan.map, ["first"], parameters, spec.facts().roles)
    statistics = gather_statistics(net, spec, [(x, Y[:1].expand(9))], CLASSIFICATION)
    scores = group_scores(spec, layout, parameters, statistics, 0)
    rms = net.first(x).relu().detach().square().mean((0, 1)).sqrt()
    weighed = rms * net.last.weight.detach().abs().sum(0) if kind == "wanda" else rms
    assert scores.tolist() == pytest.approx(weighed.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", amount=0.2),
    ],
    ids=["weight_norm", "mask"],
)
def test_criteria_see_layers_whose_weight_is_computed(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """What arrives at them counts, also where no other layer reads the units."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), wrap(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 3)).eval()
    x = torch.randn(20, 4) + 1
    rule = {"layers": "0", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "activation"}}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (x,))
    result = sparsify.cut(plan, net, batches=[(x, torch.zeros(20, dtype=torch.long))])
    best = net[:2](x).detach().square().mean(0).topk(3).indices
    kept = [unit for start, end in result.cuts.widths[0].keep for unit in range(start, end)]
    assert kept == sorted(best.tolist())


@pytest.mark.parametrize("kind", ["taylor", "wanda", "fisher"])
def test_batches_that_say_nothing_are_told(kind: str) -> None:
    """The weights are sound, so the message must not blame them."""
    net = model()
    rule = {"layers": "b", "group": "filter", "sparsity": "34%", "criterion": {"kind": kind}}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (X,))
    spoilt = X.clone()
    spoilt[1, 0, 0, 0] = torch.nan
    told = {
        f"criterion '{kind}' looks at training data, and the batches held none; an iterator that was gone "
        "through before gives nothing more": [],
        "batches are an iterable of (x, y) training batches, found int; put a single batch in a list": 5,
        f"criterion '{kind}' comes to no finite number for 'b', whose weights are finite: the training "
        "batches hold NaN or infinity, or what the model makes of them is not finite; look at the "
        "batches": [(spoilt, Y)],
    }
    for words, batches in told.items():
        with pytest.raises(ModelError) as caught:
            sparsify.cut(plan, net, batches=batches)  # type: ignore[arg-type]
        assert str(caught.value) == words


def test_activation_is_what_arrives_at_the_consumers() -> None:
    net, scores = of_last(Activation(kind="activation"))
    rms = [
        sum(math.sqrt(float(seen["c"][:, n].square().mean())) for seen in arrivals(net)) / 2 for n in range(6)
    ]
    assert scores.tolist() == pytest.approx([(rms[n] + rms[n + 3]) / 2 for n in range(3)], rel=1e-4)


def test_lamp_divides_by_the_survivors() -> None:
    weight = torch.tensor([[3.0, -1.0], [2.0, 0.0]])
    wanted = [[9 / 9, 1 / 14], [4 / 13, 0.0]]
    assert weight_scores(Lamp(kind="lamp"), weight, None, 0).tolist() == [
        pytest.approx(row) for row in wanted
    ]
    net, scores = of_last(Lamp(kind="lamp"))
    squares = [
        sum(float(p.detach()[at].square().sum()) for p, at in members(net, channel)) for channel in range(3)
    ]
    assert scores.tolist() == pytest.approx(
        [s / sum(t for t in squares if t >= s) for s in squares], rel=1e-4
    )


def test_bn_scale_is_the_scale() -> None:
    net = model()
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "*", "group": "filter"}]}, net, (X,)
    )
    parameters = dict(net.named_parameters())
    layout = coupled_layout(plan.map, ["a"], parameters)
    scores = group_scores(BnScale(kind="bn_scale"), layout, parameters, None, 0)
    scales = net.n.weight.detach().abs()
    assert scores.tolist() == pytest.approx([float(scales[n] + scales[n + 3]) for n in range(3)])
    with pytest.raises(
        ModelError,
        match=(
            r"^criterion 'bn_scale' needs a normalisation with a scale behind every channel, "
            r"and 'b' has none; use magnitude there$"
        ),
    ):
        group_scores(
            BnScale(kind="bn_scale"), coupled_layout(plan.map, ["a", "b"], parameters), parameters, None, 0
        )


def test_fpgm_is_the_distance_to_the_other_filters() -> None:
    """In a layer with n filters, one of which lies between two others: it goes first, however large it is."""
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 0.0], [3.0, 4.0], [3.0, 8.0], [0.0, 4.0]]))
    rule = {"layers": "0", "group": "neuron", "criterion": {"kind": "fpgm"}, "sparsity": "25%"}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (torch.ones(1, 2),))
    (group,) = (c.name for c in plan.map.coupled if c.protected is None)
    layout = coupled_layout(plan.map, [group], dict(net.named_parameters()), frozenset({"out"}))
    apart = [4 + 8 + 5, 4 + 4 + 3, 8 + 4 + 5, 5 + 3 + 5]
    assert group_scores(
        Fpgm(kind="fpgm"), layout, dict(net.named_parameters()), None, 0
    ).tolist() == pytest.approx([d / (sum(apart) / 4) for d in apart])
    assert torch.equal(sparsify.cut(plan, net).model.get_parameter("0.weight"), net[0].weight[[0, 2, 3]])


def test_fpgm_compares_all_that_produces_a_unit() -> None:
    """Units n and n + 3 of a grouped convolution leave together: their filters are one vector. Biases and
    columns do not count."""
    net, scores = of_last(Fpgm(kind="fpgm"))
    units = [torch.cat([net.b.weight[n].flatten(), net.b.weight[n + 3].flatten()]).detach() for n in range(3)]
    apart = [sum(float((u - v).norm()) for v in units) for u in units]
    assert scores.tolist() == pytest.approx([d / (sum(apart) / 3) for d in apart], rel=1e-5)


@pytest.mark.parametrize("group", ["shape", "tap", "2x1"])
def test_fpgm_compares_groups_inside_a_tensor(group: str) -> None:
    weight = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(7))
    columns = {
        "shape": weight.flatten(1).T,
        "tap": weight.flatten(2).permute(2, 0, 1).flatten(1),
        "2x1": weight.view(2, 2, 18).transpose(1, 2).reshape(36, 2),
    }[group]
    layout = inner_layout(TypeAdapter(Group).validate_python(group), ["w"], {"w": weight})
    apart = torch.stack([torch.stack([(u - v).norm() for v in columns]).sum() for u in columns])
    found = group_scores(Fpgm(kind="fpgm"), layout, {"w": weight}, None, 0)
    torch.testing.assert_close(found, apart / apart.mean(), rtol=1e-5, atol=1e-6)


def test_what_has_no_filters_is_refused() -> None:
    net = model()
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "*", "group": "filter"}]}, net, (X,)
    )
    parameters = dict(net.named_parameters())
    with pytest.raises(
        ModelError,
        match=r"^criterion 'fpgm' compares the filters of a layer, and 'a' has none; use magnitude there$",
    ):
        group_scores(
            Fpgm(kind="fpgm"),
            coupled_layout(plan.map, ["a"], {"n.weight": parameters["n.weight"]}),
            parameters,
            None,
            0,
        )


PAIRS, ANY = r"\(x, y\) training batches", "training batches, targets or none"


@pytest.mark.parametrize(
    ("kind", "batches"),
    [("taylor", PAIRS), ("fisher", PAIRS), ("sensitivity", PAIRS), ("activation", ANY), ("wanda", ANY)],
)
def test_a_cut_takes_batches(kind: str, batches: str) -> None:
    net = model()
    rules = [{"layers": "b", "group": "filter", "sparsity": "34%", "criterion": {"kind": kind}}]
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "data": {"source": "digits"}, "rules": rules}, net, (X,)
    )
    with pytest.raises(
        ModelError,
        match=(
            rf"^criterion '{kind}' looks at training data: pass batches, an iterable of {batches}, to cut$"
        ),
    ):
        sparsify.cut(plan, net)
    before = {n: p.clone() for n, p in net.named_parameters()}
    result = sparsify.cut(plan, net, batches=BATCHES)
    assert result.cuts.widths[0].kept == 2
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in net.named_parameters())


def plan_by(kind: str, net: nn.Module) -> Plan:
    rule = {"layers": "b", "group": "filter", "sparsity": "34%", "criterion": {"kind": kind}}
    return sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (X,))


@pytest.mark.parametrize("kind", ["activation", "wanda", "reconstruction"])
def test_criteria_without_gradients_need_no_targets(kind: str) -> None:
    net = model()
    plan = plan_by(kind, net)
    kept = sparsify.cut(plan, net, batches=BATCHES).cuts.widths
    for form in (lambda x: x, lambda x: [x], lambda x: {"x": x}, lambda x: {"x": x, "label": 0}):
        batches = [form(x) for x, _ in BATCHES]
        assert sparsify.cut(plan, net, batches=batches).cuts.widths == kept


@pytest.mark.parametrize("kind", ["taylor", "fisher"])
def test_criteria_with_gradients_need_targets(kind: str) -> None:
    net = model()
    with pytest.raises(DataError) as caught:
        sparsify.cut(plan_by(kind, net), net, batches=[X])
    assert str(caught.value) == (
        "a batch is a Tensor without targets; pass pairs (inputs, targets), or mappings with one of labels, "
        "label, targets, target, y"
    )


def test_a_batch_of_three_parts_is_refused() -> None:
    """Nobody knows which of them are targets."""
    net = model()
    with pytest.raises(DataError, match=r"^a batch is a tuple without targets; "):
        sparsify.cut(plan_by("wanda", net), net, batches=[(X, X, Y)])


def test_a_model_without_such_layers_is_refused() -> None:
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten())
    own = gather_statistics(
        net, Wanda(kind="wanda"), [(torch.zeros(2, 3, dtype=torch.int64), Y[:2])], CLASSIFICATION
    )
    assert own is not None
    with pytest.raises(
        ModelError,
        match=(
            r"^criterion 'wanda' sees convolutions and Linear layers, and the model has neither; "
            r"use magnitude or taylor$"
        ),
    ):
        next(iter(own()))


MEAN = objective_of_loss(lambda output, _: output.mean())

WORKED = {
    # x = 1, first units 1 and 2, behind them 3, 3 and 6; the last weights are 1, 2, 1
    "wanda": ([4 * 1, 4 * 2], [1 * 3, 2 * 3, 1 * 6]),
    "activation": ([1, 2], [3, 3, 6]),
    "taylor": ([2 * 5, 2 * 10], [2 * 3, 2 * 6, 2 * 6]),  # each unit twice: in its row and in its column
    "magnitude": ([1 + 6, 4 + 6], [2 + 1, 2 + 4, 8 + 1]),
}
DIVISORS = {
    "none": lambda own: 1,
    "mean": lambda own: sum(own) / len(own),
    "max": max,
    "sum": sum,
    "l2": lambda own: sum(s * s for s in own) ** 0.5,
}


@pytest.mark.parametrize("how", [*DIVISORS, "size"])
@pytest.mark.parametrize("kind", WORKED)
def test_scores_of_different_layers_are_made_comparable(kind: str, how: str) -> None:
    if (kind, how) == ("activation", "size"):
        pytest.skip("what arrives is a mean already")
    net = nn.Sequential(*(nn.Linear(n, m, bias=False) for n, m in ((1, 2), (2, 3), (3, 1)))).eval()
    weights = [[[1.0], [2.0]], [[1.0, 1], [1, 1], [2, 2]], [[1.0, 2, 1]]]
    with torch.no_grad():
        for layer, weight in zip(net, weights, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    spec: Criterion = TypeAdapter(Criterion).validate_python({"kind": kind, "normalize": how})
    rule = {"layers": ["0", "1"], "group": "neuron"}
    x = torch.ones(2, 1)
    map = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, net, (x,)).map
    parameters = dict(net.named_parameters())
    layout = coupled_layout(map, ["0", "1"], parameters, spec.facts().roles)
    seen = gather_statistics(net, spec, [(x, Y[:2])], MEAN)
    found = group_scores(spec, layout, parameters, seen, 0)
    first, second = WORKED[kind]
    if how == "size":
        counts = (3, 1) if kind == "wanda" else (4, 3)  # a column, or a row and a column
        wanted = [s / counts[0] for s in first] + [s / counts[1] for s in second]
    else:
        divide = DIVISORS[how]
        wanted = [s / divide(first) for s in first] + [s / divide(second) for s in second]
    assert found.tolist() == pytest.approx(wanted)
    if how != "size":
        own = {"activation": [3.0, 3, 6], "magnitude": [1.0, 2, 1]}.get(kind, [1.0 * 3, 2 * 3, 1 * 6])
        single = weight_scores(spec, net[2].weight, gather_statistics(net, spec, [(x, Y[:2])], MEAN), 0)
        assert single.flatten().tolist() == pytest.approx([s / DIVISORS[how](own) for s in own])


def test_activation_knows_no_size() -> None:
    with pytest.raises(RecipeError) as caught:
        rules = [{"layers": "*", "criterion": {"kind": "activation", "normalize": "size"}}]
        sparsify.load_recipe({"version": 1, "title": "t", "data": {"source": "digits"}, "rules": rules})
    assert "rules.0.criterion.normalize" in str(caught.value)
