"""Ask before memory is asked for: what would not fit is refused with the figure."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from sparsify.errors import SparsifyError
from sparsify.formatting.numbers import format_size


def read_free_memory() -> int | None:
    """Bytes that can still be had without swapping, as the system says; None where it says nothing.

    The limit of the control group counts too, as in a container.
    """
    known = [figure for figure in (_read_available(), _read_group_limit()) if figure is not None]
    return min(known) if known else None


def _read_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, ValueError, StopIteration):
        return None


def _read_group_limit() -> int | None:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        return None if limit == "max" else max(0, int(limit) - used)
    except (OSError, ValueError):
        return None


@cache
def _find_trim() -> Callable[[int], object] | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", None)


def return_freed_memory() -> None:
    """Have the C library return what was freed to the system.

    glibc keeps freed blocks of up to 32 MiB. Models of slightly other widths, made and freed in turn, do not
    fit into them, and the process grows by another copy. No effect without glibc. Source: malloc_trim(3).
    """
    trim = _find_trim()
    if trim is not None:
        trim(0)


def check_memory(size: int, what: str, advice: str, kind: type[SparsifyError]) -> None:
    """Refuse what takes more bytes than are free. Raises an error of the kind, with both figures."""
    free = read_free_memory()
    if free is not None and size > free:
        sizes = f"{format_size(size)} of memory, and {format_size(free)} are free"
        raise kind(f"{what} would take {sizes}; {advice}")
