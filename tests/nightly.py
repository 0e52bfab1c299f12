"""What `make test` leaves out of the variants of a test: see nightly.txt."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LINE = re.compile(r"(?:1 of (?P<every>\d+) )?(?P<name>tests/\S+\.py::\S+.*)")


@dataclass(frozen=True)
class Left:
    """Variants that are left out."""

    name: str
    """of a test, or with a bracket how the names of its variants begin"""
    every: int = 0
    """every so many-th variant stays; none where it is 0"""

    def covers(self, test: str) -> bool:
        """Whether a test is meant: not where its name only begins like this one."""
        beginning = self.name if "[" in self.name else f"{self.name}["
        return test == self.name or test.startswith(beginning)


def read_list(text: str) -> list[Left]:
    """The lines of nightly.txt.

    ValueError: a line that is neither a comment nor a name.
    """
    found = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{line!r} is not '1 of N tests/FILE.py::NAME' and not 'tests/FILE.py::NAME'")
        found.append(Left(match["name"], int(match["every"] or 0)))
    return found


def find_left_out(names: Iterable[str], lines: Iterable[Left]) -> set[str]:
    """Those of `names` that the lines leave out; variants are counted in their order."""
    out: set[str] = set()
    seen: Counter[str] = Counter()
    lines = list(lines)
    for name in names:
        for line in lines:
            if not line.covers(name):
                continue
            stays = line.every > 0 and seen[line.name] % line.every == 0
            seen[line.name] += 1
            if not stays:
                out.add(name)
    return out


LINES = read_list((Path(__file__).parent / "nightly.txt").read_text())
