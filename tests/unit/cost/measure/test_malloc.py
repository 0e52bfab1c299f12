"""Freed memory is used again while it is kept, whatever the size of the block."""

import resource
import sys

import pytest
import torch

from sparsify.cost.measure.malloc import keep_heap

NUMBERS = 16 * 2**20
"""64 MiB, which glibc otherwise returns to the system whenever it is freed"""


def count_new_pages() -> int:
    """Pages that the process fetches for a large block that is filled: the fewest of five times.

    Once in a while something small comes to lie in the block that was freed, which is then too short.
    """
    found = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(NUMBERS)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(found)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_a_large_block_is_used_again_within_and_returned_after() -> None:
    outside = count_new_pages()
    if outside < 1000:
        pytest.skip("the system fetches memory in large pages here")
    with keep_heap(any_size=True):
        within = count_new_pages()
    after = count_new_pages()
    assert within < outside / 10 and within < after / 10
