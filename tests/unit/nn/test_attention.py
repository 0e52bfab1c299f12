"""Heads of torch's own attention: the module that takes its place, cutting, replaying, planning."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import RunError
from sparsify.graph import build_map
from sparsify.graph.surgery import operations
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.verify import equivalence, trial_cuts
from sparsify.nn import attention
from sparsify_schemas.cuts import Cuts, Replace


def adopted(of: nn.MultiheadAttention) -> nn.MultiheadAttention:
    holder = nn.ModuleList([of])
    attention.adopt(holder, "0")
    return holder[0]  # type: ignore[return-value]


MASKS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "none": dict,
    "truth values": lambda: {"attn_mask": torch.ones(5, 7).triu(2).bool()},
    "numbers": lambda: {"attn_mask": torch.randn(5, 7)},
    "a mask for each head": lambda: {"attn_mask": torch.randn(12, 5, 7)},
    "padding": lambda: {"key_padding_mask": torch.arange(7).expand(3, 7) > torch.tensor([[3], [6], [5]])},
    "both": lambda: {"attn_mask": torch.randn(5, 7), "key_padding_mask": torch.randn(3, 7)},
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "more",
    [{}, {"bias": False}, {"kdim": 6, "vdim": 10}, {"add_bias_kv": True}, {"add_zero_attn": True}],
    ids=str,
)
def test_it_computes_what_torchs_own_does(more: Mapping[str, Any], mask: str) -> None:
    torch.manual_seed(0)
    for first, weights, average in product((False, True), (False, True), (False, True)):
        theirs = nn.MultiheadAttention(16, 4, batch_first=first, dtype=torch.float64, **more).eval()
        given = [
            torch.randn(3, n, w, dtype=torch.float64)
            for n, w in ((5, 16), (7, theirs.kdim), (7, theirs.vdim))
        ]
        given = given if first else [x.transpose(0, 1) for x in given]
        masks = {k: m.double() if m.is_floating_point() else m for k, m in MASKS[mask]().items()}
        call = {"need_weights": weights, "average_attn_weights": average, **masks}
        wanted = theirs(*given, **call)
        found = adopted(theirs)(*given, **call)
        assert torch.allclose(found[0], wanted[0], atol=1e-12)
        assert (found[1] is None and wanted[1] is None) or torch.allclose(found[1], wanted[1], atol=1e-12)


def test_without_a_batch_and_with_a_causal_mask() -> None:
    torch.manual_seed(0)
    theirs, x = nn.MultiheadAttention(16, 4).eval(), torch.randn(5, 16)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    wanted = theirs(x, x, x), theirs(x, x, x, attn_mask=causal, is_causal=True, need_weights=False)
    ours = adopted(theirs)
    for (y, w), (found, weights) in zip(
        wanted,
        (ours(x, x, x), ours(x, x, x, attn_mask=causal, is_causal=True, need_weights=False)),
        strict=True,
    ):
        assert torch.allclose(found, y, atol=1e-6) and (w is None or torch.allclose(weights, w, atol=1e-6))
    with pytest.raises(RuntimeError, match="is_causal is a hint about attn_mask; pass the mask too"):
        ours(x, x, x, is_causal=True)


def test_dropout_falls_on_the_weights_in_training_alone() -> None:
    torch.manual_seed(0)
    ours, x = adopted(nn.MultiheadAttention(16, 4, dropout=0.5)), torch.randn(5, 3, 16)
    weights = ours.train()(x, x, x, average_attn_weights=False)[1]
    assert 0.2 < float((weights == 0).float().mean()) < 0.8 and bool((ours.eval()(x, x, x)[1] > 0).all())


class Reads(nn.Module):
    """Attention over another sequence, with some options; the stream is as wide as the attention."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.a, self.k, self.v = (
            nn.Linear(6, 16),
            nn.Linear(6, more.get("kdim", 16)),
            nn.Linear(6, more.get("vdim", 16)),
        )
        self.att = nn.MultiheadAttention(16, 4, batch_first=True, **more)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.a(x)
        return self.fc((z + self.att(z, self.k(y), self.v(y))[0]).mean(1))


PAIR = (
    torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)),
    torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1)),
)


