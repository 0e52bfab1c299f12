"""The reference that judges cuts in the tests: right cuts agree with it, cuts broken by hand do not."""

from collections.abc import Callable
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

import sparsify
from sparsify.pruning.cut import Result

EXACT = 1e-12


class Net(nn.Module):
    """Layers by name, and a forward given as a function."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def convolutional() -> Net:
    return Net(
        lambda m, x: m.fc(m.c(m.bn(m.b(m.a(x).relu())).relu()).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 12, 3),
        bn=nn.BatchNorm2d(12),
        c=nn.Conv2d(12, 6, 1),
        fc=nn.Linear(6, 4),
    )


def tied() -> Net:
    net = Net(
        lambda m, x: m.fc(m.c(m.b(m.a(x)).relu()).relu()),
        a=nn.Linear(6, 12),
        b=nn.Linear(12, 12),
        c=nn.Linear(12, 12),
        fc=nn.Linear(12, 3),
    )
    net.c.weight = net.b.weight
    return net


def normalised(norm: nn.Module) -> Net:
    return Net(
        lambda m, x: m.fc(m.b(m.n(m.a(x))).relu()),
        a=nn.Linear(6, 12),
        n=norm,
        b=nn.Linear(12, 8),
        fc=nn.Linear(8, 3),
    )


def weight_normed(kind: Callable[[nn.Module], nn.Module]) -> Net:
    return Net(
        lambda m, x: m.fc(m.b(m.a(x).relu()).relu().mean((2, 3))),
        a=kind(nn.Conv2d(3, 8, 3)),
        b=kind(nn.Conv2d(8, 6, 3)),
        fc=nn.Linear(6, 4),
    )


def attention() -> Net:
    return Net(
        lambda m, x: m.fc(m.att(*[m.a(x)] * 3)[0].mean(1)),
        a=nn.Linear(6, 16),
        att=nn.MultiheadAttention(16, 4, batch_first=True),
        fc=nn.Linear(16, 3),
    )


def softened() -> Net:
    return Net(
        lambda m, x: m.fc(m.a(x).softmax(-1) + m.b(x).tanh().mean(-1, keepdim=True)),
        a=nn.Linear(6, 12),
        b=nn.Linear(6, 8),
        fc=nn.Linear(12, 3),
    )


def transposed() -> Net:
    return Net(
        lambda m, x: m.d(m.c(m.b(m.a(x)).relu()).relu()),
        a=nn.Conv2d(3, 8, 1),
        b=nn.ConvTranspose2d(8, 12, 2, 2),
        c=nn.ConvTranspose2d(12, 12, 2, 2, groups=3),
        d=nn.Conv2d(12, 2, 1),
    )


IMAGE, TABLE, SEQUENCE = (4, 3, 8, 8), (4, 6), (4, 5, 6)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "convolutions": (convolutional, IMAGE, {"Conv2d": "filter"}),
    "transposed convolutions": (transposed, IMAGE, {"*": "filter"}),
    "tied layers": (tied, TABLE, {"Linear": "neuron"}),
    "LayerNorm": (lambda: normalised(nn.LayerNorm(12)), TABLE, {"Linear": "neuron"}),
    "RMSNorm": (lambda: normalised(nn.RMSNorm(12)), TABLE, {"Linear": "neuron"}),
    "GroupNorm": (lambda: normalised(nn.GroupNorm(3, 12)), TABLE, {"Linear": "neuron"}),
    "normalisation without weights": (
        lambda: normalised(nn.LayerNorm(12, elementwise_affine=False)),
        TABLE,
        {"Linear": "neuron"},
    ),
    "weight norm": (lambda: weight_normed(nn.utils.parametrizations.weight_norm), IMAGE, {"*": "filter"}),
    "weight norm by a hook": (lambda: weight_normed(nn.utils.weight_norm), IMAGE, {"*": "filter"}),
    "attention": (attention, SEQUENCE, {"Linear": "neuron", "att": "head"}),
    "softmax and mean over units": (softened, TABLE, {"Linear": "neuron"}),
    "LSTM": (
        lambda: Net(
            lambda m, x: m.fc(m.rnn(x)[0][:, -1]),
            rnn=nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True),
            fc=nn.Linear(16, 3),
        ),
        SEQUENCE,
        {"rnn": "hidden"},
    ),
}


def cut_by_half(
    model: nn.Module,
    shape: tuple[int, ...],
    groups: dict[str, str],
    sparsity: str | None = "50%",
    criterion: str = "random",
) -> Result:
    share = {} if sparsity is None else {"sparsity": sparsity}
    rules = [
        {"layers": layers, "group": group, "criterion": {"kind": criterion}, "override": True, **share}
        for layers, group in groups.items()
    ]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (torch.randn(shape),))
    return sparsify.cut(plan, model)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter))
    return model


def differences(result: Result, model: nn.Module, shape: tuple[int, ...], **more: Any) -> list[float]:
    return [
        reference.difference(result, model, (torch.randn(batch, *shape[1:]),), **more) for batch in (1, 4)
    ]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_cut_agrees(name: str) -> None:
    _, shape, groups = NETWORKS[name]
    model = built(name)
    result = cut_by_half(model, shape, groups)
    assert sum(p.numel() for p in result.model.parameters()) < 0.8 * sum(
        p.numel() for p in model.parameters()
    )
    assert max(differences(result, model, shape)) <= EXACT
    assert reference.to_dense(result, model, (torch.randn(shape),)) > 1e-3, "the removed units matter"


BROKEN: dict[str, Callable[[nn.Module, nn.Module], None]] = {
    "a wrong unit was kept": lambda thin, dense: thin.get_parameter("a.weight")[0].copy_(
        dense.get_parameter("a.weight")[_lost(thin, dense)]
    ),
    "a bias is shifted": lambda thin, _: thin.get_parameter("b.bias").add_(1e-5),
    "channels change places": lambda thin, _: thin.get_parameter("c.weight").copy_(
        thin.get_parameter("c.weight").roll(1, 1)
    ),
    "a running mean is shifted": lambda thin, _: thin.get_buffer("bn.running_mean")[2].add_(1e-5),
    "a running variance is another's": lambda thin, _: thin.get_buffer("bn.running_var")[0].mul_(1.001),
}


def _lost(thin: nn.Module, dense: nn.Module) -> int:
    """A filter of the first layer that the cut model does not have."""
    rows = {tuple(row.flatten().tolist()) for row in thin.get_parameter("a.weight")}
    return next(
        i
        for i, row in enumerate(dense.get_parameter("a.weight"))
        if tuple(row.flatten().tolist()) not in rows
    )


@torch.no_grad()
@pytest.mark.parametrize("name", BROKEN)
def test_a_cut_broken_by_hand_differs(name: str) -> None:
    model = built("convolutions")
    result = cut_by_half(model, IMAGE, {"Conv2d": "filter"})
    assert max(differences(result, model, IMAGE)) <= EXACT
    BROKEN[name](result.model, model)
    assert min(differences(result, model, IMAGE)) > 1e-7


def test_a_log_that_names_other_units_differs() -> None:
    """The log and the weights must tell the same: the reference believes the log."""
    model = built("convolutions")
    result = cut_by_half(model, IMAGE, {"Conv2d": "filter"})
    first = next(
        i
        for i, op in enumerate(result.cuts.operations)
        if op.op == "narrow" and op.tensor == "c.weight" and op.dim == 1
    )
    operations = list(result.cuts.operations)
    op = operations[first]
    others = [i for i in range(op.size) if not any(start <= i < end for start, end in op.keep)]
    operations[first] = op.model_copy(update={"keep": tuple((i, i + 1) for i in others)})
    twin = reference.masked(model, result.cuts.model_copy(update={"operations": tuple(operations)}))
    x = torch.randn(IMAGE).double()
    with torch.no_grad():
        assert reference.relative([result.model.double()(x)], [twin(x)]) > 0.01


def test_places_are_those_of_the_weights() -> None:
    model = built("convolutions")
    result = cut_by_half(model, IMAGE, {"Conv2d": "filter"})
    places = reference.kept_places(model, result.cuts)
    left, before = result.model.state_dict(), model.state_dict()
    for name in ("a.weight", "b.weight", "bn.weight", "bn.running_var", "c.weight", "fc.weight"):
        assert torch.equal(before[name].flatten()[places[name]], left[name])
    assert places["fc.bias"].tolist() == [0, 1, 2, 3], "what the log leaves alone is whole"


def test_data_taken_for_constants_shows() -> None:
    """One example at planning time, from which every unit looks constant: nothing is one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    result = cut_by_half(model, (1, 16), {"*": "neuron"})
    assert max(differences(result, model, (4, 16))) <= EXACT


