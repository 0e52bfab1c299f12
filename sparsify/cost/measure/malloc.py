"""The C library's heap while models are timed: what is freed stays with the process, as in one that has run for long.

By default glibc gives large blocks back to the system when they are freed and fetches them anew, page by page, at the next call,
until it has seen enough of them to know better: MobileNetV2 in eager PyTorch then takes a quarter longer or not, by what the
process did before. Source: mallopt(3).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 32 * 2**20
"""bytes; glibc takes no higher threshold for blocks of their own"""
_KEPT = 2**30
"""free bytes that the process holds on to meanwhile"""


@contextmanager
def keep_heap() -> Iterator[None]:
    """Blocks up to 32 MiB come from a heap that keeps up to 1 GiB of what is free; then the surplus is given back. No effect
    without glibc."""
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
