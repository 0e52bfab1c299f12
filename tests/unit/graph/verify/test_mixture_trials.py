"""Whole experts leave: each way in which people write a mixture, beside a reference that knows the dense
model with the scores of the removed experts at minus infinity."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import mixtures
import pytest
import reference
import torch
from reference import Experts
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import ModelError, RecipeError, RunError, VerificationError
from sparsify.graph.model_map import Mixture
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.verify import mixture_trials
from sparsify.pruning.cut import Result, cut_units
from sparsify_schemas.cuts import Narrow, SetAttribute, Shorten

EXACT = 1e-12
INPUTS = (torch.randn(mixtures.SHAPE, generator=torch.Generator().manual_seed(3)),)


def recipe(**rule: Any) -> dict[str, Any]:
    asked = {"layers": "*", "group": "expert", "sparsity": "50%"} | rule
    return {"version": 1, "title": "t", "rules": [{k: v for k, v in asked.items() if v is not None}]}


def cut(model: nn.Module, **rule: Any) -> Result:
    return sparsify.cut(sparsify.make_plan(recipe(**rule), model, INPUTS), model, inputs=INPUTS)


def only(model: nn.Module) -> Mixture:
    (mixture,) = sparsify.make_plan(recipe(sparsity=None), model, INPUTS).map.mixtures
    return mixture


@pytest.mark.parametrize("name", mixtures.CUTTABLE)
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_a_mixture_without_half_of_its_experts_is_the_dense_one_with_their_scores_at_minus_infinity(
    name: str, criterion: str
) -> None:
    make, experts = mixtures.CUTTABLE[name]
    model = mixtures.build(make)
    result = cut(model, criterion={"kind": criterion})
    fresh = reference.fresh(INPUTS, 7, seed=5)
    found = reference.compare(result, model, fresh, experts=experts)
    assert found.double and found.difference < EXACT and found.by == "weights"
    assert found.to_dense > 1e-3 and found.varies > 1e-3  # otherwise nothing was compared
    (verdict,) = result.verdicts
    assert verdict.outcome == "equal" and verdict.control > 1e-3
    assert sum(p.numel() for p in result.model.parameters()) < 0.75 * sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("name", mixtures.CUTTABLE)
def test_the_reference_sees_an_expert_that_took_the_place_of_another(name: str) -> None:
    make, experts = mixtures.CUTTABLE[name]
    model = mixtures.build(make)
    result = cut(model)
    with torch.no_grad():
        for parameter in result.model.mix.parameters():
            if parameter.dim() == 3:  # stacked
                parameter.copy_(parameter.flip(0))
    kinds = nn.ModuleList | nn.ModuleDict
    lists = [module for module in result.model.mix.children() if isinstance(module, kinds)]
    for own in lists[:1]:
        own._modules = dict(zip(own._modules, reversed(own._modules.values()), strict=True))
    assert reference.difference(result, model, INPUTS, experts=experts) > 1e-4


def test_a_list_gets_shorter_and_its_members_new_numbers() -> None:
    model = mixtures.build(mixtures.TopTwo)
    with torch.no_grad():
        for number in (0, 2, 3):
            for parameter in model.mix.experts[number].parameters():
                parameter.mul_(0.1)
    result = cut(model)
    assert len(result.model.mix.experts) == 3 and result.model.mix.num_experts == 3
    assert result.model.mix.gate.weight.shape == (3, 12) and result.model.mix.gate.out_features == 3
    for new, old in enumerate((1, 4, 5)):
        assert torch.equal(result.model.mix.experts[new][0].weight, model.mix.experts[old][0].weight)
    assert torch.equal(result.model.mix.gate.weight, model.mix.gate.weight[[1, 4, 5]])
    first, *others = result.cuts.operations
    assert first == Shorten(module="mix.experts", size=6, keep=((1, 2), (4, 6)))
    assert others == [
        Narrow(tensor="mix.gate.weight", dim=0, size=6, keep=((1, 2), (4, 6))),
        SetAttribute(module="mix.gate", attribute="out_features", value=3),
        SetAttribute(module="mix", attribute="num_experts", value=3),
    ]
    again = replay_cuts(model, result.cuts)
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again(*INPUTS), result.model(*INPUTS))
    assert len(model.mix.experts) == 6  # the dense model stays as it is


def test_named_experts_are_named_anew() -> None:
    """Code calls them `expert_0`, `expert_1` and so on, as many as the module says."""
    model = mixtures.build(mixtures.Named)
    with torch.no_grad():
        for number in (0, 2, 3):
            for parameter in model.mix.experts[f"expert_{number}"].parameters():
                parameter.mul_(0.1)
    result = cut(model)
    experts = result.model.mix.experts
    assert list(experts) == ["expert_0", "expert_1", "expert_2"]
    for new, old in enumerate((1, 4, 5)):
        found, wanted = experts[f"expert_{new}"], model.mix.experts[f"expert_{old}"]
        assert torch.equal(found[0].weight, wanted[0].weight)
    first = result.cuts.operations[0]
    assert first == Shorten(module="mix.experts", prefix="expert_", size=6, keep=((1, 2), (4, 6)))
    again = replay_cuts(model, result.cuts)
    again.load_state_dict(result.model.state_dict())
    assert torch.equal(again(*INPUTS), result.model(*INPUTS))
    other = first.model_copy(update={"prefix": "block_"})
    with pytest.raises(RunError) as caught:
        replay_cuts(model, result.cuts.model_copy(update={"operations": (other,)}))
    assert str(caught.value) == (
        "the cut log calls the first member of 'mix.experts' 'block_0', this model calls it 'expert_0'; "
        "was it built by the same recipe?"
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_router_by_cosines_takes_the_largest_of_those_that_stay(seed: int) -> None:
    """The reference sets the scores itself, behind the directions of length 1 and their products."""
    model = mixtures.build(mixtures.Cosine, seed)
    result = cut(model, criterion={"kind": "random"})
    (narrow,) = [op for op in result.cuts.operations if getattr(op, "tensor", "") == "mix.directions"]
    kept = [at for start, end in narrow.keep for at in range(start, end)]
    assert len(kept) == 3 and tuple(result.model.mix.directions.shape) == (3, 8)
    twin = mixtures.build(lambda: mixtures.Cosine(off=tuple(set(range(6)) - set(kept))), seed)
    twin.load_state_dict(model.state_dict())
    (fresh,) = reference.fresh(INPUTS, 7, seed=5)
    found, wanted, dense = (own.double()(fresh.double()) for own in (result.model, twin, model))
    assert torch.allclose(found, wanted, atol=1e-12, rtol=0)
    assert not torch.allclose(found, dense, atol=1e-3, rtol=0)


def test_stacked_weights_and_the_columns_of_a_gate_are_narrowed() -> None:
    result = cut(mixtures.build(mixtures.Stacked))
    own = result.model.mix
    shapes = [tuple(tensor.shape) for tensor in (own.gate, own.up, own.up_bias, own.down)]
    assert shapes == [(12, 3), (3, 12, 16), (3, 16), (3, 16, 12)]


def test_a_router_that_chooses_groups_first_loses_as_many_experts_of_each() -> None:
    model = mixtures.build(mixtures.Corrected)
    mixture = only(model)
    assert (mixture.count, mixture.group.width, mixture.group.least) == (8, 4, 2)
    own = cut(model).model.mix
    assert own.n_routed_experts == len(own.experts) == 4 and own.n_group == 2
    assert own.e_score_correction_bias.shape == (4,) and own.shared[0].out_features == 16


def test_a_correction_that_would_choose_a_removed_expert_is_minus_infinity_as_well() -> None:
    model = mixtures.build(lambda: mixtures.Corrected(groups=1))
    model.mix.e_score_correction_bias.copy_(torch.arange(8.0) - 9)  # the last two are always chosen
    with torch.no_grad():
        for number in (6, 7):
            for parameter in model.mix.experts[number].parameters():
                parameter.zero_()
    result = cut(model, sparsity="25%")
    experts = Experts({"mix.weight": 0}, ("mix.e_score_correction_bias",))
    assert len(result.model.mix.experts) == 6
    assert reference.difference(result, model, INPUTS, experts=experts) < EXACT
    assert reference.difference(result, model, INPUTS, experts=replace(experts, offsets=())) > 1e-3


@pytest.mark.parametrize(("top_k", "least"), [(1, 1), (2, 2), (4, 4)])
def test_as_many_experts_stay_as_the_router_takes(top_k: int, least: int) -> None:
    model = mixtures.build(lambda: mixtures.TopTwo(top_k=top_k))
    assert only(model).group.least == least
    result = sparsify.cut(
        sparsify.make_plan(
            {
                "version": 1,
                "title": "t",
                "budget": {"params": "95%"},
                "rules": [{"layers": "mix", "group": "expert", "keep": {"at_least": 1}}],
            },
            model,
            INPUTS,
        ),
        model,
        inputs=INPUTS,
    )
    assert len(result.model.mix.experts) >= least


def test_more_than_can_leave_is_refused_with_the_number_that_is_needed() -> None:
    with pytest.raises(RecipeError) as caught:
        cut(mixtures.build(mixtures.TopTwo), sparsity="90%")
    assert str(caught.value) == (
        "<recipe>: rules.0.sparsity: 90% cannot be reached: as a mixture does not run with fewer than 2 "
        "experts, at most 66.6% of the groups can go; lower it"
    )


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            mixtures.Free,
            "where the router's score of an expert is minus infinity, the dense model gives no number, so "
            "nothing says what is right without that expert",
        ),
        (
            mixtures.Counted,
            "with one expert less the model does not run: IndexError: index 5 is out of range",
        ),
    ],
)
def test_a_mixture_that_cannot_be_cut_stays_with_its_reason(make: Any, why: str) -> None:
    mixture = only(mixtures.build(make))
    assert mixture.group.protected == why
    plan = sparsify.make_plan(recipe(sparsity=None), mixtures.build(make), INPUTS)
    assert f"rules.0: 'mix' stays: {why}" in plan.notes


class Blocks(nn.Module):
    """Mixtures of one kind by their names, which need not be alike."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(6, 12), nn.ModuleList(blocks), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        for block in self.blocks:
            y = y + block(y)
        made: torch.Tensor = self.head(y.mean(1))
        return made


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0), (2, 0, 1)])
def test_mixtures_of_one_kind_are_tried_once_and_those_that_are_not_alike_by_themselves(
    order: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    blocks = [mixtures.TopTwo(), mixtures.TopTwo(top_k=4), mixtures.Counted()]
    expected = [(2, True), (4, True), (1, False)]
    model = Blocks(*(blocks[at] for at in order)).eval()
    plan = sparsify.make_plan(recipe(sparsity=None), model, INPUTS)
    found = {mixture.name: mixture.group for mixture in plan.map.mixtures}
    for place, at in enumerate(order):
        least, is_free = expected[at]
        group = found[f"blocks.{place}"]
        assert (group.protected is None) is is_free
        assert not is_free or group.least >= least  # the first of a kind may need more


def test_mixtures_that_are_alike_cost_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    run = mixture_trials._Trials.find_fault

    def count(self: Any, own: Any, keep: Any, inputs: Any = None) -> str | None:
        tried.append(len(own))
        return run(self, own, keep, inputs)

    monkeypatch.setattr(mixture_trials._Trials, "find_fault", count)
    torch.manual_seed(0)
    model = Blocks(*(mixtures.TopTwo() for _ in range(5))).eval()
    plan = sparsify.make_plan(recipe(sparsity=None), model, INPUTS)
    assert [mixture.group.least for mixture in plan.map.mixtures] == [2] * 5
    assert tried == [1, 1, 1, 1, 1, 5, 5, 5]  # five cuts of the first, three of all together


def test_scores_that_the_network_returns_keep_every_expert() -> None:
    torch.manual_seed(0)
    (mixture,) = sparsify.make_plan(recipe(sparsity=None), mixtures.Telling().eval(), INPUTS).map.mixtures
    assert mixture.group.protected == "the cut model's outputs changed their shapes"


def test_blocks_that_follow_each_other_are_no_experts() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
            self.head = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            made: torch.Tensor = self.head(x.mean(1))
            return made

    torch.manual_seed(0)
    (mixture,) = sparsify.make_plan(recipe(sparsity=None), Layers().eval(), INPUTS).map.mixtures
    assert mixture.group.protected is not None


def test_a_model_without_weights_is_refused() -> None:
    with torch.device("meta"):
        model = mixtures.Net(mixtures.Soft())
    with pytest.raises(ModelError) as caught:
        sparsify.make_plan(recipe(), model, (torch.randn(mixtures.SHAPE, device="meta"),))
    assert str(caught.value) == (
        "group 'expert' needs a model with weights: a trial cut decides whether an expert can be removed"
    )


def test_equal_scores_of_experts_are_named_where_a_cut_is_refused_for_them() -> None:
    """An embedding of a padding token is zero, and so are all its scores: any expert may be chosen."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.mix = nn.Embedding(20, 12, padding_idx=0), mixtures.TopTwo(top_k=1)
            self.head = nn.Linear(12, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.head(self.mix(self.embedding(ids)))
            return made

    torch.manual_seed(0)
    model, ids = Tokens().eval(), (torch.arange(20).view(4, 5),)
    plan = sparsify.make_plan(recipe(), model, ids)
    refused = 0
    for keep in combinations(range(6), 3):
        try:
            cut_units(plan, model, {"mix": keep}, ids)
        except VerificationError as error:
            refused += 1
            assert (
                "where a router gives experts equal scores, as for a padding token whose embedding is zero, "
                "the choice among them is open, and a cut model may choose another than the dense one; "
                "nothing was saved"
            ) in str(error)
    assert 0 < refused < 20


def test_experts_and_the_neurons_inside_them_leave_together() -> None:
    model = mixtures.build(mixtures.TopTwo)
    rules = [
        {"layers": "mix", "group": "expert", "sparsity": "50%"},
        {"layers": "mix.experts.*.0", "group": "neuron", "sparsity": "25%"},
        {"layers": "stem", "group": "neuron", "sparsity": "25%"},
    ]
    plan = sparsify.make_plan({"version": 1, "title": "t", "rules": rules}, model, INPUTS)
    result = sparsify.cut(plan, model, inputs=INPUTS)
    experts = Experts({"mix.gate.weight": 0})
    assert reference.difference(result, model, INPUTS, experts=experts) < EXACT
    widths = {width.group: width.kept for width in result.cuts.widths}
    assert sum(widths[f"mix.experts.{at}.0"] == 0 for at in range(6)) == 3
    for one in result.model.mix.experts:
        assert one[0].out_features == one[0].weight.shape[0] == one[2].weight.shape[1] == one[2].in_features


def test_training_goes_on_with_the_state_of_the_experts_that_stay() -> None:
    model = mixtures.build(mixtures.TopTwo).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randn(32, 5, 6), torch.randint(0, 3, (32,))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    plan = sparsify.make_plan(recipe(), model, INPUTS)
    moments = {
        name: optimizer.state[p]["exp_avg"].clone()
        for name, p in model.named_parameters()
        if p in optimizer.state
    }
    result = sparsify.cut(plan, model, inputs=INPUTS, optimizer=optimizer)
    (width,) = result.cuts.widths
    kept = [at for start, end in width.keep for at in range(start, end)]
    own = dict(result.model.named_parameters())
    for new, old in enumerate(kept):
        state = optimizer.state[own[f"mix.experts.{new}.0.weight"]]["exp_avg"]
        assert torch.equal(state, moments[f"mix.experts.{old}.0.weight"])
    assert torch.equal(optimizer.state[own["mix.gate.weight"]]["exp_avg"], moments["mix.gate.weight"][kept])
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, own.values()))
    F.cross_entropy(result.model.train()(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "criterion", ["magnitude", "taylor", "fisher", "sensitivity", "wanda", "activation", "lamp"]
)
@pytest.mark.parametrize("make", [mixtures.TopTwo, mixtures.Soft])
def test_a_dead_expert_leaves_first_by_every_criterion(make: Any, criterion: str) -> None:
    model = mixtures.build(make)
    with torch.no_grad():
        for parameter in model.mix.experts[4].parameters():
            parameter.mul_(1e-3)
        router = next(p for name, p in model.mix.named_parameters() if "experts" not in name)
        router[4].mul_(1e-3)
    batches = [(torch.randn(64, 5, 6), torch.randint(0, 3, (64,))) for _ in range(2)]
    plan = sparsify.make_plan(recipe(sparsity="16%", criterion={"kind": criterion}), model, INPUTS)
    result = sparsify.cut(plan, model, inputs=INPUTS, batches=batches, loss=F.cross_entropy)
    (width,) = result.cuts.widths
    assert width.keep == ((0, 4), (5, 6))


def test_an_expert_that_no_example_reaches_counts_as_nothing_arriving() -> None:
    model = mixtures.build(lambda: mixtures.TopTwo(top_k=1))
    with torch.no_grad():
        model.mix.gate.weight[2:] = 0  # of the first two one is above
        model.mix.gate.weight[1] = -model.mix.gate.weight[0]
    batches = [(torch.randn(8, 5, 6), torch.randint(0, 3, (8,)))]
    plan = sparsify.make_plan(recipe(criterion={"kind": "wanda"}), model, INPUTS)
    result = sparsify.cut(plan, model, inputs=INPUTS, batches=batches, loss=F.cross_entropy)
    (width,) = result.cuts.widths
    assert {0, 1} <= {at for start, end in width.keep for at in range(start, end)}


def test_multiples_hold() -> None:
    model = mixtures.build(lambda: mixtures.Soft(12))
    result = cut(model, sparsity="60%", keep={"multiple_of": 4})
    assert len(result.model.mix.experts) == 4


def test_what_reads_a_mixture_is_refitted_and_its_experts_are_left_alone() -> None:
    model = mixtures.build(mixtures.TopTwo)
    result = cut(model)
    repaired = sparsify.repair(result, [torch.randn(400, 5, 6)])
    outcomes = {row.layer: (row.outcome, row.reason) for row in repaired.layers}
    why = "its mixture lost experts: it is given other examples than in the dense model"
    for number in range(3):
        assert outcomes[f"mix.experts.{number}.0"] == ("skipped", why)
    assert outcomes["head"][0] == "refitted"
    assert repaired.after is not None and repaired.before is not None
    assert repaired.after.error < repaired.before.error


class Skipping(nn.Module):
    """An expert that no token reaches is not called at all."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 8)
        self.experts = nn.ModuleList(mixtures.expert() for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2)
        made = torch.zeros_like(flat)
        for number in range(len(self.experts)):
            token, place = torch.where(chosen == number)
            if len(token):
                part = self.experts[number](flat[token]) * weights[token, place, None]
                made = made.index_add(0, token, part)
        return made.view(x.shape)


@pytest.mark.parametrize("seed", range(3))
def test_experts_that_no_token_reaches_leave_as_well(seed: int) -> None:
    torch.manual_seed(seed)
    model = mixtures.Net(Skipping()).eval()
    x = (torch.randn(1, 1, 6),)
    rule = {"layers": "mix", "group": "expert", "sparsity": "50%"}
    result = sparsify.cut(sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, x), model)
    assert len(result.model.mix.experts) == 4 and result.verdicts[0].outcome == "equal"


