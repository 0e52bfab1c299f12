"""`sparsify report`: show what a run did and measured."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from sparsify import files
from sparsify.errors import RunError
from sparsify.files import read_bytes as read_file
from sparsify.formatting.table import Table, as_markdown
from sparsify.reporting import report_tables
from sparsify.reporting.headline import write_headline
from sparsify.reporting.html import PAGE, to_html
from sparsify.reporting.provenance_table import provenance_table
from sparsify.reporting.report_file import read_report
from sparsify.reporting.study_file import is_study, read_study
from sparsify.reporting.study_tables import list_study_tables, write_study_headline
from sparsify.reporting.training_tables import history_table
from sparsify.runs import run_folder
from sparsify_cli.options import RunFolder
from sparsify_cli.output import write_result
from sparsify_cli.render import show, show_json
from sparsify_schemas.report import Report


def command(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="The whole report as JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--md", help="The report as Markdown.")] = False,
    as_html: Annotated[
        bool, typer.Option("--html", help="The report with its plots as one HTML file.")
    ] = False,
    in_browser: Annotated[
        bool, typer.Option("--open", help="Open the run's report.html in the browser.")
    ] = False,
    history: Annotated[bool, typer.Option("--history", help="Show every epoch too.")] = False,
) -> None:
    """Show what a run did and measured: dense and cut model side by side; or what a study tried and found."""
    options = {"--json": as_json, "--md": as_markdown, "--html": as_html, "--open": in_browser}
    chosen = [name for name, asked in options.items() if asked]
    if len(chosen) > 1:
        raise typer.BadParameter(f"{' and '.join(chosen)} exclude each other")
    if is_study(run):
        _report_study(run, chosen)
        return
    found = read_report(run)
    if as_json:
        show_json(found.model_dump(mode="json"))
    elif as_markdown:
        write_result(report_tables.to_markdown(found), nl=False)
    elif as_html:
        write_result(_make_page(run, found), nl=False)
    elif in_browser:
        _open_page(run, found)
    else:
        show_report(found, history=history)


def _report_study(folder: Path, chosen: list[str]) -> None:
    """The same of a study."""
    study, page = read_study(folder), folder / run_folder.HTML
    tables = list_study_tables(study)
    match chosen:
        case ["--json"]:
            show_json(study.model_dump(mode="json"))
        case ["--md"]:
            write_result(f"# {study.title}\n\n{write_study_headline(study)}\n\n{as_markdown(tables)}")
        case ["--html"]:
            write_result(read_file(page).decode(), nl=False)
        case ["--open"]:
            _open_in_browser(page)
        case _:
            show(write_study_headline(study), *tables)


def show_report(found: Report, *, history: bool = False) -> None:
    """Print the report: title, headline, tables."""
    epochs = (history_table(found),) if history and found.history else ()
    show(
        Table(found.title, (), (), (write_headline(found),)),
        *report_tables.list_tables(found, every_layer=False),
        *epochs,
        provenance_table(found),
    )


def _make_page(run: Path, found: Report) -> str:
    """The HTML page, with the recipe if it lies beside the report."""
    recipe = _find_folder(run) / run_folder.RECIPE
    text = read_file(recipe).decode(errors="replace") if recipe.is_file() else None
    return to_html(found, text)


def _open_page(run: Path, found: Report) -> None:
    """Open the run's page. It is made again where it is missing (runs of earlier versions) or was changed."""
    page = _find_folder(run) / run_folder.HTML
    if not page.exists() or run_folder.hash_file(page) != found.files.get(run_folder.HTML):
        if page.is_file() and page.stat().st_size and not PAGE.is_own(read_file(page)):
            raise RunError(f"{page} is no page of sparsify any more; rename it, and the page is made again")
        files.write_bytes(page, _make_page(run, found).encode())
    _open_in_browser(page)


def _open_in_browser(page: Path) -> None:
    write_result(str(page))
    if not webbrowser.open(page.resolve().as_uri()):
        raise RunError(f"no browser could be started; open {page} in a browser")


def _find_folder(run: Path) -> Path:
    return run if run.is_dir() else run.parent
