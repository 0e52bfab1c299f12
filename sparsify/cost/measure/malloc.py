"""Keep freed memory in the C library's heap while models run, as in a process that has run for long.

By default glibc returns large blocks to the system when they are freed, and fetches them again, page by
page, at the next call, until it has seen enough of them; blocks above 32 MiB always. MobileNetV2 in eager
PyTorch then takes a quarter longer or not, depending on what the process did before, and ResNet-56 takes
twice as long with 1,000 images at once as with ten times 100. Source: mallopt(3).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MAPPED_BLOCKS = 65_536
"""blocks that glibc maps separately, at most, unless told otherwise"""
_LARGEST = 32 * 2**20
"""bytes; some versions of glibc accept no higher threshold for separately mapped blocks"""
_KEPT = 2**30
"""free bytes that the process keeps meanwhile"""


@contextmanager
def keep_heap(any_size: bool = False) -> Iterator[None]:
    """Take blocks up to 32 MiB from a heap that keeps up to 1 GiB of free memory; afterwards return the
    surplus.

    any_size: take larger blocks from it as well. No effect without glibc.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _KEPT)
    if any_size:
        mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, _MAPPED_BLOCKS)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)  # where glibc itself ends up after a block of that size
        trim(0)
