"""What the proof looks at: the delivered model, what was folded into it, train mode, inputs drawn after
the choice."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sparsify
from sparsify.cost.measure import copy_model
from sparsify.errors import VerificationError
from sparsify.forward.call_model import named_inputs
from sparsify.graph.surgery import contraction_masks
from sparsify.graph.surgery.data_masks import mask_nowhere
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.verify import equivalence
from sparsify.pruning.constant_units import CONTRADICTED
from sparsify.pruning.cut import Result


class Net(nn.Module):
    """Linear, what `run` does, Linear."""

    def __init__(self, run: Any, **layers: Any) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def cut(model: nn.Module, x: Tensor, **rule: Any) -> Result:
    recipe = {"version": 1, "title": "t", "rules": [{"layers": "a", "group": "neuron", **rule}]}
    return sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)


def faint(model: Net, units: int = 4) -> Net:
    """The first units are those that a choice by magnitude takes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and name.startswith(("a.", "g.")):
                parameter[:units] *= 1e-2
        model.b.weight[:, :units] *= 1e-2
    return model


def plain() -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net(lambda m, x: m.b(m.a(x).tanh())).eval(), torch.randn(1, 6)


def test_factors_of_zero_make_constants() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.b((m.a(x) * m.scale + m.shift).tanh()),
        scale=nn.Parameter(torch.ones(16)),
        shift=nn.Parameter(torch.ones(16)),
    )
    faint(model)
    with torch.no_grad():
        model.scale[:4] = 0
    result = cut(model.eval(), torch.randn(1, 6), sparsity="25%", criterion={"kind": "magnitude"})
    assert result.cuts.widths[0].keep == ((4, 16),), (
        "the choice fell on other units: the test would prove nothing"
    )
    x = torch.randn(5, 6).double()
    assert result.verdicts[0].reference == "dense model"
    assert torch.allclose(copy_model(result.model).double()(x), copy_model(model).double()(x), atol=1e-6)


