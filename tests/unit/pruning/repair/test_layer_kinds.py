"""Every kind of layer that a repair refits, beside a least-squares fit that was written independently."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import prune

import sparsify
from sparsify.forward.copies import copy_model
from sparsify.pruning.cut import Result
from sparsify.pruning.repair.agreement import measure_agreement
from sparsify.pruning.repair.choose_fit import Settings
from sparsify.pruning.repair.least_squares import refit_layers
from sparsify_schemas.report import LayerRepair

PRECISE = Settings(ridge=1e-10, rows=10**6)
"""all examples, all places, next to no ridge: plain least squares"""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut(model: nn.Module, x: Tensor, **rule: Any) -> Result:
    rule = {"criterion": {"kind": "random"}, **rule}
    recipe = {"version": 1, "title": "t", "rules": [rule]}
    return sparsify.cut(sparsify.make_plan(recipe, model.eval(), (x[:2],)), model)


def refit(model: nn.Module, result: Result, x: Tensor, settings: Settings = PRECISE) -> list[LayerRepair]:
    rows = refit_layers(model, result.model.eval(), (result.cuts,), (x,), len(x), settings)
    assert all(row.outcome != "skipped" for row in rows), rows
    return list(rows)


def kept(result: Result, group: str) -> Tensor:
    width = next(width for width in result.cuts.widths if width.group == group)
    return torch.cat([torch.arange(start, end) for start, end in width.keep])


def best_outputs(layer: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """What the layer computes of x with those weights that come nearest to the targets.

    A layer is linear in its weights, so a column of the system is what one weight of 1 computes by itself.
    """
    zeros = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
    columns = []
    for name, value in zeros.items():
        for number in range(value.numel()):
            single = torch.zeros(value.numel())
            single[number] = 1
            ones = {**zeros, name: single.reshape(value.shape)}
            columns.append(functional_call(layer, ones, (x,)).flatten())
    system = torch.stack(columns, dim=1).double().detach()
    solution = torch.linalg.lstsq(system, targets.flatten()[:, None].double(), driver="gelsd").solution
    return (system @ solution).reshape(targets.shape).float()


CONVOLUTIONS: dict[str, tuple[int, Any]] = {
    "1d": (1, nn.Conv1d(8, 3, 3, padding=1)),
    "1d with dilation, in two groups": (1, nn.Conv1d(8, 4, 3, dilation=2, groups=2)),
    "1d depthwise": (1, nn.Conv1d(8, 8, 3, groups=8)),
    "1d transposed": (1, nn.ConvTranspose1d(8, 3, 4, stride=2, padding=1)),
    "1d transposed, in two groups": (1, nn.ConvTranspose1d(8, 4, 3, stride=2, groups=2)),
    "2d with stride": (2, nn.Conv2d(8, 3, 3, stride=2, padding=1)),
    "2d in two groups": (2, nn.Conv2d(8, 4, (3, 2), groups=2)),
    "2d depthwise with a multiplier": (2, nn.Conv2d(8, 16, 3, padding=1, groups=8)),
    "2d transposed": (2, nn.ConvTranspose2d(8, 3, 3, stride=2, padding=1, output_padding=1)),
    "2d transposed, depthwise": (2, nn.ConvTranspose2d(8, 8, 3, groups=8)),
    "3d": (3, nn.Conv3d(8, 2, 2)),
    "3d in two groups": (3, nn.Conv3d(8, 4, 2, groups=2)),
    "3d depthwise": (3, nn.Conv3d(8, 8, 2, groups=8)),
    "3d transposed": (3, nn.ConvTranspose3d(8, 2, 2, stride=2)),
    "3d transposed, in two groups": (3, nn.ConvTranspose3d(8, 4, 2, groups=2)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_fitted_as_least_squares_does(name: str) -> None:
    dimensions, layer = CONVOLUTIONS[name][0], copy_model(CONVOLUTIONS[name][1])
    torch.manual_seed(0)
    pointwise: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    model = nn.Sequential(pointwise(3, 8, 1), nn.ReLU(), layer, pointwise(layer.out_channels, 2, 1)).eval()
    x = draw(60, 3, *[5] * dimensions)
    result = cut(model, x, layers="0", group="filter", sparsity="25%")
    whole: Any = result.model
    wanted, thin = model[:3](x).detach(), whole[2]
    if thin.out_channels != layer.out_channels:  # depthwise: its own channels go along
        stay = kept(result, "0")
        each = wanted.shape[1] // 8
        wanted = wanted[:, (stay[:, None] * each + torch.arange(each)).flatten()]
    before = float((whole[:3](x) - wanted).square().mean().detach())
    refit(model, result, x)
    inputs, made = whole[:2](x).detach(), whole[:3](x).detach()
    best = best_outputs(copy_model(thin), inputs, wanted)
    assert torch.allclose(made, best, atol=2e-3 * float(wanted.abs().max()))
    after = float((made - wanted).square().mean())
    assert after <= before
    if thin.groups < 8 - 2:  # a depthwise layer lost none of its inputs
        assert after < 0.9 * before


class Attending(nn.Module):
    """Queries from one sequence, keys and values from another, added to the queries."""

    def __init__(self, packed: bool, batch_first: bool = True, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.queries, self.others = nn.Linear(5, 16), nn.Linear(5, 16 if packed else 12)
        sizes = {} if packed else {"kdim": 12, "vdim": 12}
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first, bias=bias, **sizes)
        self.head = nn.Linear(16, 3)
        self.first = batch_first
        if bias:
            nn.init.normal_(self.attention.in_proj_bias)

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(self.queries(x)), F.relu(self.others(x.flip(1)))

    def attend(self, q: Tensor, other: Tensor) -> Tensor:
        if not self.first:
            q, other = q.transpose(0, 1), other.transpose(0, 1)
        made = self.attention(q, other, value=other)[0]
        y: Tensor = made if self.first else made.transpose(0, 1)
        return y

    def forward(self, x: Tensor) -> Tensor:
        q, other = self.hidden(x)
        y: Tensor = self.head(self.attend(q, other) + q)
        return y


def heads_of(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of each head of 4 features."""
    split = [value.reshape(*value.shape[:2], -1, 4).transpose(1, 2) for value in (q, k, v)]
    weights = (split[0] @ split[1].transpose(-2, -1) / 2).softmax(-1)
    return (weights @ split[2]).transpose(1, 2).flatten(2)


