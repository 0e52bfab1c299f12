"""Calls of torch's attention and encoder layers without their fused path."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Disable fused MultiheadAttention and TransformerEncoder in eval mode.

    They call no layer inside and write zeros at padded places. An encoder that is given a padding mask fails
    where hooks watch a layer inside: it takes the padding out of the sequences, and its layers cannot go on.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