def test_dead_units_leave_the_dense_model_as_it_was() -> None:
    """Half of the units of unpadded layers emit a constant; the cut that removes them and no others agrees
    with the dense model."""
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.fc(m.b(m.a(x).relu()).relu()),
        a=nn.Linear(6, 16),
        b=nn.Linear(16, 12),
        fc=nn.Linear(12, 3),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
    killed = reference.kill(model, ["a", "b"], 0.5, seed=0)
    assert [len(units) for units in killed.values()] == [8, 6]
    dead = cut_by_half(model, TABLE, {"*": "neuron"}, sparsity=None)
    assert dead.model.get_parameter("a.weight").shape == (8, 6), "the dead units are gone"
    fresh = [(torch.randn(batch, 6),) for batch in (1, 4)]
    assert max(reference.to_dense(dead, model, x) for x in fresh) <= 1e-5
    assert min(reference.difference(dead, model, x) for x in fresh) > 1e-2, "their constants matter"
    assert max(reference.difference(dead, model, x, constants_kept=dead.cuts) for x in fresh) <= 1e-5


def test_of_dead_and_living_units_the_living_alone_are_masked() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.fc(m.b(m.a(x).relu()).relu()),
        a=nn.Linear(6, 16),
        b=nn.Linear(16, 12),
        fc=nn.Linear(12, 3),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.1 * torch.randn_like(parameter))
    reference.kill(model, ["a", "b"], 0.25, seed=0)
    dead = cut_by_half(model, TABLE, {"*": "neuron"}, sparsity=None)
    mixed = cut_by_half(model, TABLE, {"*": "neuron"}, criterion="magnitude")
    assert dead.model.get_parameter("a.weight").shape == (12, 6), "four were dead"
    assert mixed.model.get_parameter("a.weight").shape[0] < 12, "living ones go as well"
    assert max(differences(mixed, model, TABLE, constants_kept=dead.cuts)) <= 1e-5
    assert min(differences(mixed, model, TABLE)) > 1e-2


