"""`sparsify explain`: say what a word of the recipe language means, or what a command does."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from sparsify_cli.app import COMMANDS
from sparsify_cli.flow import flow
from sparsify_cli.render import show_json
from sparsify_cli.topics import FAMILIES, WITHOUT_ENTRY, Key, Topic, all_topics, find
from sparsify_schemas.lookup import fields
from sparsify_schemas.recipe import Recipe


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
    typer.echo("\n".join(f"  {name:<12} {topics[name].summary}" for name in [*(f.name for f in fields(Recipe)), *WITHOUT_ENTRY]))
    typer.echo("\nWhat there is to choose from")
    for name in ("group", *FAMILIES):
        typer.echo(f"  {name:<12} {', '.join(member for member, _ in topics[name].members)}")
    typer.echo(f"\nCommands\n  {', '.join(COMMANDS)}")
    typer.echo("\n`sparsify explain recipe`, `sparsify explain penalty`, `sparsify explain group_lasso.scope`, `sparsify explain units` say more.")


def _page(topic: Topic) -> Iterator[str]:
    yield topic.name
    yield ""
    yield topic.text
    if topic.key is not None:
        yield ""
        yield f"Takes: {_takes(topic.key)}"
    if topic.keys:
        yield "\nKeys"
        broad = max(len(key.name) for key in topic.keys)
        for key in topic.keys:
            yield f"  {key.name:<{broad}}  {key.meaning.replace(chr(10), chr(10) + ' ' * (broad + 4))}"
            yield f"  {'':<{broad}}  {_takes(key)}"
    if topic.members:
        yield "\nKinds"
        broad = max(len(name) for name, _ in topic.members)
        yield from (f"  {name:<{broad}}  {summary}" for name, summary in topic.members)


def _takes(key: Key) -> str:
    if key.required:
        return f"{key.takes}; required"
    return key.takes if key.default in (None, {}, []) else f"{key.takes}; {flow(key.default)} when left out"
