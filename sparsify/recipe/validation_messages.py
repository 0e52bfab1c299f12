"""What pydantic complains of, said in the words of the recipe language and at the place in the file."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sparsify.errors import Problem
from sparsify.recipe.nodes import Node, Path, Place, Table, find_child, find_place, join_path, to_plain
from sparsify.recipe.odd_characters import name_odd_character
from sparsify.recipe.variables import Filled
from sparsify.recipe.wording import describe_value, find_nearest, quote_text, suggest
from sparsify_schemas import group
from sparsify_schemas.base import NOT_BLANK, AtKey
from sparsify_schemas.lookup import (
    Field,
    choose_alternatives,
    find_at,
    list_family,
    list_fields,
    list_types_at,
    written_as,
)
from sparsify_schemas.recipe import Recipe

_OF_KEYS = ("missing", "extra_forbidden")


def explain_errors(error: ValidationError, filled: Filled) -> list[Problem]:
    """Problems in place of pydantic's errors; nothing is said of values that have been complained of already.

    The keys beside a misspelt `kind` are checked too, by the kind that was probably meant.
    """
    data = to_plain(filled.root)
    problems = _explain_error(error, filled, data)
    mended = {path: kind for path, e in _locate_errors(error, data) if (kind := _meant_kind(path, e, data))}
    if not mended:
        return problems
    for path, kind in mended.items():
        find_at(data, path)["kind"] = kind
    try:
        Recipe.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as more:
        beside = tuple(f"{join_path(path)}." for path in mended)
        problems += [
            problem for problem in _explain_error(more, filled, data) if f"{problem.path}.".startswith(beside)
        ]
    return problems


def _locate_errors(error: ValidationError, data: Any) -> list[tuple[Path, ErrorDetails]]:
    return [(_find_path(e, data), e) for e in error.errors(include_url=False)]


def _meant_kind(path: Path, error: ErrorDetails, data: Any) -> str:
    """The kind that a misspelt one is near to, '' where there is none."""
    entry = find_at(data, path) if error["type"] == "union_tag_invalid" else None
    value = entry.get("kind") if isinstance(entry, dict) else None
    return find_nearest(value, _list_kinds(path, data)) if isinstance(value, str) else ""


def _explain_error(error: ValidationError, filled: Filled, data: Any) -> list[Problem]:
    located = _locate_errors(error, data)
    kept = []
    for path, e in located:
        is_broken = any(path[: len(broken)] == broken for broken in filled.broken)
        if not is_broken and not _is_consequence(path, e, located):
            kept.append((path, e))
    misspelt = {(path[:-1], _find_meant(path, data)) for path, e in kept if e["type"] == "extra_forbidden"}
    told = [
        (path, _make_problem(path, e, filled.root, data), _find_word(path, e))
        for path, e in kept
        if not (e["type"] == "missing" and (path[:-1], path[-1]) in misspelt)
    ]
    said = [(path, _add_odd_character(problem, word)) for path, problem, word in told]
    return [replace(problem, hint=problem.hint or _find_origin(path, filled)) for path, problem in said]


def _add_odd_character(problem: Problem, word: object) -> Problem:
    """The problem, with a word on a letter or blank that only looks like a plain one."""
    odd = name_odd_character(word) if isinstance(word, str) else ""
    return replace(problem, hint="; ".join(part for part in (odd, problem.hint) if part))


def _find_word(path: Path, error: ErrorDetails) -> object:
    """The key or the value that is complained of."""
    if error["type"] == "extra_forbidden":
        return path[-1]
    value = error["input"]
    return value.get("kind") if error["type"] == "union_tag_invalid" else value


def _find_origin(path: Path, filled: Filled) -> str:
    text = filled.texts.get(path)
    return "" if text is None else f"this is what {quote_text(text)} comes to"


def _is_consequence(path: Path, error: ErrorDetails, others: Iterable[tuple[Path, ErrorDetails]]) -> bool:
    """A list whose items are wrong is 'too short after validation' only because of them."""
    return error["type"] == "too_short" and any(
        len(p) > len(path) and p[: len(path)] == path for p, _ in others
    )


def _find_path(error: ErrorDetails, data: Any) -> Path:
    """pydantic's `loc` without the names of union members, along the data itself."""
    path: list[str | int] = []
    parts = error["loc"]
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        of_keys = last and error["type"] in _OF_KEYS
        if isinstance(data, Mapping):
            is_kind = data.get("kind") == part and not of_keys
            if not is_kind and (part in data or of_keys):
                path.append(part)
                data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            path.append(part)
            data = data[part] if part < len(data) else None
    return tuple(path)


