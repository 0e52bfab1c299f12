"""A table as HTML."""

from sparsify.formatting.table import Table
from sparsify.reporting.html.markup import NOTHING, Html, joined, tag

_VERDICTS = {"MISSED": "bad", "met": "good"}


def table(shown: Table, *, heading: bool = True) -> Html:
    """Heading, rows, notes; wide tables scroll by themselves."""
    title = tag("h3", shown.title) if heading and shown.title else NOTHING
    return joined(
        (
            title,
            tag("div.scroll", _rows(shown), at={"tabindex": "0", "role": "group", "aria-label": shown.title})
            if shown.rows
            else NOTHING,
            *map(_note, shown.notes),
        )
    )


def folded(shown: Table, summary: str) -> Html:
    """A long table behind one line that opens it."""
    return tag("details", tag("summary", summary), table(shown, heading=False))


def _rows(shown: Table) -> Html:
    kinds = ["td.n" if column.number else "td" for column in shown.columns]
    head = tag(
        "thead",
        tag("tr", *(tag("th.n" if c.number else "th", c.title, at={"scope": "col"}) for c in shown.columns)),
    )
    body = tag(
        "tbody",
        *(
            tag("tr", *(_cell(kind, text) for kind, text in zip(kinds, row, strict=True)))
            for row in shown.rows
        ),
    )
    return tag("table", *([head] if any(c.title for c in shown.columns) else []), body)


def _cell(kind: str, text: str) -> Html:
    return tag(f"{kind}.{_VERDICTS[text]}" if text in _VERDICTS else kind, text)


def _note(text: str) -> Html:
    return tag("p.warning" if text.startswith("Warning") else "p.note", text)
