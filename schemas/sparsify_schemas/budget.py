"""Budgets: what may remain of the dense model. All must hold at the end, as measured."""

from typing import Annotated

from pydantic import BeforeValidator

from sparsify_schemas.base import Spec, Text
from sparsify_schemas.units import Amount, Share, Size, Time, first_of

CountLimit = Annotated[Share | Amount, BeforeValidator(first_of(Share, Amount), json_schema_input_type=Share | Amount)]
SizeLimit = Annotated[Share | Size, BeforeValidator(first_of(Share, Size), json_schema_input_type=Share | Size)]
TimeLimit = Annotated[Share | Time, BeforeValidator(first_of(Share, Time), json_schema_input_type=Share | Time)]


class Budget(Spec):
    """At most this much remains."""

    macs: CountLimit | None = None
    """multiply-accumulates of one forward call on one example: `25%` of the dense model, or `300M`"""
    params: CountLimit | None = None
    """parameters that are stored: `25%` of the dense model, or `85k`"""
    bytes: SizeLimit | None = None
    """bytes of the state dict: `25%` of the dense model, or `8MiB`"""
    latency: dict[Text, TimeLimit] = {}
    """target -> median milliseconds of a forward call: `60%` of the dense model's, or `2.5ms`; the name of a preset will do"""
