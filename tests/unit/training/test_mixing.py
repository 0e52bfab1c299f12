"""Mixup and cutmix: what is drawn, what a stage does with it, and what cannot be mixed."""

import math
from collections import Counter
from copy import deepcopy
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

import sparsify
from sparsify.data import Datasets, Examples, batches
from sparsify.errors import RecipeError, SparsifyError
from sparsify.models import digits_cnn
from sparsify.objective.objective import make_objective
from sparsify.training.accelerator import make_accelerator
from sparsify.training.mixing import Mix, draw_mix
from sparsify.training.seeds import derive_seed
from sparsify.training.stage import train_stage
from sparsify.training.stage_state import StageState
from sparsify_schemas.stage import Train

SGD = {"kind": "sgd", "lr": 0.1, "momentum": 0.9}


def stage(**more: Any) -> Train:
    given = {"kind": "train", "name": "learn", "epochs": 2, "batch": 10, "optimizer": SGD}
    return Train.model_validate({**given, **more})


def draws(count: int, shape: tuple[int, ...] = (10, 1, 12, 20), **ways: float) -> list[Mix]:
    found = [draw_mix(stage(**ways), shape, 3, step) for step in range(count)]
    assert all(mix is not None for mix in found)
    return [mix for mix in found if mix is not None]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_share_is_drawn_from_beta(alpha: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)); partners are the batch in another order."""
    found = draws(4000, mixup=alpha)
    shares = torch.tensor([mix.share for mix in found])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
    assert all(sorted(mix.partners.tolist()) == list(range(10)) for mix in found)
    counts = Counter(int(mix.partners[0]) for mix in found)
    assert len(counts) == 10 and max(counts.values()) < 500


def test_a_box_is_as_large_as_its_share_says() -> None:
    """Pixels are counted: each image has one value of its own, so that what is the partner's can be seen."""
    x = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 3, 12, 20).contiguous()
    shares = []
    for mix in draws(400, cutmix=1.0):
        mixed = mix.mix_inputs(x)
        for i, partner in enumerate(mix.partners.tolist()):
            taken = mixed[i] != x[i]
            if partner == i:
                assert not taken.any()
                continue
            assert torch.equal(mixed[i][taken], torch.full_like(mixed[i][taken], partner))
            assert mix.share == pytest.approx(1 - float(taken.float().mean()))
            rows, columns = taken[0].any(1), taken[0].any(0)
            assert torch.equal(taken, (rows[:, None] & columns).expand(3, 12, 20))  # one rectangle
        shares.append(mix.share)
    # Uniform m, and centres near an edge lose part of the box: more of the image is its own.
    assert 0.5 < sum(shares) / len(shares) < 0.75
    assert min(shares) < 0.2 and max(shares) == 1.0


def test_of_two_ways_each_batch_gets_one_with_equal_chance() -> None:
    boxes = [mix.box is not None for mix in draws(1000, mixup=0.2, cutmix=1.0)]
    assert sum(boxes) / 1000 == pytest.approx(0.5, abs=0.05)


def test_the_same_seed_and_step_draw_the_same_and_others_do_not() -> None:
    one, again = (draw_mix(stage(mixup=1.0), (10, 4), 3, 7) for _ in range(2))
    others = [draw_mix(stage(mixup=1.0), (10, 4), *place) for place in ((3, 8), (4, 7))]
    assert one is not None and again is not None
    assert one.share == again.share and torch.equal(one.partners, again.partners)
    assert all(other is not None and other.share != one.share for other in others)
    assert draw_mix(stage(), (10, 4), 3, 7) is None


class Watched(nn.Sequential):
    """Keeps what all instances, copies among them, were given while they trained and while they did not."""

    seen: ClassVar[dict[bool, list[Tensor]]] = {True: [], False: []}

    def forward(self, x: Tensor) -> Tensor:
        self.seen[self.training].append(x.detach().clone())
        return super().forward(x)


@pytest.fixture(autouse=True)
def _unseen() -> None:
    Watched.seen = {True: [], False: []}


def net(outputs: int = 3) -> Watched:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Watched(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs))


def make_data(kind: str) -> Datasets:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(35, 6, generator=generator)
    classes = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    targets = {
        "classification": classes,
        "multilabel": F.one_hot(classes, 3).float(),
        "regression": x[:, :3] * 2,
    }[kind]
    none = Examples(x[:0], targets[:0])
    return Datasets(Examples(x, targets), none, none, classes=3 if kind == "classification" else 0)


def train(model: nn.Module, spec: Train, data: Datasets, kind: str, **more: Any) -> StageState:
    given = {"seed": 5, "stage_index": 0, "accelerator": make_accelerator()}
    return train_stage(model, spec, data, None, objective=make_objective(kind), **{**given, **more})


