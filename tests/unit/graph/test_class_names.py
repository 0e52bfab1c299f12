"""Layers of classes that are derived from torch's: rules reach them by their own class name and by those
of their parents."""

import json
import pickle
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import sparsify
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.pruning.cut import Result
from sparsify.pruning.planning.compile import compile_plan
from sparsify.pruning.planning.plan import Plan
from sparsify_cli.app import exit_code


class Conv1D(nn.Module):
    """The layer of transformers' GPT-2, by the name, attributes and weight that it has there."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Net(nn.Module):
    """Two layers and a classifier, called by a function."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@dataclass(frozen=True)
class Family:
    """What a layer class takes for the first and the second layer of a net, and a group type that acts on
    it."""

    parent: type[Any]
    first: tuple[int, ...]
    second: tuple[int, ...]
    group: str
    run: Callable[[Any, Tensor], Tensor]
    x: Tensor
    more: Mapping[str, Any] | None = None
    kept: int = 4
    """of the units of the second layer, at half of them"""


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def mean(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


WORDS = torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(0))
FAMILIES = [
    *(
        Family(
            kind,
            (1, 8, 3),
            (8, 8, 3),
            "filter",
            lambda m, x: m.fc(mean(m.b(m.a(x).relu()))),
            numbers(2, 1, *[7] * n),
        )
        for kind, n in (
            (nn.Conv1d, 1),
            (nn.Conv2d, 2),
            (nn.Conv3d, 3),
            (nn.ConvTranspose1d, 1),
            (nn.ConvTranspose2d, 2),
            (nn.ConvTranspose3d, 3),
        )
    ),
    Family(nn.Linear, (6, 8), (8, 8), "neuron", lambda m, x: m.fc(m.b(m.a(x).relu()).relu()), numbers(4, 6)),
    Family(Conv1D, (8, 6), (8, 8), "neuron", lambda m, x: m.fc(m.b(m.a(x).relu()).relu()), numbers(4, 6)),
    Family(
        nn.Bilinear,
        (6, 6, 8),
        (8, 8, 8),
        "neuron",
        lambda m, x: m.fc(m.b(y := m.a(x, x.flip(1)).relu(), y).relu()),
        numbers(4, 6),
    ),
    *(
        Family(kind, (20, 4), (20, 8), "neuron", lambda m, x: m.fc(torch.cat([m.a(x), m.b(x)], -1)), WORDS)
        for kind in (nn.Embedding, nn.EmbeddingBag)
    ),
    *(
        Family(
            kind,
            (6, 8),
            (8, 8),
            "hidden",
            lambda m, x: m.fc(m.b(m.a(x)[0])[0]),
            numbers(2, 5, 6),
            {"batch_first": True},
        )
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
    ),
    Family(
        nn.LSTMCell,
        (6, 8),
        (8, 8),
        "hidden",
        lambda m, x: m.fc(m.b(y := m.a(x, m.a(x))[0], m.b(y))[0]),
        numbers(4, 6),
    ),
    *(
        Family(
            kind, (6, 8), (8, 8), "hidden", lambda m, x: m.fc(m.b(y := m.a(x, m.a(x)), m.b(y))), numbers(4, 6)
        )
        for kind in (nn.GRUCell, nn.RNNCell)
    ),
    Family(
        nn.MultiheadAttention,
        (8, 4),
        (8, 4),
        "head",
        lambda m, x: m.fc((y := x + m.a(x, x, x)[0]) + m.b(y, y, y)[0]),
        numbers(2, 5, 8),
        {"batch_first": True},
        kept=2,
    ),
]


def net(family: Family, first: type[Any], second: type[Any]) -> nn.Module:
    torch.manual_seed(0)
    more = dict(family.more or {})
    width = {nn.Embedding: 12, nn.EmbeddingBag: 12}.get(family.parent, 8)
    return Net(
        family.run, a=first(*family.first, **more), b=second(*family.second, **more), fc=nn.Linear(width, 3)
    ).eval()


