"""JSON Schemas (draft 2020-12) of recipe, cuts, report, table, profile and study, for editors and other
languages."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from sparsify_schemas.base import LARGEST
from sparsify_schemas.cuts import Log
from sparsify_schemas.profile import Profile
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Report
from sparsify_schemas.study import Study
from sparsify_schemas.table import Table
from sparsify_schemas.written import to_written

Json = dict[str, Any]
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
EXPRESSION: Final[Json] = {
    "type": "string",
    "pattern": r"\$\{.+\}",
    "description": "an expression of variables, such as ${epochs}",
}
EXTENDS: Final[Json] = {
    "type": "string",
    "description": "a recipe to start from, relative to this file; merged by key, lists replace",
}
VARS: Final[Json] = {
    "type": "object",
    "description": "names for values that are used as ${name}; `--set name=value` changes one",
    "additionalProperties": {"type": ["number", "string", "boolean"]},
}


def recipe_schema() -> Json:
    """What a recipe file may hold: an expression wherever a value may stand, and only some keys where it
    extends another."""
    full = _make_schema(Recipe, "sparsify recipe")
    for definition in full["$defs"].values():
        _take_expressions(definition)
    strict = {name: _or_expression(name, entry) for name, entry in full["properties"].items()}
    parts: Json = {}
    loose = {name: _loosen(entry, full["$defs"], parts) for name, entry in strict.items()}
    narrowed = {
        name: {"$ref": entry["$ref"]} if "$ref" in entry else entry
        for name, entry in strict.items()
        if entry != loose[name]
    }
    return {
        **{key: value for key, value in full.items() if key not in ("$defs", "properties", "required")},
        "properties": {"extends": EXTENDS, "vars": VARS, **loose},
        "if": {"required": ["extends"]},
        "else": {"required": full["required"], "properties": narrowed},
        "$defs": full["$defs"] | parts | {"Expression": EXPRESSION},
    }


def cuts_schema() -> Json:
    """The cut log, cuts.json in a run folder."""
    return _make_schema(Log, "sparsify cuts")


def report_schema() -> Json:
    """The report, report.json in a run folder."""
    return _make_schema(Report, "sparsify report")


def table_schema() -> Json:
    """A table of latencies, as `sparsify targets measure --out` writes it."""
    return _make_schema(Table, "sparsify table")


def profile_schema() -> Json:
    """What each layer bears to lose, as `sparsify sensitivity` writes it."""
    return _make_schema(Profile, "sparsify profile")


def study_schema() -> Json:
    """What a study tried and found, study.json in its folder."""
    return _make_schema(Study, "sparsify study")


SCHEMAS: Final[Mapping[str, Callable[[], Json]]] = {
    "recipe": recipe_schema,
    "cuts": cuts_schema,
    "report": report_schema,
    "table": table_schema,
    "profile": profile_schema,
    "study": study_schema,
}


def text_of(schema: Json) -> str:
    """The schema as it is written to a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write_all(folder: Path) -> list[Path]:
    """Write recipe.schema.json and so on."""
    files = []
    for name, make in SCHEMAS.items():
        file = folder / f"{name}.schema.json"
        file.write_text(text_of(make()), encoding="utf-8")
        files.append(file)
    return files


class _Generator(GenerateJsonSchema):
    """Defaults as one would write them."""

    def encode_default(self, dft: Any) -> Any:
        return super().encode_default(to_written(dft))


def _make_schema(entry: Any, title: str) -> Json:
    made = TypeAdapter(entry).json_schema(by_alias=True, schema_generator=_Generator)
    return {"$schema": DIALECT, **_tidy_node(made), "title": title}


def _tidy_node(node: Any) -> Any:
    """Without what helps no reader: titles that repeat the key, OpenAPI's discriminators, the largest number
    of all."""
    if isinstance(node, list):
        return [_tidy_node(item) for item in node]
    if not isinstance(node, dict):
        return node
    names = {
        key: {name: _tidy_node(entry) for name, entry in node[key].items()}
        for key in ("properties", "$defs")
        if key in node
    }
    gone = {"title", "discriminator", "default", *names} | (
        {"maximum"} if node.get("maximum") == LARGEST else set()
    )
    kept = {key: _tidy_node(value) for key, value in node.items() if key not in gone}
    return {**kept, **({"default": node["default"]} if node.get("default") is not None else {}), **names}


def _take_expressions(definition: Json) -> None:
    if "properties" in definition:
        definition["properties"] = {
            name: _or_expression(name, entry) for name, entry in definition["properties"].items()
        }


def _or_expression(name: str, node: Json) -> Json:
    """The schema of a value, or an expression in its place; `kind` and `version` are always written out."""
    if name in ("kind", "version"):
        return node
    if _is_leaf(node):
        about: Json = {key: node[key] for key in ("description", "default") if key in node}
        return {
            **about,
            "anyOf": [{k: v for k, v in node.items() if k not in about}, {"$ref": "#/$defs/Expression"}],
        }
    changed = dict(node)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            changed[key] = _or_expression("", node[key])
    for key in ("anyOf", "oneOf", "prefixItems"):
        if key in node:
            changed[key] = [_or_expression("", arm) for arm in node[key]]
    return changed


def _is_leaf(node: Json) -> bool:
    return (
        node.get("type") in ("number", "integer", "boolean")
        or "enum" in node
        or "const" in node
        or (node.get("type") == "string" and "pattern" in node)
    )


def _loosen(node: Json, definitions: Json, parts: Json) -> Json:
    """The schema of an entry that a parent file completes: nothing is required. Lists are not merged, so they
    stay strict."""
    if "$ref" in node:
        return _loose_reference(node, definitions, parts)
    changed = {key: value for key, value in node.items() if key not in ("required", "oneOf")}
    if "properties" in node:
        changed["properties"] = {
            name: _loosen(entry, definitions, parts) for name, entry in node["properties"].items()
        }
    if isinstance(node.get("additionalProperties"), dict):
        changed["additionalProperties"] = _loosen(node["additionalProperties"], definitions, parts)
    arms = node.get("anyOf", node.get("oneOf"))
    if arms is not None:
        changed["anyOf"] = [_loosen(arm, definitions, parts) for arm in arms]
    return changed


def _loose_reference(node: Json, definitions: Json, parts: Json) -> Json:
    name = str(node["$ref"]).rpartition("/")[2]
    definition = definitions.get(name)
    if definition is None:
        return node
    if f"{name}Part" not in parts:
        loosened = _loosen(definition, definitions, parts)
        if loosened == definition:
            return node
        parts[f"{name}Part"] = loosened
    return {**node, "$ref": f"#/$defs/{name}Part"}
