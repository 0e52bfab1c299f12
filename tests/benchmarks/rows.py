"""Rows of a benchmark's table in a file of JSON lines: what is there is not measured again."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Any)


def measure_rows(
    kind: type[Row],
    keys: Sequence[str],
    wanted: Iterable[tuple[Any, ...]],
    measure: Callable[..., Row | None],
    file: Path | None,
) -> list[Row]:
    """Rows of the file, and those of `wanted` that it lacks; each new one is printed and added to the file.

    keys: names of the fields that `wanted` gives, in the order in which `measure` takes them. A measurement
    that gives None has no row.
    """
    rows = []
    if file is not None and file.exists():
        rows = [kind(**json.loads(line)) for line in file.read_text().splitlines()]
    known = {tuple(getattr(row, key) for key in keys) for row in rows}
    for key in wanted:
        if key in known:
            continue
        row = measure(*key)
        if row is None:
            continue
        rows.append(row)
        print(row, flush=True)
        if file is not None:
            with file.open("a") as lines:
                lines.write(json.dumps(asdict(row)) + "\n")
    return rows


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
