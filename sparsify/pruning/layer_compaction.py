"""Executing: layers with dead shapes or taps become cheaper ones, where that is exact and measured to be
faster.

A kernel is cropped whenever a smaller one holds its live positions. What is scattered beyond that is gathered
only where this is at least 10 % faster than computing with the zeros, on the layer's own input, at every
target of the recipe.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.cost import measure
from sparsify.formatting.numbers import format_times
from sparsify.forward import call_model
from sparsify.forward.calls import Inputs, first_tensor
from sparsify.forward.fresh_inputs import seed_generators
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import is_scripted
from sparsify.graph.surgery import compact_layers, operations
from sparsify.nn import cropped, gathered
from sparsify.pruning.planning.group_types import group_type_of
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.cuts import Crop, Execution, Gather, Trial
from sparsify_schemas.target import Cpu

GAIN = 1.10
"""how much faster gathering must be; less is within what timings vary by from run to run"""
SURE = 1.0
"""what the lower end of the speed-up's 95 % interval must be above"""
SECONDS = 0.4
"""spent on timing one layer on one target"""
DEFAULT_TARGET: Mapping[str, Cpu] = {"cpu": Cpu(kind="cpu")}


def make_layers_cheaper(
    plan: Plan, thin: nn.Module, inputs: Inputs
) -> tuple[tuple[Crop | Gather, ...], tuple[Execution, ...]]:
    """Make layers cheaper, in place: what was done, and how each layer with dead shapes or taps is computed
    now and why."""
    there = {
        name: module
        for name, module in thin.named_modules()
        if not is_scripted(module) and module._parameters.get("weight") is not None
    }
    dead = {
        name: there[name]
        for name in _list_layers(plan)
        if name in there and len(_find_live_columns(there[name])) < _count_columns(there[name])
    }
    columns, shared = (
        {name: _count_columns(module) for name, module in dead.items()},
        _find_shared_modules(thin),
    )
    crops = {
        name: crop
        for name, module in dead.items()
        if id(module) not in shared and (crop := _plan_crop(name, module))
    }
    compact_layers.compact_layers(thin, crops.values())
    scattered = [
        name for name, module in dead.items() if len(_find_live_columns(module)) < _count_columns(module)
    ]
    fits = {name: _find_obstacle(dead[name], shared) for name in scattered}
    fed = _record_inputs(plan, thin, [name for name, obstacle in fits.items() if not obstacle], inputs)
    gathers: dict[str, Gather] = {}
    executions = []
    for name, module in dead.items():
        why, trials = fits.get(name, ""), tuple[Trial, ...]()
        if name in fits and not why:
            op = Gather(
                module=name,
                size=_count_columns(module),
                keep=operations.to_ranges(_find_live_columns(module)),
            )
            trials = tuple(_time_trials(plan, module, op, fed[name]))
            pays, why = _judge_trials(op, trials)
            if pays:
                gathers[name] = op
                compact_layers.compact_layers(thin, [op])
        reasons, forms = [], []
        if name in crops:
            reasons.append(_describe_crop(crops[name]))
            forms.append("cropped")
        if name in gathers:
            forms.append("gathered")
        if why:
            reasons.append(why)
        form = " and ".join(forms) or "dense"
        executions.append(
            Execution(
                module=name,
                form=form,
                columns=columns[name],
                live=_count_columns(module),
                why="; ".join(reasons),
                trials=trials,
            )
        )
    return (*crops.values(), *gathers.values()), tuple(executions)


def _list_layers(plan: Plan) -> Iterator[str]:
    """Layers in which rules look for dead shapes or taps."""
    found = (
        name
        for a in plan.assignments
        if (group := plan.recipe.rules[a.rule].group) is not None
        and group_type_of(group).zeros in ("columns", "kernel")
        for name in a.layers
    )
    yield from dict.fromkeys(found)


def _count_columns(module: nn.Module) -> int:
    return prod(module.get_parameter("weight").shape[1:])


