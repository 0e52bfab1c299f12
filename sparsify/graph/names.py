"""Names of a model's tensors, from one walk over its modules."""

from collections.abc import Iterator

from torch import Tensor, nn

from sparsify.graph.held_constants import list_constants


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of that tensor (tied weights have several)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in all_names(model).items()}


def all_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name that they have."""
    return {name: tensor for name, tensor, _ in _list_slots(model, every=True)}


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and constants under every name that they have."""
    return all_names(model) | {name: tensor for name, tensor, _ in _list_held(model, every=True)}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """(name, tensor, whether it is saved) of parameters, then buffers, then constants, tied ones once."""
    seen = set()
    for name, tensor, saved in (*_list_slots(model, every=False), *_list_held(model, every=False)):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor, saved


def walk_modules(model: nn.Module, every: bool = False) -> list[tuple[str, nn.Module]]:
    """`named_modules` without nested generators, which are slow; every: list a module under each of its
    names."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def enter(name: str, module: nn.Module) -> None:
        if every or id(module) not in seen:
            seen.add(id(module))
            found.append((name, module))
            for child, inner in module._modules.items():
                if inner is not None:
                    enter(f"{name}.{child}" if name else child, inner)

    enter("", model)
    return found


def _list_slots(model: nn.Module, every: bool) -> Iterator[tuple[str, Tensor, bool]]:
    walked = []
    for name, module in walk_modules(model, every):
        walked.append((f"{name}." if name else "", module))
    for prefix, module in walked:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, True
    for prefix, module in walked:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield prefix + name, buffer, name not in module._non_persistent_buffers_set


def _list_held(model: nn.Module, every: bool) -> Iterator[tuple[str, Tensor, bool]]:
    for name, module in walk_modules(model, every):
        for attribute, constant in list_constants(module):
            yield f"{name}.{attribute}" if name else attribute, constant, False
