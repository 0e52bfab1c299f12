"""Budgets: what may remain of the dense model. All must hold at the end, as measured."""

from typing import Annotated

from pydantic import BeforeValidator

from sparsify_schemas.base import Spec
from sparsify_schemas.units import Amount, Share, Size, first_of

CountLimit = Annotated[Share | Amount, BeforeValidator(first_of(Share, Amount), json_schema_input_type=Share | Amount)]
SizeLimit = Annotated[Share | Size, BeforeValidator(first_of(Share, Size), json_schema_input_type=Share | Size)]


class Budget(Spec):
    """At most this much remains."""

    macs: CountLimit | None = None
    """multiply-accumulates of one forward call on one example: `25%` of the dense model, or `300M`"""
    params: CountLimit | None = None
    """parameters that are stored: `25%` of the dense model, or `85k`"""
    bytes: SizeLimit | None = None
    """bytes of the state dict: `25%` of the dense model, or `8MiB`"""
