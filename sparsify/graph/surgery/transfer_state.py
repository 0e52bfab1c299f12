"""Transfer what training keeps beside the weights (gradients, hooks, optimizer state) to the cut model."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError
from sparsify.graph.expert_numbers import find_shortened, rename
from sparsify.graph.surgery.operations import KeptIndices, select_kept, to_indices
from sparsify.nn import cropped, gathered
from sparsify_schemas.cuts import Crop, Cuts, Gather, Narrow, Shorten

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class _ParameterChange:
    """What a cut did to one parameter: it kept indices, then cropped or gathered."""

    steps: KeptIndices = field(default_factory=list)
    reshapes: list[Callable[[Tensor], Tensor]] = field(default_factory=list)

    def apply_to(self, value: Tensor) -> Tensor:
        """Do the same to a tensor of the parameter's shape."""
        value = select_kept(value, self.steps)
        for reshape in self.reshapes:
            value = reshape(value)
        return value


def transfer_state(
    model: nn.Module, thin: nn.Module, cuts: Cuts, optimizer: torch.optim.Optimizer | None = None
) -> tuple[str, ...]:
    """Give the cut model the gradients and hooks of the dense one, and the optimizer the cut model's
    parameters.

    State is narrowed if each of its dimensions has the parameter's length or 1 (a moment, a factored moment).
    Other state of a narrowed parameter is reset, and the returned notes say so. Parameters of other models
    stay in the optimizer. Raises ModelError, with nothing changed, if the optimizer holds none of the model's
    parameters or cannot be transferred.
    """
    ways = _changes_by_parameter(cuts)
    fresh = dict(thin.named_parameters(remove_duplicate=False))
    if optimizer is not None:
        _check_optimizer(optimizer, model)
    shortened = find_shortened(cuts)
    for name, old in _list_renamed(model, shortened):
        if name in fresh:
            _transfer_gradient_and_hooks(old, fresh[name], ways.get(name, _ParameterChange()))
    _rebind_module_hooks(model, thin, shortened)
    if optimizer is None:
        return ()
    return tuple(_replace_parameters(optimizer, model, fresh, ways, shortened))


def _list_renamed(model: nn.Module, shortened: Sequence[Shorten]) -> Iterator[tuple[str, nn.Parameter]]:
    """The model's parameters that stay, under their names in the cut model."""
    for old, parameter in model.named_parameters():
        name = rename(old, shortened)
        if name is not None:
            yield name, parameter