def projected(attention: Any, q: Tensor, other: Tensor) -> list[Tensor]:
    packed = attention.in_proj_weight
    separate = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    weights = separate if packed is None else packed.chunk(3)
    bias = attention.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    values = zip((q, other, other), weights, biases, strict=True)
    return [F.linear(value, weight, own).detach() for value, weight, own in values]


@pytest.mark.parametrize("rule", ["heads", "inputs"])
@pytest.mark.parametrize(
    ("packed", "batch_first", "bias"), [(True, True, True), (True, False, False), (False, True, True)]
)
def test_the_projections_of_an_attention_are_fitted_as_least_squares_does(
    packed: bool, batch_first: bool, bias: bool, rule: str
) -> None:
    model = Attending(packed, batch_first, bias).eval()
    x, fresh = draw(200, 6, 5), draw(100, 6, 5, seed=1)
    if rule == "heads":
        result = cut(model, x, layers="attention", group="head", sparsity="50%")
        stay = torch.cat([torch.arange(4 * head, 4 * head + 4) for head in kept(result, "attention")])
    else:
        result = cut(model, x, layers="others", group="neuron", sparsity="50%")
        stay = torch.arange(16)
    thin: Any = result.model
    dense_sides, thin_sides = model.hidden(x), thin.hidden(x)
    dense_out = model.attend(*dense_sides).detach()
    before = measure_agreement(model, thin, (fresh,), 100)
    rows = {row.layer: row for row in refit(model, result, x)}
    assert {name for name in rows if name.startswith("attention.")} == {
        f"attention.{part}" for part in ("queries", "keys", "values", "out_proj")
    }
    assert measure_agreement(model, thin, (fresh,), 100).error < before.error
    sides = [value.detach() for value in thin.hidden(x)]
    assert torch.equal(sides[1], thin_sides[1]) or rule == "inputs"
    dense_parts, parts = projected(model.attention, *dense_sides), projected(thin.attention, *sides)
    inputs = (sides[0], sides[1], sides[1])
    for given, part, dense_part in zip(inputs, parts, dense_parts, strict=True):
        layer = nn.Linear(given.shape[2], len(stay), bias=bias)
        best = best_outputs(layer, given, dense_part[..., stay])
        assert torch.allclose(part, best, atol=1e-3 * float(best.abs().max()))
    coupled = next((one.group for one in result.cuts.widths if len(kept(result, one.group)) == 8), "")
    left = kept(result, coupled) if packed and rule == "inputs" else torch.arange(16)
    wanted = (dense_out + dense_sides[0].detach())[..., left] - sides[0]
    layer = nn.Linear(len(stay), wanted.shape[2], bias=bias)
    best = best_outputs(layer, heads_of(*parts), wanted)
    made = thin.attend(*sides).detach()
    assert torch.allclose(made, best, atol=2e-3 * float(best.abs().max()))


