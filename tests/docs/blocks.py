"""Reads the fenced blocks of a page and the marks that stand above them.

    <!-- run -->                    python is executed, the commands of a console block are carried out
    <!-- prints -->                 what the last block that ran printed; `...` stands for anything
    <!-- file: NAME -->            the block is written to that file; YAML with a version must be a recipe
    <!-- recipe -->                 YAML that is a whole, valid recipe
    <!-- part of a recipe -->       YAML whose keys replace those of a small recipe, which must then be valid

A page runs in one empty folder, from top to bottom, and its Python blocks share their names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in [ROOT / "README.md", *DOCS.rglob("*.md")])
_MARK = re.compile(r"<!-- (run|prints|recipe|part of a recipe|file: \S+) -->")
_FENCE = re.compile(r"^ *```(\w*)$")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    line: int
    """of its first line in the page, from 1"""
    mark: str
    """empty where the page only shows it"""


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    mark, index = "", 0
    while index < len(lines):
        fence = _FENCE.match(lines[index])
        if fence is None:
            found = _MARK.fullmatch(lines[index].strip())
            mark = found.group(1) if found else mark if not lines[index].strip() else ""
            index += 1
            continue
        indent = len(lines[index]) - len(lines[index].lstrip())
        end = next(i for i in range(index + 1, len(lines)) if lines[i].strip() == "```")
        body = "\n".join(line[indent:] for line in lines[index + 1 : end])
        yield Block(fence.group(1), body + "\n", index + 2, mark)
        mark, index = "", end + 1
