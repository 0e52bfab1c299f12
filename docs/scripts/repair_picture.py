"""Draw accuracy against cost, before and after a repair: `python docs/scripts/repair_picture.py`.

The figures are those of the first table of docs/figures/repair.md, so that page and picture agree.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1]
PAGE, PICTURE = DOCS / "figures" / "repair.md", DOCS / "images" / "repair.svg"
WIDTH, HEIGHT = 700, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 420, 24, 310
LEAST, MOST = 35.0, 100.0
"""of the MACs, in percent, at both ends of the horizontal axis"""
LINES = (
    ("reconstruction", "+ repair", "#0072b2", "none"),
    ("torch-pruning, Taylor", "+ repair", "#d55e00", "none"),
    ("reconstruction", "cut", "#0072b2", "6 4"),
    ("torch-pruning, Taylor", "cut", "#d55e00", "6 4"),
)
"""criterion, column of the table (on the test set), colour, dashes"""
NAMES = {
    "reconstruction": "sparsify, reconstruction",
    "torch-pruning, Taylor": "torch-pruning's choice, Taylor",
}
STATES = {"cut": "right after the cut", "+ repair": "repaired"}
FONT = "system-ui, sans-serif"


@dataclass(frozen=True)
class Point:
    criterion: str
    macs: float
    """percent of the dense model's"""
    accuracy: dict[str, float]
    """cut or + repair -> percent on the test set"""


def list_points(page: str) -> Iterator[Point]:
    """The rows of layers inside of blocks."""
    table = page[page.index("| layers | criterion |") :].partition("\n\n")[0].splitlines()
    heads = [cell.strip() for cell in table[0].strip("|").split("|")]
    for line in table[2:]:
        row = dict(zip(heads, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
        if row["layers"] == "inner":
            accuracy = {state: read_number(row[f"test: {state}"]) for state in STATES}
            yield Point(row["criterion"], read_number(row["MACs"]), accuracy)


def read_number(cell: str) -> float:
    """The first number of a cell such as `91.0 ± 0.2`."""
    found = re.match(r"[\d.]+", cell)
    assert found is not None, f"no number in {cell!r}"
    return float(found.group())


def read_dense(page: str) -> float:
    """Percent on the test set of the dense model, as the page's text has it."""
    found = re.search(r"and ([\d.]+) % on\s+the test set", page)
    assert found is not None
    return float(found.group(1))


def place(macs: float, accuracy: float) -> tuple[float, float]:
    across = LEFT + (RIGHT - LEFT) * (macs - LEAST) / (MOST - LEAST)
    return across, BOTTOM - (BOTTOM - TOP) * accuracy / 100


def draw(page: str) -> str:
    """The picture as SVG."""
    points, dense = list(list_points(page)), read_dense(page)
    parts = [*draw_axes(), *draw_dense(dense)]
    for number, (criterion, state, color, dashes) in enumerate(LINES):
        own = sorted((p.macs, p.accuracy[state]) for p in points if p.criterion == criterion)
        assert own, criterion
        parts += draw_line([*own, (100.0, dense)], color, dashes)
        parts += draw_key(number, f"{NAMES[criterion]},", STATES[state], color, dashes)
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    label = "Accuracy of ResNet-56 against its MACs, before and after a repair"
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    return f'{head} aria-label="{label}" font-family="{FONT}" font-size="12">\n{background}\n{body}\n</svg>\n'


def draw_axes() -> Iterator[str]:
    for accuracy in range(0, 101, 20):
        _, y = place(0, accuracy)
        yield f'<path d="M{LEFT} {y:.1f}H{RIGHT}" stroke="#ddd"/>'
        yield write(LEFT - 6, y + 4, f"{accuracy} %", "end")
    for macs in (40, 50, 60, 70, 80, 90, 100):
        yield write(place(macs, 0)[0], BOTTOM + 18, f"{macs} %", "middle")
    yield write((LEFT + RIGHT) / 2, BOTTOM + 38, "MACs left", "middle")
    yield write(LEFT - 50, TOP - 8, "test accuracy, ResNet-56 on CIFAR-10, no training", "start")


def draw_dense(dense: float) -> Iterator[str]:
    x, y = place(100, dense)
    yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#222"/>'
    yield write(x + 8, y + 4, f"dense, {dense:g} %", "start")


def draw_line(points: list[tuple[float, float]], color: str, dashes: str) -> Iterator[str]:
    placed = [place(*point) for point in points]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    style = f'fill="none" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"'
    yield f'<polyline points="{corners}" {style}/>'
    for (x, y), (macs, accuracy) in zip(placed[:-1], points[:-1], strict=True):
        said = f"<title>{macs:g} % of the MACs: {accuracy:g} %</title>"
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}">{said}</circle>'


def draw_key(number: int, name: str, state: str, color: str, dashes: str) -> Iterator[str]:
    x, y = RIGHT + 24, TOP + 70 + 44 * number
    style = f'stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"'
    yield f'<path d="M{x} {y}h24" {style}/>'
    yield write(x + 30, y + 4, name, "start")
    yield write(x + 30, y + 19, state, "start")


def write(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#444">{text}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