@pytest.mark.parametrize("early", [False, True])
def test_data_that_are_written_into_a_part_of_a_tensor_make_its_constants_data(early: bool) -> None:
    """Also where what is read is a view that was taken before."""
    torch.manual_seed(0)

    def run(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        seen = y[:, 1:]
        y[:, 1:].add_(m.g(x)[:, 1:])
        return m.b((seen if early else y).tanh())

    model = faint(Net(run, g=nn.Linear(6, 16)))
    with torch.no_grad():
        model.a.weight[:4] = 0
    result = cut(model.eval(), torch.randn(1, 5, 6), sparsity="25%", criterion={"kind": "magnitude"})
    assert CONTRADICTED not in result.notes
    assert torch.equal(result.model.b.bias, model.b.bias)
    assert result.verdicts[0].reference == "masked model"


def test_constants_that_other_inputs_contradict_are_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a mean that goes into a bias the comparison alone could not tell that it comes from data."""
    torch.manual_seed(0)
    model = faint(Net(lambda m, x: m.b(m.a(x).tanh())))
    with torch.no_grad():
        model.a.weight[0] = 0
    monkeypatch.setitem(contraction_masks.CONTRACTIONS, "addmm", lambda *found: mask_nowhere(found[-1]))
    result = cut(model.eval(), torch.randn(1, 5, 6), sparsity="25%", criterion={"kind": "magnitude"})
    assert CONTRADICTED in result.notes
    assert torch.equal(result.model.b.bias, model.b.bias)


def test_a_bias_that_something_else_reads_takes_nothing() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b(m.a(x).tanh()).relu() + m.b.bias)
    with torch.no_grad():
        model.a.weight[:4] = 0
        model.a.bias[:4] = 1
    result = cut(model.eval(), torch.randn(1, 6))
    assert torch.equal(result.model.b.bias, model.b.bias)
    assert result.notes[0].startswith("'b' lost 4 constant inputs that could not be folded anywhere: up to ")


def test_constants_that_vary_along_a_sequence_are_told() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b((m.a(x) + m.places).tanh()))
    model.register_buffer("places", torch.randn(5, 16))
    with torch.no_grad():
        model.a.weight[:4] = 0
    result = cut(model.eval(), torch.randn(1, 5, 6))
    assert result.notes[0].startswith("'b' lost 4 constant inputs; their mean was folded into a bias, up to ")
    assert result.verdicts[0].reference == "masked model"


def test_the_proof_uses_inputs_drawn_after_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """One, two and five examples, none of them those that the plan was made with."""
    model, x = plain()
    seen: list[Tensor] = []
    real = equivalence.verify_cut

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.extend(tensor for one in kwargs["fresh"] for tensor in (value for _, value in named_inputs(one)))
        return real(*args, **kwargs)

    monkeypatch.setattr("sparsify.graph.verify.equivalence.verify_cut", noting)
    verdict = cut(model, x, sparsity="50%").verdicts[0]
    assert verdict.batches == (1, 2, 5) == tuple(len(one) for one in seen)
    assert not any(torch.equal(row, own) for one in seen for row in one for own in x)


def scores_and_class(model: Any, x: Tensor, shift: int = 0, turn: int = 0) -> tuple[Tensor, Tensor]:
    scores = model.b(model.a(x).tanh())
    return scores + shift, scores.argmax(1) + turn


REBUILT = {
    "scores": (partial(scores_and_class, shift=1), r"by [\d.e+-]+ of the largest"),
    "classes": (partial(scores_and_class, turn=1), r"in \d+ whole numbers? \(classes, indices, masks\)"),
}


@pytest.mark.parametrize("name", REBUILT)
def test_a_model_that_is_rebuilt_otherwise_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = plain()
    model.run = scores_and_class
    otherwise, differing = REBUILT[name]
    real = replay_cuts

    def spoilt(*args: Any) -> nn.Module:
        again = real(*args)
        again.run = otherwise
        return again

    monkeypatch.setattr("sparsify.pruning.proof.replay_cuts", spoilt)
    with pytest.raises(VerificationError) as caught:
        cut(model, x, sparsity="50%")
    assert re.fullmatch(
        "the cut model rebuilt from its log and weights computes something else than the cut model itself: "
        rf"outputs differ {differing}; this is a bug: please report it with the recipe and the model's code; "
        "nothing was saved",
        str(caught.value),
    )


def proven(model: Net, x: Tensor, spoil: Any, **more: Any) -> str:
    """The message with which a spoilt cut model is refused."""
    result = cut(model, x, sparsity="50%")
    spoil(result.model)
    keep = {w.group: [i for start, end in w.keep for i in range(start, end)] for w in result.cuts.widths}
    with pytest.raises(VerificationError) as caught:
        equivalence.verify_cut(model, result.model, result.plan.map, keep, (x,), **more)
    return str(caught.value)


def test_a_folded_value_that_the_delivered_model_does_not_hold_is_refused() -> None:
    model, x = plain()
    text = proven(model, x, lambda thin: None, folded={"b.bias": model.b.bias.detach().double() + 1})
    assert text == "'b.bias' of the cut model does not hold what was folded into it"


def test_outputs_of_another_shape_in_train_mode_are_refused() -> None:
    model, x = plain()

    def spoil(thin: Net) -> None:
        thin.run = lambda m, x: m.b(m.a(x).tanh())[:, : 2 if m.training else 4]

    assert (
        proven(model, x, spoil)
        == "in train mode the cut model's outputs have other shapes than the dense one's [groups: a]"
    )


def test_a_parameter_that_no_gradient_reaches_is_refused() -> None:
    model, x = plain()

    def spoil(thin: Net) -> None:
        thin.run = lambda m, x: nn.functional.linear(m.a(x).tanh(), m.b.weight, m.b.bias.detach())

    assert proven(model, x, spoil) == (
        "in train mode no gradient reaches 'b.bias' of the cut model, as it does in the dense one [groups: a]"
    )


def test_batches_that_the_model_does_not_take_are_left_out() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b(m.a(x.view(2, 6)).tanh())).eval()
    verdict = cut(model, torch.randn(2, 6), sparsity="50%").verdicts[0]
    assert verdict.batches == (2,) and verdict.outcome == "equal"


def masked_producer(model: Net) -> None:
    """Dead by a mask of torch.nn.utils.prune; the stored weights are alive."""
    mask = torch.ones(16, 6)
    mask[:4] = 0
    prune.custom_from_mask(model.a, "weight", mask)


def zero_producer(model: Net) -> None:
    model.a.weight.data[:4] = 0


@pytest.mark.parametrize("kill", [zero_producer, masked_producer])
@pytest.mark.parametrize(
    "gate",
    [
        lambda x: x[:, :1].sigmoid(),
        lambda x: x[:, 1:2].relu(),  # closed at the planning input
        lambda x: x[:, :1] - x[:, :1].mean(0),  # zero for one example
    ],
)
def test_constants_that_a_gate_multiplies_are_told_whatever_the_planning_input(kill: Any, gate: Any) -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b(m.a(x).tanh() * gate(x))).eval()
    kill(model)
    model.a.bias.data += 1
    x = torch.randn(1, 6)
    x[0, 1] = -1
    result = cut(model, x)
    assert any("mixed with data" in note for note in result.notes)


@pytest.mark.parametrize(
    "write", [lambda w, x: w.masked_fill_(x[..., :1] < -2, 0), lambda w, x: w.mul_(x[..., :1])]
)
def test_weights_that_are_written_into_after_a_softmax_average_no_more(write: Any) -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b(write((x @ x.mT).softmax(-1), x) @ m.a(x).tanh())).eval()
    zero_producer(model)
    result = cut(model, torch.randn(1, 5, 6))
    assert any("mixed with data" in note for note in result.notes) and CONTRADICTED not in result.notes
    assert torch.equal(result.model.b.bias, model.b.bias)


def test_a_bias_of_which_something_else_reads_a_part_takes_nothing() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.b(m.a(x).tanh())[:, :2] * m.b.bias[2:]).eval()
    zero_producer(model)
    result = cut(model, torch.randn(1, 6))
    assert torch.equal(result.model.b.bias, model.b.bias)
    assert result.notes[0].startswith("'b' lost 4 constant inputs that could not be folded anywhere: up to ")


def test_outputs_that_are_masked_with_infinities_are_compared() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: torch.cat([m.b(m.a(x).tanh()), torch.full_like(x[:, :1], -torch.inf)], 1)).eval()
    verdict = cut(model, torch.randn(2, 6), sparsity="50%").verdicts[0]
    assert verdict.outcome == "equal" and verdict.difference <= 1e-9 and 0 < verdict.control < 10


class Noisy(nn.Module):
    """Draws noise in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + torch.randn(len(x), 3, dtype=x.dtype)


def test_what_is_random_is_drawn_alike_on_both_sides_and_in_every_proof() -> None:
    """The user's own random numbers neither change what a proof finds nor are changed by it."""
    model = Noisy()
    found = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(cut(model, torch.ones(2, 4), sparsity="50%").verdicts)
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1] and [v.outcome for v in found[0]] == ["equal"]


def test_mixtures_with_grouped_products_are_compared_in_double_precision() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        use_cache=False,
        experts_implementation="grouped_mm",
    )
    model = transformers.MixtralForCausalLM(config).eval()
    way = model.config._experts_implementation
    inputs = {"input_ids": torch.randint(32, (2, 5))}
    rule = {"layers": "re:.*experts.*", "group": "neuron", "sparsity": "50%"}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, inputs)
    result = sparsify.cut(plan, model)
    (verdict,) = result.verdicts
    assert verdict.outcome == "equal" and verdict.difference <= 1e-9
    assert "does not run in float64" not in verdict.note
    assert model.config._experts_implementation == result.model.config._experts_implementation == way
