"""A table as HTML."""

from sparsify.formatting.table import Table
from sparsify.reporting.html.markup import NOTHING, Html, join_markup, tag

_VERDICTS = {"MISSED": "bad", "met": "good"}


def draw_table(shown: Table, *, heading: bool = True) -> Html:
    """Heading, rows and notes. A wide table scrolls by itself."""
    title = tag("h3", shown.title) if heading and shown.title else NOTHING
    rows = NOTHING
    if shown.rows:
        # A region that scrolls must be reachable by keyboard.
        region = {"tabindex": "0", "role": "group", "aria-label": shown.title}
        rows = tag("div.scroll", _draw_rows(shown), at=region)
    return join_markup((title, rows, *map(_draw_note, shown.notes)))


def draw_folded(shown: Table, summary: str) -> Html:
    """A long table that is opened by a click on its summary."""
    return tag("details", tag("summary", summary), draw_table(shown, heading=False))


def _draw_rows(shown: Table) -> Html:
    kinds = ["td.n" if column.number else "td" for column in shown.columns]
    heads = [
        tag("th.n" if column.number else "th", column.title, at={"scope": "col"}) for column in shown.columns
    ]
    rows = []
    for row in shown.rows:
        rows.append(tag("tr", *map(_draw_cell, kinds, row)))
    has_head = any(column.title for column in shown.columns)
    head = tag("thead", tag("tr", *heads)) if has_head else NOTHING
    return tag("table", head, tag("tbody", *rows))


def _draw_cell(kind: str, text: str) -> Html:
    return tag(f"{kind}.{_VERDICTS[text]}" if text in _VERDICTS else kind, text)


def _draw_note(text: str) -> Html:
    return tag("p.warning" if text.startswith("Warning") else "p.note", text)