def find_mixture(x: Tensor, mixed: Tensor) -> tuple[float, list[int]]:
    """(m, partners) by which each row of `mixed` is m * itself + (1 - m) * another row of x, by trial."""
    shares, partners = [], []
    for row, result in zip(x, mixed, strict=True):
        if torch.allclose(row, result, atol=1e-5):
            partners.append(len(partners))  # itself, or a share of nearly all
            continue
        trials = []
        for place, other in enumerate(x):
            way = row - other
            if not bool(way.any()):
                continue
            share = float((result - other) @ way / (way @ way))
            trials.append((float((share * row + (1 - share) * other - result).norm()), place, share))
        _, place, share = min(trials)
        partners.append(place)
        shares.append(share)
    assert max(shares) - min(shares) < 1e-4  # one share for the batch
    return shares[0], partners


def soft_loss(kind: str, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The loss of mixed targets: its gradient is that of the mixed losses."""
    if kind == "classification":
        spread = (1 - smoothing) * targets + smoothing / 3
        return -(spread * outputs.log_softmax(1)).sum(1).mean()
    if kind == "multilabel":
        chance = outputs.sigmoid()
        return -(targets * chance.log() + (1 - targets) * (1 - chance).log()).mean()
    return (outputs - targets).square().mean()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("classification", {}),
        ("classification", {"label_smoothing": 0.2}),
        ("classification", {"accumulate": 3}),
        ("multilabel", {}),
        ("regression", {}),
    ],
)
def test_a_stage_is_the_loop_with_mixed_targets(kind: str, more: dict[str, Any]) -> None:
    """The inputs that the model saw tell how each batch was mixed."""
    data, model, by_hand = make_data(kind), net(), net()
    history = train(model, stage(mixup=1.0, **more), data, kind).history
    pieces, steps = Watched.seen[True], []
    parts = more.get("accumulate", 1)
    for start in range(0, len(pieces), parts):
        steps.append(torch.cat(pieces[start : start + parts]))
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        losses, right = [], 0.0
        order = batches(data.train, 10, seed=derive_seed(5, 0, epoch))
        for x, y in order:
            mixed = steps.pop(0)
            share, partners = find_mixture(x, mixed)
            both = F.one_hot(y, 3).float() if kind == "classification" else y
            soft = share * both + (1 - share) * both[partners]
            optimizer.zero_grad()
            outputs = by_hand(mixed)
            loss = soft_loss(kind, outputs, soft, more.get("label_smoothing", 0.0))
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(x))
            right += float(soft.gather(1, outputs.argmax(1, keepdim=True)).sum())
        if kind == "regression":
            continue  # the mixed losses are more by what does not depend on the outputs
        assert history[epoch].loss == pytest.approx(sum(losses) / 35, rel=1e-4)
        if kind == "classification":  # the share of the mixed targets that is named
            assert history[epoch].train_metric == pytest.approx(right / 35, abs=1e-4)
    assert not steps
    for own, wanted in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-4)


def test_the_teacher_sees_the_mixed_examples() -> None:
    spec = stage(mixup=1.0, distill={"weight": 0.7})
    train(net(), spec, make_data("classification"), "classification", teacher=net())
    student, teacher = Watched.seen[True], Watched.seen[False]
    assert len(student) == len(teacher) == 8
    assert all(torch.equal(one, other) for one, other in zip(student, teacher, strict=True))


def test_validation_is_of_plain_examples() -> None:
    data = make_data("classification")
    data = Datasets(data.train, data.train[:20], data.test, 3)
    train(net(), stage(mixup=1.0, epochs=1), data, "classification")
    assert torch.equal(torch.cat(Watched.seen[False]), data.train.inputs[:20])


def test_going_on_from_a_moment_ends_with_the_same_bits() -> None:
    """Images, mixed both ways."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(35, 1, 5, 5, generator=generator)
    none = Examples(x[:0], torch.zeros(0, dtype=torch.int64))
    data = Datasets(Examples(x, torch.arange(35) % 3), none, none, 3)

    def images() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 3))

    spec, moments = stage(mixup=0.4, cutmix=1.0, epochs=4), []
    whole, resumed = images(), images()
    train(whole, spec, data, "classification", on_epoch=lambda moment: moments.append(deepcopy(moment)))
    train(resumed, spec, data, "classification", restore=moments[1])
    for own, wanted in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, wanted)


YAML = """\
version: 1
title: t
model: {build: sparsify.models.digits_cnn}
data: {source: digits}
task: TASK
rules: [{layers: Conv2d, group: filter}]
stages:
  - {kind: train, name: learn, epochs: 1, optimizer: {kind: adam}, WAYS}
  - {kind: cut}
"""


