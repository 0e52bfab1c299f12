"""Schedules against values worked out by hand; epochs of 10 steps, stages of 100."""

import math
from typing import Any

import pytest
from pydantic import TypeAdapter

from sparsify.recipe.schedules import needs_steps, value
from sparsify_schemas.schedule import Schedule


def at(spec: dict[str, Any], *steps: int) -> list[float]:
    schedule = TypeAdapter(Schedule).validate_python(spec)
    return [value(schedule, step, 10, 100) for step in steps]


@pytest.mark.parametrize(
    ("spec", "steps", "wanted"),
    [
        ({"kind": "constant", "value": 0.3}, (0, 50, 500), [0.3, 0.3, 0.3]),
        ({"kind": "linear", "from": 0, "to": 1}, (0, 25, 100, 101), [0, 0.25, 1, 1]),
        (
            {"kind": "linear", "from": 1, "to": 3, "start": "2ep", "end": "4ep"},
            (0, 19, 20, 30, 39, 40),
            [1, 1, 1, 2, 2.9, 3],
        ),
        (
            {"kind": "linear", "from": 0, "to": 1, "every": "10it"},
            (0, 9, 10, 19, 99, 100),
            [0, 0, 0.1, 0.1, 0.9, 1],
        ),
        (
            {"kind": "linear", "from": 0, "to": 1, "start": "0.5dur", "end": "0.6dur"},
            (49, 50, 55, 60),
            [0, 0, 0.5, 1],
        ),
        ({"kind": "cosine", "from": 1, "to": 0}, (0, 50, 100), [1, 0.5, 0]),
        ({"kind": "cosine", "from": 1, "to": 0}, (25,), [(1 + math.sqrt(0.5)) / 2]),
        ({"kind": "cubic", "to": 1}, (0, 50, 100), [0, 1 - 0.125, 1]),
        ({"kind": "exponential", "from": 1, "to": 0.01}, (0, 50, 100), [1, 0.1, 0.01]),
        ({"kind": "step", "value": 0.1, "at": ["2ep", "50it"]}, (19, 20, 49, 50), [0.1, 0.01, 0.01, 0.001]),
        ({"kind": "step", "value": 1, "factor": 0.5, "at": ["0.1dur"]}, (9, 10), [1, 0.5]),
        ({"kind": "one_shot", "to": 0.9, "at": "3ep"}, (29, 30, 31), [0, 0.9, 0.9]),
    ],
)
def test_values(spec: dict[str, Any], steps: tuple[int, ...], wanted: list[float]) -> None:
    assert at(spec, *steps) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("spec", "needed"),
    [
        ({"kind": "constant", "value": 1}, False),
        ({"kind": "linear", "from": 0, "to": 1, "start": "0it", "end": "5it"}, False),
        ({"kind": "linear", "from": 0, "to": 1}, True),
        ({"kind": "step", "value": 1, "at": ["5it"]}, False),
        ({"kind": "one_shot", "to": 1, "at": "1ep"}, True),
    ],
)
def test_whether_lengths_must_be_known(spec: dict[str, Any], needed: bool) -> None:
    assert needs_steps(TypeAdapter(Schedule).validate_python(spec)) is needed
