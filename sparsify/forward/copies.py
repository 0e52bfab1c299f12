"""Deep copies of modules that may hold tensors of an earlier forward call, and functions that speak of the
module.

`copy.deepcopy` refuses a tensor that autograd computed: the weight that hook-style `weight_norm` or
`spectral_norm` leaves on a layer, an activation or a loss that a module keeps. A copy gets the numbers of
such a tensor without its history. It also shares functions with the original, so a function that was
written inside a module and uses that module would go on calling the original; it is made anew for the copy.
"""

import copyreg
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsify.errors import ModelError
from sparsify.forward.opaque import is_sparse

Memo = dict[int, Any]
"""id of an original value -> what stands for it in the copy"""


SHARED_KINDS = frozenset(
    [
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        type,
        type(len),
        type(lambda: None),
        torch.dtype,
        torch.device,
        torch.Size,
    ]
)
"""kinds of values that a copy shares with the original"""
PLAIN_CONTAINERS = frozenset([dict, OrderedDict, list, set])
COMPILED = "_compiled_call_impl"
"""what `module.compile()` leaves; no copy has it"""


def copy_model(model: nn.Module, memo: Memo | None = None) -> nn.Module:
    """A deep copy of a module, which shares no state with it.

    memo: values that the copy holds in place of the original ones, by their `id`. Tensors that autograd
    computed, wherever the module keeps them, come as clones without a history. Raises ModelError when
    something cannot be copied.
    """
    made: nn.Module = copy_object(model, "the model", memo)
    return made


def copy_object(value: object, called: str, memo: Memo | None = None) -> Any:
    """The same for any object that holds modules, such as a moving average; `called` names it in the
    message."""
    known: Memo = {} if memo is None else dict(memo)
    try:
        with tensors_without_history():
            made = copy_value(value, known)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{called} cannot be copied: {reason}; copy.deepcopy must be able to copy what it holds"
        ) from error
    for module in list_modules(made):
        rebind_functions(module, known)
    return made


def list_modules(value: object) -> list[nn.Module]:
    """The modules of a module, or of what a plain object has as attributes."""
    held = [value] if isinstance(value, nn.Module) else list(getattr(value, "__dict__", {}).values())
    return [module for item in held if isinstance(item, nn.Module) for module in item.modules()]


@contextmanager
def tensors_without_history() -> Iterator[None]:
    """Inside, `copy.deepcopy` copies tensors that autograd computed, without their history."""
    with _WithoutHistory():
        yield


def copy_value(value: Any, memo: Memo) -> Any:
    """What `copy.deepcopy` makes of a value, in a third of the time where it is a module.

    `copy.deepcopy` asks every value how it is copied; modules are known to be a class and a mapping of attributes. What
    is no plain module, container or number is left to it.
    """
    kind: Any = type(value)
    if kind in SHARED_KINDS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in PLAIN_CONTAINERS and not value:
        return kind()
    if kind is tuple and all(type(item) in SHARED_KINDS for item in value):
        return value
    made: Any
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        made.update((copy_value(key, memo), copy_value(item, memo)) for key, item in value.items())
    elif kind is list:
        made = memo[id(value)] = []
        made.extend(copy_value(item, memo) for item in value)
    elif isinstance(value, nn.Module) and _is_plain_module(kind):
        made = memo[id(value)] = kind.__new__(kind)
        own = value.__dict__.items()
        made.__dict__.update(
            {
                key: item if type(item) in SHARED_KINDS else copy_value(item, memo)
                for key, item in own
                if key != COMPILED
            }
        )
    else:
        made = deepcopy(value, memo)
    return made


@cache
def _is_plain_module(kind: type) -> bool:
    """Whether modules of this class are copied attribute by attribute, having no way of their own."""
    ways = (
        "__reduce_ex__",
        "__reduce__",
        "__getstate__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "__deepcopy__",
    )
    return (
        all(getattr(kind, way, None) is getattr(nn.Module, way, None) for way in ways)
        and kind.__setstate__.__module__.startswith("torch.nn.modules.")  # type: ignore[attr-defined]  # those fill in what old files lack
        and kind not in copyreg.dispatch_table
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
    )


class _WithoutHistory(TorchFunctionMode):
    """Sees every `Tensor.__deepcopy__`, at whatever depth of lists, dictionaries and objects the tensor
    lies. Sparse tensors, which torch does not copy in every layout, are cloned as well."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clone and is_sparse(args[0]):
            return func(args[0])  # nn.Parameter asks for a memory format
        if func is not Tensor.__deepcopy__ or (
            args[0].is_leaf and not args[0].is_inference() and not is_sparse(args[0])
        ):
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            with torch.inference_mode(False), torch.no_grad():
                memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def rebind_functions(copy: nn.Module, memo: Memo) -> None:
    """Make functions that a copied module holds speak of the copies of what they were written with.

    Such are `self.run = lambda x: self.layer(x)`, and hooks that use a module or tensor from around them.
    """
    for name, value in vars(copy).items():
        if isinstance(value, FunctionType):
            vars(copy)[name] = _rebind_function(
                value, memo
            )  # the key is there already: the dictionary keeps its size
        elif isinstance(value, dict) and value:
            for key, item in value.items():
                if isinstance(item, FunctionType):
                    value[key] = _rebind_function(item, memo)
        elif isinstance(value, list) and value:
            value[:] = [
                _rebind_function(item, memo) if isinstance(item, FunctionType) else item for item in value
            ]


def _rebind_function(function: FunctionType, memo: Memo) -> FunctionType:
    """The function with copies in place of the originals that its closure and its defaults hold; itself
    where none are."""
    cells = function.__closure__ or ()
    defaults = function.__defaults__ or ()
    named = function.__kwdefaults__ or {}
    held = [*map(_read_cell, cells), *defaults, *named.values()]
    if not any(_find_copy(value, memo) is not value for value in held):
        return function
    closure = tuple(_rebind_cell(cell, memo) for cell in cells)
    made = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        tuple(_find_copy(value, memo) for value in defaults) or None,
        closure or None,
    )
    made.__kwdefaults__ = {key: _find_copy(value, memo) for key, value in named.items()} or None
    made.__qualname__, made.__doc__ = function.__qualname__, function.__doc__
    made.__dict__.update(function.__dict__)
    return made


def _rebind_cell(cell: CellType, memo: Memo) -> CellType:
    """A cell that holds no copied value is shared, so that both functions see what is written into it."""
    value = _read_cell(cell)
    twin = _find_copy(value, memo)
    return cell if twin is value else CellType(twin)


def _read_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was written into it yet
        return None


def _find_copy(value: Any, memo: Memo) -> Any:
    """What stands for a module, a tensor, a container of these or a method of one in the copy; the value
    itself where nothing does."""
    if isinstance(value, MethodType):
        owner = _find_copy(value.__self__, memo)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, nn.Module | Tensor | list | dict):
        return memo.get(id(value), value)
    return value
