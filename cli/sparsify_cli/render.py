"""Tables and sentences on the terminal: plain text in a pipe, bold headings and two colours on a terminal."""

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import typer

from sparsify.formatting.table import Line, Table, clean, lay_out

NARROWEST, WIDEST, PIPE = 40, 120, 100
_STYLES = {"title": "bold", "head": "dim", "rule": "dim", "row": "", "note": "", "blank": ""}
_WORDS = {
    r"  MISSED$|^Warning:|  damaged  |  failed  ": "bold red",
    r"  interrupted  ": "yellow",
    r"  met$": "green",
}
"""colour is an addition: every one of these is said in words"""


def show(*parts: str | Table) -> None:
    """A result on stdout: sentences and tables, an empty line between them; tables without content are left out."""
    lines = list(_lines(parts, width(sys.stdout)))
    if sys.stdout.isatty():
        _styled(lines)
    else:
        typer.echo("\n".join(line.text for line in lines))


def show_json(value: Any) -> None:
    """A result on stdout for programs; what is not a finite number is null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Narration on stderr."""
    typer.echo(clean(text), err=True)


def width(stream: TextIO) -> int:
    """Cells in a line: the terminal's up to 120, $COLUMNS, or 100 in a pipe."""
    if "COLUMNS" not in os.environ and not stream.isatty():
        return PIPE
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size((PIPE, 24)).columns))


def _lines(parts: tuple[str | Table, ...], cells: int) -> Iterator[Line]:
    first = True
    for part in parts:
        if isinstance(part, Table) and not (part.rows or part.notes):
            continue
        if not first:
            yield Line("blank", "")
        first = False
        yield from lay_out(
            part if isinstance(part, Table) else Table("", (), (), tuple(part.splitlines())), cells
        )


def _styled(lines: list[Line]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    for line in lines:
        text = Text(
            line.text.replace("-", "─") if line.role == "rule" and unicode else line.text, _STYLES[line.role]
        )
        for pattern, style in _WORDS.items():
            text.highlight_regex(pattern, style)
        console.print(text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value
