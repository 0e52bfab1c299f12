"""Tables as values, and their two plain forms: aligned text and Markdown."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAP = "  "
_LEAST, _COMFORTABLE, _GENEROUS = 10, 16, 28
_SPECIAL = re.compile(r"[\\`*|<\[\]#~]|(?<![^\W_])_|_(?![^\W_])")


@dataclass(frozen=True)
class Column:
    """A heading. Numbers are aligned to the right and never wrapped, but their headings may be."""

    title: str
    number: bool = False


@dataclass(frozen=True)
class Table:
    """The content of a table. `notes` are sentences below the rows."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """One line of text and its role: title, head, rule, row, note or blank."""

    role: str
    text: str


def make_columns(*titles: str) -> tuple[Column, ...]:
    """Columns by heading; '>' marks a column of numbers."""
    return tuple(Column(t.removeprefix(">"), t.startswith(">")) for t in titles)


def escape_controls(text: str) -> str:
    """The text on one line, with control characters escaped."""
    flat = " ".join(text.split())
    if flat.isprintable():
        return flat
    return "".join(map(escape_character, flat))


def escape_character(character: str) -> str:
    """The character, or what `ascii` writes for one that is not printable."""
    return character if character.isprintable() else ascii(character)[1:-1]


def count_cells(text: str) -> int:
    """The number of terminal cells that the text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cell_width, text))


def _cell_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def lay_out(table: Table, width: int = 100) -> Iterator[Line]:
    """The lines of a table, at most `width` cells wide where columns of text can be wrapped that far."""
    if table.title:
        yield from (Line("title", text) for text in _fold(escape_controls(table.title), width))
    if table.rows:
        rows = [tuple(map(escape_controls, row)) for row in table.rows]
        widths = _choose_widths(table.columns, rows, width)
        head = tuple(c.title for c in table.columns)
        if any(head):
            yield from (Line("head", text) for text in _wrap_row(head, table.columns, widths, fold=True))
            yield Line("rule", "-" * (sum(widths) + len(GAP) * (len(widths) - 1)))
        for row in rows:
            yield from (Line("row", text) for text in _wrap_row(row, table.columns, widths))
    for note in table.notes:
        yield from (Line("note", text) for text in _fold(escape_controls(note), width))


def as_text(tables: Sequence[Table], width: int = 100) -> str:
    """Tables one below the other, with an empty line between them."""
    blocks = []
    for table in tables:
        if table.rows or table.notes:
            blocks.append("\n".join(line.text for line in lay_out(table, width)))
    return "\n\n".join(blocks)


def as_markdown(tables: Sequence[Table]) -> str:
    """GitHub's tables, each under a heading of the second level."""
    return "\n\n".join(_write_markdown(t) for t in tables if t.rows or t.notes)


def escape_markdown(text: str) -> str:
    """Escape text for Markdown. An underscore inside a word is harmless and stays."""
    return _SPECIAL.sub(r"\\\g<0>", escape_controls(text))


def _write_markdown(table: Table) -> str:
    parts = [f"## {escape_markdown(table.title)}"] if table.title else []
    if table.rows:
        rule = "|".join(" ---: " if column.number else " --- " for column in table.columns)
        lines = [_markdown_row([column.title for column in table.columns]), f"|{rule}|"]
        lines += [_markdown_row(row) for row in table.rows]
        parts.append("\n".join(lines))
    parts += [escape_markdown(note) for note in table.notes]
    return "\n\n".join(parts)


def _markdown_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(map(escape_markdown, texts))} |"


def _choose_widths(heads: tuple[Column, ...], rows: list[tuple[str, ...]], width: int) -> list[int]:
    """The natural widths, narrowed to fit.

    First the later columns of text, then the one that names the rows, each a little before one is much.
    """
    widths = [max(count_cells(c.title), *(count_cells(row[i]) for row in rows)) for i, c in enumerate(heads)]
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    soft = [i for i, c in enumerate(heads) if not c.number]
    # A heading over numbers may be long, such as a path: narrow it first.
    for i, c in enumerate(heads):
        if c.number and excess > 0:
            spare = min(excess, max(0, widths[i] - max(_COMFORTABLE, *(count_cells(row[i]) for row in rows))))
            widths[i], excess = widths[i] - spare, excess - spare
    for group, least in (
        (soft[1:], _GENEROUS),
        (soft[:1], _GENEROUS),
        (soft[1:], _COMFORTABLE),
        (soft, _LEAST),
    ):
        while excess > 0 and any(widths[i] > least for i in group):
            widths[max(group, key=lambda i: widths[i])] -= 1
            excess -= 1
    return widths


def _wrap_row(
    row: tuple[str, ...], heads: tuple[Column, ...], widths: list[int], *, fold: bool = False
) -> Iterator[str]:
    """The lines of a row. fold: wrap columns of numbers too."""
    blocks = [[c] if heads[i].number and not fold else _fold(c, widths[i]) for i, c in enumerate(row)]
    for k in range(max(len(b) for b in blocks)):
        line = [_pad(b[k] if k < len(b) else "", widths[i], heads[i].number) for i, b in enumerate(blocks)]
        yield GAP.join(line).rstrip()


def _pad(text: str, width: int, right: bool) -> str:
    space = " " * (width - count_cells(text))
    return space + text if right else text + space


def _fold(text: str, width: int) -> list[str]:
    """Lines of at most so many cells, broken at spaces.

    A longer word is broken after a dot, slash, comma, underscore or hyphen.
    """
    if count_cells(text) <= width:
        return [text]
    hanging = "  " if text.startswith("- ") else ""
    lines: list[str] = []
    for word in (part for whole in text.split() for part in _break_word(whole, width - len(hanging))):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and count_cells(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(f"{hanging}{word}" if lines else word)
    return lines


def _break_word(word: str, width: int) -> Iterator[str]:
    while count_cells(word) > width:
        fits = max(1, next(k for k in range(len(word), -1, -1) if count_cells(word[:k]) <= width))
        at = max(word.rfind(c, 0, fits) for c in "./,_-") + 1 or fits
        yield word[:at]
        word = word[at:]
    yield word
