"""How to build the dense model when the model file holds weights only."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from sparsify_schemas.base import Positive, Spec, Text

Dotted = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*$")]


class Model(Spec):
    """A callable that returns the dense model, and its arguments."""

    build: Dotted
    """dotted path of a callable, such as sparsify.models.lenet5 or mypackage.nets:resnet"""
    args: dict[Text, JsonValue] = {}
    """keyword arguments of the callable"""


class Input(Spec):
    """One tensor that a forward call takes."""

    shape: tuple[Positive, ...] = Field(min_length=1)
    """with the batch dimension first"""
    dtype: Literal["float32", "float64", "bfloat16", "float16", "int64", "int32", "bool"] = "float32"
    """element type; integers are drawn from 0 and 1"""
