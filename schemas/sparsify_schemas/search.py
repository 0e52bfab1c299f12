"""The search of `sparsify tune`: which values of a recipe are tried, how many times, and what is best."""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from sparsify_schemas.base import AtKey, Positive, Seed, Spec, Text
from sparsify_schemas.units import Amount, Duration, Points, Share, Size, Time

UNITS = tuple(
    dict.fromkeys(unit for kind in (Share, Duration, Amount, Size, Time, Points) for unit in kind.UNITS)
)
COSTS = ("macs", "params", "bytes")
"""costs of a front besides `latency.<target>`"""
_BOUND = re.compile(rf"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)({'|'.join(map(re.escape, UNITS))})")


def split_unit(value: Any) -> tuple[int | float, str]:
    """(number, unit) of one end of a range, such as 1e-5, 3, `30%` or `5ep`. Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value, ""
    match = _BOUND.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        shown = repr(value) if isinstance(value, str | int | float) else "something else"
        raise ValueError(f"expected a number, with a unit or without, such as 0.01, 30% or 5ep, not {shown}")
    return float(match[1]), match[2]


def _check_bound(value: Any) -> Any:
    split_unit(value)
    return value


Bound = Annotated[Any, PlainValidator(_check_bound, json_schema_input_type=float | str)]
"""one end of a range: a number, or one with its unit"""


class Parameter(Spec):
    """The values that are tried for one key of the recipe. Two numbers in a list mean `range`.

    [0.1, 0.9]                         any number between the two, units such as [30%, 70%] are kept
    [1, 8]                             whole numbers, as both ends are
    {range: [10%, 90%], step: 20%}     10%, 30%, 50%, 70% and 90%
    {log: [1e-5, 1e-2]}                any number, each power of ten as often as the next
    {choices: [magnitude, taylor]}     one of these; a choice may be anything that the key takes
    """

    range: tuple[Bound, Bound] | None = None
    """the least and the largest value; every number between them is as likely"""
    log: tuple[Bound, Bound] | None = None
    """the same, and every logarithm is as likely: for strengths and learning rates"""
    step: Bound | None = None
    """distance of the values of `range`, counted from its beginning"""
    choices: tuple[Any, ...] | None = None
    """values to choose from"""

    @model_validator(mode="after")
    def _is_one_kind(self) -> "Parameter":
        given = [name for name in ("range", "log", "choices") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"'{name}'" for name in given) or "none of them"
            raise ValueError(f"expected one of range, log and choices, found {found}")
        if self.step is not None and self.range is None:
            raise AtKey("step", f"'step' divides a 'range', and this is '{given[0]}'; leave it out")
        if self.choices is not None:
            self._check_choices(self.choices)
        else:
            self._check_ends(given[0])
        return self

    def _check_choices(self, choices: tuple[Any, ...]) -> None:
        if len(choices) < 2:
            raise AtKey(
                "choices", "expected at least two values to choose from; write one in the recipe itself"
            )
        doubled = next((i for i, one in enumerate(choices) if one in choices[:i]), None)
        if doubled is not None and isinstance(choices[doubled], str | int | float):
            raise AtKey(("choices", doubled), f"'{choices[doubled]}' stands there twice; leave one out")

    def _check_ends(self, key: str) -> None:
        (low, unit), (high, other) = map(split_unit, self.ends)
        if unit != other:
            first, last = self.ends
            raise AtKey(key, f"'{first}' and '{last}' have different units; write both in one")
        if low >= high:
            first, last = self.ends
            raise AtKey(key, f"'{first}' is not below '{last}'; write the smaller one first")
        if key == "log" and low <= 0:
            raise AtKey(key, f"a logarithmic range begins above 0, and this one at {self.ends[0]}")
        if self.step is not None:
            step, of_step = split_unit(self.step)
            if of_step != unit:
                raise AtKey("step", f"'{self.step}' is not in the unit of the range; write it like its ends")
            if not 0 < step <= high - low:
                raise AtKey("step", f"a step is above 0 and fits into the range, and '{self.step}' does not")

    @property
    def ends(self) -> tuple[Any, Any]:
        """The two ends of a range as written."""
        ends = self.range or self.log
        assert ends is not None  # choices have none
        return ends

    @property
    def is_whole(self) -> bool:
        """Whether the values are whole numbers: both ends are written as such, and have no unit."""
        if self.choices is not None:
            return False
        given = (*self.ends, *(() if self.step is None else (self.step,)))
        return all(isinstance(end, int) for end in given)

    @property
    def is_finite(self) -> bool:
        """Whether the values can be listed."""
        return self.choices is not None or self.step is not None or self.is_whole

    def list_values(self) -> Iterator[Any]:
        """The values of a finite parameter, as a recipe has them."""
        if self.choices is not None:
            yield from self.choices
            return
        (low, _), (high, _) = map(split_unit, self.ends)
        step = 1 if self.step is None else split_unit(self.step)[0]
        for place in range(math.floor((high - low) / step + 1e-9) + 1):
            yield self.write_value(low + place * step)

    def write_value(self, number: float) -> Any:
        """A number of the range as a recipe has it: whole, or with 6 digits, and with the unit."""
        if self.is_whole:
            return round(number)
        unit = split_unit(self.ends[0])[1]
        short = float(f"{number:.6g}")
        return f"{repr(short).removesuffix('.0')}{unit}" if unit else short

    def list_extremes(self) -> tuple[Any, ...]:
        """Every choice, or the two ends."""
        return self.choices if self.choices is not None else self.ends


def _from_list(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        return value
    words = [one for one in value if _is_no_bound(one)]
    shown = f"{{choices: [{', '.join(map(str, value))}]}}" if len(value) < 8 else "{choices: [...]}"
    if any(isinstance(one, dict | list) for one in value):
        shown = "{choices: [...]}"
    if words or len(value) != 2:
        has = "holds something else" if words else f"has {len(value)} entries"
        raise ValueError(
            f"a list is a range of two numbers, and this one {has}; to choose among them write {shown}"
        )
    return {"range": value}


def _is_no_bound(value: Any) -> bool:
    try:
        split_unit(value)
    except ValueError:
        return True
    return False


NamedParameter = Annotated[
    Parameter, BeforeValidator(_from_list, json_schema_input_type=tuple[Bound, Bound] | Parameter)
]


class Objective(Spec):
    """What is best: the metric, under the recipe's budgets; with `cost`, every trade-off between the two.

    A trial that misses a budget of the recipe counts as failed, whatever its metric is.
    """

    metric: Text | None = None
    """a metric of the task, on the validation set; the one that decides when left out"""
    cost: Text | None = None
    """macs, params, bytes or latency.TARGET of the cut model: the result is the front of trials that no other
    one beats in both metric and cost"""


Sampler = Literal["tpe", "nsga2", "random", "grid"]
EarlyStopping = Literal["asha", "none"]


class Search(Spec):
    """What `sparsify tune` tries. `sparsify apply` leaves it out and takes the recipe as it is written.

    Each trial is a run of the recipe with other values of `parameters`. The test set is read once, at the
    end, for the chosen trials alone.
    """

    parameters: dict[Text, NamedParameter] = Field(min_length=1)
    """key of the recipe as `--set` takes it, or one of its variables -> the values that are tried"""
    trials: Positive = 20
    """trials that are finished when the study is: complete, stopped early or failed"""
    sampler: Sampler = "tpe"
    """who proposes the values

    tpe: a tree-structured Parzen estimator, after a quarter of random trials, at most 10; nsga2: a genetic
    algorithm for fronts; random: no trial looks at another one; grid: every combination, in a shuffled order.
    All but the grid are Optuna's"""
    early_stopping: EarlyStopping = "none"
    """whether trials that fall behind are stopped

    asha: by successive halving of the validation curves of training stages; none: every trial runs to its
    end"""
    seed: Seed | None = None
    """seeds the sampler; the recipe's seed when left out. Trials themselves all run with the recipe's seed"""
    objective: Objective = Objective()
    """what is best: the metric that decides when left out"""
