"""Freed memory is used again while it is kept, whatever the size of the block."""

import resource
import sys

import pytest
import torch

from sparsify.cost.measure.malloc import keep_heap

NUMBERS = 16 * 2**20
"""64 MiB, which glibc otherwise returns to the system whenever it is freed"""


def count_new_pages() -> int:
    """Pages that the process fetches for a large block that is filled."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
def test_a_large_block_is_used_again_within_and_returned_after() -> None:
    count_new_pages()
    outside = count_new_pages()
    if outside < 1000:
        pytest.skip("the system fetches memory in large pages here")
    with keep_heap(any_size=True):
        count_new_pages()
        within = count_new_pages()
    after = count_new_pages()
    assert within < outside / 10 and within < after / 10
