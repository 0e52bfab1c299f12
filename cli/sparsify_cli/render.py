"""Tables and sentences on the terminal: plain text in a pipe, bold headings and two colours on a terminal."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from sparsify.formatting.table import Line, Table, escape_controls, lay_out
from sparsify_cli.output import explain_full_disk, find_stream, write_message, write_result

NARROWEST, WIDEST, PIPE = 40, 120, 100
_STYLES = {"title": "bold", "head": "dim", "rule": "dim", "row": "", "note": "", "blank": ""}
_WORDS = {
    r"  MISSED$|^Warning:|  damaged  |  failed  ": "bold red",
    r"  interrupted  ": "yellow",
    r"  met$": "green",
}
"""Colours of words. The words alone carry the meaning."""


def show(*parts: str | Table) -> None:
    """Print sentences and tables on stdout, with empty lines between them and without empty tables."""
    stream = find_stream()
    if stream is None:
        return
    lines = list(_list_lines(parts, find_width(stream)))
    if stream.isatty():
        with explain_full_disk(stream):
            _print_styled(lines, stream)
    else:
        write_result("\n".join(line.text for line in lines))


def show_json(value: Any) -> None:
    """Print JSON on stdout. Numbers that are not finite become null."""
    write_result(json.dumps(_replace_infinite(value), indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Print a line on stderr."""
    write_message(escape_controls(text))


def find_width(stream: TextIO | None) -> int:
    """Columns of a line: those of the terminal up to 120, $COLUMNS, or 100 in a pipe."""
    if "COLUMNS" not in os.environ and not (stream and stream.isatty()):
        return PIPE
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size((PIPE, 24)).columns))


def _list_lines(parts: tuple[str | Table, ...], cells: int) -> Iterator[Line]:
    first = True
    for part in parts:
        if isinstance(part, Table) and not (part.rows or part.notes):
            continue
        if not first:
            yield Line("blank", "")
        first = False
        table = part if isinstance(part, Table) else Table("", (), (), tuple(part.splitlines()))
        yield from lay_out(table, cells)


def _print_styled(lines: list[Line], stream: TextIO) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False, soft_wrap=True)
    unicode = (stream.encoding or "").lower().startswith("utf")
    for line in lines:
        shown = line.text.replace("-", "─") if line.role == "rule" and unicode else line.text
        text = Text(shown, _STYLES[line.role])
        for pattern, style in _WORDS.items():
            text.highlight_regex(pattern, style)
        console.print(text)


def _replace_infinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _replace_infinite(v) for k, v in value.items()}
    return [_replace_infinite(v) for v in value] if isinstance(value, list | tuple) else value
