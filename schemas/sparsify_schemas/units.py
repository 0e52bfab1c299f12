"""Values that carry their unit: `40%`, `5ep`, `200it`, `0.5dur`, `8MiB`, `1.5M`.

A bare number is refused wherever its meaning would have to be looked up.

    %              share of the dense model, or of what the key speaks of
    ep             epochs of the stage
    it             iterations: optimizer steps of the stage
    dur            durations: 0.5dur is half of the stage
    k M G T        10^3, 10^6, 10^9, 10^12 of what is counted
    B kB MB GB     bytes: 1, 10^3, 10^6, 10^9
    KiB MiB GiB    bytes: 2^10, 2^20, 2^30
    us ms s        micro-, milliseconds, seconds of a forward call
    pp             percentage points, of accuracy
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"


@dataclass(frozen=True)
class Quantity:
    """A number and its unit; subclasses name the units and what to say when the text is something else."""

    value: float
    unit: str

    UNITS: ClassVar[tuple[str, ...]] = ()
    EXPECTS: ClassVar[str] = ""

    @classmethod
    def parse(cls, text: Any) -> Self:
        """Read `12.5%`; raises ValueError that says what was expected."""
        if isinstance(text, cls):
            return text
        units = "|".join(re.escape(u) for u in cls.UNITS)
        match = re.fullmatch(rf"({_NUMBER})({units})", text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"expected {cls.EXPECTS}, not {_format_number(text)}{_suggest_writing(text, (cls,))}"
            )
        if not math.isfinite(float(match[1])):
            raise ValueError(f"expected {cls.EXPECTS}, and {_format_number(text)} is too large")
        return cls(float(match[1]), match[2]).checked()

    def checked(self) -> Self:
        return self

    def __str__(self) -> str:
        return f"{repr(float(self.value)).removesuffix('.0')}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        units = "|".join(re.escape(u) for u in cls.UNITS)
        return {"type": "string", "pattern": f"^{_NUMBER}({units})$", "description": cls.EXPECTS}


def _format_number(text: Any) -> str:
    """A value in words; escapes what a terminal would act on, and shortens what would fill it."""
    match text:
        case None:
            return "nothing"
        case bool():
            return str(text).lower()
        case int() | float():
            return f"the bare number {text}"
        case str():
            return repr(text) if len(text) <= 60 else repr(text[:60]) + "…"
        case dict():
            return "a mapping"
        case _:
            return "a list"


class Share(Quantity):
    """A share of the dense model, 0 % to 100 %."""

    UNITS = ("%",)
    EXPECTS = "a share such as 40%"

    def checked(self) -> Self:
        if self.value > 100:
            raise ValueError(f"expected a share between 0% and 100%, not '{self}'")
        return self

    @property
    def fraction(self) -> float:
        return self.value / 100


class Duration(Quantity):
    """A moment or a length of a stage: `5ep` epochs, `200it` optimizer steps, `0.5dur` half of the stage."""

    UNITS = ("ep", "it", "dur")
    EXPECTS = "a duration such as 5ep (epochs), 200it (optimizer steps) or 0.5dur (half of the stage)"

    def steps(self, steps_per_epoch: int, total: int) -> float:
        """The same moment counted in optimizer steps."""
        match self.unit:
            case "ep":
                return self.value * steps_per_epoch
            case "dur":
                return self.value * total
            case _:
                return self.value


class Amount(Quantity):
    """A plain count with a metric suffix: `300M` multiply-accumulates, `85k` parameters."""

    UNITS = ("k", "M", "G", "T")
    EXPECTS = "a count such as 300M"

    @property
    def count(self) -> float:
        return self.value * {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[self.unit]


class Size(Quantity):
    """Bytes: `8MiB`, `500kB`."""

    UNITS = ("B", "kB", "MB", "GB", "KiB", "MiB", "GiB")
    EXPECTS = "a size such as 8MiB or 500kB"

    @property
    def count(self) -> float:
        powers = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
        return self.value * powers[self.unit]


class Time(Quantity):
    """How long a forward call takes: `2.5ms`, `800us`."""

    UNITS = ("us", "ms", "s")
    EXPECTS = "a time such as 2.5ms"

    @property
    def milliseconds(self) -> float:
        return self.value * {"us": 1e-3, "ms": 1.0, "s": 1e3}[self.unit]


class Points(Quantity):
    """A difference of two shares in percentage points: `0.5pp`; of accuracies `0.5%` says the same."""

    UNITS = ("pp", "%")
    EXPECTS = "percentage points such as 0.5pp"

    def checked(self) -> Self:
        if self.value > 100:
            raise ValueError(f"expected percentage points between 0pp and 100pp, not '{self}'")
        return self if self.unit == "pp" else type(self)(self.value, "pp")

    @property
    def fraction(self) -> float:
        return self.value / 100


def first_of(*kinds: type[Quantity]) -> Callable[[Any], Quantity]:
    """A parser that takes whichever of the kinds fits; its complaint names them all."""

    def parse(text: Any) -> Quantity:
        if isinstance(text, kinds):
            return text
        for kind in kinds:
            try:
                return kind.parse(text)
            except ValueError as error:
                if "between" in str(error):
                    raise
        expected = " or ".join(kind.EXPECTS for kind in kinds)
        hint = _suggest_writing(text, kinds)
        raise ValueError(f"expected {expected}, not {_format_number(text)}{hint}")

    return parse


def _suggest_writing(text: Any, kinds: Sequence[type[Quantity]]) -> str:
    """`; write '0.5%'` where it is clear what was meant by `.5%`, `40 %`, `12,5%`, `8mb` or a bare count."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return ""
    written = _write_out(text) if isinstance(text, str) else _write_count(text, kinds)
    for unit in dict.fromkeys(unit for kind in kinds for unit in kind.UNITS):
        if written.lower().endswith(unit.lower()):
            number = written[: len(written) - len(unit)]
            if re.fullmatch(_NUMBER, number) and (unit != "%" or float(number) <= 100):
                return f"; write '{number}{unit}'"
    return ""


def _write_out(text: str) -> str:
    """Without blanks, with a point for a decimal comma, and a digit before it."""
    compact = "".join(text.split())
    if re.fullmatch(r"[0-9]+,[0-9]{1,2}[^0-9,]+", compact):
        compact = compact.replace(",", ".")
    return f"0{compact}" if compact.startswith(".") else compact


def _write_count(number: float, kinds: Sequence[type[Quantity]]) -> str:
    """A bare number as a share, where it is below 1, as a count or as bytes; '' where it is not clear."""
    if Share in kinds and 0 < number < 1:
        return f"{number * 100:.6g}%"
    if not 1000 <= number <= 1e15 or number != int(number):
        return ""
    if Size in kinds:
        return f"{int(number)}B"
    if Amount not in kinds:
        return ""
    power, unit = (1e6, "M") if number >= 1e6 else (1e3, "k")
    return f"{repr(number / power).removesuffix('.0')}{unit}"


Unit = Literal["ep", "it", "dur"]