def recipe(layers: str | list[str], group: str, **more: Any) -> dict[str, Any]:
    """Of one rule; `more` are fields of it, None takes one away."""
    rule = {"layers": layers, "group": group, "sparsity": "50%", "criterion": {"kind": "random"}, **more}
    return {
        "version": 1,
        "title": "kinds",
        "rules": [{key: value for key, value in rule.items() if value is not None}],
    }


def planned(model: nn.Module, x: Tensor, layers: str | list[str], group: str, **more: Any) -> Plan:
    return sparsify.make_plan(recipe(layers, group, **more), model, (x,))


def cut(model: nn.Module, x: Tensor, layers: str | list[str], group: str, **more: Any) -> Result:
    return sparsify.cut(planned(model, x, layers, group, **more), model, inputs=(x,))


def child(parent: type[Any]) -> type[Any]:
    return type(f"My{parent.__name__}", (parent,), {})


def grandchild(parent: type[Any]) -> type[Any]:
    return type(f"Our{parent.__name__}", (child(parent),), {})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.parent.__name__)
def test_a_rule_reaches_a_layer_by_the_names_of_all_its_classes_and_by_its_own_name(family: Family) -> None:
    name = family.parent.__name__
    made = net(family, family.parent, grandchild(family.parent))
    parents = ("a", "b", "fc") if family.parent is nn.Linear else ("a", "b")
    reached = {f"Our{name}": ("b",), f"My{name}": ("b",), name: parents, "[b]": ("b",), "re:b": ("b",)}
    plan = planned(made, family.x, f"Our{name}", family.group)
    for pattern, layers in reached.items():  # on the structure read once, which the patterns have no part in
        again = compile_plan(sparsify.load_recipe(recipe(pattern, family.group)).recipe, plan.map)
        assert again.assignments[0].layers == layers
    result = sparsify.cut(plan, made, inputs=(family.x,))
    assert [verdict.outcome for verdict in result.verdicts] == ["equal"]
    assert [(width.group, width.kept) for width in result.cuts.widths] == [("b", family.kept)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.parent.__name__)
def test_layers_of_a_subclass_are_cut_as_those_of_its_parent(family: Family) -> None:
    cuts = [
        cut(net(family, kind, kind), family.x, family.parent.__name__, family.group)
        for kind in (family.parent, child(family.parent))
    ]
    plain, derived = cuts
    assert derived.cuts.widths == plain.cuts.widths
    assert [tuple(p.shape) for p in derived.model.parameters()] == [
        tuple(p.shape) for p in plain.model.parameters()
    ]
    assert type(derived.model.b).__name__ == f"My{family.parent.__name__}"


INSIDE = ["weight", "shape", "tap", "4x1", "2:4", "channel"]


@pytest.mark.parametrize("group", INSIDE)
def test_groups_inside_a_tensor_and_input_channels_are_found_in_a_subclass(group: str) -> None:
    torch.manual_seed(0)
    kinds = nn.Conv2d, grandchild(nn.Conv2d)
    made = [
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), kind(8, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 3))
        for kind in kinds
    ]
    made[1].load_state_dict(made[0].state_dict())
    names = "Conv2d", "OurConv2d"
    x = numbers(2, 4, 7, 7)
    more = {"sparsity": None} if group == "2:4" else {}
    plain, derived = (planned(net, x, name, group, **more) for net, name in zip(made, names, strict=True))
    assert "2" in plain.assignments[0].layers and derived.assignments[0].layers == ("2",)
    assert set(derived.assignments[0].tensors) <= set(plain.assignments[0].tensors)
    result = sparsify.cut(derived, made[1], inputs=(x,))
    assert result.verdicts[0].outcome == ("equal" if group == "channel" else "nothing cut")


class Standardised(nn.Conv2d):
    """Weight standardisation: Qiao et al., arXiv:1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-3)
        return F.conv2d(x, weight.view_as(self.weight), self.bias, self.stride, self.padding)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


class BatchNormAct(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class ChannelsFirst(nn.LayerNorm):
    """The normalisation of ConvNeXt's stem: over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        ).permute(0, 3, 1, 2)


class GroupNormAct(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps).relu()