def transfer_named_values(
    values: Mapping[str, Tensor], cuts: Cuts, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Narrow values by name to what a cut has kept.

    values: by tensor (one for each weight, one for each group inside it, or one for all) or by coupled
    group.
    shapes: of the tensors before the cut. Values that cannot be narrowed are left out.
    """
    widths, ways = {width.group: width for width in cuts.widths}, _changes_by_parameter(cuts)
    found: dict[str, Tensor] = {}
    shortened = find_shortened(cuts)
    for old, value in values.items():
        own = value.cpu()
        name = rename(old, shortened)  # a group is called after a layer
        if name is None:
            continue
        if old not in shapes:
            width = widths.get(old)
            if width is None or own.shape == (width.width,):
                found[name] = own if width is None else own[to_indices(width.keep)]
        elif own.dim() == 0 or name not in ways:
            found[name] = own
        elif own.numel() == prod(shapes[old]):
            carried = ways[name].apply_to(own.view(shapes[old]))
            found[name] = carried if own.shape == shapes[old] else carried.flatten()
        elif own.numel() == prod(shapes[old][1:]):  # filter shapes: one for each column
            found[name] = ways[name].apply_to(own.view(1, *shapes[old][1:]).expand(shapes[old]))[0].flatten()
    return found


def _changes_by_parameter(cuts: Cuts) -> Mapping[str, _ParameterChange]:
    found: dict[str, _ParameterChange] = defaultdict(_ParameterChange)
    for op in cuts.operations:
        if isinstance(op, Narrow):
            found[op.tensor].steps.append((op.dim, to_indices(op.keep)))
        elif isinstance(op, Crop):
            found[f"{op.module}.weight"].reshapes.append(partial(cropped.select_positions, kept=op.grids))
        elif isinstance(op, Gather):
            found[f"{op.module}.weight"].reshapes.append(
                partial(gathered.select_columns, columns=to_indices(op.keep).tolist())
            )
    return found


_LEFT = ""
"""in place of the name of a parameter that left with an expert"""


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ModelError(
            "the optimizer holds none of the model's parameters; pass the optimizer that trains this model"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ModelError(
            "LBFGS keeps one history over all parameters together, which cannot be carried through a cut; "
            "cut without it and make a new one of the cut model's parameters"
        )


def _transfer_gradient_and_hooks(old: nn.Parameter, new: nn.Parameter, way: _ParameterChange) -> None:
    if old.grad is not None:
        grad = way.apply_to(old.grad.detach())
        if grad.shape == new.shape:
            new.grad = grad
    # torch copies no hooks with a parameter and has no public list of them.
    for hook in (old._backward_hooks or {}).values():
        new.register_hook(hook)  # type: ignore[no-untyped-call]
    for hook in (getattr(old, "_post_accumulate_grad_hooks", None) or {}).values():
        new.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]


def _rebind_module_hooks(model: nn.Module, thin: nn.Module, shortened: Sequence[Shorten]) -> None:
    """Rebind hooks that are methods. A deep copy copies their objects too, but a recorder outside the
    model must stay the caller's own.
    """
    twins: dict[int, Any] = {}
    for old, module in model.named_modules():
        name = rename(old, shortened)
        if name is not None and _has_module(thin, name):
            twins[id(module)] = thin.get_submodule(name)
    for module in model.modules():
        twin = twins.get(id(module))
        for store in _HOOKS if twin is not None else ():
            own = getattr(twin, store)
            for key, hook in getattr(module, store).items():
                if isinstance(hook, MethodType) and key in own:
                    own[key] = MethodType(hook.__func__, twins.get(id(hook.__self__), hook.__self__))


def _has_module(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _replace_parameters(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    fresh: Mapping[str, nn.Parameter],
    ways: Mapping[str, _ParameterChange],
    shortened: Sequence[Shorten],
) -> Iterable[str]:
    names = {id(p): rename(name, shortened) or _LEFT for name, p in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    old_names = {rename(name, shortened) for name, _ in every}
    created = [name for name in fresh if name not in old_names]
    afresh = []
    for group in optimizer.param_groups:
        stay = []
        for old in group["params"]:
            name = names.get(id(old))
            if name is None:
                stay.append(old)  # of another model, such as a loss with weights
            elif name in fresh:
                stay.append(fresh[name])
                afresh += (
                    []
                    if _transfer_optimizer_state(
                        optimizer, old, fresh[name], ways.get(name, _ParameterChange())
                    )
                    else [name]
                )
            else:
                optimizer.state.pop(old, None)  # its module left as a whole
        _insert_created(stay, fresh, created)
        group["params"][:] = stay  # in place: the optimizer may hold the list elsewhere
    if afresh:
        shown = ", ".join(afresh[:3]) + (f" and {len(afresh) - 3} more" if len(afresh) > 3 else "")
        yield f"the optimizer's state of {shown} starts afresh: it does not have the shape of the parameter"


def _insert_created(group: list[Any], fresh: Mapping[str, nn.Parameter], created: Iterable[str]) -> None:
    """Insert biases that the cut created into the parameter group of their layer, in the model's own
    order: a saved optimizer state lists parameters in that order.
    """
    order = list(fresh)
    for name in created:
        layer = name.rpartition(".")[0]
        there = {id(p) for p in group}
        if not any(other.rpartition(".")[0] == layer and id(fresh[other]) in there for other in order):
            continue
        earlier = [id(fresh[other]) for other in order[: order.index(name)]]
        before = [i for i, p in enumerate(group) if id(p) in earlier]
        group.insert(before[-1] + 1 if before else 0, fresh[name])


def _transfer_optimizer_state(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter, way: _ParameterChange
) -> bool:
    state = optimizer.state.pop(old, None)
    if state is None:
        return True
    carried = {key: _narrow_value(value, old, way) for key, value in state.items()}
    if new.shape != old.shape and not all(_fits_parameter(value, new) for value in carried.values()):
        return False
    optimizer.state[new] = carried
    return True


def _fits_parameter(value: Any, parameter: Tensor) -> bool:
    if not isinstance(value, Tensor):
        return not isinstance(value, list | tuple | Mapping)
    return value.numel() == 1 or (
        value.dim() == parameter.dim()
        and all(n in (1, m) for n, m in zip(value.shape, parameter.shape, strict=True))
    )


def _narrow_value(value: Any, parameter: Tensor, way: _ParameterChange) -> Any:
    if not isinstance(value, Tensor) or value.dim() != parameter.dim() or not (way.steps or way.reshapes):
        return value
    if value.shape == parameter.shape:
        return way.apply_to(value)
    return select_kept(
        value, [(dim, kept) for dim, kept in way.steps if value.shape[dim] == parameter.shape[dim]]
    )
