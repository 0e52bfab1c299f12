"""Optimizers: the one that a recipe names, and the parameters that one moves."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, assert_never

import torch
from torch import nn

from sparsify.errors import ModelError, TrainingError
from sparsify.graph.peft_adapters import find_adapter_names
from sparsify.recipe.import_path import resolve
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas.selector import selects
from sparsify_schemas.stage import Adam, AdamW, Optimizer, OtherOptimizer, Rate, Sgd

SCALE = "scale"
"""key of a parameter group: what the learning rate is multiplied by"""


def make_optimizer(spec: Optimizer, model: nn.Module, rates: Sequence[Rate] = ()) -> torch.optim.Optimizer:
    """The torch optimizer that a recipe names, over every parameter that takes a gradient.

    rates: learning rates of some layers; each scale makes a parameter group. Raises TrainingError.
    """
    parameters = _group_parameters(model, rates)
    if not parameters:
        raise TrainingError(
            "no parameter of the model takes a gradient; set requires_grad on those that shall be trained"
        )
    match spec:
        case Sgd():
            return torch.optim.SGD(
                parameters,
                lr=0.0,
                momentum=spec.momentum,
                weight_decay=spec.weight_decay,
                nesterov=spec.nesterov,
            )
        case Adam():
            return torch.optim.Adam(parameters, lr=0.0, betas=spec.betas, weight_decay=spec.weight_decay)
        case AdamW():
            return torch.optim.AdamW(parameters, lr=0.0, betas=spec.betas, weight_decay=spec.weight_decay)
        case OtherOptimizer():
            return _make_other(spec, parameters)
        case _:
            assert_never(spec)


def _group_parameters(model: nn.Module, rates: Sequence[Rate]) -> list[Any]:
    """The parameters that take a gradient; with rates, groups of those of one scale."""
    if not rates:
        return [p for p in model.parameters() if p.requires_grad]
    groups: dict[float, list[nn.Parameter]] = {}
    seen: set[int] = set()
    plain = find_adapter_names(model).plain
    for name, module in model.named_modules():
        scale = _find_scale((name, plain.get(name, name)), module, rates)
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups.setdefault(scale, []).append(parameter)
    return [{"params": own, SCALE: scale} for scale, own in groups.items()]


def _find_scale(names: Sequence[str], module: nn.Module, rates: Sequence[Rate]) -> float:
    classes = list_classes(module)
    for rate in rates:
        if any(selects(rate.layers, name, classes) for name in names):
            return rate.scale
    return 1.0


def list_classes(module: nn.Module) -> list[str]:
    """Names of the classes that a module is of, its own first."""
    return [base.__name__ for base in type(module).__mro__]


def find_unmatched(model: nn.Module, rates: Sequence[Rate]) -> dict[str, str]:
    """Patterns of `rates` that match no module with parameters of its own -> what to write in their place."""
    owners = [
        (name, module)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    plain = find_adapter_names(model).plain
    owners += [(plain[name], classes) for name, classes in owners if name in plain]
    patterns = [pattern for rate in rates for pattern in rate.layers]
    unmatched = [p for p in patterns if not any(selects((p,), n, list_classes(m)) for n, m in owners)]
    names = [name for name, _ in owners if name]
    classes = sorted({type(module).__name__ for _, module in owners})
    return {pattern: suggest_layers(pattern, names, classes) for pattern in unmatched}


def suggest_layers(pattern: str, names: list[str], classes: list[str]) -> str:
    """What to write in place of a pattern that matches nothing."""
    close = get_close_matches(pattern, [*names, *classes], 1)
    if close:
        return f"did you mean '{close[0]}'?"
    more = ", ..." if len(names) > 8 else ""
    return f"the layers are {', '.join(names[:8])}{more}; their classes are {', '.join(classes)}"


def _make_other(spec: OtherOptimizer, parameters: list[Any]) -> torch.optim.Optimizer:
    """An optimizer that the recipe names. Raises TrainingError, which names it."""
    try:
        found = resolve(spec.use) if ":" in spec.use else getattr(torch.optim, spec.use)
    except ImportError as error:
        raise TrainingError(f"optimizer '{spec.use}': {error}") from error
    except AttributeError:
        near = get_close_matches(spec.use, _names(), 1)
        hint = f"did you mean '{near[0]}'?" if near else "write package.module:callable for one of your own"
        raise TrainingError(f"torch.optim has no optimizer '{spec.use}'; {hint}") from None
    where = f"optimizer '{spec.use}'"
    with run_user_code(where, lambda why: TrainingError(f"{where}: {why}")):
        made = found(parameters, lr=0.0, **spec.args)
    if not isinstance(made, torch.optim.Optimizer):
        raise TrainingError(f"optimizer '{spec.use}' returned a {type(made).__name__}, no torch optimizer")
    if isinstance(made, torch.optim.LBFGS):
        raise TrainingError("optimizer 'LBFGS' evaluates the loss several times a step; take another")
    return made


def _names() -> list[str]:
    """The optimizers of torch.optim."""
    named = vars(torch.optim).items()
    return [
        name for name, found in named if isinstance(found, type) and issubclass(found, torch.optim.Optimizer)
    ]


def trained_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The model's parameters that the optimizer moves; a penalty moves no others. Raises ModelError."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in moved}
    if not found:
        raise ModelError(
            "the optimizer holds none of the model's parameters; pass the optimizer that trains this model"
        )
    return found


def read_scalar(optimizer: torch.optim.Optimizer, name: str, default: float) -> float:
    """What a GradScaler has left on the optimizer, or the default without one."""
    found = getattr(optimizer, name, None)
    return default if found is None else float(found)


def keep_untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook whose numbers change at every step, kept out of a compiled optimizer step.

    Decided while tracing: `disable` loads the compiler,
    which costs a second that a plain loop need not spend.
    """

    def act(*given: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(hook)(*given)  # type: ignore[no-untyped-call]
        return hook(*given)

    return act