def test_experts_that_another_list_holds_too_are_no_mixture() -> None:
    torch.manual_seed(0)
    first, second = mixtures.Soft(), mixtures.Soft()
    second.experts = nn.ModuleList(list(first.experts))
    model = nn.Sequential(mixtures.Net(first), nn.Unflatten(1, (1, 3)), nn.Linear(3, 6), mixtures.Net(second))
    rule = {"layers": "*", "group": "expert", "sparsity": "50%"}
    with pytest.raises(RecipeError, match=r"'\*' matches no mixture of experts of the model"):
        sparsify.make_plan({"version": 1, "title": "t", "rules": [rule]}, model, (torch.randn(2, 5, 6),))


class TrainedAside(nn.Module):
    """Heads that run in train mode alone: no trial in eval mode could see what their removal does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.aux, self.turn = nn.ModuleList(nn.Linear(12, 3) for _ in range(4)), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        made: Tensor = self.head(y)
        if self.training:
            share = self.turn(y).softmax(-1)
            for number, one in enumerate(self.aux):
                made = made + one(y) * share[..., number, None]
        return made


def test_what_runs_in_train_mode_alone_is_no_mixture() -> None:
    rule = {"layers": "*", "group": "expert", "sparsity": "50%"}
    with pytest.raises(RecipeError, match=r"'\*' matches no mixture of experts of the model"):
        sparsify.make_plan(
            {"version": 1, "title": "t", "rules": [rule]}, TrainedAside(), (torch.randn(2, 6),)
        )


class Limited(nn.Module):
    """Each expert takes a limited number of tokens, at least 32; the number of experts sets the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 8
        self.router = nn.Linear(12, 8)
        self.experts = nn.ModuleList(mixtures.expert() for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).max(-1)
        limit = max(32, int(1.25 * len(flat) / self.num_experts))
        made = torch.zeros_like(flat)
        for number in range(len(self.experts)):
            token = torch.where(chosen == number)[0][:limit]
            made = made.index_add(0, token, self.experts[number](flat[token]) * weights[token, None])
        return made.view(x.shape)


