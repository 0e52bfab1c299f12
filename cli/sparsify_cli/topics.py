"""Topics of `sparsify explain`.

Every word of the recipe language, from the docstrings of the schema, and the commands.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Final

from sparsify.errors import SparsifyError
from sparsify_cli.app import COMMANDS
from sparsify_schemas import baseline, criterion, group, penalty, schedule, selector, stage, target, units
from sparsify_schemas.lookup import (
    Field,
    Model,
    in_words,
    list_alternatives,
    list_family,
    list_fields,
    list_models,
)
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.written import to_written

FAMILIES: Final[dict[str, tuple[ModuleType | str, Any]]] = {
    "penalty": (penalty, penalty.Penalty),
    "criterion": (criterion, criterion.Criterion),
    "schedule": (schedule, schedule.Strength),
    "stage": (stage, stage.Stage),
    "optimizer": ("Optimizers of a training stage.", stage.Optimizer),
    "target": (target, target.Target),
    "baseline": ("Baselines that take options, under `baselines`.", baseline.TorchPruningBaseline),
}
PLURALS: Final = {
    "rule": "rules",
    "stages": "stage",
    "targets": "target",
    "penalties": "penalty",
    "criteria": "criterion",
    "schedules": "schedule",
    "groups": "group",
    "unit": "units",
}
WITHOUT_ENTRY: Final = {
    "extends": """extends: other.yaml

A recipe to start from, relative to this file. Mappings are merged by key; lists, values and null replace.
A circle is an error.""",
    "vars": """vars: {epochs: 30}

