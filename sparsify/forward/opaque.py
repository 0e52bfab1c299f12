"""What a forward call may hold that no mode of torch can trace, and how to recognise it."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._pytree import tree_leaves

from sparsify.errors import ModelError, SparsifyError, first_line

LEAVES_TORCH = {
    Tensor.numpy: "numpy()",
    Tensor.__array__: "numpy.asarray",
    Tensor.tolist: "tolist()",
    Tensor.__dlpack__: "DLPack",
    Tensor.__deepcopy__: "copy.deepcopy",
    Tensor.data_ptr: "data_ptr()",
}
"""functions that hand a tensor's values to code outside torch, where nothing can be traced"""


@cache
def is_composite(func: Any) -> bool:
    """Whether an operator only calls others. Inference mode shows it as one; elsewhere torch decomposes
    it."""
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return found


def is_higher_order(func: Any) -> bool:
    """Whether an operator takes functions (`torch.cond`)."""
    return isinstance(func, HigherOrderOperator)


def are_wrappers(types: Iterable[type]) -> bool:
    """Whether tensors of these types wrap others, whose operators are seen instead."""
    unused = torch._C._disabled_torch_dispatch_impl
    return any(getattr(kind, "__torch_dispatch__", unused) is not unused for kind in types)


def is_scripted(module: nn.Module) -> bool:
    """Whether a module is TorchScript: it takes no hooks, and its tensors cannot be narrowed."""
    return isinstance(module, torch.jit.ScriptModule)


def is_sparse(tensor: Tensor) -> bool:
    return tensor.layout not in (torch.strided, torch.jagged)


def is_nested(tensor: Tensor) -> bool:
    """Whether a tensor is a list of tensors of several shapes and has no shape itself."""
    return bool(tensor.is_nested)


def holds_nested(values: Any) -> bool:
    """Whether one of the tensors in nested values is a nested tensor."""
    return any(is_nested(value) for value in tree_leaves(values) if isinstance(value, Tensor))


@contextmanager
def without_compiling() -> Iterator[None]:
    """Run code as written that would otherwise be compiled.

    `torch.cond` compiles its branches even in eager mode. Under a dispatch mode torch gives that up and
    caches the failure, so the model would fail in every later call. torch._dynamo takes seconds to import,
    so it is never imported only for this.
    """
    if "torch._dynamo" in sys.modules:
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    try:
        yield
    finally:
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()


PROTECT = "protect the layers that it concerns (a rule with 'protect: true'), or pass simpler inputs"


@contextmanager
def explain_errors(doing: str, cure: str = PROTECT) -> Iterator[None]:
    """Turn an error of torch or of a model into one sentence: what failed, where in the model, and what to
    do.

    Raises ModelError; errors of our own, of files and of memory pass through.
    """
    try:
        yield
    except (SparsifyError, OSError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(
            f"{doing} failed{_describe_place(error)}: {type(error).__name__}: {first_line(error)}; {cure}"
        ) from error


def _describe_place(error: Exception) -> str:
    """The class of the innermost user module whose forward raised an error."""
    found, at = "", error.__traceback__
    while at is not None:
        module = at.tb_frame.f_locals.get("self")
        if at.tb_frame.f_code.co_name == "forward" and isinstance(module, nn.Module):
            found = f" in the forward call of a {type(module).__name__}"
        at = at.tb_next
    return found
