"""`sparsify report`: show what a run did and measured."""

from pathlib import Path
from typing import Annotated

import typer

from sparsify import report as reports
from sparsify.table import Table
from sparsify_cli.render import show, show_json
from sparsify_schemas.report import Report


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="The whole report as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="The report as Markdown.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Every epoch as well.")] = False,
) -> None:
    """Show what a run did and measured: dense and cut model side by side."""
    if as_json and as_markdown:
        raise typer.BadParameter("--json and --md exclude each other")
    found = reports.read(run)
    if as_json:
        show_json(found.model_dump(mode="json"))
    elif as_markdown:
        typer.echo(reports.to_markdown(found), nl=False)
    else:
        show_report(found, history=history)


def show_report(found: Report, *, history: bool = False) -> None:
    """The report on stdout: title, headline, tables."""
    epochs = (reports.history(found),) if history and found.history else ()
    show(Table(found.title, (), (), (reports.headline(found),)), *reports.tables(found, every_layer=False), *epochs, reports.provenance(found))