class Reading(nn.Module):
    """Attention over tokens of 20 words; 0 is none."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.batch_first = batch_first
        self.embed = nn.Embedding(20, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None, padding_mask: Tensor | None = None) -> Tensor:
        nowhere = ids == 0 if padding_mask is None else padding_mask
        x = self.embed(ids) if self.batch_first else self.embed(ids).transpose(0, 1)
        made = self.attention(x, x, x, key_padding_mask=nowhere, attn_mask=mask)[0] + x
        y: Tensor = self.head(made if self.batch_first else made.transpose(0, 1)).mean(1)
        return y


def words(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, 20, shape, generator=torch.Generator().manual_seed(seed))


def repair_heads(model: nn.Module, batches: list[Any]) -> tuple[Result, Any]:
    rule = {"layers": "attention", "group": "head", "sparsity": "50%", "criterion": {"kind": "random"}}
    recipe = {"version": 1, "title": "t", "rules": [rule]}
    result = sparsify.cut(sparsify.make_plan(recipe, model.eval(), (words(2, 6),)), model)
    return result, sparsify.repair(result, batches)


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_attention_is_repaired_with_batches_of_several_lengths_and_sizes(batch_first: bool) -> None:
    model = Reading(batch_first)
    batches = [words(32, 5), words(32, 9, seed=1), words(32, 7, seed=2), words(5, 3, seed=3)]
    result, repaired = repair_heads(model, batches)
    assert [row.layer for row in repaired.layers if row.outcome == "refitted"][:1] == ["attention.out_proj"]
    padded = torch.cat([F.pad(ids, (0, 9 - ids.shape[1])) for ids in batches])
    by_hand, _ = repair_heads(model, [padded])
    pairs = zip(result.model.state_dict().values(), by_hand.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    rule = {"layers": "attention", "group": "head", "sparsity": "50%"}
    as_cut = cut(model, words(2, 6), **rule).model
    for length in (3, 5, 9):
        fresh = (words(100, length, seed=9),)
        errors = [measure_agreement(model, one, fresh, 100).error for one in (result.model, as_cut)]
        assert errors[0] < 0.5 * errors[1]


def test_a_mask_that_says_what_is_padded_says_so_of_what_is_added() -> None:
    model = Reading()
    batches = [{"ids": ids, "padding_mask": ids == 0} for ids in (words(40, 5), words(30, 9, seed=1))]
    result, _ = repair_heads(model, batches)
    alone, _ = repair_heads(model, [{"ids": batch["ids"]} for batch in batches])
    pairs = zip(result.model.state_dict().values(), alone.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_mask_of_positions_goes_with_all_batches() -> None:
    """As many examples are held out of 64 as the mask is long, and one batch has as many."""
    model, later = Reading(), torch.ones(6, 6).triu(1).bool()
    ids = words(64, 6)
    results = [
        repair_heads(model, batches)
        for batches in ([((ids, later),)], [((ids[:58], later),), ((ids[58:], later),)])
    ]
    assert all(repaired.examples == 64 and repaired.after.error < 0.3 for _, repaired in results)
    states = [result.model.state_dict().values() for result, _ in results]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


@pytest.mark.parametrize("place", [5, 63])
def test_examples_that_are_all_padding_are_left_out(place: int) -> None:
    """What attends to nothing is not a number."""
    ids = words(64, 6)
    ids[place] = 0
    _, repaired = repair_heads(Reading(), [ids])
    assert not repaired.reverted and repaired.after.error < 0.5 * repaired.before.error
    assert {row.layer for row in repaired.layers if row.outcome == "refitted"} == {
        "attention.out_proj",
        "head",
    }


class Encoding(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self[2](self[1](self[0](x), src_key_padding_mask=self.find_padding(x)))
        return made

    def find_padding(self, x: Tensor) -> Tensor | None:
        return None


class EncodingPadded(Encoding):
    def find_padding(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros(len(x), 1), x[:, 1:, 0]], 1) > 1


@pytest.mark.parametrize("kind", [Encoding, EncodingPadded])
def test_an_encoder_of_torch_is_repaired(kind: Callable[..., nn.Module]) -> None:
    """Its fused path calls no layer at all, and takes padding out of the sequences."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    model = kind(nn.Linear(5, 16), encoder, nn.Linear(16, 3)).eval()
    x, fresh = draw(200, 6, 5), draw(100, 6, 5, seed=1)
    result = cut(model, x, layers="*self_attn", group="head", sparsity="50%")
    before = measure_agreement(model, result.model, (fresh,), 100).error
    repaired = sparsify.repair(result, [x])
    done = {row.layer for row in repaired.layers if row.outcome == "refitted"}
    assert {"1.layers.0.self_attn.out_proj", "1.layers.1.linear1"} <= done
    assert measure_agreement(model, result.model, (fresh,), 100).error < 0.5 * before


