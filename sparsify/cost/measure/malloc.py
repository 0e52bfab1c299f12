"""Keep freed memory in the C library's heap while models are timed, as in a process that has run for long.

By default glibc returns large blocks to the system when they are freed, and fetches them again, page by
page, at the next call, until it has seen enough of them. MobileNetV2 in eager PyTorch then takes a quarter
longer or not, depending on what the process did before. Source: mallopt(3).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 * 2**20
"""bytes; glibc accepts no higher threshold for separately mapped blocks"""
_KEPT = 2**30
"""free bytes that the process keeps meanwhile"""


@contextmanager
def keep_heap() -> Iterator[None]:
    """Take blocks up to 32 MiB from a heap that keeps up to 1 GiB of free memory; afterwards return the
    surplus.

    No effect without glibc.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)  # where glibc itself ends up after a block of that size
        trim(0)
