"""What the language says about itself: the fields of an entry, the members of a family, the words for a
type."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sparsify_schemas.group import Block, Pattern
from sparsify_schemas.units import Quantity

Model = type[BaseModel]


@dataclass(frozen=True)
class Field:
    """One key of an entry."""

    name: str
    """as written in a recipe"""
    annotation: Any
    required: bool
    default: Any
    meaning: str


def list_fields(model: Model) -> tuple[Field, ...]:
    """The keys that an entry takes, in order."""
    hints = get_type_hints(model, include_extras=True)
    return tuple(_make_field(name, hints[name], info) for name, info in model.model_fields.items())


def _make_field(name: str, annotation: Any, info: FieldInfo) -> Field:
    default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    meaning = " ".join((info.description or "").split())  # lines of a docstring are no lines of a message
    return Field(info.alias or name, annotation, info.is_required(), default, meaning)


def list_alternatives(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type: unions flattened, annotations and None taken off."""
    if get_origin(annotation) is Annotated:
        yield from list_alternatives(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for arm in get_args(annotation):
            yield from list_alternatives(arm)
    elif annotation is not NoneType:
        yield annotation


def list_models(annotation: Any) -> tuple[Model, ...]:
    """The entries among the alternatives of a type."""
    return tuple(
        arm for arm in list_alternatives(annotation) if isinstance(arm, type) and issubclass(arm, BaseModel)
    )


def kind_of(model: Model) -> str | None:
    """What `kind:` says for this entry, if it belongs to a family."""
    info = model.model_fields.get("kind")
    return None if info is None else str(get_args(info.annotation)[0])


def list_family(annotation: Any) -> dict[str, Model]:
    """kind -> entry, for the members of a family among the alternatives of a type."""
    return {kind: model for model in list_models(annotation) if (kind := kind_of(model)) is not None}


def list_types_inside(annotation: Any, part: str | int, value: Any) -> list[Any]:
    """The types that may stand at `part` of a value of this type; `value` tells which member of a family it
    is."""
    found: list[Any] = []
    for arm in list_alternatives(annotation):
        if isinstance(part, int):
            found += [
                element
                for element in get_args(arm)
                if get_origin(arm) in (tuple, list) and element is not Ellipsis
            ][:1]
        elif get_origin(arm) is dict:
            found.append(get_args(arm)[1])
        elif arm in choose_alternatives(annotation, value):
            found += [field.annotation for field in list_fields(arm) if field.name == part]
    return found


def choose_alternatives(annotation: Any, value: Any) -> tuple[Model, ...]:
    """Those alternatives that the `kind` of a value picks; all of them where it picks none."""
    candidates = list_models(annotation)
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind is None:
        return candidates
    return tuple(model for model in candidates if kind_of(model) == kind) or candidates


def list_types_at(root: Model, path: tuple[str | int, ...], data: Any) -> list[Any]:
    """The types that may stand where a path into plain data leads to."""
    types: list[Any] = [root]
    for part in path:
        types = [t for annotation in types for t in list_types_inside(annotation, part, data)]
        data = find_child(data, part)
    return types


def find_at(data: Any, path: tuple[str | int, ...]) -> Any:
    """What a path into plain data leads to, None where it leads nowhere."""
    for part in path:
        data = find_child(data, part)
    return data


def find_child(data: Any, part: str | int) -> Any:
    """The entry or item of plain data, None where there is none."""
    if isinstance(data, Mapping):
        return data.get(part)
    if isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def in_words(annotation: Any) -> str:
    """A type as a reader of recipes would say it: `share such as 40%`, `list of text`, `number or {kind:
    linear | ...}`."""
    alternatives = list(written_as(annotation))
    kinds = [kind for arm in alternatives for kind in list_family(arm)]
    words = [_arm_in_words(arm) for arm in alternatives if not list_family(arm)]
    if kinds:
        words.append("{kind: " + " | ".join(kinds) + "}")
    return " or ".join(dict.fromkeys(words))


def written_as(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type as a recipe has them: a schedule may be written as a number."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        written = [
            m.json_schema_input_type
            for m in marks
            if isinstance(m, BeforeValidator) and m.json_schema_input_type is not PydanticUndefined
        ]
        aliases = bool(written) and all(
            any(get_origin(arm) is Literal for arm in list_alternatives(t)) for t in (inner, written[0])
        )
        plain_words = not written or aliases  # aliases are not worth repeating
        yield from written_as(inner if plain_words else written[0])
    elif get_origin(annotation) in (Union, UnionType):
        for arm in get_args(annotation):
            yield from written_as(arm)
    elif annotation is not NoneType:
        yield annotation


def _inner_in_words(annotation: Any) -> str:
    """What a list or mapping holds; in parentheses where lists are among several forms, so that it is seen
    where they end."""
    words = in_words(annotation)
    return f"({words})" if " or list of " in words else words


def _arm_in_words(arm: Any) -> str:
    if get_origin(arm) is Literal:
        return " | ".join(str(value) for value in get_args(arm))
    if get_origin(arm) is tuple:
        return "list of " + _inner_in_words(get_args(arm)[0])
    if get_origin(arm) is dict:
        return "mapping of names to " + _inner_in_words(get_args(arm)[1])
    if isinstance(arm, type) and issubclass(arm, Quantity | Block | Pattern):
        return arm.EXPECTS
    if isinstance(arm, type) and issubclass(arm, BaseModel):
        return "mapping"
    return {"int": "whole number", "float": "number", "bool": "true | false", "str": "text"}.get(
        getattr(arm, "__name__", ""), "any value"
    )