@pytest.mark.parametrize(
    ("task", "ways", "message"),
    [
        (
            "segmentation",
            "mixup: 0.2",
            "'mixup' of 'learn' goes with a task of classification, multilabel or regression, and this one "
            "is 'segmentation'; leave it out",
        ),
        (
            "regression",
            "cutmix: 1.0",
            "'cutmix' of 'learn' goes with a task of classification or multilabel, and this one is "
            "'regression'; leave it out",
        ),
        (
            "language_model",
            "mixup: 0.2",
            "'mixup' of 'learn' goes with a task of classification, multilabel or regression, and this one "
            "is 'language_model'; leave it out",
        ),
        (
            "{kind: classification, loss: model}",
            "mixup: 0.2",
            "'mixup' of 'learn' takes the loss of two targets for each example, and the model returns its "
            "own; leave it out",
        ),
        (
            "{kind: classification, collate: mine.collate:make}",
            "mixup: 0.2",
            "'mixup' of 'learn' mixes one tensor of inputs, and batches of task.collate may be anything; "
            "leave it out",
        ),
    ],
)
def test_a_task_that_cannot_be_mixed_is_refused(task: str, ways: str, message: str, tmp_path: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(YAML.replace("TASK", task).replace("WAYS", ways))
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe(path)
    key, column = ways.split(":")[0], YAML.splitlines()[7].index("WAYS") + 1
    assert str(caught.value) == f"{path}:8:{column}: stages.0.{key}: {message}"


def numbers(count: int) -> Any:
    return torch.arange(count) % 2


def by_name() -> Any:
    part = ({"image": torch.rand(20, 6), "age": torch.rand(20, 1)}, numbers(20))
    return part, part


def in_parts() -> Any:
    part = ((torch.rand(20, 6), torch.rand(20, 1)), numbers(20))
    return part, part


def whole_numbers() -> Any:
    part = (torch.arange(120).view(20, 6), numbers(20))
    return part, part


def table() -> Any:
    part = (torch.rand(20, 6), numbers(20))
    return part, part


def sizes() -> Any:
    part = ([torch.rand(1, 6 + place % 2, 6) for place in range(20)], numbers(20))
    return part, part


class Takes(nn.Module):
    """Takes whatever the examples are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Any = None, *more: Any, **named: Any) -> Tensor:
        rows = named["image"] if x is None else x
        hidden = self.first(rows.float()).relu()
        hidden = hidden.flatten(1, -2).mean(1) if hidden.dim() > 2 else hidden
        found: Tensor = self.last(hidden)
        return found


@pytest.mark.parametrize(
    ("source", "way", "message"),
    [
        (
            "by_name",
            "mixup",
            "'mixup' mixes one tensor of inputs, and these come by name (image, age); leave it out",
        ),
        ("in_parts", "mixup", "'mixup' mixes one tensor of inputs, and these come in 2 parts; leave it out"),
        (
            "whole_numbers",
            "mixup",
            "'mixup' mixes real numbers, and the inputs are whole ones such as tokens (int64); leave it out",
        ),
        (
            "table",
            "cutmix",
            "'cutmix' pastes boxes into images [channels, height, width], and an example is 6 float32; write "
            "'mixup' in its place",
        ),
        (
            "sizes",
            "mixup",
            "'mixup' mixes inputs of one shape, and these vary; give all of them one size, or leave it out",
        ),
    ],
)
def test_examples_that_cannot_be_mixed_are_refused_before_the_first_epoch(
    source: str, way: str, message: str, tmp_path: Any
) -> None:
    learn = {"kind": "train", "name": "learn", "epochs": 1, "optimizer": {"kind": "adam"}, way: 1.0}
    recipe = {
        "version": 1,
        "title": "t",
        "model": {"build": f"{__name__}.Takes"},
        "data": {"source": f"{__name__}:{source}"},
        "rules": [{"layers": "first", "group": "neuron", "sparsity": "50%"}],
        "stages": [learn, {"kind": "cut"}],
    }
    with pytest.raises(SparsifyError) as caught:
        sparsify.apply(recipe, from_scratch=True, out=tmp_path, timing=0.02)
    assert str(caught.value) == f"<recipe>: stages.0.{way}: {message}"
    assert not list(tmp_path.iterdir())


def test_the_plan_says_so() -> None:
    given = yaml.safe_load(YAML.replace("task: TASK\n", "").replace("WAYS", "mixup: 0.2, cutmix: 1.0"))
    given["stages"][0] |= {"layout": "channels_last", "recompute_activations": True}
    plan = sparsify.make_plan(given, digits_cnn().eval(), (torch.zeros(2, 1, 8, 8),))
    words = " ".join(sparsify.describe(plan).split())
    assert "channels_last, activations recomputed, mixup 0.2 or cutmix 1" in words


def test_a_share_is_no_alpha() -> None:
    for value in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError):
            stage(mixup=value)