@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d", "grouped ConvTranspose2d", "weight norm"])
def test_dead_units_emit_their_bias(kind: str) -> None:
    torch.manual_seed(0)
    layer: nn.Module = {
        "Conv2d": lambda: nn.Conv2d(4, 8, 3),
        "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 8, 2),
        "grouped ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 8, 2, groups=2),
        "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 8, 3)),
    }[kind]()
    (units,) = reference.kill(nn.Sequential(layer), ["0"], 0.5, seed=0).values()
    y = layer(torch.randn(2, 4, 6, 6))
    assert len(units) == 4
    for unit in range(8):
        assert torch.equal(y[:, unit], torch.full_like(y[:, unit], layer.bias[unit].item())) == (
            unit in units
        )  # type: ignore[union-attr, index]


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
            for _ in range(3)
        )
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = y + block(y)
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize(
    ("layers", "group", "sparsity"),
    [
        ("*", "depth", "50%"),
        ("stem", "shape", "50%"),
        ("blocks.*", "tap", "60%"),
        ("*", "weight", "50%"),
        ("fc", "2:4", None),
    ],
)
def test_branches_and_groups_inside_tensors(layers: str, group: str, sparsity: str | None) -> None:
    torch.manual_seed(0)
    model = Blocks().eval()
    result = cut_by_half(model, IMAGE, {layers: group}, sparsity=sparsity, criterion="magnitude")
    assert max(differences(result, model, IMAGE)) <= EXACT
    assert reference.to_dense(result, model, (torch.randn(IMAGE),)) > 1e-3