NORMS: dict[str, tuple[Callable[[], nn.Module], str, Any, str]] = {
    "batch": (lambda: BatchNormAct(8), "num_features", 4, "equal"),
    "layer": (lambda: ChannelsFirst(8), "normalized_shape", (4,), "statistics change"),
    "group": (lambda: GroupNormAct(2, 8), "num_channels", 4, "statistics change"),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_widths_of_derived_normalisations_follow(name: str) -> None:
    torch.manual_seed(0)
    norm, attribute, width, outcome = NORMS[name]
    made = nn.Sequential(
        Standardised(1, 8, 3),
        norm(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        Doubled(4 * 9, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    ).eval()
    result = cut(made, numbers(2, 1, 7, 7), "0", "filter")
    assert result.verdicts[0].outcome == outcome
    assert (
        getattr(result.model[1], attribute) == width
        and result.model[0].out_channels == 4
        and type(result.model[1]) is type(made[1])
    )


def test_layers_with_a_forward_of_their_own_are_cut_and_proven() -> None:
    torch.manual_seed(0)
    made = nn.Sequential(
        Standardised(1, 8, 3),
        nn.ReLU(),
        Standardised(8, 8, 3),
        nn.Flatten(),
        Doubled(8 * 9, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
    result = cut(made, numbers(2, 1, 7, 7), ["2"], "filter")
    assert result.verdicts[0].outcome == "equal" and (
        result.model[2].out_channels,
        result.model[4].in_features,
    ) == (4, 36)
    result = cut(made, numbers(2, 1, 7, 7), ["Linear"], "neuron")
    assert result.verdicts[0].outcome == "equal" and (
        result.model[4].out_features,
        result.model[6].in_features,
    ) == (3, 3)


class Unshifted(nn.Conv2d):
    """Never adds a bias."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input, weight)


CONSUMERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "of a subclass": (lambda: child(nn.Conv2d)(8, 3, 1, bias=False), "bias"),
    "of its own forward, with a bias": (lambda: Doubled(8, 3), "bias"),
    "of its own forward, without a bias": (lambda: Doubled(8, 3, bias=False), "nothing"),
    "of its own convolution": (lambda: Unshifted(8, 3, 1, bias=False), "nothing"),
}


@pytest.mark.parametrize("name", CONSUMERS)
def test_constants_go_into_a_bias_only_where_the_subclass_adds_it(name: str) -> None:
    torch.manual_seed(0)
    build, into = CONSUMERS[name]
    consumer = build()
    image = isinstance(consumer, nn.Conv2d)
    first = nn.Conv2d(6, 8, 1) if image else nn.Linear(6, 8)
    made = nn.Sequential(first, nn.ReLU(), consumer).double().eval()
    with torch.no_grad():
        first.weight[:4].zero_()
        first.bias[:4] = 1.0
    x = (numbers(64, 6, 2, 2) if image else numbers(64, 6)).double()
    result = cut(made, x, "0", "filter" if image else "neuron", criterion={"kind": "magnitude"})
    folds = [op for op in result.cuts.operations if op.op == "fold"]
    assert [(op.module, op.channels, op.into, op.exact) for op in folds] == [("2", 4, into, into == "bias")]
    assert torch.allclose(result.model(x), made(x), atol=1e-12) == (into == "bias")


class Named(nn.MultiheadAttention):
    """torch's, with something to ask it for."""

    def heads(self) -> int:
        return self.num_heads


class Louder(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        made, weights = super().forward(*args, **kwargs)
        return 2 * made, weights


class Attended(nn.Module):
    """An attention whose class is given."""

    def __init__(self, kind: type[nn.MultiheadAttention]) -> None:
        super().__init__()
        self.a, self.att, self.fc = nn.Linear(6, 16), kind(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.fc(y + self.att(y, y, y)[0])


def test_a_derived_attention_that_computes_as_torchs_keeps_what_it_adds() -> None:
    torch.manual_seed(0)
    x = numbers(2, 5, 6)
    made = Attended(grandchild(Named)).eval()
    result = cut(made, x, "MultiheadAttention", "head")
    left = result.model.att
    assert (
        result.verdicts[0].outcome == "equal" and left.in_proj_weight.shape == (24, 16) and left.heads() == 2
    )
    assert (
        isinstance(left, Named)
        and type(left).__name__ == "OurNamed"
        and type(made.att).__bases__[0].__bases__ == (Named,)
    )
    again = replay_cuts(made, result.cuts).eval()
    assert torch.equal(again(x), result.model.eval()(x)) and again.att.heads() == 2


def test_a_derived_attention_is_copied_and_pickled_after_a_cut() -> None:
    torch.manual_seed(0)
    x = numbers(2, 5, 6)
    left = cut(Attended(Named).eval(), x, "Named", "head").model.eval()
    for again in (deepcopy(left), pickle.loads(pickle.dumps(left))):
        assert torch.equal(again(x), left(x)) and isinstance(again.att, Named) and again.att.heads() == 2
        assert cut(again, x, "Named", "head").model.att.heads() == 1


def test_an_attention_with_a_forward_of_its_own_is_not_replaced() -> None:
    torch.manual_seed(0)
    made = Attended(Louder).eval()
    result = cut(made, numbers(2, 5, 6), "Louder", "head")
    assert type(result.model.att) is Louder and "replace" not in [op.op for op in result.cuts.operations]
    assert result.verdicts[0].outcome == "equal"


class Sorted(nn.MultiheadAttention):
    """Sorts its features, so that no head and no input can be told apart."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).sort(-1)[0]
        return self.out_proj(projected[..., : self.embed_dim]), None


def test_an_attention_that_cannot_be_followed_says_why_it_stays() -> None:
    torch.manual_seed(0)
    made = Attended(Sorted).eval()
    plan = planned(made, numbers(2, 5, 6), "*", "neuron", sparsity=None)
    assert plan.map.by_name["att"].protected == "'sort' runs along it"


UNDER: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "parametrized": (lambda: parametrizations.weight_norm(child(nn.Linear)(6, 8)), ("MyLinear", "Linear")),
    "lazy": (lambda: nn.LazyLinear(8), ("Linear",)),
    "quantisation-aware": (
        lambda: torch.ao.nn.qat.Linear(6, 8, qconfig=torch.ao.quantization.get_default_qat_qconfig("fbgemm")),
        ("Linear",),
    ),
    "not quantisable": (
        lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(6, 8),
        ("NonDynamicallyQuantizableLinear", "Linear"),
    ),
    "named like its prefix": (
        lambda: type("ParametrizedThing", (nn.Linear,), {})(6, 8),
        ("ParametrizedThing", "Linear"),
    ),
    "mixed in": (
        lambda: type("Both", (type("Mixin", (), {}), nn.Linear), {})(6, 8),
        ("Both", "Mixin", "Linear"),
    ),
    "named like its parent": (lambda: type("Linear", (nn.Linear,), {})(6, 8), ("Linear",)),
}


@pytest.mark.parametrize("name", UNDER)
def test_classes_that_torch_itself_derives_are_of_their_parents_kind(name: str) -> None:
    torch.manual_seed(0)
    build, patterns = UNDER[name]
    made = nn.Sequential(build(), nn.ReLU(), nn.Linear(8, 3))
    made(numbers(4, 6))
    for pattern in patterns:
        assert planned(made, numbers(4, 6), pattern, "neuron", sparsity=None).assignments[0].layers[0] == "0"
    shown = planned(made, numbers(4, 6), "0", "neuron", sparsity=None).map.layers[0]
    assert shown.type == patterns[0]


def test_protection_and_input_channels_follow_class_names() -> None:
    torch.manual_seed(0)
    made = nn.Sequential(child(nn.Linear)(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    rules = [{"layers": "MyLinear", "protect": True}, {"layers": "Linear", "group": "neuron"}]
    plan = sparsify.make_plan({"version": 1, "title": "kinds", "rules": rules}, made, (numbers(4, 6),))
    assert (
        plan.map.by_name["0"].protected == "rules.0 protects '0'" and plan.map.by_name["2"].protected is None
    )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


class Deeper(Block):
    pass


def test_residual_blocks_are_reached_by_the_class_that_theirs_is_derived_from() -> None:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 8), Block(), Deeper(), Deeper(), nn.Linear(8, 3)).eval()
    for pattern, gone in {"Block": {"1", "2", "3"}, "Deeper": {"2", "3"}}.items():
        plan = planned(made, numbers(4, 6), pattern, "depth", sparsity="100%")
        assert {name for name, kept in plan.preview if not kept} == gone
    assert sparsify.cut(plan, made).verdicts[0].outcome == "equal"


COMPLAINTS = {
    "Convv2d": "'Convv2d' matches no layer of the model; did you mean 'Conv2d'?",
    "OurCnv2d": "'OurCnv2d' matches no layer of the model; did you mean 'OurConv2d'?",
    "MyConv": "'MyConv' matches no layer of the model; did you mean 'MyConv2d'?",
    "LSTM": (
        "'LSTM' matches no layer of the model; the layers are first, second, last; "
        "their classes are Conv2d, Linear, MyConv2d, OurConv2d"
    ),
}


@pytest.mark.parametrize("pattern", COMPLAINTS)
def test_what_matches_nothing_is_told_which_classes_there_are(pattern: str) -> None:
    layers = {"first": nn.Conv2d(1, 8, 3), "second": grandchild(nn.Conv2d)(8, 8, 3), "last": nn.Linear(8, 3)}
    made = Net(lambda m, x: m.last(mean(m.second(m.first(x).relu()))), **layers)
    with pytest.raises(sparsify.SparsifyError) as caught:
        planned(made, numbers(2, 1, 7, 7), pattern, "filter")
    assert str(caught.value) == f"<recipe>: rules.0.layers: {COMPLAINTS[pattern]}"


def test_the_group_that_does_not_fit_names_the_class_of_the_layer() -> None:
    made = nn.Sequential(child(nn.Linear)(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(sparsify.SparsifyError) as caught:
        planned(made, numbers(4, 6), "MyLinear", "filter")
    wanted = (
        "rules.0.layers: group 'filter' acts on convolutions, but 'MyLinear' matches only 0 "
        "(MyLinear); use group 'neuron'"
    )
    assert str(caught.value) == f"<recipe>: {wanted}"


def test_a_network_of_torchs_own_classes_has_the_digest_that_it_had() -> None:
    made = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = planned(made, numbers(4, 6), "Linear", "neuron")
    assert plan.digest == "1a4de7401e31878a"


BUILT = """
import torch
from torch import nn


class Scaled(nn.Conv2d):
    pass


def build():
    torch.manual_seed(0)
    first, second = Scaled(1, 8, 3), nn.Conv2d(8, 8, 3)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))
"""


def test_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("scaled_nets.py").write_text(BUILT)
    given = {
        "version": 1,
        "title": "Scaled",
        "seed": 0,
        "model": {"build": "scaled_nets.build"},
        "inputs": [{"shape": [2, 1, 8, 8]}],
        "targets": {"laptop": {"kind": "cpu"}},
        "rules": [{"layers": "Scaled", "group": "filter", "sparsity": "50%"}],
    }
    Path("a.yaml").write_text(yaml.safe_dump(given))
    assert exit_code(["plan", "a.yaml", "--from-scratch", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["assignments"][0]["layers"] == ["0"]
    assert [(layer["type"], layer["ancestors"]) for layer in plan["map"]["layers"]] == [
        ("Scaled", ["Conv2d"]),
        ("Conv2d", []),
        ("Linear", []),
    ]
    assert (
        exit_code(
            [
                "apply",
                "a.yaml",
                "--from-scratch",
                "--quiet",
                "--json",
                "--set",
                "rules.0.layers=Conv2d",
                "--set",
                "rules.0.keep={uniform: true}",
            ]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    layers = [(layer["type"], layer["kind"], layer["outputs_after"]) for layer in report["layers"]]
    assert layers == [("Scaled", "Conv2d", 4), ("Conv2d", None, 4), ("Linear", None, 3)]
    assert report["verdict"]["outcome"] == "equal"
