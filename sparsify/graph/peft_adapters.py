"""Adapters of the library peft: what layers are called without them, and the ways in which a model computes.

A LoRA layer of peft wraps a layer as `base_layer` and holds two matrices for each adapter, of which only the
active ones run. A module to be saved is wrapped as `original_module`, with a copy for each adapter. A cut
has to narrow all of them alike, so a model is followed, and a cut proven, with each adapter and without any.
peft is not imported: its classes are known by their names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import nn

from sparsify.forward.call_model import call_model
from sparsify.forward.calls import Inputs
from sparsify.graph.names import walk_modules

Kind = Literal["model", "tuner", "layer", "saved module"]

_KINDS: dict[str, Kind] = {
    "PeftModel": "model",
    "PeftMixedModel": "model",
    "BaseTuner": "tuner",
    "BaseTunerLayer": "layer",
    "AuxiliaryTrainingWrapper": "saved module",
}
_WRAPPED: dict[Kind, tuple[str, ...]] = {
    "model": ("base_model",),
    "tuner": ("model",),
    "layer": ("base_layer",),
    "saved module": ("original_module", "modules_to_save", "token_adapter"),
}
"""children that stand for what is wrapped"""


@dataclass(frozen=True)
class AdapterNames:
    """What the adapters of a model do to the names of its modules."""

    plain: dict[str, str]
    """module -> its name in the model without adapters, where that is another one"""
    inside: frozenset[str]
    """modules that belong to adapters and are not in the model without them"""


def _find_kind(module: nn.Module) -> Kind | None:
    return _find_kind_of_class(type(module))  # type: ignore[arg-type]


@cache
def _find_kind_of_class(kind: Any) -> Kind | None:
    of_peft = [base.__name__ for base in kind.__mro__ if base.__module__.startswith("peft.")]
    return next((_KINDS[name] for name in of_peft if name in _KINDS), None)


def has_adapters(model: nn.Module) -> bool:
    """Whether it is a model that peft has wrapped."""
    return _find_kind(model) == "model"


def find_adapter_names(model: nn.Module) -> AdapterNames:
    """The names of all modules without adapters, and which modules are parts of adapters."""
    plain: dict[str, str] = {}
    inside: set[str] = set()

    def enter(name: str, own: str, module: nn.Module, within: bool) -> None:
        if within:
            inside.add(name)
        elif name != own:
            plain[name] = own
        kind = _find_kind(module)
        for child, inner in module._modules.items():
            if inner is None:
                continue
            below, called = _join(name, child), _join(own, child)
            if kind is None:
                enter(below, called, inner, within)
            elif child == "modules_to_save":  # a copy for each adapter
                for adapter, copy in inner._modules.items():
                    if copy is not None:
                        enter(_join(below, adapter), own, copy, within)
            elif child in _WRAPPED[kind]:
                enter(below, own, inner, within)
            else:
                enter(below, called, inner, within or kind == "layer")

    enter("", "", model, False)
    return AdapterNames(plain, frozenset(inside))


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def call_in_each_state(model: nn.Module, inputs: Inputs) -> Iterator[Any]:
    """What the model returns as it is, then with each other adapter alone, then without any.

    A model without adapters is called once. The model is left in the state that it was in.
    """
    yield call_model(model, inputs)
    yield from call_in_other_states(model, inputs)


def call_in_other_states(model: nn.Module, inputs: Inputs) -> Iterator[Any]:
    """What the model returns with each adapter that is not active now, and without any."""
    switched = [module for _, module in walk_modules(model) if _find_kind(module) in _SWITCHED]
    for adapter in _list_other_states(switched):
        with _switch(switched, adapter):
            yield call_model(model, inputs)


_SWITCHED: tuple[Kind, ...] = ("layer", "saved module")


def _list_other_states(modules: list[nn.Module]) -> list[str | None]:
    """Adapters that are not what the model computes with now; None for the model without any."""
    names = {adapter for module in modules for adapter in _list_adapters(module)}
    if not names:
        return []
    states: list[str | None] = [*sorted(names), None]
    return [state for state in states if not _are_in_state(modules, state)]


def _are_in_state(modules: list[nn.Module], adapter: str | None) -> bool:
    return all(_is_in_state(module, adapter) for module in modules)


def _list_adapters(module: Any) -> list[str]:
    """The adapters that one module has, active or not."""
    if _find_kind(module) == "saved module":
        return sorted(module._adapters)
    held = [getattr(module, name, {}) for name in module.adapter_layer_names]
    return sorted({adapter for of_adapters in held for adapter in of_adapters})


def _is_in_state(module: Any, adapter: str | None) -> bool:
    if module._disable_adapters:
        return adapter is None
    given = module._active_adapter
    own = set(_list_adapters(module))
    active = set([given] if isinstance(given, str) else given) & own
    return not module.merged_adapters and active == ({adapter} & own)


@contextmanager
def _switch(modules: list[nn.Module], adapter: str | None) -> Iterator[None]:
    """Compute with one adapter, or with none.

    By attributes alone: peft's own methods would change `requires_grad`, and merge.
    """
    before = [dict(vars(module)) for module in modules]
    try:
        for module in modules:
            own: Any = module
            own._active_adapter = [name for name in _list_adapters(module) if name == adapter]
            own._disable_adapters = adapter is None
            own.merged_adapters = []
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            for name in ("_active_adapter", "_disable_adapters", "merged_adapters"):
                vars(module).pop(name, None)
                if name in values:
                    vars(module)[name] = values[name]
