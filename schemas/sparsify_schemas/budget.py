"""Budgets: what may remain of the dense model. All must hold at the end, as measured."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from sparsify_schemas.base import Positive, Spec, Text
from sparsify_schemas.units import Amount, Points, Share, Size, Time, first_of

CountLimit = Annotated[Share | Amount, BeforeValidator(first_of(Share, Amount), json_schema_input_type=Share | Amount)]
SizeLimit = Annotated[Share | Size, BeforeValidator(first_of(Share, Size), json_schema_input_type=Share | Size)]
TimeLimit = Annotated[Share | Time, BeforeValidator(first_of(Share, Time), json_schema_input_type=Share | Time)]


class AccuracyDrop(Spec):
    """The deepest cut whose validated accuracy, after the recipe's own fine-tuning, stays within this of the dense model's.

    What comes before the first cut is done once; from there each trial cuts and goes on to the end of the recipe. How deep it
    cuts is found by bisection between what the other budgets ask for and all that can be removed. A few points
    as text mean this with its defaults.
    """

    at_most: Points
    """largest drop of validated accuracy: `0.5pp`"""
    trials: Positive = 6
    """cuts that are tried at most"""
    within: Share = Share(5, "%")
    """of the whole way: how near the deepest cut inside and the shallowest one outside must come to stop earlier"""


def _from_points(value: Any) -> Any:
    return value if isinstance(value, dict | AccuracyDrop) else AccuracyDrop(at_most=Points.parse(value))


DropLimit = Annotated[AccuracyDrop, BeforeValidator(_from_points, json_schema_input_type=Points | AccuracyDrop)]


class Budget(Spec):
    """At most this much remains."""

    macs: CountLimit | None = None
    """multiply-accumulates of one forward call on one example: `25%` of the dense model, or `300M`"""
    params: CountLimit | None = None
    """parameters that are stored: `25%` of the dense model, or `85k`"""
    bytes: SizeLimit | None = None
    """bytes of the state dict: `25%` of the dense model, or `8MiB`"""
    peak_memory: SizeLimit | None = None
    """bytes at the peak of one inference on one example, weights and inputs included: `60%` of the dense model's, or `2MiB`"""
    latency: dict[Text, TimeLimit] = {}
    """target -> median milliseconds of a forward call: `60%` of the dense model's, or `2.5ms`; the name of a preset will do"""
    accuracy_drop: DropLimit | None = None
    """percentage points of validated accuracy that may be lost: `0.5pp`; the cut is as deep as that allows"""