class Remembering(nn.Module):
    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(5, 8)
        self.rnn = getattr(nn, kind)(8, 10, **options)
        self.head = nn.Linear(20 if options.get("bidirectional") else 10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(2 * F.relu(self.embed(x)))[0])
        return y


def gates(cell: Any, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The two products that go into the gates of a layer that reads x and remembers h."""
    read = x @ cell.weight_ih_l0.T + (cell.bias_ih_l0 if cell.bias else 0)
    remembered = h @ cell.weight_hh_l0.T + (cell.bias_hh_l0 if cell.bias else 0)
    return read.detach(), remembered.detach()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_layer_is_fitted_as_least_squares_does(kind: str, bias: bool) -> None:
    model = Remembering(kind, batch_first=True, bias=bias).eval()
    x = draw(200, 7, 5)
    result = cut(model, x, layers="rnn", group="hidden", sparsity="40%")
    stay = kept(result, "rnn")
    thin: Any = result.model
    rows = {row.layer: row for row in refit(model, result, x)}
    assert rows["rnn.l0"].outcome == "refitted"
    read = 2 * F.relu(model.embed(x)).detach()
    states = model.rnn(read)[0].detach()
    before = torch.cat([torch.zeros(200, 1, 10), states[:, :-1]], dim=1)
    several = (torch.arange(model.rnn.weight_ih_l0.shape[0] // 10)[:, None] * 10 + stay).flatten()
    dense_read, dense_kept = (part[..., several] for part in gates(model.rnn, read, before))
    own_read, own_kept = gates(thin.rnn, read, before[..., stay])
    sides = torch.cat([read, before[..., stay]], dim=2)
    joined, units = slice(None), len(stay)
    if kind == "GRU":  # of its new gate the two products go in apart
        joined, new = slice(2 * units), slice(2 * units, None)
        for made, given, wanted in (
            (own_read, read, dense_read),
            (own_kept, before[..., stay], dense_kept),
        ):
            layer = nn.Linear(given.shape[2], units, bias=bias)
            best = best_outputs(layer, given, wanted[..., new])
            assert torch.allclose(made[..., new], best, atol=1e-3 * float(best.abs().max()))
    wanted = (dense_read + dense_kept)[..., joined]
    best = best_outputs(nn.Linear(sides.shape[2], wanted.shape[2], bias=bias), sides, wanted)
    made = (own_read + own_kept)[..., joined]
    assert torch.allclose(made, best, atol=1e-3 * float(best.abs().max()))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_deep_recurrent_layers_of_two_directions_come_nearer(kind: str) -> None:
    model = Remembering(kind, num_layers=2, bidirectional=True).eval()
    x, fresh = draw(200, 7, 5), draw(100, 7, 5, seed=1)
    for rule in ({"layers": "rnn", "group": "hidden"}, {"layers": "embed", "group": "neuron"}):
        result = cut(model, x, sparsity="30%", **rule)
        before = measure_agreement(model, result.model, (fresh,), 100).error
        repaired = sparsify.repair(result, [x])
        ends = {row.layer for row in repaired.layers if row.layer.startswith("rnn.")}
        assert ends == {"rnn.l0", "rnn.l0_reverse", "rnn.l1", "rnn.l1_reverse"}
        assert measure_agreement(model, result.model, (fresh,), 100).error < 0.5 * before


def test_a_recurrent_layer_whose_outputs_come_no_nearer_keeps_its_weights() -> None:
    """The fitted examples are far from those held out, and teach nothing."""
    model = Remembering("GRU", batch_first=True).eval()
    x = draw(30, 7, 5)
    result = cut(model, x, layers="rnn", group="hidden", sparsity="10%")
    rnn = result.model.get_submodule("rnn")
    state = {name: value.clone() for name, value in rnn.state_dict().items()}
    misleading = torch.cat([300 * draw(8, 7, 5, seed=2), 0.1 * x[:4]])
    rows = {row.layer: row for row in refit(model, result, misleading, Settings(ridge=1e-9, held_out=4))}
    own = rows["rnn.l0"]
    assert own.outcome == "reverted" and own.before is not None and own.after is not None
    assert own.after >= own.before
    assert all(torch.equal(value, state[name]) for name, value in rnn.state_dict().items())


def test_packed_sequences_are_left_as_they_are() -> None:
    class Packed(Remembering):
        def forward(self, x: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(
                self.embed(x), torch.full((len(x),), x.shape[1]), batch_first=True
            )
            made = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]
            y: Tensor = self.head(made)
            return y

    model = Packed("LSTM", batch_first=True).eval()
    x = draw(60, 7, 5)
    result = cut(model, x, layers="embed", group="neuron", sparsity="25%")
    repaired = sparsify.repair(result, [x])
    reasons = {row.layer: row.reason for row in repaired.layers if row.outcome == "skipped"}
    assert reasons == {"rnn": "its inputs are no batches of sequences of one length"}


def _mask_some(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", amount=0.2)
    return layer


COMPUTED = (
    "its weight is no parameter, or computed from others: weight_norm, spectral_norm, a parametrization or a "
    "mask"
)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        _mask_some,
    ],
)
def test_layers_whose_weight_is_computed_say_so(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        wrap(nn.Linear(6, 12)), nn.ReLU(), wrap(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    x = draw(200, 6)
    for method in ("least_squares", "merge"):
        result = cut(model, x, layers=["0", "2"], group="neuron", sparsity="50%")
        repaired = sparsify.repair(result, [x], method=method)
        reasons = {row.layer: row.reason for row in repaired.layers if row.outcome == "skipped"}
        if method == "merge":
            assert list(reasons) == ["2", "4"] and reasons["2"] == COMPUTED
            of_units = "'2' makes them by a weight that is computed from other tensors"
            assert reasons["4"] in (of_units, "a normalisation takes statistics over the units")
        else:
            assert reasons == {"0": COMPUTED, "2": COMPUTED}
            assert [row.layer for row in repaired.layers if row.outcome == "refitted"] == ["4"]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_recurrent_layer_whose_weight_is_computed_says_so(wrap: Callable[..., nn.Module]) -> None:
    model = Remembering("LSTM", batch_first=True)
    wrap(model.rnn, "weight_hh_l0")
    x = draw(60, 7, 5)
    result = cut(model.eval(), x, layers="embed", group="neuron", sparsity="25%")
    repaired = sparsify.repair(result, [x])
    reasons = {row.layer: row.reason for row in repaired.layers if row.outcome == "skipped"}
    assert reasons == {"rnn": COMPUTED}


def masked_best(inputs: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Least squares of each output on its own inputs alone, with an intercept: [rows, outputs]."""
    made = []
    for output in range(len(mask)):
        system = torch.cat([inputs[:, mask[output]], torch.ones(len(inputs), 1)], dim=1).double()
        solution = torch.linalg.lstsq(system, targets[:, output : output + 1].double()).solution
        made.append(system @ solution)
    return torch.cat(made, dim=1).float()


@pytest.mark.parametrize("group", ["weight", "2:4"])
def test_weights_that_were_set_to_zero_stay_zero(group: str) -> None:
    """The others make up for them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x, fresh = draw(300, 8), draw(100, 8, seed=1)
    sparsity = {} if group == "2:4" else {"sparsity": "40%"}
    recipe = {"version": 1, "title": "t", "rules": [{"layers": "2", "group": group, **sparsity}]}
    result = sparsify.cut(sparsify.make_plan(recipe, model, (x[:2],)), model)
    zeros = result.model.get_parameter("2.weight") == 0
    assert 0.3 < float(zeros.float().mean()) < 0.6
    before = measure_agreement(model, result.model, (fresh,), 100).error
    rows = refit(model, result, x)
    assert [row.outcome for row in rows] == ["unchanged", "refitted"]
    assert torch.equal(result.model.get_parameter("2.weight") == 0, zeros)
    best = masked_best(model[:2](x).detach(), model(x).detach(), ~zeros)
    assert torch.allclose(result.model(x).detach(), best, atol=1e-3)
    assert measure_agreement(model, result.model, (fresh,), 100).error < 0.7 * before


@pytest.mark.parametrize("method", ["least_squares", "merge"])
def test_zeros_in_every_kind_of_layer_stay(method: str) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.attention = nn.Linear(5, 16), nn.MultiheadAttention(16, 4, batch_first=True)
            self.wide, self.rnn, self.head = nn.Linear(16, 24), nn.GRU(24, 10), nn.Linear(10, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.embed(x)
            y = F.relu(self.wide(self.attention(y, y, y)[0] + y))
            y = self.head(self.rnn(y)[0])
            return y

    model = Both().eval()
    x = draw(120, 6, 5)
    rules = [
        {"layers": "wide", "group": "neuron", "sparsity": "25%"},
        {"layers": ["*"], "group": "weight", "sparsity": "50%", "override": True},
    ]
    recipe = {"version": 1, "title": "t", "rules": rules}
    result = sparsify.cut(sparsify.make_plan(recipe, model, (x[:2],)), model)
    zeros = {name: value == 0 for name, value in result.model.named_parameters()}
    covered = {op.tensor for op in result.cuts.operations if op.op == "zero"}
    assert {"wide.weight", "attention.in_proj_weight", "head.weight"} <= covered
    repaired = sparsify.repair(result, None if method == "merge" else [x], method=method)
    if method == "least_squares":
        changed = {row.layer for row in repaired.layers if row.outcome == "refitted"}
        assert {"attention.values", "rnn.l0", "wide"} <= changed
    for name in covered:
        assert torch.equal(result.model.get_parameter(name) == 0, zeros[name]), name
