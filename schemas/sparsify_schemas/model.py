"""How to build the dense model when the model file holds weights only."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, model_validator

from sparsify_schemas.base import AtKey, Number, Positive, Spec, Text, Whole, refuse_script


def _refuse_script(value: Any) -> Any:
    """Before the pattern is looked at, which has no hint."""
    return refuse_script(value) if isinstance(value, str) else value


_DOTTED = r"^[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*$"
Dotted = Annotated[str, Field(strict=True, pattern=_DOTTED), BeforeValidator(_refuse_script)]

Name = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z_]\w*$")]


class Model(Spec):
    """A callable that returns the dense model, and its arguments."""

    build: Dotted
    """dotted path of a callable, such as sparsify.models.lenet5 or mypackage.nets:resnet"""
    args: dict[Text, JsonValue] = {}
    """keyword arguments of the callable"""


Whatever = bool | int | float | str
Numbers = Annotated[
    JsonValue, Field(description="a number, true or false, or a list of these, of lists of them, and so on")
]


class Input(Spec):
    """One tensor that a call takes, or one plain value; null in its place is None, and a list of entries is a
    list argument.

    Without `range` and `values` floating-point numbers are normal. Integers are uniform over the rows of the
    table (an embedding, say) that the model indexes by them, or 0 and 1 where it is none; those called
    `length` or `lengths` are 1 to the number of steps, the largest first. Booleans are mixed; those called
    `mask` are true for a first part of each row, those called `padding_mask` for a last part.
    """

    shape: tuple[Positive, ...] | None = Field(default=None, min_length=1)
    """its dimensions; follows from `values` where these are given"""
    dtype: Literal["float32", "float64", "bfloat16", "float16", "int64", "int32", "bool"] = "float32"
    """element type"""
    range: tuple[Number, Number] | None = None
    """[low, high]: numbers are drawn uniformly from low up to, and without, high"""
    values: Numbers | None = None
    """the numbers themselves, in nested lists"""
    batch: Whole | Literal["none"] | None = None
    """the dimension that counts examples, 0 the first; `none` where nothing does, as in a graph. Left out, it
    is the first where that is as long as the first tensor's"""
    value: Whatever | None = None
    """a plain value in place of a tensor: a number, text, true or false"""

    @model_validator(mode="after")
    def _consistent(self) -> "Input":
        given = self.model_fields_set
        if "value" in given:
            defaults = {name: field.default for name, field in type(self).model_fields.items()}
            extra = sorted(name for name in given - {"value"} if getattr(self, name) != defaults[name])
            if extra:
                raise AtKey(
                    extra[0],
                    f"a plain 'value' has no '{extra[0]}'; leave it out, or write 'values' for a tensor",
                )
            if self.value is None:
                raise AtKey("value", "None is written as null in place of the whole entry")
            return self
        if self.values is not None:
            self._check_values()
        elif self.shape is None:
            raise ValueError(
                "an input needs a 'shape', 'values', or a plain 'value'; such as {shape: [2, 3, 32, 32]}"
            )
        if self.range is not None:
            self._check_range()
        if isinstance(self.batch, int) and self.batch >= len(self.dimensions):
            raise AtKey(
                "batch",
                (
                    f"there is no dimension {self.batch}, as the shape has "
                    f"{len(self.dimensions)}; the first is 0, and 'none' says that nothing "
                    "counts examples"
                ),
            )
        return self

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Its shape, () for a plain value or a single number."""
        return self.shape if self.shape is not None else _measure_shape(self.values)

    @property
    def is_plain(self) -> bool:
        """Whether it is no tensor."""
        return self.value is not None

    def _check_values(self) -> None:
        if self.range is not None:
            raise AtKey(
                "range",
                (
                    "'range' says how numbers are drawn, and 'values' are the numbers "
                    "themselves; leave one of them out"
                ),
            )
        try:
            found = _measure_shape(self.values)
        except ValueError as error:
            raise AtKey("values", str(error)) from None
        if self.shape is not None and self.shape != found:
            raise AtKey("shape", f"the values have shape {list(found)}; leave 'shape' out")
        whole = self.dtype in ("int64", "int32")
        odd = next((v for v in _flatten_numbers(self.values) if self._is_odd(v, whole)), None)
        if odd is not None:
            wanted = "whole numbers" if whole else "numbers"
            if self.dtype == "bool":
                wanted = "true or false"
            raise AtKey(
                "values",
                (
                    f"{self.dtype} holds {wanted}, and "
                    f"{str(odd).lower() if isinstance(odd, bool) else odd} is none; write "
                    "another 'dtype'"
                ),
            )

    def _is_odd(self, value: object, whole: bool) -> bool:
        """Whether a value does not fit the element type."""
        if self.dtype == "bool":
            return not isinstance(value, bool)
        return isinstance(value, bool) or (whole and not isinstance(value, int))

    def _check_range(self) -> None:
        assert self.range is not None
        low, high = self.range
        if self.dtype == "bool":
            raise AtKey("range", "true and false have no range; leave it out, or write 'values'")
        if low >= high:
            raise AtKey(
                "range",
                f"the range from {low:g} up to {high:g} is empty; the first number must be the smaller",
            )
        if self.dtype in ("int64", "int32") and not (low.is_integer() and high.is_integer()):
            raise AtKey("range", f"{self.dtype} takes whole numbers; write a range of these")


def _measure_shape(values: object) -> tuple[int, ...]:
    """Of nested lists of numbers. Raises ValueError where they are ragged, empty or hold something else."""
    if not isinstance(values, list):
        if not isinstance(values, bool | int | float):
            raise ValueError(
                f"expected numbers, true or false, found {values!r}; text and null are no tensors"
            )
        return ()
    if not values:
        raise ValueError("expected at least one number, found an empty list")
    inner = {_measure_shape(item) for item in values}
    if len(inner) > 1:
        raise ValueError("lists at one depth differ in length; a tensor needs rows of one length")
    return (len(values), *inner.pop())


def _flatten_numbers(values: object) -> Iterator[object]:
    if isinstance(values, list):
        for item in values:
            yield from _flatten_numbers(item)
    else:
        yield values


def _tag_argument(value: Any) -> str:
    """Which of the forms of an argument is written."""
    if value is None:
        return "<nothing>"
    return "<list>" if isinstance(value, list | tuple) else "<entry>"


Argument = Annotated[
    Annotated[Input, Tag("<entry>")]
    | Annotated[tuple[Input | None, ...], Field(min_length=1), Tag("<list>")]
    | Annotated[None, Tag("<nothing>")],
    Discriminator(_tag_argument),
]


def _tag_inputs(value: Any) -> str:
    return "<by keyword>" if isinstance(value, Mapping) else "<in order>"


Inputs = Annotated[
    Annotated[tuple[Argument, ...], Field(min_length=1), Tag("<in order>")]
    | Annotated[dict[Text, Argument], Field(min_length=1), Tag("<by keyword>")],
    Discriminator(_tag_inputs),
]


class Call(Spec):
    """One call of the model."""

    method: Name = "forward"
    """method of the model that is called"""
    inputs: Inputs
    """what it takes, in order or by keyword"""