def _find_live_columns(module: nn.Module) -> list[int]:
    return gathered.find_live_columns(module.get_parameter("weight"))


def _find_shared_modules(model: nn.Module) -> set[int]:
    """Modules of which a parameter belongs to another one as well."""
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    return {module for own in owners.values() if len(own) > 1 for module in own}


def _plan_crop(name: str, module: nn.Module) -> Crop | None:
    if not cropped.can_crop(module):
        return None
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    kernel, grids = tuple(module.kernel_size), cropped.find_grids(module.weight)
    return None if grids == cropped.full_grids(kernel) else Crop(module=name, kernel=kernel, grids=grids)


def _find_obstacle(module: nn.Module, shared: set[int]) -> str:
    """Why a layer cannot gather, '' where it can."""
    if id(module) in shared:
        return "its weight is shared with another layer; its zeros stay"
    if gathered.can_gather(module):
        return ""
    what = "convolution with groups" if getattr(module, "groups", 1) > 1 else type(module).__name__
    return f"a {what} cannot gather; its zeros stay"


def _judge_trials(op: Gather, trials: Sequence[Trial]) -> tuple[bool, str]:
    """Whether gathering pays on every target, and what the slowest of them says."""
    if not trials:
        return False, "it does not run in a forward call; its zeros stay"
    worst = min(trials, key=lambda trial: trial.speedup)
    live = sum(end - start for start, end in op.keep)
    words = (
        f"gathering {live} of {op.size} columns is {format_times(worst.speedup)} as fast "
        f"as the zeros on {worst.target}"
    )
    if all(trial.speedup >= GAIN and trial.low > SURE for trial in trials):
        return True, words
    short = f"{format_times(GAIN)} is asked for" if worst.speedup < GAIN else "that is not sure"
    return False, f"{words}, and {short}; its zeros stay"


def _time_trials(plan: Plan, module: nn.Module, op: Gather, fed: Mapping[str, Tensor]) -> Iterator[Trial]:
    dense, lean = measure.copy_model(module), nn.ModuleDict({"layer": measure.copy_model(module)})
    compact_layers.compact_layers(lean, [op.model_copy(update={"module": "layer"})])
    for target, x in fed.items():
        eager = Cpu(kind="cpu", threads=_list_targets(plan)[target].threads, batch=max(1, x.shape[0]))
        timed = measure.measure_latency(
            dense, lean["layer"], (x,), target, eager, seconds=SECONDS, seed=plan.recipe.seed
        )
        yield Trial(
            target=target,
            dense_ms=timed.dense_ms,
            gathered_ms=timed.cut_ms,
            speedup=timed.speedup,
            low=timed.low,
            high=timed.high,
        )


def _list_targets(plan: Plan) -> Mapping[str, Cpu]:
    """Processors that are here: layers are tried on them in eager PyTorch."""
    here = {name: t for name, t in plan.recipe.targets.items() if isinstance(t, Cpu) and t.table is None}
    return here or DEFAULT_TARGET


def _record_inputs(
    plan: Plan, model: nn.Module, names: Sequence[str], inputs: Inputs
) -> dict[str, dict[str, Tensor]]:
    """What goes into each layer first, in one forward call at each target's batch: layer -> target ->
    input."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for target, spec in _list_targets(plan).items() if names else ():
        copy = measure.copy_model(model).cpu().eval()
        for name in names:
            note = partial(_record_input, found[name], target)
            copy.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_fused_attention():
            seed_generators(0)
            call_model.call_model(copy, measure.resize_batch(inputs, spec.batch))
    return found


def _record_input(
    into: dict[str, Tensor], target: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    given = first_tensor(args, kwargs)
    if given is not None:
        into.setdefault(target, given.clone())


def _describe_crop(op: Crop) -> str:
    left = tuple(count for *_, count in op.grids)
    return f"the kernel shrinks from {_describe_kernel(op.kernel)} to {_describe_kernel(left)}"


def _describe_kernel(kernel: tuple[int, ...]) -> str:
    return " x ".join(map(str, kernel))
