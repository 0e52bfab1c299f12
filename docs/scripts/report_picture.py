"""Draw `sparsify report` of a run as an SVG: `python docs/scripts/report_picture.py [RUN]`.

With RUN, the run's report is copied beside the picture first. Without it, the picture is drawn anew from
that copy.
The picture fetches nothing: rich's template names fonts of a web server, and these are left out.
"""

import io
import re
import shutil
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from sparsify.formatting.table import Line, Table, lay_out
from sparsify.reporting import report_tables, table_titles
from sparsify.reporting.headline import write_headline
from sparsify.reporting.report_file import read_report

IMAGES = Path(__file__).parents[1] / "images"
REPORT, PICTURE = IMAGES / "report.json", IMAGES / "report.svg"
SHOWN = (
    table_titles.DENSE_AND_CUT,
    table_titles.LIMITS,
    table_titles.STAGES,
    table_titles.LAYERS,
)
"""titles of the tables in the picture; times depend on the load of the machine and are left out"""
WIDTH = 100
MONOSPACE = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
_STYLES = {"title": "bold", "head": "dim", "rule": "dim"}


def drawn(report: Path) -> str:
    """The report as a picture: title, summary and the tables in SHOWN."""
    found = read_report(report)
    summary = Table(found.title, (), (), (write_headline(found),))
    chosen = [table for table in report_tables.list_tables(found, every_layer=False) if table.title in SHOWN]
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    console.print(Text("$ sparsify report runs/digits-cnn-1", style="bold green"))
    for table in (summary, *chosen):
        console.print()
        for line in lay_out(table, WIDTH):
            console.print(_styled(line))
    template = _FONTS.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code, monospace", MONOSPACE)
    picture = console.export_svg(title="sparsify", theme=MONOKAI, code_format=template, unique_id="report")
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def _styled(line: Line) -> Text:
    text = Text(line.text, _STYLES.get(line.role, ""))
    text.highlight_regex(r"  met$", "bold green")
    return text


def main(arguments: list[str]) -> int:
    """Write the picture and name it."""
    IMAGES.mkdir(exist_ok=True)
    if arguments:
        shutil.copyfile(Path(arguments[0]) / "report.json", REPORT)
    PICTURE.write_text(drawn(REPORT), encoding="utf-8")
    sys.stdout.write(f"{PICTURE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
