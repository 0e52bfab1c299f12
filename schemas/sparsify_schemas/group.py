"""Group types: which weights live and die together.

A word names the type; two types are patterns of numbers: `2:4` keeps 2 of every 4 weights, `4x1` is a block
of 4 rows and 1 column.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, ClassVar, Literal, Self, assert_never, get_args

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Word = Literal["filter", "channel", "neuron", "head", "hidden", "expert", "depth", "shape", "tap", "weight"]
Kind = Literal[Word, "block", "n:m"]
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
    "experts",
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
    "experts": "expert",
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

Axes = Callable[[int], tuple[int, ...]]


def _element_axes(ndim: int) -> tuple[int, ...]:
    return tuple(range(ndim))


def _column_axes(ndim: int) -> tuple[int, ...]:
    return tuple(range(1, ndim))


def _kernel_positions(ndim: int) -> tuple[int, ...]:
    """A layer that gathers its live columns has no kernel: there each column is a group."""
    return tuple(range(2, ndim)) if ndim > 2 else _column_axes(ndim)


def _tile_axes(_ndim: int) -> tuple[int, ...]:
    """Of the matrix of tiles."""
    return 0, 1


@dataclass(frozen=True)
class Facts:
    """What the recipe language knows of a group type. What planning knows of it is in `group_types.py` of
    sparsify."""

    meaning: str
    """what `sparsify explain group` says of it"""
    amount: Literal["budget", "sparsity", "sparsity or penalty", "group"]
    """what may say how much of it is removed, besides the rule's own `sparsity`: the budget; nothing; a
    penalty that brings groups to zero; or the group itself (2:4), which then takes no `sparsity`"""
    keep: Literal["widths", "branches", "groups", "nothing"]
    """what the rule's `keep` bounds: widths; the number of residual branches or of groups in a tensor
    (`at_least` alone); or nothing"""
    own_slice: bool
    """whether a group has a slice in the weight of the layer that the rule matches, on which `scope: layer`
    acts"""
    axes: Axes | None = None
    """groups inside one weight tensor: the dimensions of a weight of so many dimensions along which the
    groups are counted; None for groups that reach over several tensors and leave them"""
    single: bool = False
    """inside one tensor: whether each weight is a group of its own"""
    unstructured: bool = False
    """of these, whether any weight may become zero, whichever others do"""


def facts(kind: Kind) -> Facts:
    """The row of a group type."""
    match kind:
        case "filter":
            return Facts(
                meaning=(
                    "W[n,:,:,:] of a convolution: one output feature map, with everything coupled to it "
                    "(normalisation, the consumers' input slices, layers joined by a residual sum)"
                ),
                amount="budget",
                keep="widths",
                own_slice=True,
            )
        case "channel":
            return Facts(
                meaning=(
                    "W[:,c,:,:] of a convolution: one input feature map, with the filters that produce it"
                ),
                amount="budget",
                keep="widths",
                own_slice=True,
            )
        case "neuron":
            return Facts(
                meaning=(
                    "W[n,:] of a Linear layer: one output unit, with its bias and the consumers' "
                    "columns; a column of an embedding"
                ),
                amount="budget",
                keep="widths",
                own_slice=True,
            )
        case "head":
            return Facts(
                meaning=(
                    "one attention head: its rows of the query, key and value projections and its "
                    "columns of the output projection; where several query heads share a key-value head, "
                    "the whole of them; where the size of a head follows the width of the stream, its "
                    "share of that"
                ),
                amount="budget",
                keep="widths",
                own_slice=False,
            )
        case "hidden":
            return Facts(
                meaning=(
                    "one hidden unit of an LSTM, GRU or RNN (or of a cell) over all gates, layers and "
                    "directions (intrinsic sparse structure, arXiv:1709.05027), with the consumers' "
                    "columns"
                ),
                amount="budget",
                keep="widths",
                own_slice=False,
            )
        case "expert":
            return Facts(
                meaning=(
                    "one expert of a mixture as a whole, with its row of the router: all of its weights, "
                    "whether the experts are modules in a list or stacked along the first dimension of "
                    "shared tensors (expert pruning, arXiv:2402.14800)"
                ),
                amount="budget",
                keep="widths",
                own_slice=False,
            )
        case "depth":
            return Facts(
                meaning=(
                    "a residual block or branch as a whole: what remains of it is its shortcut (layer "
                    "depth of SSL, arXiv:1608.03665, or dropping blocks of a transformer)"
                ),
                amount="budget",
                keep="branches",
                own_slice=False,
            )
        case "shape":
            return Facts(
                meaning=(
                    "W[:,c,m,k] of a convolution without groups: one position of one input channel in "
                    "all filters (filter shape, arXiv:1608.03665); W[:,c] of a Linear layer; a layer "
                    "gathers its live ones where that is measured to be faster"
                ),
                amount="sparsity or penalty",
                keep="groups",
                own_slice=True,
                axes=_column_axes,
            )
        case "tap":
            return Facts(
                meaning=(
                    "W[:,:,m,k] of a convolution: one kernel position of all channels; the kernel "
                    "shrinks to the smallest regular grid that holds the live ones"
                ),
                amount="sparsity or penalty",
                keep="groups",
                own_slice=True,
                axes=_kernel_positions,
            )
        case "weight":
            return Facts(
                meaning=(
                    "one element of a weight tensor; it is set to zero and stays in the tensor, so the "
                    "file and the latency do not change"
                ),
                amount="sparsity",
                keep="nothing",
                own_slice=True,
                axes=_element_axes,
                single=True,
                unstructured=True,
            )
        case "block":
            return Facts(
                meaning=(
                    "n rows and m columns of the weight as a matrix [outputs, inputs * kernel "
                    "positions], written 4x1; it is set to zero and stays in the tensor"
                ),
                amount="sparsity or penalty",
                keep="nothing",
                own_slice=True,
                axes=_tile_axes,
            )
        case "n:m":
            return Facts(
                meaning=(
                    "n of every m weights that follow each other along the input channels stay, written "
                    "2:4; the others are set to zero and stay in the tensor"
                ),
                amount="group",
                keep="nothing",
                own_slice=True,
                axes=_element_axes,
                single=True,
            )
        case _:
            assert_never(kind)


MEANING: dict[Kind, str] = {kind: facts(kind).meaning for kind in KINDS}


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
        rows, columns = _read_numbers(cls, text)
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
        stay, of = _read_numbers(cls, text)
        if not 0 < stay < of:
            raise ValueError(
                f"'{stay}:{of}' keeps {'nothing' if stay == 0 else 'every weight'}; of "
                "n:m, n must lie between 0 and m"
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


def _read_numbers(cls: type[Block] | type[Pattern], text: Any) -> tuple[int, int]:
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


def _read_group(value: Any) -> Any:
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
    Word | Block | Pattern,
    BeforeValidator(_read_group, json_schema_input_type=Word | Alias | Block | Pattern),
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


def facts_of(group: Word | Block | Pattern) -> Facts:
    """What the language knows of a group, whatever its numbers."""
    return facts(kind_of(group))


def count_inside(group: Word | Block | Pattern, shape: Sequence[int]) -> int:
    """How many groups a weight of this shape has. Raises ValueError for groups that reach over several
    tensors."""
    if isinstance(group, Block):
        return (shape[0] // group.rows) * (prod(shape[1:]) // group.columns)
    return prod(shape[dim] for dim in axes_inside(group, len(shape)))


def axes_inside(group: Word | Block | Pattern, ndim: int) -> tuple[int, ...]:
    """The dimensions of a weight along which groups inside it are counted; for blocks, of the matrix of
    tiles.

    Raises ValueError for groups that reach over several tensors.
    """
    axes = facts_of(group).axes
    if axes is None:
        raise ValueError(f"group '{group}' does not lie inside one tensor")
    return axes(ndim)


def in_one_tensor(group: Word | Block | Pattern | None) -> bool:
    """Groups inside one weight tensor that become zero; no width follows from them."""
    return group is not None and facts_of(group).axes is not None


def within(group: Word | Block | Pattern | None) -> bool:
    """Of these, the ones of several weights that a lasso can act on."""
    return group is not None and in_one_tensor(group) and not facts_of(group).single


def is_unstructured(group: Word | Block | Pattern | None) -> bool:
    """Single weights, of which any may become zero."""
    return group is not None and facts_of(group).unstructured


def removes_experts(group: Word | Block | Pattern | None) -> bool:
    """Whole experts of a mixture, which a rule names by the mixture's module."""
    return group == "expert"


def removes_branches(group: Word | Block | Pattern | None) -> bool:
    """Residual blocks or branches as a whole; no width follows from them."""
    return group is not None and facts_of(group).keep == "branches"
