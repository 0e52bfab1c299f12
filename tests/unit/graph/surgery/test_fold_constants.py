"""Removed units that still emit constants: what they gave to their consumers stays, or the notes say how much
is lost.

Every network has a producer of 32 units, eight of them dead (weights of exact zeros) with biases of about 1,
and one form of consumer. The reference is the dense model itself: nothing but dead units leaves.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import sparsify
from sparsify.cost.measure import copy_model
from sparsify.graph.surgery import contraction_masks
from sparsify.graph.surgery.data_masks import mask_nowhere
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.pruning.cut import Result
from sparsify_schemas.cuts import AddBias, Cuts, Fold

Built = tuple[nn.Module, tuple[Tensor, ...], str]
"""a network, what one call takes, and the layer that loses units"""


class Net(nn.Module):
    """Layers by name, and the forward as a function of the module and its input."""

    def __init__(self, run: Callable[..., Tensor], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


IMAGE, VECTOR, SEQUENCE = torch.zeros(1, 3, 8, 8), torch.zeros(1, 10), torch.zeros(1, 5, 10)


def after_convolution(consumer: Callable[[], nn.Module]) -> Callable[[], Built]:
    """Convolution, normalisation with a shift, ReLU, the consumer, a mean over positions."""

    def build() -> Built:
        def run(m: Any, x: Tensor) -> Tensor:
            made = m.consumer(m.bn(m.conv(x)).relu())
            pooled = made.relu().mean((2, 3)) if made.dim() == 4 else made
            return m.fc(pooled)

        layers = {"conv": nn.Conv2d(3, 32, 3, padding=1, bias=False), "bn": nn.BatchNorm2d(32)}
        return Net(run, **layers, consumer=consumer(), fc=nn.Linear(6, 4)), (IMAGE,), "conv"

    return build


def after_linear(
    consumer: Callable[[], Any],
    x: Tensor = VECTOR,
    run: Callable[..., Tensor] = lambda m, y: m.consumer(y),
    outputs: int = 6,
    **more: Callable[[], Any],
) -> Callable[[], Built]:
    """Linear, tanh, what `run` does with the consumer, a Linear layer."""

    def build() -> Built:
        layers = {name: make() for name, make in more.items()}
        whole = lambda m, x: m.fc(run(m, m.lin(x).tanh()).tanh())  # noqa: E731
        net = Net(whole, lin=nn.Linear(10, 32), consumer=consumer(), fc=nn.Linear(outputs, 4), **layers)
        return net, (x,), "lin"

    return build


def depthwise() -> nn.Module:
    pointwise = nn.Conv2d(32, 6, 1, bias=False)
    return nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU6(),
        pointwise,
        nn.BatchNorm2d(6),
    )


def masked(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = nn.Linear(32, 6)
        prune.random_unstructured(layer, name, 0.5)
        return layer

    return build


def attended(m: Any, y: Tensor) -> Tensor:
    return m.consumer(y, y, y)[0]


def weighted(m: Any, y: Tensor) -> Tensor:
    """Weights that depend on the data, whose sum is one, over values that are all the same."""
    weights = (m.q(y) @ m.k(y).transpose(1, 2)).softmax(-1)
    return m.consumer(weights @ y)


def recurrent(kind: type[nn.RNNBase], **more: Any) -> Callable[[], nn.Module]:
    return lambda: kind(32, 6, batch_first=True, **more)


def last(m: Any, y: Tensor) -> Tensor:
    return m.consumer(y)[0][:, -1, :6]


EXACT: dict[str, Callable[[], Built]] = {
    "1x1 convolution": after_convolution(lambda: nn.Conv2d(32, 6, 1)),
    "1x1 convolution without a bias": after_convolution(lambda: nn.Conv2d(32, 6, 1, bias=False)),
    "1x1 convolution before a normalisation": after_convolution(
        lambda: nn.Sequential(nn.Conv2d(32, 6, 1, bias=False), nn.BatchNorm2d(6))
    ),
    "3x3 convolution without padding": after_convolution(lambda: nn.Conv2d(32, 6, 3, bias=False)),
    "convolution with circular padding": after_convolution(
        lambda: nn.Conv2d(32, 6, 3, padding=1, padding_mode="circular")
    ),
    "grouped convolution": after_convolution(lambda: nn.Conv2d(32, 6, 1, groups=2)),
    "grouped convolution without a bias": after_convolution(
        lambda: nn.Conv2d(32, 6, 1, groups=2, bias=False)
    ),
    "transposed convolution": after_convolution(lambda: nn.ConvTranspose2d(32, 6, 1)),
    "transposed convolution without a bias": after_convolution(
        lambda: nn.ConvTranspose2d(32, 6, 1, bias=False)
    ),
    "transposed grouped convolution": after_convolution(
        lambda: nn.ConvTranspose2d(32, 6, 1, groups=2, bias=False)
    ),
    "depthwise, then 1x1": after_convolution(depthwise),
    "pooling, flattened, Linear": after_convolution(
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 6))
    ),
    "max-pooling and dropout": after_convolution(
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.Dropout2d(), nn.Conv2d(32, 6, 1))
    ),
    "convolution without a batch dimension": lambda: (
        Net(
            lambda m, x: m.fc(m.consumer(m.conv(x[0]).relu()).mean((1, 2)))[None],
            conv=nn.Conv2d(3, 32, 3),
            consumer=nn.Conv2d(32, 6, 1),
            fc=nn.Linear(6, 4),
        ),
        (IMAGE,),
        "conv",
    ),
    "Linear": after_linear(lambda: nn.Linear(32, 6)),
    "Linear without a bias": after_linear(lambda: nn.Linear(32, 6, bias=False)),
    "Linear on tokens": after_linear(lambda: nn.Linear(32, 6), SEQUENCE),
    "Linear on tokens without a bias": after_linear(lambda: nn.Linear(32, 6, bias=False), SEQUENCE),
    "Linear before a normalisation": after_linear(
        lambda: nn.Sequential(nn.Linear(32, 6, bias=False), nn.BatchNorm1d(6))
    ),
    "masked weight": after_linear(masked("weight")),
    "used twice, the same constant": after_linear(
        lambda: nn.Linear(32, 6), run=lambda m, y: m.consumer(y) + m.consumer(y.flip(0))
    ),
    "used twice without a bias": after_linear(
        lambda: nn.Linear(32, 6, bias=False), run=lambda m, y: m.consumer(y) + m.consumer(y.flip(0))
    ),
    "two consumers": after_linear(
        lambda: nn.Linear(32, 6),
        run=lambda m, y: m.consumer(y) + m.other(y.square()),
        other=lambda: nn.Linear(32, 6, bias=False),
    ),
    "concatenated": after_linear(
        lambda: nn.Linear(64, 6), run=lambda m, y: m.consumer(torch.cat([y, y.sigmoid()], 1))
    ),
    "written in place": after_linear(
        lambda: nn.Linear(32, 6), SEQUENCE, run=lambda m, y: m.consumer(F.relu_(y + 0))
    ),
    "functional, with a bare bias": after_linear(
        lambda: nn.Parameter(torch.randn(6, 32)),
        run=lambda m, y: F.linear(y, m.consumer, m.bare),
        bare=lambda: nn.Parameter(torch.randn(6)),
    ),
    "LSTM": after_linear(recurrent(nn.LSTM), SEQUENCE, run=last),
    "LSTM without biases": after_linear(
        recurrent(nn.LSTM, bias=False, bidirectional=True, num_layers=2), SEQUENCE, run=last
    ),
    "GRU": after_linear(recurrent(nn.GRU), SEQUENCE, run=last),
    "RNN without biases": after_linear(recurrent(nn.RNN, bias=False), SEQUENCE, run=last),
    "LSTM cell": after_linear(lambda: nn.LSTMCell(32, 6), run=lambda m, y: m.consumer(y)[0]),
    "GRU cell without biases": after_linear(lambda: nn.GRUCell(32, 6, bias=False)),
    "attention": after_linear(
        lambda: nn.MultiheadAttention(32, 4, batch_first=True), SEQUENCE, run=attended, outputs=32
    ),
    "read in windows": lambda: (
        Net(
            lambda m, x: m.fc(m.consumer(F.unfold(m.conv(x).relu(), 2).transpose(1, 2)).mean(1)),
            conv=nn.Conv2d(3, 32, 3),
            consumer=nn.Linear(128, 6),
            fc=nn.Linear(6, 4),
        ),
        (IMAGE,),
        "conv",
    ),
    "averaged by weights that sum to one": after_linear(
        lambda: nn.Linear(32, 6),
        SEQUENCE,
        run=weighted,
        q=lambda: nn.Linear(32, 4),
        k=lambda: nn.Linear(32, 4),
    ),
    "attention without biases": after_linear(
        lambda: nn.MultiheadAttention(32, 4, bias=False, batch_first=True), SEQUENCE, run=attended, outputs=32
    ),
}
"""consumers that take the constants exactly"""

LOSSY: dict[str, tuple[Callable[[], Built], str]] = {
    "3x3 convolution with padding": (
        after_convolution(lambda: nn.Conv2d(32, 6, 3, padding=1)),
        "'consumer' lost 8 constant inputs; their mean was folded into a bias, up to ",
    ),
    "transposed convolution with strides": (
        after_convolution(lambda: nn.ConvTranspose2d(32, 6, 2, 2)),
        "'consumer' lost 8 constant inputs; their mean was folded into a bias, up to ",
    ),
    "used twice, different constants": (
        after_linear(
            lambda: nn.Linear(32, 6), run=lambda m, y: m.consumer(y).relu() + m.consumer(y.square())
        ),
        "'consumer' lost 8 constant inputs; their mean was folded into a bias, up to ",
    ),
    "masked bias": (
        after_linear(masked("bias")),
        "'consumer' lost 8 constant inputs that could not be folded anywhere: up to ",
    ),
    "functional, without a bias": (
        after_linear(lambda: nn.Parameter(torch.randn(32, 6)), run=lambda m, y: y @ m.consumer),
        "'the model' lost 8 constant inputs that could not be folded anywhere: up to ",
    ),
    "bilinear": (
        after_linear(
            lambda: nn.Bilinear(32, 10, 6),
            run=lambda m, y: m.consumer(y, m.other(y)),
            other=lambda: nn.Linear(32, 10),
        ),
        "'consumer' lost 8 constant inputs that could not be folded anywhere: up to ",
    ),
}
"""consumers that cannot, and the note"""


def build(make: Callable[[], Built]) -> Built:
    """The network with eight dead units and everything else random."""
    torch.manual_seed(0)
    model, inputs, layer = make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.startswith(("bn", "lin", "conv")):
                parameter.copy_(torch.rand_like(parameter) + (3 if name == "bn.bias" else 0.5))
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features))
                module.running_var.copy_(torch.rand(module.num_features) + 0.5)
        halved = [
            m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.groups == 2
        ]
        dead = (
            [0, 1, 2, 3, 16, 17, 18, 19] if halved else list(range(8))
        )  # the same in each group of a convolution
        for module in model.modules():
            if module is model.get_submodule(layer) or (
                isinstance(module, nn.Conv2d) and module.groups == 32
            ):
                module.weight[dead] = 0
    return model.eval(), tuple(torch.randn_like(x) for x in inputs), layer


def cut(model: nn.Module, inputs: tuple[Tensor, ...], layer: str, **rule: Any) -> Result:
    group = "filter" if layer == "conv" else "neuron"
    recipe = {"version": 1, "title": "t", "rules": [{"layers": layer, "group": group, **rule}]}
    return sparsify.cut(sparsify.make_plan(recipe, model, inputs), model)


@torch.no_grad()
def difference(model: nn.Module, result: Result, inputs: tuple[Tensor, ...]) -> float:
    """Between cut and dense model in float64, on fresh inputs of one and of four examples, relative to the
    largest output."""
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for batch in (1, 4):
        fresh = [torch.randn(batch, *x.shape[1:], generator=generator).double() for x in inputs]
        wanted = copy_model(model).double().eval()(*fresh)
        found = copy_model(result.model).double().eval()(*fresh)
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
    return worst


def folds(result: Result) -> list[Fold]:
    return [op for op in result.cuts.operations if isinstance(op, Fold)]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("name", EXACT)
def test_eight_dead_units_leave_nothing_behind(name: str) -> None:
    model, inputs, layer = build(EXACT[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = cut(model, inputs, layer)
    (width, *_) = [w for w in result.cuts.widths if w.kept < w.width]
    assert width.width - width.kept == 8 // (2 if "grouped" in name else 1)
    assert folds(result) and all(fold.exact and fold.loss == 0 for fold in folds(result))
    assert difference(model, result, inputs) <= 1e-6
    (verdict,) = result.verdicts
    assert (verdict.outcome, verdict.reference) == ("equal", "dense model")
    if not name.endswith("batch dimension"):
        assert verdict.batches == (1, 2, 5)
    assert result.notes[0].startswith(
        "removed units had constant outputs, which were folded exactly into the biases of "
    )
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items()), (
        "the user's model stays"
    )


@pytest.mark.parametrize("name", LOSSY)
def test_what_cannot_be_taken_is_said_with_its_size(name: str) -> None:
    make, note = LOSSY[name]
    model, inputs, layer = build(make)
    result = cut(model, inputs, layer)
    (fold,) = [fold for fold in folds(result) if not fold.exact]
    assert fold.module in ("consumer", "the model") and 0.001 < fold.loss < 10
    assert any(text.startswith(note) for text in result.notes)
    assert result.verdicts[0].reference == "masked model"
    assert difference(model, result, inputs) > 1e-6 or name.startswith("used twice"), "it would be exact"


@pytest.mark.parametrize(
    "name",
    [
        "1x1 convolution without a bias",
        "LSTM without biases",
        "attention without biases",
        "GRU cell without biases",
    ],
)
def test_a_created_bias_is_logged_and_replayed(name: str) -> None:
    model, inputs, layer = build(EXACT[name])
    result = cut(model, inputs, layer)
    assert [op.module for op in result.cuts.operations if isinstance(op, AddBias)] == ["consumer"]
    again = replay_cuts(model, Cuts.model_validate_json(result.cuts.model_dump_json()))
    again.load_state_dict(result.model.state_dict())
    x = torch.randn(3, *inputs[0].shape[1:])
    with torch.no_grad():
        assert torch.equal(again.eval()(x), result.model.eval()(x))


def test_a_created_bias_is_trained_by_the_optimizer() -> None:
    model, inputs, layer = build(EXACT["1x1 convolution without a bias"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.get_submodule(layer).weight[:8] = 0
    recipe = {"version": 1, "title": "t", "rules": [{"layers": layer, "group": "filter"}]}
    result = sparsify.cut(sparsify.make_plan(recipe, model, inputs), model, optimizer=optimizer)
    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert trained == [id(p) for p in result.model.parameters()], (
        "in the model's own order, as a saved state counts them"
    )
    bias = result.model.get_parameter("consumer.bias")
    before = bias.detach().clone()
    optimizer.zero_grad()
    result.model.train()(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(bias, before)


@pytest.mark.parametrize("batch", [1, 2])
def test_living_units_are_no_constants_however_flat_they_look(batch: int) -> None:
    """With one example everything looks constant; with two, units that a ReLU holds at zero do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    with torch.no_grad():
        model[0].bias[:8] = -3
    rule = {"layers": "0", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "random"}}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (torch.randn(batch, 16),))
    result = sparsify.cut(plan, model)
    assert not folds(result) and torch.equal(result.model[2].bias, model[2].bias)
    kept = [i for start, end in result.cuts.widths[0].keep for i in range(start, end)]
    reference = copy_model(model)
    with torch.no_grad():
        reference[2].weight[:, [i for i in range(32) if i not in kept]] = 0
        x = torch.randn(64, 16)
        assert torch.allclose(result.model(x), reference(x), atol=1e-6)
    assert result.verdicts[0].reference == "masked model"


