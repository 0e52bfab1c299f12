"""`sparsify explain`: say what a word of the recipe language means, or what a command does."""

from collections.abc import Iterator
from dataclasses import asdict
from textwrap import wrap
from typing import Annotated

import typer

from sparsify_cli.app import COMMANDS
from sparsify_cli.flow import to_flow
from sparsify_cli.output import find_stream, write_result
from sparsify_cli.render import find_width, show_json
from sparsify_cli.topics import FAMILIES, WITHOUT_ENTRY, Key, Topic, all_topics, find_topic
from sparsify_schemas.lookup import list_fields
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
    """Explain a word of the recipe language (formula, keys, defaults, sources) or a command."""
    if what is None:
        _list_topics(as_json)
    elif as_json:
        show_json(asdict(find_topic(what)))
    else:
        write_result("\n".join(_write_page(find_topic(what))))


def _list_topics(as_json: bool) -> None:
    topics = all_topics()
    if as_json:
        show_json({name: topic.summary for name, topic in topics.items()})
        return
    write_result("Keys of a recipe")
    for name in [*(field.name for field in list_fields(Recipe)), *WITHOUT_ENTRY]:
        write_result("\n".join(_write_entry(name, topics[name].summary, 12)))
    write_result("\nKinds to choose from")
    for name in ("group", *FAMILIES):
        write_result(
            "\n".join(_write_entry(name, ", ".join(member for member, _ in topics[name].members), 12))
        )
    write_result(f"\nCommands\n  {', '.join(COMMANDS)}")
    write_result("\nExamples: `sparsify explain recipe`, `sparsify explain penalty`,")
    write_result("`sparsify explain group_lasso.scope`, `sparsify explain units`.")


def _write_page(topic: Topic) -> Iterator[str]:
    yield topic.name
    yield ""
    for line in _join_lines(topic.text):
        yield from _wrap(line, _find_indent(line))
    if topic.key is not None:
        yield ""
        yield from _wrap(f"Takes: {_describe_values(topic.key)}", 7)
    if topic.keys:
        yield "\nKeys"
        broad = max(len(key.name) for key in topic.keys)
        for key in topic.keys:
            yield from _write_entry(key.name, " ".join(key.meaning.split()), broad)
            yield from _write_entry("", _describe_values(key), broad)
    if topic.members:
        yield "\nKinds"
        broad = max(len(name) for name, _ in topic.members)
        for name, summary in topic.members:
            yield from _write_entry(name, summary, broad)


def _write_entry(name: str, said: str, broad: int) -> list[str]:
    """A name and its text, with a hanging indent."""
    return _wrap(f"  {name:<{broad}}  {said}".rstrip(), broad + 4)


def _wrap(line: str, indent: int) -> list[str]:
    """Wrap a line to the width of the terminal. Spaces inside a formula are kept."""
    return wrap(
        line,
        find_width(find_stream()),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def _join_lines(text: str) -> list[str]:
    """Lines, with sentences that were broken at the margin joined.

    Lines of formulas are shorter, aligned, or followed by indented ones, so they stay as they are.
    """
    lines: list[str] = []
    broken = False
    for line in text.splitlines():
        if broken and line and not _find_indent(line):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
        broken = len(line) >= MARGIN and not line.endswith((".", ";")) and "  " not in line
    return lines


def _find_indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _describe_values(key: Key) -> str:
    if key.required:
        return f"{key.takes}; required"
    if key.default in (None, {}, []):
        return key.takes
    return f"{key.takes}; default {to_flow(key.default)}"
