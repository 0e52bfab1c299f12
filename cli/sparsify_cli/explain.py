"""`sparsify explain`: say what a word of the recipe language means, or what a command does."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from textwrap import wrap
from typing import Annotated

import typer

from sparsify_cli.app import COMMANDS
from sparsify_cli.flow import flow
from sparsify_cli.render import show_json, width
from sparsify_cli.topics import FAMILIES, WITHOUT_ENTRY, Key, Topic, all_topics, find
from sparsify_schemas.lookup import fields
from sparsify_schemas.recipe import Recipe

MARGIN = 100
"""cells from which a line of a docstring is taken to have been broken for its length"""


def command(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help="Such as group_lasso, budget.macs, rules.keep, filter or recipe; all topics when left out.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say what a word of the recipe language means: formula, keys, defaults, sources; or what a command does."""
    if what is None:
        _list(as_json)
    elif as_json:
        show_json(asdict(find(what)))
    else:
        typer.echo("\n".join(_page(find(what))))


def _list(as_json: bool) -> None:
    topics = all_topics()
    if as_json:
        show_json({name: topic.summary for name, topic in topics.items()})
        return
    typer.echo("Keys of a recipe")
    typer.echo(
        "\n".join(
            line
            for name in [*(f.name for f in fields(Recipe)), *WITHOUT_ENTRY]
            for line in _entry(name, topics[name].summary, 12)
        )
    )
    typer.echo("\nWhat there is to choose from")
    for name in ("group", *FAMILIES):
        typer.echo("\n".join(_entry(name, ", ".join(member for member, _ in topics[name].members), 12)))
    typer.echo(f"\nCommands\n  {', '.join(COMMANDS)}")
    typer.echo(
        "\n`sparsify explain recipe`, `sparsify explain penalty`, `sparsify explain group_lasso.scope`, `sparsify explain units` say more."
    )


def _page(topic: Topic) -> Iterator[str]:
    yield topic.name
    yield ""
    yield from (line for written in _flowing(topic.text) for line in _folded(written, _indent(written)))
    if topic.key is not None:
        yield ""
        yield from _folded(f"Takes: {_takes(topic.key)}", 7)
    if topic.keys:
        yield "\nKeys"
        broad = max(len(key.name) for key in topic.keys)
        for key in topic.keys:
            yield from _entry(key.name, " ".join(key.meaning.split()), broad)
            yield from _entry("", _takes(key), broad)
    if topic.members:
        yield "\nKinds"
        broad = max(len(name) for name, _ in topic.members)
        for name, summary in topic.members:
            yield from _entry(name, summary, broad)


def _entry(name: str, said: str, broad: int) -> list[str]:
    """A name and what is said of it, which goes on below itself."""
    return _folded(f"  {name:<{broad}}  {said}".rstrip(), broad + 4)


def _folded(line: str, indent: int) -> list[str]:
    """As many lines as the terminal takes it in; spaces in a formula stay."""
    return wrap(
        line,
        width(sys.stdout),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def _flowing(text: str) -> list[str]:
    """Lines, a sentence that was broken at the margin in one: those of formulas are shorter, aligned, or go on indented."""
    lines: list[str] = []
    broken = False
    for line in text.splitlines():
        if broken and line and not _indent(line):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
        broken = len(line) >= MARGIN and not line.endswith((".", ";")) and "  " not in line
    return lines


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _takes(key: Key) -> str:
    if key.required:
        return f"{key.takes}; required"
    return key.takes if key.default in (None, {}, []) else f"{key.takes}; {flow(key.default)} when left out"
