"""Freed memory is used again while it is kept, whatever the size of the block."""

import resource
import sys

import pytest
import torch

from sparsify.cost.measure.malloc import keep_heap

SIZES = [megabytes * 2**18 for megabytes in (80, 76, 72, 68, 64)]
"""numbers of blocks that glibc otherwise returns to the system whenever one is freed

Each is smaller than the one before: something small may come to lie beside a block that was freed, and the
same size, aligned, would not fit there any more.
"""


def count_new_pages() -> list[int]:
    """Pages that the process fetches for each of the blocks, which is filled and freed."""
    found = []
    for size in SIZES:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(size)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_a_large_block_is_used_again_within_and_returned_after() -> None:
    outside = max(count_new_pages())
    if outside < 1000:
        pytest.skip("the system fetches memory in large pages here, or such a block is free already")
    with keep_heap(any_size=True):
        within = min(count_new_pages()[1:])
    # What was free was returned, so the first block is fetched anew, wherever it comes to lie.
    after = count_new_pages()[0]
    assert within < outside / 10 and within < after / 10
