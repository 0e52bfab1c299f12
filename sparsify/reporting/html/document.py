"""The page: what a reader sees, from the five-second headline down to the recipe and the machine."""

from collections.abc import Iterator
from importlib.resources import files

from sparsify.formatting.table import Table
from sparsify.reporting.html import sections
from sparsify.reporting.html.markup import NOTHING, Html, joined, tag, verbatim
from sparsify.reporting.html.plots import hatching
from sparsify.reporting.html.tables import folded, table
from sparsify.reporting.report_tables import headline, history, provenance, tables
from sparsify_schemas.report import Report

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""the page may fetch nothing and run nothing, whatever stands in it"""
_LATE = ("Zeros", "Layers with dead shapes or taps")
"""tables that stand after the plots"""
_DRAWN = ("Layers", "Stages", "Cuts")
"""tables that stand with a plot"""
_EPOCHS = 60
"""rows of the history; report.json has them all"""


def to_html(report: Report, recipe: str | None = None) -> str:
    """The report as one file of HTML without scripts or links; recipe: its text, shown at the end."""
    main = tag("main", *_sections(report, recipe))
    return whole_page(report.title, hatching(), sections.top(report, headline(report)), main)


def whole_page(title: str, *body: Html) -> str:
    """A document with our style that fetches and runs nothing."""
    head = (
        tag("meta", at={"charset": "utf-8"}),
        tag("meta", at={"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("meta", at={"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", at={"name": "color-scheme", "content": "light dark"}),
        tag("title", f"{title} - sparsify"),
        tag(
            "style", Html(files("sparsify.reporting.html").joinpath("style.css").read_text(encoding="utf-8"))
        ),
    )
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', *body), at={'lang': 'en'}).text}\n"


def _sections(report: Report, recipe: str | None) -> Iterator[Html]:
    """Each with its plots and its tables; a table that belongs to none of them still has its place."""
    left = {t.title: t for t in tables(report)}

    def take(*titles: str) -> list[Html]:
        return [table(left.pop(title), heading=False) for title in titles if title in left]

    notes = left.pop("Notes", None)
    yield _section(
        "Dense and cut", tag("div.halves", tag("div", *take("Dense and cut")), sections.trade_off(report))
    )
    yield _section("Against baselines", *take("Against baselines"))
    yield _section("Asked and achieved", *take("Asked and achieved"))
    yield _section("Latency", *take("Latency"), sections.predicted(report))
    yield _section(
        "Floats and integers",
        tag("div.halves", tag("div", *both), sections.integers(report))
        if (both := take("Floats and integers"))
        else NOTHING,
    )
    yield _section(
        "Search", *take("Search"), sections.search(report)
    )  # its table is too wide for half a page
    late = [left.pop(title) for title in _LATE if title in left]
    yield from (
        _section(title, table(other, heading=False)) for title, other in left.items() if title not in _DRAWN
    )
    yield from sections.where_time_went(report, _section)
    yield _section(
        "Widths",
        sections.widths(report),
        *(folded(left.pop(t), "Every layer in figures") for t in ("Layers",) if t in left),
    )
    yield _section("Protected", sections.protected(report))
    stages, cuts = take("Stages"), take("Cuts")
    epochs = [folded(history(report, _EPOCHS), "Epochs in figures")] if report.history else []
    yield _section("Training", sections.training(report), *stages, *cuts, *epochs)
    yield from (_section(zeros.title, table(zeros, heading=False)) for zeros in late)
    yield _section("Notes", _listed(notes) if notes else NOTHING)
    yield _section("Recipe", verbatim(recipe) if recipe else NOTHING)
    yield _section("Provenance", table(provenance(report), heading=False))


def _section(title: str, *content: Html) -> Html:
    """A section with a heading; none where there is nothing in it."""
    inside = joined(content)
    return tag("section", tag("h2", title), inside) if inside.text else NOTHING


def _listed(notes: Table) -> Html:
    return tag("ul", *(tag("li", note.removeprefix("- ")) for note in notes.notes))
