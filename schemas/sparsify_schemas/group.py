"""Group types: which weights live and die together.

A word names the type; two types are patterns of numbers: `2:4` keeps 2 of every 4 weights, `4x1` is a block of 4 rows
and 1 column.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self, assert_never, get_args

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Word = Literal["filter", "channel", "neuron", "head", "hidden", "depth", "shape", "tap", "weight"]
Kind = Literal[
    "filter", "channel", "neuron", "head", "hidden", "depth", "shape", "tap", "weight", "block", "n:m"
]
WORDS: tuple[Word, ...] = get_args(Word)
KINDS: tuple[Kind, ...] = get_args(Kind)
Alias = Literal[
    "filters",
    "out_channel",
    "channels",
    "in_channel",
    "neurons",
    "heads",
    "attention_head",
    "hidden_unit",
    "hidden_units",
    "layer",
    "branch",
    "shapes",
    "filter_shape",
    "column",
    "taps",
    "kernel_position",
    "element",
    "unstructured",
]
ALIASES: dict[str, Word] = {
    "filters": "filter",
    "out_channel": "filter",
    "channels": "channel",
    "in_channel": "channel",
    "neurons": "neuron",
    "heads": "head",
    "attention_head": "head",
    "hidden_unit": "hidden",
    "hidden_units": "hidden",
    "layer": "depth",
    "branch": "depth",
    "shapes": "shape",
    "filter_shape": "shape",
    "column": "shape",
    "taps": "tap",
    "kernel_position": "tap",
    "element": "weight",
    "unstructured": "weight",
}

MEANING: dict[Kind, str] = {
    "filter": "W[n,:,:,:] of a convolution: one output feature map, with everything coupled to it (normalisation, the consumers' input slices, layers joined by a residual sum)",
    "channel": "W[:,c,:,:] of a convolution: one input feature map, with the filters that produce it",
    "neuron": "W[n,:] of a Linear layer: one output unit, with its bias and the consumers' columns; a column of an embedding",
    "head": "one attention head: its rows of the query, key and value projections and its columns of the output projection; where several query heads share a key-value head, the whole of them; where the size of a head follows the width of the stream, its share of that",
    "hidden": "one hidden unit of an LSTM, GRU or RNN (or of a cell) over all gates, layers and directions (intrinsic sparse structure, arXiv:1709.05027), with the consumers' columns",
    "depth": "a residual block or branch as a whole: what remains of it is its shortcut (layer depth of SSL, arXiv:1608.03665, or dropping blocks of a transformer)",
    "shape": "W[:,c,m,k] of a convolution without groups: one position of one input channel in all filters (filter shape, arXiv:1608.03665); W[:,c] of a Linear layer; a layer gathers its live ones where that is measured to be faster",
    "tap": "W[:,:,m,k] of a convolution: one kernel position of all channels; the kernel shrinks to the smallest regular grid that holds the live ones",
    "weight": "one element of a weight tensor; it is set to zero and stays in the tensor, so the file and the latency do not change",
    "block": "n rows and m columns of the weight as a matrix [outputs, inputs * kernel positions], written 4x1; it is set to zero and stays in the tensor",
    "n:m": "n of every m weights that follow each other along the input channels stay, written 2:4; the others are set to zero and stay in the tensor",
}


@dataclass(frozen=True)
class Block:
    """`4x1`: blocks of so many rows and columns."""

    rows: int
    columns: int

    PATTERN: ClassVar[str] = r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})"
    EXPECTS: ClassVar[str] = "a block such as 4x1 (rows x columns)"

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    @classmethod
    def parse(cls, text: Any) -> Self:
        """Read `4x1`. Raises ValueError."""
        rows, columns = _numbers(cls, text)
        if rows == columns == 1:
            raise ValueError("a block of 1x1 is a single weight; write 'group: weight'")
        return cls(rows, columns)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _as_text(cls)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": f"^{cls.PATTERN}$", "description": cls.EXPECTS}


@dataclass(frozen=True)
class Pattern:
    """`2:4`: so many of every so many weights stay."""

    stay: int
    of: int

    PATTERN: ClassVar[str] = r"([0-9]{1,9}):([0-9]{1,9})"
    EXPECTS: ClassVar[str] = "a pattern such as 2:4 (2 of every 4 weights stay)"

    def __str__(self) -> str:
        return f"{self.stay}:{self.of}"

    @classmethod
    def parse(cls, text: Any) -> Self:
        """Read `2:4`. Raises ValueError."""
        stay, of = _numbers(cls, text)
        if not 0 < stay < of:
            raise ValueError(
                f"'{stay}:{of}' keeps {'nothing' if stay == 0 else 'every weight'}; of n:m, n must lie between 0 and m"
            )
        return cls(stay, of)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _as_text(cls)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "pattern": f"^{cls.PATTERN}$", "description": cls.EXPECTS}


def _numbers(cls: type[Block] | type[Pattern], text: Any) -> tuple[int, int]:
    if isinstance(text, Block | Pattern):
        text = str(text)
    match = re.fullmatch(cls.PATTERN, text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"expected {cls.EXPECTS}")
    return int(match[1]), int(match[2])


def _as_text(cls: type[Block] | type[Pattern]) -> CoreSchema:
    return core_schema.no_info_plain_validator_function(
        cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
    )


def _canonical(value: Any) -> Any:
    if isinstance(value, Block | Pattern):
        return value
    word = ALIASES.get(value, value) if isinstance(value, str) else None
    if word in WORDS:
        return word
    for kind in (Block, Pattern):
        if isinstance(value, str) and re.fullmatch(kind.PATTERN, value):
            return kind.parse(value)
    raise PydanticCustomError("unknown_group", "unknown group")


Group = Annotated[
    Word | Block | Pattern, BeforeValidator(_canonical, json_schema_input_type=Word | Alias | Block | Pattern)
]


def kind_of(group: Word | Block | Pattern) -> Kind:
    """The type of a group, whatever its numbers."""
    match group:
        case Block():
            return "block"
        case Pattern():
            return "n:m"
        case str():
            return group
        case _:
            assert_never(group)


def count_inside(group: Word | Block | Pattern, shape: Sequence[int]) -> int:
    """How many groups a weight of this shape has: whole blocks, kernel positions, columns, or else single weights."""
    match group:
        case Block():
            return (shape[0] // group.rows) * (prod(shape[1:]) // group.columns)
        case "tap" if len(shape) > 2:
            return prod(shape[2:])
        case "shape" | "tap":  # a layer that gathers its live columns has no kernel: each column is a group
            return prod(shape[1:])
        case _:
            return prod(shape)


def in_one_tensor(group: Word | Block | Pattern | None) -> bool:
    """Groups inside one weight tensor that become zero; no width follows from them."""
    return group is not None and kind_of(group) in ("weight", "shape", "tap", "block", "n:m")


def within(group: Word | Block | Pattern | None) -> bool:
    """Of these, the ones of several weights that a lasso can act on."""
    return group is not None and kind_of(group) in ("shape", "tap", "block")
