"""JSON Schemas (draft 2020-12) of recipe, cuts and report, for editors and other languages."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from sparsify_schemas.cuts import Cuts
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Report

Json = dict[str, Any]
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
EXPRESSION: Final[Json] = {"type": "string", "pattern": r"\$\{.+\}", "description": "an expression of variables, such as ${epochs}"}
VARIABLE: Final[Json] = {"type": ["number", "string", "boolean"]}


def recipe_schema() -> Json:
    """What a recipe file may hold: variables wherever a value may stand, and only some keys where it extends another."""
    schema = _variable(_schema(Recipe, "sparsify recipe"))
    loose = {name: _loose(entry, schema["$defs"], extra := {}) | extra for name, entry in schema["properties"].items()}
    return schema | loose


def cuts_schema() -> Json:
    """The cut log, cuts.json in a run folder."""
    return _schema(Cuts, "sparsify cuts")


def report_schema() -> Json:
    """The report, report.json in a run folder."""
    return _schema(Report, "sparsify report")


SCHEMAS: Final[Mapping[str, Callable[[], Json]]] = {"recipe": recipe_schema, "cuts": cuts_schema, "report": report_schema}


def text_of(schema: Json) -> str:
    """The schema as it is written to a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write_all(folder: Path) -> list[Path]:
    """Write recipe.schema.json, cuts.schema.json and report.schema.json."""
    written = []
    for name, make in SCHEMAS.items():
        file = folder / f"{name}.schema.json"
        file.write_text(text_of(make()), encoding="utf-8")
        written.append(file)
    return written