@pytest.mark.parametrize(
    "more",
    [{}, {"bias": False}, {"kdim": 8, "vdim": 12}, {"add_bias_kv": True}, {"add_zero_attn": True}],
    ids=str,
)
def test_heads_leave_and_so_do_inputs(more: Mapping[str, Any]) -> None:
    torch.manual_seed(0)
    model = Reads(**more)
    map = trial_cuts.protect_failing_groups(model, build_map.build_map(model, PAIR, {}), PAIR)
    assert map.by_name["att"].width == 4 and not [
        c.name for c in map.coupled if c.protected and c.name != "fc"
    ]
    streams = (
        {"k": [0, 5, 6], "v": [1, 2, 3, 7]} if "kdim" in more else {}
    )  # one packed weight reads all three: they leave with 'a'
    keep = {"att": [0, 1, 3], "a": list(range(5, 12)), **streams}
    thin, cuts = operations.cut(model, map, keep, "test")
    verdict = equivalence.verify_cut(model, thin, map, keep, PAIR)
    assert verdict.outcome == "equal" and verdict.difference <= 1e-12 and verdict.control > 1e-3
    assert (thin.att.num_heads, thin.att.head_dim, thin.att.embed_dim) == (3, 4, 7)
    assert (thin.att.kdim, thin.att.vdim) == ((3, 4) if streams else (7, 7)) and type(
        thin.att
    ) is attention.MultiheadAttention
    again = replay_cuts(Reads(**more), Cuts.model_validate_json(cuts.model_dump_json()))
    again.load_state_dict(thin.state_dict())
    assert torch.equal(again.eval()(*PAIR), thin.eval()(*PAIR)) and type(model.att) is nn.MultiheadAttention


def test_a_cut_attention_can_be_cut_again() -> None:
    torch.manual_seed(0)
    model = Reads()
    for heads in (3, 1):
        map = trial_cuts.protect_failing_groups(model, build_map.build_map(model, PAIR, {}), PAIR)
        keep = {"att": list(range(heads))}
        thin, _ = operations.cut(model, map, keep, "test")
        assert equivalence.verify_cut(model, thin, map, keep, PAIR).difference <= 1e-12
        assert thin.att.num_heads == heads
        model = thin


@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_with_padding_runs_on_after_a_cut(training: bool) -> None:
    """torch's encoder packs padded sequences for its fused path, which a cut attention cannot take."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    inputs = {
        "src": torch.randn(2, 5, 16),
        "src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
    }
    map = trial_cuts.protect_failing_groups(model, build_map.build_map(model, inputs, {}), inputs)
    keep = {"layers.0.self_attn": [0, 3], "layers.1.self_attn": [2], "layers.0.linear1": list(range(7))}
    thin, cuts = operations.cut(model, map, keep, "test")
    assert [c.name for c in map.coupled if c.protected] == [
        "layers.0.self_attn.out_proj"
    ]  # the stream is the output
    assert equivalence.verify_cut(model, thin, map, keep, inputs).outcome == "equal"
    again = replay_cuts(model, cuts)
    with torch.no_grad():
        assert torch.equal(again.train(training)(**inputs), thin.train(training)(**inputs))


def test_a_log_that_replaces_something_else_is_refused() -> None:
    for name in ("fc", "nowhere"):
        with pytest.raises(RunError) as caught:
            replay_cuts(Reads(), Cuts(plan="x", operations=(Replace(module=name),)))
        assert str(caught.value) == (
            f"the cut log replaces '{name}', which is not a MultiheadAttention in this "
            "model; was it built by the same recipe?"
        )


def test_a_rule_takes_heads_of_torchs_attention() -> None:
    torch.manual_seed(0)
    recipe = {
        "version": 1,
        "title": "heads",
        "rules": [{"layers": ["MultiheadAttention"], "group": "head", "sparsity": "50%"}],
        "stages": [{"kind": "cut"}],
    }
    model = Reads()
    plan = sparsify.make_plan(recipe, model, PAIR)
    assert plan.assignments[0].coupled == ("att",)
    result = sparsify.cut(plan, model)
    assert result.model.att.num_heads == 2
    for batch in (1, 4):
        assert reference.difference(result, model, reference.fresh(PAIR, batch, seed=3)) <= 1e-9


def test_a_mask_for_each_head_keeps_the_heads() -> None:
    torch.manual_seed(0)

    class Masked(Reads):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = self.a(x)
            return self.fc(
                (z + self.att(z, self.k(y), self.v(y), attn_mask=torch.ones(8, 5, 7).tril())[0]).mean(1)
            )

    map = trial_cuts.protect_failing_groups(Masked(), build_map.build_map(Masked(), PAIR, {}), PAIR)
    assert (
        map.by_name["att"].protected == "it is combined with something of fixed size"
        and map.by_name["a"].protected is None
    )