Names for values. "${epochs}" becomes the number, "${epochs}ep" the text 30ep. The braces may hold arithmetic:
+ - * / // % **, parentheses, min, max, round and int. `--set epochs=3` changes a variable.
$${ is a plain ${.""",
}


@dataclass(frozen=True)
class Key:
    """One key of a topic."""

    name: str
    takes: str
    required: bool
    default: Any
    meaning: str


@dataclass(frozen=True)
class Topic:
    """The explanation of one word."""

    name: str
    text: str
    key: Key | None = None
    """How it is written, where it is a key itself."""
    keys: tuple[Key, ...] = ()
    members: tuple[tuple[str, str], ...] = ()
    """(name, first line) of the kinds to choose from"""

    @property
    def summary(self) -> str:
        return self.text.partition("\n")[0]


def all_topics() -> dict[str, Topic]:
    """Every topic by its full name, such as `penalty.group_lasso.scope`."""
    return _list_language() | {f"command.{name}": _read_command(name) for name in COMMANDS}


@cache
def _list_language() -> dict[str, Topic]:
    """Everything that a recipe may contain."""
    extra = " and ".join(WITHOUT_ENTRY)
    whole = (
        f"{_read_docstring(Recipe)}\n\nBesides these keys a file may have {extra}, which are resolved first."
    )
    topics = [
        Topic("recipe", whole, keys=_list_keys(Recipe)),
        *_of_entry("", Recipe),
        *_of_groups(),
        *(_make_topic(name, text) for name, text in WITHOUT_ENTRY.items()),
    ]
    topics.append(_make_topic("units", inspect.getdoc(units) or ""))
    for name, (about, annotation) in FAMILIES.items():
        members = list_family(annotation)
        text = about if isinstance(about, str) else inspect.getdoc(about) or ""
        topics.append(
            Topic(
                name,
                text,
                members=tuple(
                    (kind, _read_docstring(model).partition("\n")[0]) for kind, model in members.items()
                ),
            )
        )
        for kind, model in members.items():
            full = f"{name}.{kind}"
            topics += [Topic(full, _read_docstring(model), keys=_list_keys(model)), *_of_entry(full, model)]
    return {topic.name: topic for topic in topics}


def find_topic(word: str) -> Topic:
    """The topic of a word, a dotted path or the end of one. Raises SparsifyError with a suggestion."""
    topics = _list_language() | {
        f"command.{name}": Topic(f"command.{name}", line) for name, (_, line) in COMMANDS.items()
    }
    found = _find_among(word, topics)
    kind, _, name = found.name.partition(".")
    return _read_command(name) if kind == "command" else found


def _find_among(word: str, topics: dict[str, Topic]) -> Topic:
    name = word if word in topics else _normalize(word)
    if name in topics:
        return topics[name]
    ends = [topics[full] for full in topics if name and full.endswith(f".{name}")]
    if ends and all((topic.text, topic.key) == (ends[0].text, ends[0].key) for topic in ends):
        return ends[0]
    if ends:
        raise SparsifyError(f"'{word}' has several meanings; name one: {', '.join(t.name for t in ends)}")
    words = list(topics)
    if "." not in name:
        last_parts = [full.rpartition(".")[2] for full in topics]
        words = list(dict.fromkeys([*last_parts, *group.ALIASES]))
    near = get_close_matches(name, words, 1)
    hint = f"did you mean '{near[0]}'?" if near else "`sparsify explain` lists the topics"
    raise SparsifyError(f"there is no topic '{word}'; {hint}")


def _normalize(word: str) -> str:
    """`rules.0.penalty.group_lasso` -> `penalty.group_lasso`.

    Without list indices, from the last family on.
    """
    parts = [part for part in word.strip().split(".") if part and not part.isdigit()]
    parts[:1] = [PLURALS.get(part, part) for part in parts[:1]]
    if parts[:1] == ["recipe"]:
        parts = parts[1:]
    parts = [_name_group(part) for part in parts]
    starts = [i for i, part in enumerate(parts[:-1]) if part in FAMILIES or part == "group"]
    return ".".join(parts[starts[-1] :] if starts else parts)


def _name_group(part: str) -> str:
    """`2:4` -> `n:m`, `4x1` -> `block`, and the aliases of a group."""
    if re.fullmatch(group.Pattern.PATTERN, part):
        return "n:m"
    return "block" if re.fullmatch(group.Block.PATTERN, part) else group.ALIASES.get(part, part)


def _of_entry(prefix: str, model: Model) -> Iterator[Topic]:
    for field in list_fields(model):
        if field.name == "kind" and field.required:
            continue
        name = f"{prefix}.{field.name}" if prefix else field.name
        kinds = _list_kinds(field.annotation)
        entries = [] if kinds else list(dict.fromkeys(_list_entries(field.annotation)))
        text = "\n\n".join(
            [field.meaning, *_describe_more(field), *(_read_docstring(entry) for entry in entries)]
        )
        yield Topic(
            name, text, _make_key(field), tuple(key for entry in entries for key in _list_keys(entry)), kinds
        )
        for entry in entries:
            yield from _of_entry(name, entry)


def _list_entries(annotation: Any) -> Iterator[Model]:
    """The entries that a key holds, in a list or a mapping as well."""
    yield from list_models(annotation)
    for arm in list_alternatives(annotation):
        yield from (model for part in getattr(arm, "__args__", ()) for model in list_models(part))


def _list_kinds(annotation: Any) -> tuple[tuple[str, str], ...]:
    entries = dict.fromkeys(_list_entries(annotation))
    # an entry whose kind may be left out, as that of a task, is one class and no family of them
    families = [entry for entry in entries if "kind" in entry.model_fields and _must_say_kind(entry)]
    members = {kind: model for entry in families for kind, model in list_family(entry).items()}
    return tuple((kind, _read_docstring(model).partition("\n")[0]) for kind, model in members.items())


def _must_say_kind(entry: Model) -> bool:
    return entry.model_fields["kind"].is_required()


def _describe_more(field: Field) -> list[str]:
    return [inspect.getdoc(selector) or ""] if field.name == "layers" else []


def _of_groups() -> Iterator[Topic]:
    yield Topic(
        "group",
        inspect.getdoc(group) or "",
        members=tuple((kind, meaning.partition(";")[0]) for kind, meaning in group.MEANING.items()),
    )
    for kind, meaning in group.MEANING.items():
        also = [alias for alias, of in group.ALIASES.items() if of == kind]
        yield _make_topic(
            f"group.{kind}", f"{meaning}\n\nAlso written {', '.join(also)}." if also else meaning
        )


def _read_command(name: str) -> Topic:
    """The docstring of a command, which is imported for it. `--help` lists its options."""
    said = inspect.getdoc(import_module(COMMANDS[name][0]).command) or ""
    return _make_topic(f"command.{name}", f"{said}\n\n`sparsify {name} --help` lists its options.")


def _make_topic(name: str, text: str) -> Topic:
    return Topic(name, text)


def _read_docstring(model: Model) -> str:
    return inspect.getdoc(model) or ""


def _list_keys(model: Model) -> tuple[Key, ...]:
    ordered = sorted(list_fields(model), key=lambda field: field.name != "kind")
    return tuple(map(_make_key, ordered))


def _make_key(field: Field) -> Key:
    meaning = field.meaning or ("names the kind" if field.name == "kind" else "")
    return Key(field.name, in_words(field.annotation), field.required, to_written(field.default), meaning)
