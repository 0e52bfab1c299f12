"""Models in another precision, and float64 even if the model casts to a lower precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import cast_tensor
from sparsify.forward.opaque import without_compiling
from sparsify.graph.trace.module_stack import ModuleStack

DOUBLE = frozenset([torch.float64, torch.complex128])
LOWER = frozenset([torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex32])


def cast_model(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the model in place: real tensors to `dtype`, complex ones to the complex type of that
    precision.

    `model.to(dtype)` would drop imaginary parts.
    """
    model._apply(lambda tensor: cast_tensor(tensor, dtype))  # type: ignore[no-untyped-call]
    return model


class KeepDouble(ModuleStack):  # type: ignore[no-untyped-call]
    """Leaves out casts from double to a lower precision: rounding inside a model would hide what a cut
    changes."""

    def __init__(self) -> None:
        super().__init__()
        self.casts = 0
        """number of casts left out"""

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        cast_down = func is torch.ops.aten._to_copy.default and kwargs.get("dtype") in LOWER
        if cast_down and isinstance(args[0], Tensor) and args[0].dtype in DOUBLE:
            self.casts += 1
            kwargs = {**kwargs, "dtype": args[0].dtype}
        return func(*args, **kwargs)


@contextmanager
def keep_double(model: nn.Module) -> Iterator[KeepDouble]:
    """Keep double precision throughout the calls of a double-precision model; other models run as they
    are."""
    mode = KeepDouble()
    with without_compiling():
        if any(tensor.dtype in DOUBLE for tensor in model.parameters()):
            with mode:
                yield mode
        else:
            yield mode
