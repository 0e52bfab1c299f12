"""What a plan says of a gsm stage before it begins."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.pruning.planning.gsm_forecast import compute_residual
from sparsify_schemas.stage import Train

SGD = {"kind": "sgd", "lr": 0.01, "momentum": 0.99, "weight_decay": 5e-4}


def stage(optimizer: dict[str, Any], epochs: int = 280, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "epochs": epochs, "batch": 256, "optimizer": optimizer, **more}


def notes(*stages: dict[str, Any], examples: int | None = 60000, kind: str = "gsm") -> list[str]:
    rule = {
        "layers": "*",
        "group": "weight",
        "sparsity": "90%",
        "penalty": {"kind": kind, **({"strength": 1e-4} if kind != "gsm" else {})},
    }
    recipe = {
        "version": 1,
        "title": "t",
        "data": {"source": "mnist"},
        "rules": [rule],
        "stages": [*stages, {"kind": "cut"}],
    }
    return [
        n
        for n in sparsify.make_plan(recipe, nn.Linear(6, 3), (torch.randn(2, 6),), examples=examples).notes
        if n.startswith("stages.")
    ]


def test_the_papers_lenet_schedule_leaves_what_it_should() -> None:
    """280 epochs of 235 steps, lr 0.01 divided by ten at 160, 200 and 240 (papers.md: 4.4e-9 with 234
    steps)."""
    lr = {"kind": "step", "value": 0.01, "factor": 0.1, "at": ["160ep", "200ep", "240ep"]}
    spec = Train.model_validate(stage({**SGD, "lr": lr}))
    by_hand = math.exp(-0.05 * 235 * (160 * 1e-2 + 40 * 1e-3 + 40 * 1e-4 + 40 * 1e-5))
    assert compute_residual(spec, 235) == pytest.approx(by_hand)
    assert notes(stage({**SGD, "lr": lr})) == [
        "stages.0 (train): a weight that gsm always leaves out shrinks to 4e-9 of itself in 65800 steps"
    ]


def test_a_schedule_that_is_too_short_says_what_would_do() -> None:
    said = notes(stage({**SGD, "momentum": 0.9}))
    assert said == [
        "stages.0 (train): a weight that gsm always leaves out shrinks to 0.037 of itself in 65800 "
        "steps, so the cut will cost accuracy; "
        "588 epochs in place of 280 or a momentum of 0.953 in place of 0.9 would leave 1e-3"
    ]
    assert compute_residual(Train.model_validate(stage({**SGD, "momentum": 0.9}, 588)), 235) == pytest.approx(
        1e-3, rel=0.02
    )
    assert compute_residual(Train.model_validate(stage({**SGD, "momentum": 0.953})), 235) == pytest.approx(
        1e-3, rel=0.1
    )


@pytest.mark.parametrize(
    ("optimizer", "examples", "text"),
    [
        (
            SGD,
            None,
            "a weight that gsm always leaves out shrinks to 1e-3 of itself in 13816 steps at lr 0.01",
        ),
        (
            {**SGD, "weight_decay": 0.0},
            60000,
            (
                "without weight_decay the weights that gsm leaves out never shrink, "
                "and the cut will cost what they are worth; give the optimizer a weight_decay"
            ),
        ),
        (
            {"kind": "adam", "weight_decay": 0.1},
            60000,
            (
                "what adam leaves of a weight that gsm leaves out cannot be foretold, "
                "as adam divides the decay by its own size; use sgd with momentum 0.98 or 0.99"
            ),
        ),
        (
            {"kind": "adamw", "lr": 0.01, "weight_decay": 0.05},
            60000,
            "a weight that gsm always leaves out shrinks to 5e-15 of itself in 65800 steps",
        ),
    ],
)
def test_other_cases(optimizer: dict[str, Any], examples: int | None, text: str) -> None:
    assert notes(stage(optimizer), examples=examples) == [f"stages.0 (train): {text}"]


def test_only_stages_in_which_gsm_acts_are_spoken_of() -> None:
    assert notes(stage(SGD), kind="l1") == []
    assert len(notes(stage(SGD, name="a", penalties=False), stage(SGD, name="b"))) == 1
