"""Training one stage: plain steps, schedules, what derives from the seed, going on from a moment, what
goes wrong."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.data import Datasets, Examples, batches
from sparsify.errors import DataError, RecipeError, RunError, TrainingError
from sparsify.events import EpochDone, StageStarted, StepDone
from sparsify.objective.objective import CLASSIFICATION, evaluate
from sparsify.pruning.planning.plan import Plan
from sparsify.training import stage as stage_module
from sparsify.training.accelerator import make_accelerator
from sparsify.training.seeds import derive_seed
from sparsify.training.stage import train_stage
from sparsify.training.stage_state import StageState
from sparsify_schemas.stage import Train

SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
ADAM = {"kind": "adam", "lr": 1e-2}


def stage(epochs: int = 3, optimizer: dict = SGD, **more: object) -> Train:
    return Train.model_validate(
        {"kind": "train", "name": "learn", "epochs": epochs, "batch": 16, "optimizer": optimizer, **more}
    )


def examples(n: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return Examples(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def datasets(validation: int = 20) -> Datasets:
    return Datasets(examples(70, 1), examples(validation, 2), examples(20, 3), classes=3)


def net(dropout: float = 0.3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 3)
        )


def recipe(**rule: object) -> dict:
    return {"version": 1, "title": "t", "inputs": [{"shape": [2, 6]}], "rules": [rule]}


LASSO = {
    "layers": ["0"],
    "group": "neuron",
    "penalty": {"kind": "group_lasso", "strength": {"kind": "linear", "from": 0, "to": 0.02, "end": "2ep"}},
}


def train(
    model: nn.Module, spec: Train, plan: Plan | None = None, data: Datasets | None = None, **more: object
) -> StageState:
    return train_stage(
        model,
        spec,
        data or datasets(),
        plan,
        **{"seed": 5, "stage_index": 0, "accelerator": make_accelerator(), **more},
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_without_penalties_it_is_the_loop_that_anyone_would_write():
    trained, by_hand = net(dropout=0.0), net(dropout=0.0)
    moment = train(trained, stage(2))

    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    data, means = datasets(), []
    by_hand.train()
    for epoch in range(2):
        losses = []
        for x, y in batches(data.train, 16, seed=derive_seed(5, 0, epoch)):
            optimizer.zero_grad()
            loss = F.cross_entropy(by_hand(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(x))
        means.append(sum(losses) / 70)
    for a, b in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert [row.loss for row in moment.history] == pytest.approx(means, rel=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    runs = []
    for seed in (5, 5, 6):
        torch.rand(len(runs))  # what happened to the global generator before must not matter
        model = net()
        train(model, stage(), seed=seed)
        runs.append(model)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize("optimizer", [SGD, ADAM, {"kind": "adamw"}], ids=lambda o: o["kind"])
@pytest.mark.parametrize("penalised", [False, True])
def test_going_on_from_a_moment_ends_with_the_same_bits(optimizer, penalised):
    moments = []
    whole = net()
    plan = sparsify.make_plan(recipe(**LASSO), whole) if penalised else None

    train(whole, stage(4, optimizer), plan, on_epoch=lambda moment: moments.append(deepcopy(moment)))
    resumed = net()
    end = train(resumed, stage(4, optimizer), plan, restore=moments[1])
    assert same(whole, resumed)
    assert [row.epoch for row in end.history] == [1, 2, 3, 4]
    assert [row.loss for row in end.history] == [row.loss for row in moments[-1].history]


def test_penalties_act_unless_the_stage_says_otherwise():
    strong = {**LASSO, "penalty": {"kind": "group_lasso", "strength": 0.5}}
    plan = sparsify.make_plan(recipe(**strong), net())
    with_penalty, without = train(net(), stage(), plan), train(net(), stage(penalties=False), plan)
    assert with_penalty.history[-1].sparsity > without.history[-1].sparsity == 0
    assert (with_penalty.history[-1].strength, without.history[-1].strength) == (0.5, None)
    assert with_penalty.penalty_seconds > 0


def test_the_learning_rate_follows_its_schedule_by_the_step():
    spec = stage(
        4, {"kind": "sgd", "lr": {"kind": "step", "value": 0.1, "factor": 0.5, "at": ["1ep", "12it"]}}
    )
    moment = train(net(), spec)  # five steps an epoch
    assert [row.lr for row in moment.history] == pytest.approx([0.1, 0.05, 0.025, 0.025])


def test_zeros_of_weight_rules_are_held():
    model = net()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    plan = sparsify.make_plan(recipe(layers=["0"], group="weight", sparsity="50%"), model)
    before = model[0].weight[:, 1::2].clone()
    train(model, stage(), plan, hold_zeros=True)
    assert (model[0].weight[:, ::2] == 0).all()
    assert not torch.equal(model[0].weight[:, 1::2], before)


def test_zeros_that_came_later_are_not_held_after_going_on():
    rule = {
        "layers": ["0"],
        "group": "weight",
        "sparsity": "10%",
        "penalty": {"kind": "l1", "strength": 0.05},
    }
    plan = sparsify.make_plan(recipe(**rule), net())
    moments = []
    whole = net()

    plain = stage(4)
    train(whole, plain, plan, hold_zeros=True, on_epoch=lambda moment: moments.append(deepcopy(moment)))
    assert (moments[1].model["0.weight"] == 0).any()
    resumed = net()
    train(resumed, plain, plan, hold_zeros=True, restore=moments[1])
    assert same(whole, resumed)


def test_a_listener_hears_of_every_step_and_epoch():
    heard = []
    train(net(), stage(2), listener=heard.append)
    assert heard[0] == StageStarted("learn", "train", 2, 5)
    assert [(e.epoch, e.step) for e in heard if isinstance(e, StepDone)] == [
        (e, s) for e in (1, 2) for s in range(1, 6)
    ]
    assert [e.epoch for e in heard if isinstance(e, EpochDone)] == [1, 2]


def test_without_validation_examples_there_is_no_validation_figure():
    row = train(net(), stage(1), data=datasets(validation=0)).history[0]
    assert row.validation_loss is None and row.validation_metric is None


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_spoilt():
    model = net(dropout=0.0)
    saved = []
    with pytest.raises(
        TrainingError, match=r"^stage 'learn', epoch \d, step \d: .*lower the learning rate \(now 1e\+\d+\)"
    ):
        train(
            model,
            stage(3, {"kind": "sgd", "lr": 1e25}),
            on_epoch=lambda m: saved.append(all(v.isfinite().all() for v in m.model.values())),
        )
    assert all(saved)


def test_the_strength_is_named_among_the_ways_out():
    plan = sparsify.make_plan(
        recipe(**{**LASSO, "penalty": {"kind": "group_lasso", "strength": 0.25}}), net()
    )
    with pytest.raises(TrainingError, match=r"or the strength \(now 0.25\)"):
        train(net(), stage(3, {"kind": "sgd", "lr": 1e25}), plan)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x), x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(5, 3), r"step 1: the model does not take a batch of shape \(16, 6\)"),
        (nn.Linear(6, 2), "the model has 2 outputs and the data 3 classes"),
        (Pair(), "the model returns a tuple of 2; say in task.outputs which part is the prediction"),
        (nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1))), r"returns a tensor of shape \(16, 3, 1\)"),
        (nn.Flatten(), "no parameter of the model takes a gradient"),
    ],
    ids=["shape", "classes", "tuple", "maps", "nothing to train"],
)
def test_a_model_that_does_not_fit_the_data_is_named(model, message):
    with pytest.raises((TrainingError, DataError), match=message):
        train(model, stage(1))


def test_no_training_examples():
    with pytest.raises(TrainingError, match="no training examples"):
        train(net(), stage(1), data=Datasets(examples(0, 0), examples(1, 0), examples(1, 0), 3))


def test_evaluate_is_the_mean_over_examples_and_leaves_modes_alone():
    model, data = net(), examples(53, 4)
    model.train()
    model[1].eval()
    found = evaluate(model, data, CLASSIFICATION, batch=10)
    loss, accuracy = found.loss, found.deciding
    assert (model.training, model[1].training, model[3].training) == (True, False, True)
    model.eval()
    logits = model(data.inputs)
    assert loss == pytest.approx(F.cross_entropy(logits, data.targets).item(), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(1) == data.targets).float().mean().item())


def test_evaluate_without_examples_is_not_a_number():
    found = evaluate(net(), examples(0, 0), CLASSIFICATION)
    assert math.isnan(found.loss) and math.isnan(found.deciding)


@pytest.mark.parametrize(("lr", "strength"), [(1e300, 0.0), (0.1, 1e300)])
def test_a_rate_or_strength_beyond_float32_is_named(lr, strength):
    model = net()
    penalty = {"kind": "group_lasso", "strength": strength}
    plan = sparsify.make_plan(recipe(layers=["0"], group="neuron", penalty=penalty), model)
    with pytest.raises(
        TrainingError, match=r"^stage 'learn', epoch 1, step \d: .*overflow; lower the learning rate"
    ):
        train(model, stage(1, {"kind": "sgd", "lr": lr}), plan)


def test_parts_of_a_batch_make_the_step_of_the_whole():
    """Without BatchNorm, whose statistics are of a part; the last batch of 70 examples has 6, which is
    fewer than 4 full parts."""
    whole, parts = (nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    a, b = train(whole, stage(2)), train(parts, stage(2, accumulate=4))
    for x, y in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert [r.loss for r in a.history] == pytest.approx([r.loss for r in b.history])
    assert a.history[-1].train_metric == b.history[-1].train_metric


def test_warm_up_rises_evenly_to_the_schedule():
    """Over 10 steps of a stage with 5 an epoch: after the 5th step half the rate, from the 10th on all of
    it."""
    assert [row.lr for row in train(net(), stage(3, warmup="2ep")).history] == pytest.approx([0.05, 0.1, 0.1])


def test_a_clipped_gradient_moves_the_weights_no_further():
    clipped = net(dropout=0.0)
    start = nn.utils.parameters_to_vector(clipped.parameters()).detach()
    train(clipped, stage(1, {"kind": "sgd", "lr": 0.1}, clip=1e-3))
    moved = (nn.utils.parameters_to_vector(clipped.parameters()).detach() - start).norm()
    assert 0 < moved <= 5 * 0.1 * 1e-3 * 1.001


def test_bf16_is_of_the_forward_pass_alone():
    plain, half = net(dropout=0.0), net(dropout=0.0)
    a, b = train(plain, stage(3)), train(half, stage(3, precision="bf16"))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert not same(plain, half)
    assert [r.loss for r in b.history] == pytest.approx([r.loss for r in a.history], rel=0.02)


def test_fp16_is_of_the_forward_pass_alone():
    plain, half = net(dropout=0.0), net(dropout=0.0)
    a, b = train(plain, stage(3, clip=1.0)), train(half, stage(3, clip=1.0, precision="fp16"))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert not same(plain, half) and b.scaler["scale"] == stage_module.SCALE and a.scaler == {}
    assert [r.loss for r in b.history] == pytest.approx([r.loss for r in a.history], rel=0.02)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_whose_gradients_overflow_is_skipped(monkeypatch: pytest.MonkeyPatch, clip):
    """Weights and penalty stay where they were; the scale is halved until gradients fit."""
    monkeypatch.setattr(stage_module, "SCALE", 2.0**40)
    model = net()
    start = deepcopy(list(model.parameters()))
    plan = sparsify.make_plan(recipe(**LASSO), model)
    moment = train(model, stage(1, precision="fp16", clip=clip), plan)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
    assert (moment.scaler["scale"], moment.hooks["step"]) == (2.0**35, 0)
    moment = train(model, stage(6, precision="fp16", clip=clip), plan, restore=moment)
    skipped = 40 - math.log2(moment.scaler["scale"])
    assert 20 < skipped < 30 and moment.hooks["step"] == 30 - skipped
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


def test_fp16_goes_on_from_a_moment_with_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage_module, "SCALE", 2.0**24)
    whole, parts = net(), net()
    end = train(whole, stage(4, precision="fp16"))
    kept = []
    train(parts, stage(4, precision="fp16"), until=2, on_epoch=lambda moment: kept.append(deepcopy(moment)))
    assert train(parts, stage(4, precision="fp16"), restore=kept[-1]).scaler == end.scaler
    assert same(whole, parts) and 1 < end.scaler["scale"] < 2.0**24
    for scaler in ({}, {**end.scaler, "scale": math.nan}, {**end.scaler, "scale": "1"}):
        with pytest.raises(
            RunError,
            match=r"^the saved scale of the loss is damaged, or belongs to another recipe; start a new run$",
        ):
            train(net(), stage(4, precision="fp16"), restore=replace(kept[-1], scaler=scaler))


def test_gradients_that_overflow_whatever_the_scale(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage_module, "SCALE", 0.5)
    with pytest.raises(
        TrainingError,
        match=(
            r"^stage 'learn', epoch 1: gradients overflow in fp16 whatever the loss is scaled by; "
            r"choose precision bf16 or fp32$"
        ),
    ):
        train(net(), stage(2, precision="fp16"))


def test_how_a_batch_is_accumulated_is_the_recipes_to_say(monkeypatch: pytest.MonkeyPatch):
    """Accelerate would divide the loss by what the launcher was told."""
    plain, told = net(dropout=0.0), net(dropout=0.0)
    train(plain, stage(1))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(told, stage(1))
    assert same(plain, told)


class TestWhichWeightsAreKept:
    def test_the_average_is_that_of_every_step(self) -> None:
        """a <- d a + (1 - d) w after each step, from the weights after the first; the stage ends with it."""
        steps: list[Tensor] = []

        def note(event: object) -> None:
            if isinstance(event, StepDone):
                steps.append(model[0].weight.detach().clone())

        model = net()
        train(model, stage(2, ema=0.75), listener=note)
        # the event of a step comes after it
        expected = steps[0]
        for weight in steps[1:]:
            expected = 0.75 * expected + 0.25 * weight
        torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(expected, steps[-1])

    def test_the_best_epoch_is_kept(self) -> None:
        """With a learning rate that ruins the model after three epochs, the third's weights are kept."""
        lr = {"kind": "one_shot", "from": 0.05, "to": 1.0, "at": "3ep"}
        kept, plain = net(), net()
        plain.load_state_dict(kept.state_dict())
        optimizer = {"kind": "sgd", "lr": lr, "weight_decay": 0.95}
        states: list[Any] = []
        after = train(kept, stage(4, ends_with="best", optimizer=optimizer))
        train(
            plain,
            stage(4, optimizer=optimizer),
            on_epoch=lambda s: states.append({k: v.clone() for k, v in s.model.items()}),
        )
        metrics = [row.validation_metric for row in after.history]
        best = metrics.index(max(metrics))
        assert best < 3, "the last epoch is not the best, or the test shows nothing"
        for name, value in kept.state_dict().items():
            assert torch.equal(value, states[best][name])

    def test_a_stage_ends_when_nothing_gets_better(self) -> None:
        lr = {"kind": "one_shot", "from": 0.05, "to": 0.0, "at": "2ep"}
        after = train(net(), stage(9, patience=2, optimizer={"kind": "sgd", "lr": lr}))
        metrics = [row.validation_metric for row in after.history]
        best = metrics.index(max(metrics))
        assert len(metrics) == best + 1 + 2 < 9


