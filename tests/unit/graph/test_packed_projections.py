"""What one projection packs and code takes apart: it leaves where the places of the parts follow.

Every cut is compared with tests/reference.py, which zeroes the logged indices in the dense model.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import RunError
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.pruning.cut import Result
from sparsify_schemas.cuts import Select, SetAttribute

sys.path.append(str(Path(__file__).parents[2] / "zoo"))
packed: Any = importlib.import_module("packed")

ROWS = (torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0)),)


def make(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def cut(model: nn.Module, *rules: dict[str, Any]) -> Result:
    own = [{"group": "neuron", "sparsity": "50%", "criterion": {"kind": "random"}, **rule} for rule in rules]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": own}, model, ROWS)
    result = sparsify.cut(plan, model)
    for seed, batch in ((1, 1), (2, 4)):
        assert reference.difference(result, model, reference.fresh(ROWS, batch, seed)) <= 1e-9
    return result


def sets(result: Result) -> list[tuple[str, str, Any, bool]]:
    """Numbers of configurations that the log sets."""
    ops = [op for op in result.cuts.operations if isinstance(op, SetAttribute) and "." in op.attribute]
    return [(op.module, op.attribute, op.value, op.own) for op in ops]


@pytest.mark.parametrize("kind", ["SlicedByConfig", "SplitByConfig"])
def test_heads_leave_and_the_shared_configuration_follows(kind: str) -> None:
    model: Any = make(lambda: packed.Blocks(getattr(packed, kind)))
    result = cut(model, {"layers": "*qkv_proj", "group": "head", "keep": {"uniform": True}})
    thin: Any = result.model
    assert [m.qkv_proj.out_features for m in thin.attentions] == [20, 20]  # 3 queries, a key and a value
    assert all(m.config is thin.config for m in thin.attentions)
    assert (thin.config.num_attention_heads, thin.config.num_key_value_heads) == (3, 1)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (6, 2)
    assert sets(result)[:2] == [
        ("attentions.0", "config.num_attention_heads", 3, False),
        ("attentions.0", "config.num_key_value_heads", 1, False),
    ]
    assert not result.notes


def test_a_query_group_leaves_as_one_unit() -> None:
    model = make(lambda: packed.Blocks(packed.SlicedByConfig))
    result = cut(model, {"layers": "attentions.0.qkv_proj", "group": "head"})
    narrowed: dict[str, Any] = {getattr(op, "tensor", ""): op for op in result.cuts.operations}
    first, second = ((0, 12), (24, 28), (32, 36)), ((12, 24), (28, 32), (36, 40))
    assert narrowed["attentions.0.qkv_proj.bias"].keep in (first, second)


def test_layers_of_unequal_heads_get_configurations_of_their_own() -> None:
    model: Any = make(lambda: packed.Blocks(packed.SlicedByConfig))
    result = cut(
        model,
        {"layers": "attentions.0.qkv_proj", "group": "head"},
        {"layers": "embed", "sparsity": "25%"},
    )
    thin: Any = result.model
    first, second = thin.attentions
    assert first.config is not thin.config and second.config is thin.config
    assert (first.config.num_attention_heads, first.config.num_key_value_heads) == (3, 1)
    assert (thin.config.num_attention_heads, thin.config.num_key_value_heads) == (6, 2)
    assert first.config.hidden_size == thin.config.hidden_size == 18
    assert sets(result) == [
        ("attentions.0", "config.num_attention_heads", 3, True),
        ("attentions.0", "config.num_key_value_heads", 1, True),
        ("", "config.hidden_size", 18, False),
        ("attentions.0", "config.hidden_size", 18, True),
    ]
    assert result.notes == (
        "'config.num_attention_heads' still says 6; the layers now have 3 and 6 heads",
        "'config.num_key_value_heads' still says 2; the layers now have 1 and 2 heads",
    )
    again: Any = replay_cuts(model, result.cuts)
    again.load_state_dict(thin.state_dict())
    assert again.attentions[0].config is not again.config and again.attentions[1].config is again.config
    assert torch.equal(again.eval()(*ROWS), thin.eval()(*ROWS))


def test_a_cut_of_a_cut_model_goes_on_from_there() -> None:
    model = make(lambda: packed.Blocks(packed.SlicedByConfig))
    once = cut(model, {"layers": "attentions.0.qkv_proj", "group": "head"}).model.eval()
    twice: Any = cut(once, {"layers": "attentions.1.qkv_proj", "group": "head"}).model
    assert [m.config.num_attention_heads for m in twice.attentions] == [3, 3]
    assert [m.qkv_proj.out_features for m in twice.attentions] == [20, 20]


@pytest.mark.parametrize(
    ("kind", "layer"), [("OneKey", "qkv"), ("OneKeyBehind", "qkv"), ("OneKeyApart", "q")]
)
def test_heads_leave_from_a_single_key_and_value(kind: str, layer: str) -> None:
    """Each layer keeps heads of its own; the key and the value, of four places, stay."""
    model: Any = make(lambda: packed.Blocks(getattr(packed, kind)))
    result = cut(model, {"layers": f"attentions.0.{layer}", "group": "head"})
    first, second = result.model.attentions
    beside = 0 if layer == "q" else 8
    assert [getattr(m, layer).out_features - beside for m in (first, second)] == [12, 24]
    assert [m.out.in_features for m in (first, second)] == [12, 24]
    assert result.verdicts[0].outcome == "equal"
    narrowed: dict[str, Any] = {getattr(op, "tensor", ""): op for op in result.cuts.operations}
    kept = [i for first, end in narrowed[f"attentions.0.{layer}.weight"].keep for i in range(first, end)]
    assert [i % 4 for i in kept] == [0, 1, 2, 3] * (len(kept) // 4)
    assert layer == "q" or kept[-8:] == list(range(24, 32))
    again = replay_cuts(model, result.cuts)
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again.eval()(*ROWS), result.model.eval()(*ROWS))


def test_why_a_single_key_and_value_stay() -> None:
    model = make(lambda: packed.Blocks(packed.OneKeyApart))
    plan = sparsify.make_plan(
        {"version": 1, "title": "t", "rules": [{"layers": "*", "group": "weight", "sparsity": "50%"}]},
        model,
        ROWS,
    )
    reasons = {group.name: group.protected for group in plan.map.coupled if group.protected}
    assert reasons == {
        "attentions.0.k": "all heads share it",
        "attentions.0.v": "it is flattened together with another dimension",
        "attentions.1.k": "all heads share it",
        "attentions.1.v": "it is flattened together with another dimension",
        "head": "it feeds the network's output",
    }


def test_heads_and_ranks_of_latent_attention_leave() -> None:
    model: Any = make(lambda: packed.Blocks(packed.LatentAttention))
    result = cut(
        model,
        {"layers": "attentions.0.q_b", "group": "head"},
        {"layers": "attentions.0.q_a"},
        {"layers": "attentions.0.kv_a"},
    )
    own = result.model.attentions[0]
    assert (own.num_heads, own.kv_lora_rank, own.rope_dim, own.nope_dim) == (3, 4, 4, 3)
    assert tuple(own.q_b.weight.shape) == (3 * 7, 5)
    assert tuple(own.kv_a.weight.shape) == (4 + 4, 24)  # the rotated part of the keys stays
    assert tuple(own.kv_b.weight.shape) == (3 * 7, 4)
    assert tuple(own.out.weight.shape) == (24, 3 * 4)
    assert result.verdicts[0].outcome == "equal"
    assert result.model.attentions[1].num_heads == 6


SLOPED: dict[str, Callable[[], nn.Module]] = {
    "saved": lambda: packed.Blocks(packed.Sloped),
    "not saved": lambda: packed.Blocks(lambda config: packed.Sloped(config, saved=False)),
    "made for all": packed.Positions,
}


@pytest.mark.parametrize("kind", SLOPED)
def test_heads_leave_with_their_slopes(kind: str) -> None:
    """Each layer keeps heads of its own, and of the slopes those of its heads."""
    model: Any = make(SLOPED[kind])
    result = cut(model, {"layers": "attentions.0.query_key_value", "group": "head"})
    thin: Any = result.model
    assert [m.num_heads for m in thin.attentions] == [3, 6]
    assert result.verdicts[0].outcome == "equal"
    narrowed: dict[str, Any] = {getattr(op, "tensor", ""): op for op in result.cuts.operations}
    rows = narrowed["attentions.0.query_key_value.bias"].keep
    heads = [i // 12 for first, end in rows for i in range(first, end, 12)]
    selected = [op for op in result.cuts.operations if isinstance(op, Select)]
    if kind == "made for all":
        (op,) = selected
        assert (op.module, op.argument, op.dim, op.size) == ("attentions.0", "alibi", 0, 6)
        assert [i for first, end in op.keep for i in range(first, end)] == heads
        assert thin.config.num_attention_heads == 6  # the slopes are made for as many
    else:
        assert not selected
        assert torch.equal(thin.attentions[0].slopes, packed.slopes_of(6).view(-1, 1, 1)[heads])
    again: Any = replay_cuts(model, result.cuts)
    again.load_state_dict(thin.state_dict())
    for batch in (1, 3):
        (x,) = reference.fresh(ROWS, batch, 5)
        assert torch.equal(again.eval()(x), thin.eval()(x))


def test_a_layer_that_has_lost_heads_loses_more() -> None:
    rule = {"layers": "attentions.0.query_key_value", "group": "head"}
    once = cut(make(packed.Positions), rule).model.eval()
    result = cut(once, {**rule, "sparsity": "34%"})
    twice: Any = result.model
    assert [m.num_heads for m in twice.attentions] == [2, 6]
    (op,) = [op for op in result.cuts.operations if isinstance(op, Select)]
    assert (op.module, op.size) == ("attentions.0", 3)


def test_slopes_that_an_attention_makes_anew_keep_its_heads() -> None:
    model = make(lambda: packed.Blocks(packed.SlopedAnew))
    body = {"version": 1, "title": "t", "rules": [{"layers": "*", "group": "weight", "sparsity": "50%"}]}
    plan = sparsify.make_plan(body, model, ROWS)
    reasons = {group.name: group.protected for group in plan.map.coupled if group.protected}
    assert reasons["attentions.0.query_key_value"] == "it is combined with something of fixed size"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"module": "attentions.7"},
            "the cut log has 'attentions.7' select what it is given, which this model does not have; "
            "was it built by the same recipe?",
        ),
        (
            {"keep": ((4, 9),)},
            "the cut log has 'attentions.0' select places that are out of order or beyond its 6",
        ),
    ],
)
def test_a_log_that_selects_what_is_not_there_is_refused(changes: dict[str, Any], message: str) -> None:
    model = make(packed.Positions)
    result = cut(model, {"layers": "attentions.0.query_key_value", "group": "head"})
    operations = [
        op.model_copy(update=changes) if isinstance(op, Select) else op for op in result.cuts.operations
    ]
    with pytest.raises(RunError) as caught:
        replay_cuts(model, result.cuts.model_copy(update={"operations": tuple(operations)}))
    assert str(caught.value) == message


class PairsBehind(nn.Module):
    """Complex numbers, which must begin at even places, behind neurons in each row."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 12
        self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(12, 8), nn.Linear(8 + 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.a(x).split([self.width, 4], -1)
        turned = torch.view_as_complex(rest.unflatten(-1, (2, 2))) * 1j
        return self.fc(torch.cat([self.b(first).relu(), torch.view_as_real(turned).flatten(-2)], -1))


def test_what_is_beside_complex_numbers_in_a_row_leaves_in_twos() -> None:
    model: Any = make(PairsBehind)
    result = cut(model, {"layers": "a"})
    assert [(w.group, w.width, w.kept) for w in result.cuts.widths] == [("a", 6, 3)]
    assert result.model.a.out_features == 10 and result.verdicts[0].outcome == "equal"


class SizesBesideConfig(packed.SplitBySizes):  # type: ignore[misc]
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.config = config


def test_heads_that_only_the_configuration_counts_are_told_to_it() -> None:
    """The layers keep sizes of parts; the configuration's heads are read by nobody, and follow."""
    model = make(lambda: packed.Blocks(SizesBesideConfig))
    thin: Any = cut(model, {"layers": "*qkv", "group": "head", "keep": {"uniform": True}}).model
    assert [(m.q_size, m.kv_size) for m in thin.attentions] == [(12, 4), (12, 4)]
    assert (thin.config.num_attention_heads, thin.config.num_key_value_heads) == (3, 1)


def test_a_log_that_widens_a_configuration_of_its_own_is_refused() -> None:
    model = make(lambda: packed.Blocks(packed.SlicedByConfig))
    result = cut(model, {"layers": "attentions.0.qkv_proj", "group": "head"})
    operations = [
        op.model_copy(update={"value": 10**9}) if getattr(op, "own", False) else op
        for op in result.cuts.operations
    ]
    with pytest.raises(RunError) as caught:
        replay_cuts(model, result.cuts.model_copy(update={"operations": tuple(operations)}))
    assert str(caught.value) == (
        "the cut log sets 'attentions.0.config.num_attention_heads' to 1000000000, but no operation in it "
        "narrows 6 to that"
    )


class Fixed(nn.Module):
    """Parts of 5 and 11 features, at places that stand in the code."""

    def __init__(self, take: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.take = take
        self.a, self.b, self.c, self.fc = nn.Linear(6, 16), nn.Linear(5, 8), nn.Linear(11, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.take(self.a(x).tanh())
        return self.fc((self.b(first) + self.c(rest)).relu())


def reasons(model: nn.Module) -> dict[str, str | None]:
    rules = [{"layers": "*", "group": "neuron"}]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, ROWS)
    return {group.name: group.protected for group in plan.map.coupled if group.name != "fc"}


def test_parts_of_written_sizes_stay_with_the_reason() -> None:
    why = "it is split at fixed places"
    assert reasons(make(lambda: Fixed(lambda y: y.split([5, 11], -1)))) == {"a": why, "a#2": why, "b": None}
    why = "it is sliced at a fixed place"
    found = reasons(make(lambda: Fixed(lambda y: (y[..., :5], y[..., 5:]))))
    assert found == {"a": why, "a#2": None, "b": None}  # what stands behind the last place may leave


def test_places_behind_the_last_slice_leave() -> None:
    model: Any = make(lambda: Fixed(lambda y: (y[..., :5], y[..., 5:])))
    thin: Any = cut(model, {"layers": "a", "sparsity": "40%"}).model
    assert (thin.a.out_features, thin.b.in_features, thin.c.in_features) == (12, 5, 7)


def test_time_steps_and_states_leave_each_for_itself() -> None:
    model: Any = make(packed.SelectiveScan)
    thin: Any = cut(model, {"layers": "x_proj"}).model
    assert thin.x_proj.out_features == thin.time_step_rank + 2 * thin.ssm_state_size
    assert thin.dt_proj.in_features == thin.time_step_rank and thin.A_log.shape[1] == thin.ssm_state_size
    assert (thin.time_step_rank, thin.ssm_state_size) != (4, 6)


class Named(nn.Module):
    """Four heads: a number as large counts something else, as its name says."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.conv_kernel_size, self.num_key_value_groups = 4, 4, 4
        self.a, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).view(*x.shape[:2], self.num_heads, -1)
        return self.fc((y * y.softmax(-1)).flatten(2))


def test_a_number_that_counts_another_thing_does_not_follow() -> None:
    thin: Any = cut(make(Named), {"layers": "a", "group": "head"}).model
    assert (thin.num_heads, thin.conv_kernel_size, thin.num_key_value_groups) == (2, 4, 4)


class Checked(nn.Module):
    """A block that compares the width of its input with a number, outside of any operator."""

    def __init__(self) -> None:
        super().__init__()
        self.num_channels, self.layer = 16, nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.num_channels:
            raise ValueError("the number of channels is another one")
        return self.layer(x)


def test_a_number_that_a_block_compares_its_input_with_follows() -> None:
    thin: Any = cut(
        make(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), Checked(), nn.Tanh(), nn.Linear(12, 3))),
        {"layers": "0"},
    ).model
    assert thin[2].num_channels == thin[0].out_features == 8
