"""Write a recipe as YAML that reads as the same recipe, under YAML 1.1 as well as 1.2."""

import re
from typing import Any

import yaml

from sparsify.recipe import yaml_scalars
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.written import to_written


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included; `load(dump(recipe))` gives it back."""
    return dump_plain(_escape_all(to_written(recipe)))


def dump_plain(data: Any) -> str:
    """Mappings, lists and scalars as YAML, with expressions such as `${epochs}` as they are."""
    text: str = yaml.dump(
        _mark_inline(data),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=130,
        default_flow_style=False,
    )
    return text


def _escape_all(value: Any) -> Any:
    match value:
        case str():
            return escape(value)
        case list():
            return list(map(_escape_all, value))
        case dict():
            return {key: _escape_all(item) for key, item in value.items()}
        case _:
            return value


def escape(text: str) -> str:
    """Text that reads back as itself where `${` would start an expression: one more dollar."""
    return text.replace("${", "$${")


class _Short(dict[str, Any]):
    """A mapping of scalars, written in one line."""


class _Row(list[Any]):
    """A list of scalars, written in one line."""


def _mark_inline(value: Any) -> Any:
    match value:
        case list():
            items = [_mark_inline(item) for item in value]
            return _Row(items) if all(map(_is_scalar, items)) else items
        case dict():
            entries = {key: _mark_inline(item) for key, item in value.items()}
            is_short = "kind" in entries and all(_is_scalar(item) for item in entries.values())
            return _Short(entries) if is_short else entries
        case _:
            return value


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or our reader of YAML 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    """Line breaks of all kinds are escaped: PyYAML writes some of them so that they read back as spaces."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(
    _Short, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)
_Dumper.add_representer(
    _Row, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
for _tag, _pattern, _first in (
    ("int", yaml_scalars.DECIMAL, "-+0123456789"),
    ("int", yaml_scalars.OCTAL, "0"),
    ("int", yaml_scalars.HEXADECIMAL, "0"),
    ("float", yaml_scalars.FLOAT, "-+.0123456789"),
):
    _Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), list(_first)
    )
