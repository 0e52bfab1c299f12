"""How to build the dense model when the model file holds weights only."""

from typing import Annotated, Any

from pydantic import Field

from sparsify_schemas.base import Spec

Dotted = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*$")]


class Model(Spec):
    """A callable that returns the dense model, and its arguments."""

    build: Dotted
    """dotted path of a callable, such as sparsify.models.lenet5 or mypackage.nets:resnet"""
    args: dict[str, Any] = {}
    """keyword arguments of the callable"""


class Input(Spec):
    """One tensor that a forward call takes."""

    shape: tuple[Annotated[int, Field(strict=True, ge=1)], ...] = Field(min_length=1)
    """with the batch dimension first"""
    dtype: str = Field(default="float32", pattern="^(float32|float64|bfloat16|float16|int64|int32|bool)$")
    """element type; integers are drawn from 0 and 1"""
