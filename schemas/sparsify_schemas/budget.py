"""Budgets: what may remain of the dense model. All must hold at the end, as measured."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, field_validator

from sparsify_schemas.base import Positive, Spec, Text
from sparsify_schemas.task import Facts
from sparsify_schemas.units import Amount, Points, Quantity, Share, Size, Time, first_of


def _make_parser(*kinds: type[Quantity]) -> Callable[[Any], Quantity]:
    """A parser of what may remain, which cannot be nothing."""
    read, expected = first_of(*kinds), " or ".join(kind.EXPECTS for kind in kinds)

    def parse(text: Any) -> Quantity:
        found = read(text)
        if not found.value:
            raise ValueError(f"no cut leaves as little as '{found}'; say how much may remain: {expected}")
        return found

    return parse


CountLimit = Annotated[
    Share | Amount, BeforeValidator(_make_parser(Share, Amount), json_schema_input_type=Share | Amount)
]
SizeLimit = Annotated[
    Share | Size, BeforeValidator(_make_parser(Share, Size), json_schema_input_type=Share | Size)
]
TimeLimit = Annotated[
    Share | Time, BeforeValidator(_make_parser(Share, Time), json_schema_input_type=Share | Time)
]


def parse_drop(value: Any) -> Points | Share | float:
    """Read `0.5pp`, `5%` or a number; raises ValueError."""
    if isinstance(value, str) and value.endswith("%"):
        return Share.parse(value)
    if isinstance(value, Share):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    return Points.parse(value)


Drop = Annotated[
    Points | Share | float,
    PlainValidator(parse_drop, json_schema_input_type=Points | Share | float),
    PlainSerializer(lambda value: value if isinstance(value, float) else str(value)),
]


def fit_drop(drop: Points | Share | float, judged_by: Facts) -> Points | Share | float:
    """A drop in the metric's own unit: percentage points of a share, which `1%` says as well; of any other
    metric a number, or a share of the dense model's figure. Raises ValueError."""
    if not judged_by.percent and isinstance(drop, Points):
        raise ValueError(
            f"'{drop}' is of a share, and '{judged_by.name}', which decides, is none; write a number in its "
            f"own "
            "unit, or a share of the dense model's figure such as 5%"
        )
    if judged_by.percent and isinstance(drop, float):
        raise ValueError(f"expected percentage points such as 0.5pp, not the bare number {drop:g}")
    return Points(drop.value, "pp") if judged_by.percent and isinstance(drop, Share) else drop


def allowed_drop(drop: Points | Share | float, dense: float) -> float:
    """How much worse the deciding metric may be, in its own unit; dense: the dense model's figure."""
    if isinstance(drop, float):
        return drop
    return drop.fraction * abs(dense) if isinstance(drop, Share) else drop.fraction


class AccuracyDrop(Spec):
    """The deepest cut whose deciding metric on the validation set, after the recipe's own fine-tuning, stays
    within this of the dense model's.

    What comes before the first cut is done once; from there each trial cuts and goes on to the end of the
    recipe. How deep it cuts is found by bisection between what the other budgets ask for and all that can be
    removed. A few points as text mean this with its defaults.
    """

    at_most: Drop
    """how much worse the deciding metric may be on the validation set: `0.5pp` of a share such as accuracy,
    dice or average precision; of any other metric a number in its own unit, `0.3`, or a share of the dense
    model's figure, `5%`"""
    trials: Positive = 6
    """cuts that are tried at most"""
    within: Share = Share(5, "%")
    """of the whole way: how near the deepest cut inside and the shallowest one outside must come to stop
    earlier"""

    @field_validator("within")
    @classmethod
    def _can_be_met(cls, within: Share) -> Share:
        if not within.value:
            raise ValueError(
                "bisection comes ever nearer and never to '0%'; write a share above it, "
                "or leave 'within' out and let 'trials' end the search"
            )
        return within


def _from_points(value: Any) -> Any:
    return value if isinstance(value, dict | AccuracyDrop) else AccuracyDrop(at_most=parse_drop(value))


DropLimit = Annotated[
    AccuracyDrop, BeforeValidator(_from_points, json_schema_input_type=Points | Share | float | AccuracyDrop)
]


class Budget(Spec):
    """At most this much remains."""

    macs: CountLimit | None = None
    """multiply-accumulates of one forward call on one example: `25%` of the dense model, or `300M`"""
    params: CountLimit | None = None
    """parameters that are stored: `25%` of the dense model, or `85k`"""
    bytes: SizeLimit | None = None
    """bytes of the state dict: `25%` of the dense model, or `8MiB`"""
    peak_memory: SizeLimit | None = None
    """bytes at the peak of one inference on one example, weights and inputs included: `60%` of the dense
    model's, or `2MiB`"""
    latency: dict[Text, TimeLimit] = {}
    """target -> median milliseconds of a forward call: `60%` of the dense model's, or `2.5ms`; the name of a
    preset will do"""
    accuracy_drop: DropLimit | None = None
    """how much of the task's deciding metric may be lost on the validation set: `0.5pp` of a share such as
    accuracy, a number or `5%` of any other; the cut is as deep as that allows"""
