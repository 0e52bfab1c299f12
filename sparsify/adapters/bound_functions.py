"""Functions that a module holds and that were bound to another module object: they are bound anew.

Mixed precision in Accelerate puts a bound `forward` and `_original_forward` into the module's own attributes;
its hooks put `functools.partial(forward, module)` there.
"""

from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def bind_to(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Bind the functions that a model's modules hold to `new` where they are bound to `old`."""
    for module in list(model.modules()):
        hooks = (held for held in vars(module).values() if isinstance(held, dict))
        for store in (vars(module), *hooks):
            for key, value in list(store.items()):
                if callable(value):
                    store[key] = _bind(value, old, new, {})


def _bind(value: Any, old: nn.Module, new: nn.Module, known: dict[int, Any]) -> Any:
    """The value with `new` in place of `old`, in methods, partials, closures and objects that are called.

    known: id -> what became of it, so that a function that refers to itself ends the way.
    """
    if value is old:
        return new
    if isinstance(value, nn.Module | type) or id(value) in known:
        return known.get(id(value), value)
    known[id(value)] = value
    made: Any = value
    if isinstance(value, MethodType):
        parts: list[Any] = [_bind(part, old, new, known) for part in (value.__func__, value.__self__)]
        if parts[0] is not value.__func__ or parts[1] is not value.__self__:
            made = MethodType(parts[0], parts[1])
    elif isinstance(value, partial):
        arguments: list[Any] = [_bind(part, old, new, known) for part in (value.func, *value.args)]
        named = {key: _bind(part, old, new, known) for key, part in value.keywords.items()}
        made = partial(arguments[0], *arguments[1:], **named)
        made.__dict__.update({key: _bind(part, old, new, known) for key, part in vars(value).items()})
    elif isinstance(value, FunctionType):
        made = _bind_function(value, old, new, known)
    elif callable(value) and hasattr(value, "__dict__"):
        held = {key: _bind(part, old, new, known) for key, part in vars(value).items()}
        if any(held[key] is not part for key, part in vars(value).items()):
            made = object.__new__(type(value))
            made.__dict__.update(held)
    known[id(value)] = made
    return made


def _bind_function(value: FunctionType, old: nn.Module, new: nn.Module, known: dict[int, Any]) -> Any:
    cells = value.__closure__ or ()
    held = [_read_cell(cell) for cell in cells]
    bound = [_bind(part, old, new, known) for part in held]
    if all(one is other for one, other in zip(held, bound, strict=True)):
        return value
    # A cell without a change is shared, so that both functions see what is written into it.
    closure = list(cells)
    for place, part in enumerate(bound):
        if part is not held[place]:
            closure[place] = CellType(part)
    made = FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, tuple(closure))
    made.__kwdefaults__ = value.__kwdefaults__
    made.__qualname__, made.__doc__ = value.__qualname__, value.__doc__
    made.__dict__.update({key: _bind(part, old, new, known) for key, part in vars(value).items()})
    return made


def _read_cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was written into it yet
        return None
