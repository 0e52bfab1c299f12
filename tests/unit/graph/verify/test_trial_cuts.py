"""Trial cuts: one fault among many blocks that are built alike, and memory that ends."""

from collections.abc import Callable
from typing import Any

import old_trials
import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.errors import ModelError, VerificationError
from sparsify.graph import build_map
from sparsify.graph.model_map import ModelMap
from sparsify.graph.verify import group_trials, trial_cuts, trial_weights

BLOCKS, HIDDEN = 9, 16
X = (torch.randn(2, 8, generator=torch.Generator().manual_seed(0)),)
RECIPE = {"version": 1, "title": "t", "rules": [{"layers": "*.a", "group": "neuron", "sparsity": "50%"}]}


class Block(nn.Module):
    """x + b(relu(a(x))), and what `spoil` does to the hidden activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, HIDDEN), nn.Linear(HIDDEN, 8)
        self.spoil: Callable[[Tensor], Tensor] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.spoil(self.a(x).relu()))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


class ScaleByWidth(nn.Module):
    """The width as a number, which no label follows."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.shape[-1]


class ScaledAttention(nn.Module):
    """Divides by the square root of its width, as no `scale` is given."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


class Attend(nn.Module):
    """Attention by a single head, whose scale is the width of its queries."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.q, self.k, self.v = nn.Linear(8, HIDDEN), nn.Linear(8, HIDDEN), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self.q(self.factor * x), self.k(self.factor * x)
        return x + nn.functional.scaled_dot_product_attention(queries, keys, self.v(x))


