"""Deep copies of modules that hold computed tensors, or functions that refer to the module.

`copy.deepcopy` refuses a tensor that autograd computed: the weight that hook-style `weight_norm` or
`spectral_norm` leaves on a layer, an activation or a loss that a module keeps. A copy gets the values of
such a tensor without its history. `copy.deepcopy` also shares functions with the original, so a function
that was written inside a module and uses that module would still call the original; it is rebuilt for the
copy.
"""

import copyreg
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsify.errors import ModelError
from sparsify.forward.opaque import is_nested, is_sparse

Memo = dict[int, Any]
"""id of an original value -> its replacement in the copy"""


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
"""types whose values a copy shares with the original"""
PLAIN_CONTAINERS = frozenset([dict, OrderedDict, list, set])
COMPILED = "_compiled_call_impl"
"""left by `module.compile()`; no copy has it"""
OF_TORCH = frozenset(vars(nn.Module()))
"""attributes that every module has: parameters, hooks and the like"""


def copy_model(model: nn.Module, memo: Memo | None = None) -> nn.Module:
    """A deep copy of a module, which shares no state with it.

    memo: replacements for original values, by `id`. Tensors that autograd computed are cloned without
    history, wherever the module keeps them. Raises ModelError if something cannot be copied.
    """
    made: nn.Module = copy_object(model, "the model", memo)
    return made


def copy_object(value: object, called: str, memo: Memo | None = None) -> Any:
    """Copy any object that holds modules, such as a moving average; `called` names it in the error
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
    finish_copies(list_modules(made), known)
    return made


def finish_copies(modules: Iterable[nn.Module], memo: Memo) -> None:
    """Have copied modules refer to copies, and drop what they kept for the next call."""
    for module in modules:
        rebind_functions(module, memo)
        _forget_results(module)


def list_modules(value: object) -> list[nn.Module]:
    """The modules of a module, or of the attributes of a plain object."""
    held = [value] if isinstance(value, nn.Module) else list(getattr(value, "__dict__", {}).values())
    return [module for item in held if isinstance(item, nn.Module) for module in item.modules()]


@contextmanager
def tensors_without_history() -> Iterator[None]:
    """Inside, `copy.deepcopy` copies tensors that autograd computed, without their history."""
    with _WithoutHistory():
        yield


def copy_value(value: Any, memo: Memo) -> Any:
    """Copy a value like `copy.deepcopy`, in a third of the time if it is a module.

    `copy.deepcopy` asks every value how to copy it, but a plain module is a class and a mapping of
    attributes. Anything that is no plain module, container or number is left to `copy.deepcopy`.
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
        own = made.__dict__
        for key, item in value.__dict__.items():
            held = type(item)
            if held in SHARED_KINDS:
                own[key] = item
            elif held in PLAIN_CONTAINERS and not item:  # most are: a module has a dozen for its hooks
                own[key] = held()
            else:
                own[key] = copy_value(item, memo)
        own.pop(COMPILED, None)
    elif kind is Tensor and _fills_its_memory(value, memo):
        made = memo[id(value)] = value.clone()
        _list_copied_memory(memo)[value.untyped_storage()._cdata] = made.untyped_storage()
    else:
        made = deepcopy(value, memo)
    return made


def _fills_its_memory(tensor: Tensor, memo: Memo) -> bool:
    """Whether a tensor is the first to be copied that lies in its memory, and fills it: a clone then is what
    `copy.deepcopy` makes, in a tenth of the time."""
    plain = tensor.layout is torch.strided and tensor.device.type in ("cpu", "cuda")
    if not plain or tensor.requires_grad or tensor.is_complex() or tensor.is_quantized or vars(tensor):
        return False
    if tensor.is_inference() or is_nested(tensor):
        return False
    memory = tensor.untyped_storage()
    size = tensor.numel() * tensor.element_size()
    return memory.nbytes() == size > 0 and memory._cdata not in _list_copied_memory(memo)


def _list_copied_memory(memo: Memo) -> dict[int, Any]:
    """Where `copy.deepcopy` keeps the copies of storages, so that tensors which share one still do."""
    kept: dict[int, Any] = memo.setdefault("torch", {})  # type: ignore[call-overload]
    return kept


@cache
def _is_plain_module(kind: type) -> bool:
    """Whether modules of this class can be copied attribute by attribute: the class defines no copying of
    its own."""
    ways = (
        "__reduce_ex__",
        "__reduce__",
        "__getstate__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "__deepcopy__",
    )
    own_copying = any(getattr(kind, way, None) is not getattr(nn.Module, way, None) for way in ways)
    # torch's own __setstate__ methods only fill in what files of earlier versions lack.
    set_state: Any = kind.__setstate__  # type: ignore[attr-defined]
    torch_state = set_state.__module__.startswith("torch.nn.modules.")
    has_slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    return not own_copying and torch_state and kind not in copyreg.dispatch_table and not has_slots


def _forget_results(module: nn.Module) -> None:
    """Have a module drop what it computed from its weights in eval mode and keeps for the next call.

    LeViT keeps its position biases, of every head, in a dictionary. A module that does so drops it in
    `train()`, as its weights change from then on; those of a cut model have changed as well. All modes stay
    as they are.
    """
    if type(module).train is nn.Module.train or not _keeps_results(module):
        return
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        module.train(module.training)
    except Exception:
        pass  # a model that may only be called in eval mode
    finally:
        for inner, training in modes:
            inner.training = training


def _keeps_results(module: nn.Module) -> bool:
    """Whether a module keeps tensors in attributes that are neither parameters nor buffers."""
    for name, value in vars(module).items():
        if name in OF_TORCH or type(value) in SHARED_KINDS:
            continue
        held = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(item, Tensor) for item in held):
            return True
    return False


class _WithoutHistory(TorchFunctionMode):
    """Intercepts every `Tensor.__deepcopy__`, however deep the tensor lies in lists, dictionaries and
    objects.

    Sparse tensors, which torch does not copy in every layout, are cloned as well.
    """

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
    """Rebind functions that a copied module holds, so that they refer to the copies.

    Such are `self.run = lambda x: self.layer(x)`, and hooks that use a module or tensor from around them.
    """
    for name, value in vars(copy).items():
        if type(value) in SHARED_KINDS and type(value) is not FunctionType:
            continue
        if isinstance(value, FunctionType):
            vars(copy)[name] = _rebind_function(
                value, memo
            )  # the key is there already: the dictionary keeps its size
        elif isinstance(value, dict) and value:
            for key, item in value.items():
                if isinstance(item, FunctionType):
                    value[key] = _rebind_function(item, memo)
        elif isinstance(value, list) and value:
            for place, item in enumerate(value):
                if isinstance(item, FunctionType):
                    value[place] = _rebind_function(item, memo)


def _rebind_function(function: FunctionType, memo: Memo) -> FunctionType:
    """The function with copies in its closure and defaults; the function itself if none of them was
    copied."""
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
    """A cell without a copied value is shared, so that both functions see what is written into it."""
    value = _read_cell(cell)
    twin = _find_copy(value, memo)
    return cell if twin is value else CellType(twin)


def _read_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was written into it yet
        return None


def _find_copy(value: Any, memo: Memo) -> Any:
    """The copy of a module, a tensor, a container or a method; the value itself if it was not copied."""
    if isinstance(value, MethodType):
        owner = _find_copy(value.__self__, memo)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)
    if isinstance(value, nn.Module | Tensor | list | dict):
        return memo.get(id(value), value)
    return value