def _list_known_keys(path: Path, data: Any) -> list[Field]:
    """The keys of the entry that the path leads to."""
    here = find_at(data, path)
    return [
        field
        for annotation in list_types_at(Recipe, path, data)
        for model in choose_alternatives(annotation, here)
        for field in list_fields(model)
    ]


def _list_kinds(path: Path, data: Any) -> list[str]:
    return [kind for annotation in list_types_at(Recipe, path, data) for kind in list_family(annotation)]


def _find_field(path: Path, data: Any) -> Field | None:
    named = next((i for i in reversed(range(len(path))) if isinstance(path[i], str)), None)
    if named is None:
        return None
    known = _list_known_keys(path[:named], data)
    return next((field for field in known if field.name == path[named]), None)


def _list_names(path: Path, data: Any) -> list[str]:
    names = [field.name for field in _list_known_keys(path, data)]
    return names if path else [*names, "extends", "vars"]


def _find_meant(path: Path, data: Any) -> str:
    return find_nearest(str(path[-1]), _list_names(path[:-1], data))


def _make_problem(path: Path, error: ErrorDetails, root: Table, data: Any) -> Problem:
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(path, root, data)
        case "missing":
            return _report_missing(path, root, data)
        case "union_tag_invalid" | "union_tag_not_found":
            return _report_kind(path, error, root, data)
        case "literal_error":
            return _report_choice(path, error, root)
        case "unknown_group":
            return _report_group(path, error["input"], root)
    message, hint = _describe_misfit(path, error, data)
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, AtKey):
        path = (*path, *cause.path)
        return _key_place(path, root).problem(path, message, hint)
    return find_place(root, path).problem(path, message, hint)


def _unknown_key(path: Path, root: Table, data: Any) -> Problem:
    return _key_place(path, root).problem(
        path, "unknown key", suggest(str(path[-1]), _list_names(path[:-1], data))
    )


def _key_place(path: Path, root: Table) -> Place:
    owner: Node | None = root
    for part in path[:-1]:
        owner = find_child(owner, part)
    return owner.key_place(str(path[-1])) if isinstance(owner, Table) else find_place(root, path)


def _report_missing(path: Path, root: Table, data: Any) -> Problem:
    owner, name = path[:-1], path[-1]
    place = find_place(root, owner)
    if isinstance(name, int):
        return place.problem(owner, f"expected more than {name} {'entry' if name == 1 else 'entries'}")
    field = next((f for f in _list_known_keys(owner, data) if f.name == name), None)
    return place.problem(owner, f"missing key '{name}'", field.meaning if field else "")


def _report_kind(path: Path, error: ErrorDetails, root: Table, data: Any) -> Problem:
    known = _list_kinds(path, data)
    if error["type"] == "union_tag_not_found":
        written = _find_written_kind(path, known, data)
        if written:
            place = _key_place((*path, written), root)
            return place.problem((*path, written), "unknown key", "did you mean 'kind'?")
        return find_place(root, path).problem(path, "missing key 'kind'", f"one of {', '.join(known)}")
    return _unknown_kind((*path, "kind"), error["input"]["kind"], known, root)


def _find_written_kind(path: Path, known: list[str], data: Any) -> str:
    """The key of an entry that was probably meant as its `kind`, '' where there is none."""
    entry = find_at(data, path)
    names = [field.name for field in _list_known_keys(path, data)]
    for key, value in entry.items() if isinstance(entry, dict) else ():
        if key not in names and (find_nearest(key, ["kind"]) or value in known):
            return str(key)
    return ""


def _unknown_kind(path: Path, value: Any, known: list[str], root: Table) -> Problem:
    if not isinstance(value, str):
        return find_place(root, path).problem(
            path, f"expected one of {', '.join(known)}, found {describe_value(value)}"
        )
    return find_place(root, path).problem(path, f"unknown kind '{value}'", suggest(value, known))


