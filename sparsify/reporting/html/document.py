"""The page of a report, from the headline down to the recipe and the machine."""

from collections.abc import Iterator
from importlib.resources import files

from sparsify.files import Kind
from sparsify.formatting.table import Table
from sparsify.reporting import table_titles as titles
from sparsify.reporting.headline import write_headline
from sparsify.reporting.html.layer_bars import (
    draw_predictions,
    draw_protected,
    draw_time_by_layer,
    draw_widths,
)
from sparsify.reporting.html.markup import NOTHING, Html, join_markup, quote_lines, tag
from sparsify.reporting.html.plots import define_hatching
from sparsify.reporting.html.summary import draw_summary
from sparsify.reporting.html.tables import draw_folded, draw_table
from sparsify.reporting.html.trade_off import draw_int8, draw_search, draw_trade_offs
from sparsify.reporting.html.training_curves import draw_training
from sparsify.reporting.provenance_table import provenance_table
from sparsify.reporting.report_tables import list_tables
from sparsify.reporting.training_tables import history_table
from sparsify_schemas.report import Report

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The page may fetch nothing and run nothing, whatever it contains."""
_AFTER_PLOTS = (titles.MIXTURES, titles.ZEROS, titles.COMPUTATION)
"""Tables that follow the plots."""
_EPOCHS = 60
"""Rows of the history; report.json has all of them."""


def to_html(report: Report, recipe: str | None = None) -> str:
    """The report as one HTML file without scripts or links.

    recipe: the text of the recipe, shown at the end.
    """
    main = tag("main", *_make_sections(report, recipe))
    return whole_page(report.title, define_hatching(), draw_summary(report, write_headline(report)), main)


def whole_page(title: str, *body: Html) -> str:
    """A document with the style sheet that fetches and runs nothing."""
    style = files("sparsify.reporting.html").joinpath("style.css").read_text(encoding="utf-8")
    head = (
        tag("meta", at={"charset": "utf-8"}),
        tag("meta", at={"name": "generator", "content": "sparsify"}),
        tag("meta", at={"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("meta", at={"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", at={"name": "color-scheme", "content": "light dark"}),
        tag("title", f"{title} - sparsify"),
        tag("style", Html(style)),
    )
    page = tag("html", tag("head", *head), tag("body", *body), at={"lang": "en"})
    return f"<!doctype html>\n{page.text}\n"


def _is_page(body: bytes) -> bool:
    start = body[:1000]
    return start.startswith(b"<!doctype html>") and b'name="generator" content="sparsify"' in start


PAGE = Kind("a page of sparsify", _is_page)


def _make_sections(report: Report, recipe: str | None) -> Iterator[Html]:
    """The sections in order, each with its plots and tables.

    A table without a section of its own gets one.
    """
    remaining = {made.title: made for made in list_tables(report)}

    def take(*titles: str) -> list[Html]:
        found = [remaining.pop(title) for title in titles if title in remaining]
        return [draw_table(made, heading=False) for made in found]

    notes = remaining.pop(titles.NOTES, None)
    layers = remaining.pop(titles.LAYERS, None)
    sides = tag("div", *take(titles.DENSE_AND_CUT))
    yield _make_section(titles.DENSE_AND_CUT, tag("div.halves", sides, draw_trade_offs(report)))
    yield _make_section(titles.BASELINES, *take(titles.BASELINES))
    yield _make_section(titles.LIMITS, *take(titles.LIMITS))
    yield _make_section(titles.LATENCY, *take(titles.LATENCY), draw_predictions(report))
    int8 = take(titles.INT8)
    yield _make_section(
        titles.INT8, tag("div.halves", tag("div", *int8), draw_int8(report)) if int8 else NOTHING
    )
    # Its table is too wide for half a page.
    yield _make_section(titles.SEARCH, *take(titles.SEARCH), draw_search(report))
    stages, cuts = take(titles.STAGES), take(titles.CUTS)
    after_plots = [remaining.pop(title) for title in _AFTER_PLOTS if title in remaining]
    for title, other in remaining.items():
        yield _make_section(title, draw_table(other, heading=False))
    yield from draw_time_by_layer(report, _make_section)
    figures = draw_folded(layers, "Every layer in figures") if layers else NOTHING
    yield _make_section("Widths", draw_widths(report), figures)
    yield _make_section("Protected", draw_protected(report))
    epochs = draw_folded(history_table(report, _EPOCHS), "Epochs in figures") if report.history else NOTHING
    yield _make_section("Training", draw_training(report), *stages, *cuts, epochs)
    for other in after_plots:
        yield _make_section(other.title, draw_table(other, heading=False))
    yield _make_section(titles.NOTES, _list_notes(notes) if notes else NOTHING)
    yield _make_section("Recipe", quote_lines(recipe) if recipe else NOTHING)
    yield _make_section(titles.PROVENANCE, draw_table(provenance_table(report), heading=False))


def _make_section(title: str, *content: Html) -> Html:
    """A section with a heading; nothing where it has no content."""
    inside = join_markup(content)
    return tag("section", tag("h2", title), inside) if inside.text else NOTHING


def _list_notes(notes: Table) -> Html:
    return tag("ul", *(tag("li", note.removeprefix("- ")) for note in notes.notes))