def test_of_dead_and_living_units_only_the_dead_ones_go_on() -> None:
    """A cut of more units than are dead: the reference is the dense model with the living ones' columns at
    zero."""
    model, inputs, layer = build(EXACT["Linear without a bias"])
    result = cut(model, inputs, layer, sparsity="50%")
    kept = [i for start, end in result.cuts.widths[0].keep for i in range(start, end)]
    living = [i for i in range(8, 32) if i not in kept]
    assert not set(range(8)) & set(kept) and len(living) == 8
    reference = copy_model(model).double()
    with torch.no_grad():
        reference.consumer.weight[:, living] = 0
        x = torch.randn(7, 10).double()
        wanted, found = reference(x), copy_model(result.model).double()(x)
    assert float((found - wanted).abs().max() / wanted.abs().max()) <= 1e-6
    assert result.verdicts[0].reference == "masked model"


def test_constants_reach_through_layers_that_are_all_dead() -> None:
    """A unit whose only living inputs are constants is constant itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[2].weight[:4, 3:] = 0  # reads dead units alone
    rules = [{"layers": "2", "group": "neuron", "sparsity": "25%", "criterion": {"kind": "magnitude"}}]
    with torch.no_grad():
        model[2].weight[:4] *= 1e-3
        model[4].weight[:, :4] *= 10
        model[4].weight[:, :4] *= 1e-4
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, (torch.randn(1, 8),))
    result = sparsify.cut(plan, model)
    assert result.cuts.widths[0].keep == ((4, 16),)
    assert result.verdicts[0].reference == "dense model"
    assert difference(model, result, (torch.randn(1, 8),)) <= 1e-6


def test_constants_that_data_multiply_before_a_layer_reads_them_are_told() -> None:
    model, inputs, layer = build(
        after_linear(
            lambda: nn.Linear(32, 6),
            run=lambda m, y: m.consumer(y * m.gate(y).sigmoid()),
            gate=lambda: nn.Linear(32, 1),
        )
    )
    result = cut(model, inputs, layer)
    note, _ = result.notes
    lost = difference(model, result, inputs)
    assert lost > 1e-3
    head = (
        "8 units of 'lin' had no weights that produce them, but their constants "
        "were mixed with data before a layer read "
        "them: what they gave is lost, up to "
    )
    assert note.startswith(head) and note.endswith(" % of the largest output")
    assert result.verdicts[0].reference == "masked model"


def test_followers_keep_constants_of_their_own() -> None:
    model, inputs, layer = build(EXACT["1x1 convolution without a bias"])
    average = copy_model(model)
    with torch.no_grad():
        average.bn.bias.mul_(2)
    recipe = {"version": 1, "title": "t", "rules": [{"layers": layer, "group": "filter"}]}
    result = sparsify.cut(sparsify.make_plan(recipe, model, inputs), model, follow=[average])
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(result.followers[0](x), average(x), atol=1e-5)


def test_a_comparison_that_contradicts_a_constant_undoes_all_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Derived constants are believed only as far as the proof bears them out: here living units are taken for
    constant."""
    monkeypatch.setitem(contraction_masks.CONTRACTIONS, "addmm", lambda *found: mask_nowhere(found[-1]))
    model, inputs, layer = build(EXACT["Linear"])
    result = cut(model, inputs, layer, sparsity="50%", criterion={"kind": "random"})
    assert result.notes[0] == (
        "a comparison contradicted what the weights say of constant units, so "
        "none of these constants were kept; this is a "
        "bug: please report it with the recipe and the model's code"
    )
    assert result.notes[1].startswith("8 units of 'lin' had no weights that produce them"), (
        "dead ones among them are told"
    )
    assert not folds(result) and result.verdicts[0].difference <= 1e-9


def test_a_unit_that_is_zero_on_these_inputs_alone_is_no_dead_one() -> None:
    """What a ReLU holds at zero on the planning inputs may live on others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[0].weight[:4] = torch.zeros(8)  # four dead units, so that constants are looked for at all
        model[0].weight[4:8].abs_()
        model[0].bias[4:8] = -0.01
    rule = {"layers": "0", "group": "neuron", "sparsity": "50%", "criterion": {"kind": "magnitude"}}
    x = -torch.ones(1, 8)
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (x,))
    result = sparsify.cut(plan, model, inputs=(x,))
    gone = set(range(16)) - {i for start, end in result.cuts.widths[0].keep for i in range(start, end)}
    assert gone - {0, 1, 2, 3}, "living units left"
    assert result.verdicts[0].reference == "masked model"