class Growing(nn.Module):
    """In its second block a softmax of ordinary weights sees one large number. Trained weights make up for
    it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(Attend(1.0), Attend(200.0))
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            for layer in (self.blocks[1].q, self.blocks[1].k):
                layer.weight.mul_(0.005)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class FixedView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, HIDDEN)


def protected(model: nn.Module) -> dict[str, str]:
    plan = sparsify.make_plan(RECIPE, model, X)
    return {c.name: c.protected for c in plan.map.coupled if c.protected and c.name.endswith(".a")}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (ScaleByWidth(), "a trial cut failed: the cut model differs from the masked one by"),
        (FixedView(), ""),
        (ScaledAttention(), "a trial cut failed: the cut model differs from the masked one by"),
    ],
)
@pytest.mark.parametrize("place", [0, 4, BLOCKS - 1])
def test_a_fault_in_one_block_of_many_is_found(spoil: nn.Module, reason: str, place: int) -> None:
    model = Blocks()
    model.blocks[place].spoil = spoil
    found = protected(model.eval())
    assert set(found) == {f"blocks.{place}.a"}
    assert found[f"blocks.{place}.a"].startswith(reason)
    hint = "; its width may count as a number in the code, as in attention without 'scale'"
    assert found[f"blocks.{place}.a"].endswith(hint) is bool(reason)


def test_a_model_that_draws_in_eval_mode_is_told_so() -> None:
    model = Blocks()
    model.blocks[4].spoil = AlwaysDropping()
    (why,) = protected(model.eval()).values()
    assert why.startswith("a trial cut failed: the cut model differs from the masked one by")
    assert why.endswith(
        "; the model draws random numbers in eval mode, as dropout with training=True does, and a narrower "
        "one draws others: leave that out in eval mode"
    )


def test_a_hook_on_one_block_of_many_is_found() -> None:
    model = Blocks()
    model.blocks[3].a.register_forward_hook(lambda _m, _x, y: y * y.shape[-1])
    assert set(protected(model.eval())) == {"blocks.3.a"}


def test_a_fault_that_comes_after_the_plan_is_found_by_the_proof() -> None:
    model = Blocks().eval()
    plan = sparsify.make_plan(RECIPE, model, X)
    model.blocks[5].spoil = ScaleByWidth()
    with pytest.raises(VerificationError, match=r"group 'blocks\.5\.a' fails by itself"):
        sparsify.cut(plan, model)


def traced(model: nn.Module) -> ModelMap:
    return build_map.build_map(model, X, {})


@pytest.mark.parametrize("spoil", [nn.Identity(), ScaleByWidth(), FixedView()])
def test_quick_and_plain_trials_decide_alike(spoil: nn.Module) -> None:
    model = Blocks()
    model.blocks[2].spoil = model.blocks[6].spoil = spoil
    quick, plain = old_trials.both_ways(model.eval(), traced(model), X)
    assert quick == plain


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_failed_allocation_is_no_protection(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(group_trials.operations, "cut_on_trial", fail)
    monkeypatch.setattr(group_trials.MetaTrials, "find_fault", lambda *_: None)
    with pytest.raises(ModelError, match=r"^there is not enough memory.*pass fewer or smaller examples"):
        sparsify.make_plan(RECIPE, Blocks().eval(), X)


def test_groups_that_no_rule_reaches_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[set[str]] = []
    judge = group_trials.judge_cut

    def record(trial: Any, model_map: Any, keep: dict[str, Any], *rest: Any, **more: Any) -> str | None:
        tried.append(set(keep))
        return judge(trial, model_map, keep, *rest, **more)

    monkeypatch.setattr(group_trials, "judge_cut", record)
    recipe = {**RECIPE, "rules": [{"layers": "blocks.3.a", "group": "neuron", "sparsity": "50%"}]}
    plan = sparsify.make_plan(recipe, Blocks(), X)
    assert tried and set().union(*tried) == {"blocks.3.a"}
    assert plan.map.by_name["blocks.3.a"].protected is None
    assert plan.map.by_name["blocks.4.a"].protected == "no rule reaches it"
    told = sparsify.describe(plan)
    assert "No rule reaches the width of blocks.0.a, blocks.1.a, blocks.2.a, blocks.4.a" in " ".join(
        told.split()
    )
    shown = [line for line in told.splitlines() if "no rule reaches it" in line]
    assert not shown, "it is no protection"
    result = sparsify.cut(plan, Blocks())
    assert result.model.get_submodule("blocks.3.a").out_features == HIDDEN // 2


def test_where_a_reached_group_fails_all_are_tried() -> None:
    model = Blocks()
    model.blocks[3].spoil = ScaleByWidth()
    recipe = {**RECIPE, "rules": [{"layers": ["blocks.3.a", "blocks.5.a"], "group": "neuron"}], "seed": 0}
    plan = sparsify.make_plan({**recipe, "budget": {"macs": "99%"}}, model, X)
    assert (plan.map.by_name["blocks.3.a"].protected or "").startswith("a trial cut failed")
    assert plan.map.by_name["blocks.5.a"].protected is None
    assert plan.map.by_name["blocks.4.a"].protected is None  # it was tried as well


class SinglePrecision(nn.Module):
    """Refuses float64, as some kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, HIDDEN), nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise TypeError("single precision alone")
        made: Tensor = self.b(self.a(x).relu())
        return made


def test_what_does_not_run_in_double_precision_is_compared_in_single() -> None:
    rule = {"layers": "a", "group": "neuron", "sparsity": "50%"}
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, SinglePrecision(), X)
    assert plan.map.by_name["a"].protected is None


def test_what_large_activations_hide_shows_with_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's iFormer: the queries of one block of nine passed, and the proof refused the whole cut."""
    model, x = Growing(), torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    rule = {"layers": "*.q", "group": "neuron", "penalty": {"kind": "group_lasso", "strength": 0.1}}
    recipe = {"version": 1, "title": "t", "rules": [rule]}

    def list_protected() -> dict[str, str]:
        found = sparsify.make_plan(recipe, model.eval(), (x,)).map.coupled
        return {c.name: c.protected for c in found if c.protected is not None}

    own = list_protected()
    assert {"blocks.0.q", "blocks.1.q"} <= own.keys()
    assert all("its width may count as a number in the code" in own[f"blocks.{n}.q"] for n in range(2))
    plain = trial_weights.redraw_weights
    for scales, shows in (((None,), True), ((*trial_cuts.SMALLER,), True), ((), False)):

        def redraw(
            model: nn.Module, trial: nn.Module, inputs: Any, scale: float | None, kept: Any = scales
        ) -> Any:
            return plain(model, trial, inputs, scale if scale in kept else 1.0)

        monkeypatch.setattr(group_trials, "redraw_weights", redraw)
        assert ("blocks.1.q" in list_protected()) is shows, "either of the two is enough here"