def test_a_limit_on_tokens_that_binds_with_many_examples_alone_is_seen() -> None:
    """The limit stays that of the dense model, so the number of experts is left as it is."""
    torch.manual_seed(0)
    model = mixtures.Net(Limited()).eval()
    rule = {"layers": "mix", "group": "expert", "sparsity": "50%"}
    recipe = {"version": 1, "title": "t", "rules": [rule]}
    plan = sparsify.make_plan(recipe, model, (torch.randn(2, 5, 6),))
    (mixture,) = plan.map.mixtures
    assert mixture.group.protected is None
    assert "mix:num_experts" not in {part.tensor for part in mixture.group.slices}
    result = sparsify.cut(plan, model)
    many = torch.randn(40, 20, 6)
    shorten = next(op for op in result.cuts.operations if isinstance(op, Shorten))
    kept = [unit for start, end in shorten.keep for unit in range(start, end)]

    def remove_scores(_module: nn.Module, _args: Any, scores: Tensor) -> Tensor:
        return scores.index_fill(-1, torch.tensor([n for n in range(8) if n not in kept]), -torch.inf)

    handle = model.mix.router.register_forward_hook(remove_scores)
    with torch.no_grad():
        wanted = model(many)
    handle.remove()
    torch.testing.assert_close(result.model(many), wanted)