@pytest.mark.parametrize(
    ("train_keys", "more", "message"),
    [
        (
            {"ends_with": "best", "cuts": {}},
            {},
            "stages.0.ends_with: 'ends_with' does not go with 'cuts'; put it in a train stage after the "
            "last cut",
        ),
        (
            {"patience": 2},
            {"data": {"source": "digits", "validation": "0%"}},
            "stages.0.patience: 'patience' of 'train' goes by the validation set; write data.validation "
            "above 0%",
        ),
        (
            {"ema": 0.9},
            {},
            "stages.0.ema: 'train' averages weights while penalties act, and an average of weights that "
            "become zero is not zero; write 'penalties: false', or leave 'ema' out",
        ),
    ],
)
def test_what_cannot_be_kept(train_keys: dict[str, Any], more: dict[str, Any], message: str) -> None:
    recipe = {
        "version": 1,
        "title": "t",
        "data": {"source": "digits"},
        "rules": [{"layers": "0", "group": "neuron", "penalty": {"kind": "group_lasso", "strength": 0.1}}],
        "stages": [
            {"kind": "train", "epochs": 3, "optimizer": {"kind": "sgd", "lr": 0.1}, **train_keys},
            {"kind": "cut"},
        ],
        **more,
    }
    if "cuts" in train_keys:
        recipe["stages"] = recipe["stages"][:1]
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe(recipe)
    assert str(caught.value) == f"<recipe>: {message}"
