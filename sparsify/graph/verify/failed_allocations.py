"""Tell a failed allocation from a fault of the model: it proves nothing about a cut."""

import torch

from sparsify.errors import ModelError
from sparsify.formatting.numbers import format_size
from sparsify.forward.free_memory import read_free_memory

_SAID = ("can't allocate memory", "out of memory", "not enough memory")
"""what torch says where memory ends; on a CPU it raises a plain RuntimeError"""


def raise_out_of_memory(error: Exception) -> None:
    """Raise a ModelError if this error is a failed allocation; else do nothing."""
    is_plain = isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)
    if is_plain or isinstance(error, MemoryError | torch.OutOfMemoryError):
        free = read_free_memory()
        known = "" if free is None else f", of which {format_size(free)} are free now"
        raise ModelError(
            f"there is not enough memory{known}, to compare a cut model with the dense one; "
            "pass fewer or smaller examples, or use a machine with more memory"
        ) from error
