"""Schedules: how a number changes over a stage. Each holds in the half-open window [start, end).

Before the window a schedule has its `from` value, after it its `to` value. `t` runs from 0 at `start` to 1 at
`end`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sparsify_schemas.base import NonNegative, Spec
from sparsify_schemas.units import Duration


class Constant(Spec):
    """v = value, at every step. A plain number means this."""

    kind: Literal["constant"]
    value: NonNegative
    """the value at every step"""


class _Window(Spec):
    from_: NonNegative = Field(alias="from")
    """the value before and at `start`"""
    to: NonNegative
    """the value from `end` on"""
    start: Duration = Duration(0, "ep")
    """when the change begins"""
    end: Duration = Duration(1, "dur")
    """when the change is complete"""
    every: Duration = Duration(1, "it")
    """how often the value moves; between two moves it stays"""

    @model_validator(mode="after")
    def _window(self) -> "_Window":
        if self.start.unit == self.end.unit and self.start.value >= self.end.value:
            raise ValueError(
                f"the schedule starts at {self.start} and ends at {self.end}; 'end' must come after 'start'"
            )
        if self.every.value == 0:
            raise ValueError(f"'every: {self.every}' never comes; use 1it to move at each step")
        return self


class Linear(_Window):
    """v = from + (to - from) * t"""

    kind: Literal["linear"]


class Cosine(_Window):
    """v = to + (from - to) * (1 + cos(pi t)) / 2    (Loshchilov & Hutter, arXiv:1608.03983)"""

    kind: Literal["cosine"]


class Cubic(_Window):
    """v = to + (from - to) * (1 - t)^3    (Zhu & Gupta, arXiv:1710.01878, equation 1)"""

    kind: Literal["cubic"]
    from_: NonNegative = Field(default=0.0, alias="from")
    """the value before and at `start`"""


class Exponential(_Window):
    """v = from * (to / from)^t; both ends above zero."""

    kind: Literal["exponential"]

    @model_validator(mode="after")
    def _positive(self) -> "Exponential":
        if self.from_ <= 0 or self.to <= 0:
            raise ValueError(
                "an exponential schedule needs 'from' and 'to' above zero; use linear or cosine to start at 0"
            )
        return self


class Step(Spec):
    """v = value * factor^(number of moments in `at` that have passed), as torch's MultiStepLR."""

    kind: Literal["step"]
    value: NonNegative
    """the value at the beginning"""
    factor: NonNegative = 0.1
    """what the value is multiplied by at each moment"""
    at: tuple[Duration, ...] = Field(min_length=1)
    """the moments"""


class OneShot(Spec):
    """v = from until `at`, then `to`."""

    kind: Literal["one_shot"]
    from_: NonNegative = Field(default=0.0, alias="from")
    """the value before `at`"""
    to: NonNegative
    """the value from `at` on"""
    at: Duration
    """the moment of the change"""


_Members = Constant | Linear | Cosine | Cubic | Exponential | Step | OneShot
Schedule = Annotated[_Members, Field(discriminator="kind")]


def _from_number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        if isinstance(value, str):
            raise ValueError(f"expected a number or a schedule, not {value[:60]!r}")
        return value
    return Constant(kind="constant", value=value)


Scheduled = Annotated[Schedule, BeforeValidator(_from_number, json_schema_input_type=NonNegative | Schedule)]
"""A number, or a schedule with a `kind`."""


class Auto(Spec):
    """v rises and falls so that what has died follows the goal, linearly from nothing at `start`: for
    strengths alone.

    The goal is the rule's own `sparsity`, or else the budget of macs, params, bytes and peak_memory; a
    latency and an accuracy_drop are held by the cut alone. Which groups go is asked of the rule's criterion
    two hundred times a stage (magnitude where it would need data), as a cut would; the strength is what makes
    those die in time, and acts on them alone. Where a stage is cut little by little, each cut is a goal, and
    what lies between two cuts is the stage. The text auto means this.
    """

    kind: Literal["auto"]
    start: Duration = Duration(0.1, "dur")
    """when the first groups should die"""
    end: Duration = Duration(0.9, "dur")
    """when the goal should be reached; what is left of the stage is for whatever resists"""


def _from_auto(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"expected a number, a schedule or auto, not {value[:60]!r}")
    return {"kind": "auto"} if value == "auto" else _from_number(value)


Strength = Annotated[
    Annotated[Auto | _Members, Field(discriminator="kind")],
    BeforeValidator(_from_auto, json_schema_input_type=NonNegative | Literal["auto"] | Auto | Schedule),
]
"""A number, a schedule with a `kind`, or auto."""
