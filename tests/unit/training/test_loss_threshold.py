"""When small weights become zero during training, and how many."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify.data import Datasets, Examples
from sparsify.training.accelerator import make_accelerator
from sparsify.training.loss_threshold import has_plateaued, zero_smallest
from sparsify.training.stage import train_stage
from sparsify.training.stage_state import StageState
from sparsify_schemas.stage import Train


@pytest.mark.parametrize(
    ("losses", "patience", "due"),
    [
        ([], 1, False),
        ([1.0], 1, False),
        ([1.0, 0.9], 1, False),
        ([1.0, 1.0], 1, True),
        ([1.0, 0.5, 0.6, 0.7], 2, True),
        ([1.0, 0.5, 0.6, 0.4], 2, False),
        ([1.0, 0.5, 0.6], 2, False),
    ],
)
def test_a_plateau_is_so_many_epochs_without_a_better_loss(
    losses: list[float], patience: int, due: bool
) -> None:
    assert has_plateaued(losses, patience) is due


def quadratic(weights: list[Tensor], start: list[Tensor]) -> float:
    """1 + the squares of what has gone."""
    return 1 + sum(float((w - s).square().sum()) for w, s in zip(weights, start, strict=True))


def test_the_largest_threshold_that_the_loss_bears() -> None:
    weights = [torch.tensor([0.1, -0.2, 3.0]), torch.tensor([[0.3, 0.0], [-0.5, 2.0]])]
    start = [w.clone() for w in weights]
    # 0.01 + 0.04 + 0.09 = 0.14 is within 20 %, with 0.25 more it is not
    assert zero_smallest(weights, lambda: quadratic(weights, start), 0.2) == pytest.approx(0.3)
    assert weights[0].tolist() == pytest.approx([0, 0, 3.0]) and weights[1].tolist() == [
        [0.0, 0.0],
        [-0.5, 2.0],
    ]


def test_nothing_goes_where_the_loss_bears_nothing() -> None:
    weights = [torch.tensor([0.1, -0.2, 3.0])]
    start = [w.clone() for w in weights]
    assert zero_smallest(weights, lambda: quadratic(weights, start), 0.0) == 0.0
    assert torch.equal(weights[0], start[0])


def test_many_weights_are_found_to_a_thousandth() -> None:
    torch.manual_seed(0)
    start = [torch.randn(50_000, dtype=torch.float64)]
    weights = [start[0].clone()]
    calls = []

    def loss() -> float:
        calls.append(0)
        return quadratic(weights, start)

    zero_smallest(weights, loss, 100.0)
    order = start[0].square().sort().values
    most = int((order.cumsum(0) <= 100).sum())
    assert most - 50 <= int((weights[0] == 0).sum()) <= most
    assert len(calls) < 15


def data() -> Datasets:
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return Datasets(Examples(x[:80], y[:80]), Examples(x[80:100], y[80:100]), Examples(x[100:], y[100:]), 3)


def trained(
    restore: StageState | None = None, epochs_done: list[StageState] | None = None, **threshold: Any
) -> tuple[nn.Module, StageState]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    penalty = {"kind": "sensitivity", "strength": 1e-2, "threshold": threshold}
    rules = [{"layers": "*", "group": "weight", "penalty": penalty}]
    stage = {"kind": "train", "epochs": 8, "batch": 16, "optimizer": {"kind": "sgd", "lr": 0.1}}
    recipe = {
        "version": 1,
        "title": "t",
        "data": {"source": "digits"},
        "rules": rules,
        "stages": [stage, {"kind": "cut"}],
    }
    plan = sparsify.make_plan(recipe, net, (torch.randn(2, 6),))

    def keep(moment: StageState) -> None:
        if epochs_done is not None:
            copied = {n: {k: v.clone() for k, v in part.items()} for n, part in (("model", moment.model),)}
            epochs_done.append(
                StageState(
                    moment.epochs,
                    moment.history,
                    0,
                    0,
                    0,
                    copied["model"],
                    moment.optimizer,
                    dict(moment.hooks),
                )
            )

    stage_ = plan.recipe.stages[0]
    assert isinstance(stage_, Train)
    moment = train_stage(
        net,
        stage_,
        data(),
        plan,
        seed=0,
        stage_index=0,
        accelerator=make_accelerator(),
        restore=restore,
        on_epoch=keep,
    )
    return net, moment


def test_weights_go_during_training_and_stay_gone() -> None:
    moments: list[StageState] = []
    _, last = trained(epochs_done=moments, tolerance="10%", patience=2)
    thresholds = [row.threshold for row in last.history]
    assert thresholds[-1] is not None, "the last epoch always looks"
    assert any(t is not None for t in thresholds[:-1]), "and some plateau before it"
    zeros = [m.model["0.weight"] == 0 for m in moments]
    counts = [int(z.sum()) for z in zeros]
    assert counts == sorted(counts) and counts[-1] > 20
    assert all(bool((b | ~a).all()) for a, b in pairwise(zeros)), "what is zero stays zero"
    assert all(
        row.threshold is not None or counts[i] == (counts[i - 1] if i else 0)
        for i, row in enumerate(last.history)
    )


def test_a_resumed_stage_ends_the_same() -> None:
    moments: list[StageState] = []
    whole, last = trained(epochs_done=moments, tolerance="10%", patience=2)
    first = next(i for i, row in enumerate(last.history) if row.threshold is not None)
    assert first < 6
    parts, again = trained(restore=moments[first], tolerance="10%", patience=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert [row.threshold for row in again.history] == [row.threshold for row in last.history]