def _report_choice(path: Path, error: ErrorDetails, root: Table) -> Problem:
    value = error["input"]
    expected = str(error.get("ctx", {}).get("expected", ""))
    known = re.findall(r"'([^']*)'", expected) or re.split(r", | or ", expected)
    place = find_place(root, path)
    if path[-1:] == ("kind",):
        return _unknown_kind(path, value, known, root)
    if path == ("version",):
        is_newer = isinstance(value, int) and value > 1
        return place.problem(
            path,
            "expected 1, the version of the language that this sparsify reads, found "
            f"{describe_value(value)}",
            "it was written for a newer sparsify; use that version" if is_newer else "",
        )
    hint = suggest(value, known) if isinstance(value, str) else ""
    choices = known[0] if len(known) == 1 else f"one of {', '.join(known)}"
    return place.problem(
        path, f"expected {choices}, found {describe_value(value)}", hint if hint.startswith("did") else ""
    )


def _report_group(path: Path, value: Any, root: Table) -> Problem:
    place, known = find_place(root, path), ", ".join((*group.WORDS, "4x1 (a block)", "2:4 (n:m)"))
    if not isinstance(value, str):
        return place.problem(path, f"expected one of {known}, found {describe_value(value)}")
    close = find_nearest(value, [*group.WORDS, *group.ALIASES])
    return place.problem(
        path, f"unknown group {quote_text(value)}", f"did you mean '{close}'?" if close else f"known: {known}"
    )


_OLD_BOOLEANS = ("yes", "no", "on", "off")
"""Booleans of YAML 1.1."""


def _describe_misfit(path: Path, error: ErrorDetails, data: Any) -> tuple[str, str]:
    """Message and hint for a value that does not fit its key."""
    value, limits = error["input"], error.get("ctx", {})
    match error["type"]:
        case "value_error":
            message, _, hint = str(limits["error"]).partition("; ")
            return message, hint
        case "int_type" | "int_parsing" | "int_from_float":
            return f"expected a whole number, found {describe_value(value)}", _number_hint(value)
        case "float_type" | "float_parsing":
            return f"expected a number, found {describe_value(value)}", _number_hint(value)
        case "finite_number":
            return f"expected a finite number, found {describe_value(value)}", ""
        case "bool_type" | "bool_parsing":
            hint = "YAML 1.2 has no yes, no, on and off" if value in _OLD_BOOLEANS else ""
            return f"expected true or false, found {describe_value(value)}", hint
        case "string_type":
            hint = "quote it" if isinstance(value, int | float) else ""
            return f"expected text, found {describe_value(value)}", hint
        case "string_too_short":
            return "expected some text, found an empty one", ""
        case "string_pattern_mismatch" if limits.get("pattern") == NOT_BLANK:
            return "expected some text, found only blanks", ""
        case "string_pattern_mismatch":
            field = _find_field(path, data)
            return (
                f"expected a {field.meaning}" if field else "does not fit",
                f"found {describe_value(value)}",
            )
        case "greater_than_equal":
            return f"expected at least {limits['ge']:g}, found {describe_value(value)}", ""
        case "less_than_equal":
            return f"expected at most {limits['le']}, found {describe_value(value)}", ""
        case "less_than":
            return f"expected less than {limits['lt']:g}, found {describe_value(value)}", ""
        case "too_short":
            return "expected at least one entry, found none", ""
        case "too_long":
            return f"expected {limits['max_length']} entries, found {limits['actual_length']}", ""
        case "tuple_type" | "list_type":
            return f"expected a list, found {describe_value(value)}", ""
        case "model_attributes_type" | "model_type" | "dict_type" | "mapping_type":
            return _no_mapping(path, value, data)
    return error["msg"][:1].lower() + error["msg"][1:], ""


def _number_hint(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9_]*(\.[0-9]+)?(e[-+]?[0-9]+)?", value.strip()):
        return "write it without underscores" if "_" in value else "write it without quotes"
    if isinstance(value, float) and value.is_integer():
        return f"write {int(value)}; in an expression, // divides without a remainder"
    return ""


def _no_mapping(path: Path, value: Any, data: Any) -> tuple[str, str]:
    """A mapping was expected. Where the value is the name of a kind, the hint shows how to write it."""
    hint = f"write {{kind: {value}}}" if isinstance(value, str) and value in _list_kinds(path, data) else ""
    expected = "mapping"
    for annotation in list_types_at(Recipe, path, data):
        if float in written_as(annotation):
            expected = "number or a schedule"
    return f"expected a {expected}, found {describe_value(value)}", hint
