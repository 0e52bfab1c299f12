"""Names of a layer's classes, by any of which rules reach it:
its own, and the parents of that up to torch.nn."""

from typing import Any

from torch import nn

from sparsify.nn import attention
from sparsify.nn.cropped import PLAIN
from sparsify.nn.gathered import GATHERED

_STANDS_FOR: dict[type[Any], type[Any]] = {
    **PLAIN,
    **{gathered: plain for plain, gathered in GATHERED.items()},
}
"""class of a layer that was made cheaper -> the class that a recipe speaks of"""
_NOT_NAMED = ("builtins", "typing", "typing_extensions", "abc")
"""modules of Python whose classes no rule names"""


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that a user knows a module by, where torch or a cut gave it another one in its place."""
    kind = type(module)
    if "parametrizations" in module._modules and kind.__name__.startswith("Parametrized"):
        kind = kind.__mro__[1]
    kind = attention.original_class(kind)
    known: type[nn.Module] = _STANDS_FOR.get(kind, kind)
    return known


def class_names(module: nn.Module) -> tuple[str, ...]:
    """The name of a module's own class, then the names of its parents,
    nearest first; last is the nearest of torch.nn.

    A class of torch.nn itself has no other name.
    """
    own = own_class(module)
    if _is_of_torch_nn(own):
        return (own.__name__,)
    bases = own.__mro__[1:]
    named = [base.__name__ for base in bases if _is_named_by_rules(base)]
    of_torch = next((base.__name__ for base in bases if _is_of_torch_nn(base)), None)
    return (own.__name__, *named, *([of_torch] if of_torch else []))


def _is_of_torch_nn(kind: type[Any]) -> bool:
    """Whether a class is one that torch.nn offers by its name; nn.Module says nothing of a layer."""
    return kind is not nn.Module and getattr(nn, kind.__name__, None) is kind


def _is_named_by_rules(kind: type[Any]) -> bool:
    """Whether a base class is neither Python's nor torch's own."""
    package = kind.__module__.partition(".")[0]
    return package not in ("torch", *_NOT_NAMED)
