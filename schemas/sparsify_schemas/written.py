"""A value of the language as plain data, the way one would write it."""

from typing import Any

from pydantic import BaseModel

from sparsify_schemas.group import Block, Pattern
from sparsify_schemas.lookup import kind_of
from sparsify_schemas.rule import Rule
from sparsify_schemas.schedule import Constant
from sparsify_schemas.units import Quantity


def to_written(value: Any) -> Any:
    """Dicts, lists and scalars: no absent keys, `kind` first, a constant schedule as its number, a quantity
    as its text."""
    match value:
        case Constant(value=number):
            return number
        case BaseModel():
            return _write_entry(value)
        case Quantity() | Block() | Pattern():
            return str(value)
        case tuple() | list():
            return [to_written(item) for item in value]
        case dict():
            return {key: to_written(item) for key, item in value.items()}
        case _:
            return value


def _write_entry(value: BaseModel) -> dict[str, Any]:
    kept = (
        {"layers", "protect", "override"}
        if isinstance(value, Rule) and value.protect
        else set(type(value).model_fields)
    )
    named = {
        info.alias or name: getattr(value, name)
        for name, info in type(value).model_fields.items()
        if name in kept
    }
    kind = {"kind": kind_of(type(value))} if "kind" in named else {}
    return kind | {name: to_written(entry) for name, entry in named.items() if entry is not None}
