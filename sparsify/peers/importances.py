"""Scores by importances of torch-pruning, or by a class that is written for it."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import DataError, ModelError
from sparsify.graph.model_map import ModelMap
from sparsify.peers.channel_groups import ChannelGroup, make_channel_group
from sparsify.peers.torch_pruning_import import torch_pruning
from sparsify.recipe.import_path import resolve_callable
from sparsify.recipe.user_code import run_user_code
from sparsify_schemas.criterion import IMPORTANCES


def make_importance(name: str, args: Mapping[str, Any]) -> Any:
    """An importance with its arguments. Raises ModelError, or DataError where a path cannot be imported."""
    if name in IMPORTANCES:
        kind = getattr(torch_pruning().importance, name)
    else:
        kind = resolve_callable("importance", name)
    said = ", ".join(f"{key}={value!r}" for key, value in args.items())
    with _explain(name, f"could not be made as {name.rpartition(':')[2]}({said})"):
        made = kind(**args)
    if not callable(made):
        raise DataError(
            f"importance '{name}' makes a {type(made).__name__}, which cannot be called with a group; name a "
            "class with __call__(self, group)"
        )
    return made


def score_units(
    name: str,
    args: Mapping[str, Any],
    model: nn.Module,
    map: ModelMap,
    groups: Iterable[str],
    seed: int,
    squares: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Coupled group -> the score of each unit: [width].

    Args:
        name: An importance of torch-pruning, or package.module:Class.
        args: Its keyword arguments.
        model: Holds in `grad` of its weights the gradients that importances look at.
        map: The model's.
        groups: Names of coupled groups.
        seed: Of importances that draw numbers.
        squares: Name of a weight -> sum over examples of the squared gradient, for OBDCImportance.

    Raises:
        ModelError: The importance fails on a group, or does not give one finite score for each channel.
    """
    importance = make_importance(name, args)
    if squares is not None:
        give_squares(importance, model, squares)
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for group in groups:
            made = make_channel_group(model, map.by_name[group])
            with _explain(name, f"failed on '{group}'"):
                scores = importance(made.group)
            _check_scores(name, group, made, scores)
            found[group] = _average_channels(made, scores, map.by_name[group].width)
    return found


def give_squares(importance: Any, model: nn.Module, squares: Mapping[str, Tensor]) -> None:
    """Fill in what `step` of OBDCImportance gathers: layer -> F = sum over examples of (dL/dW)^2, as
    [outputs, all others].

    Its own way takes convolutions without groups and Linear layers on rows, and fails on those with a bias.
    """
    importance.steps = 1
    for name, module in model.named_modules():
        own = squares.get(f"{name}.weight" if name else "weight")
        if own is not None and isinstance(module, tuple(importance.target_types)):
            rows = own.transpose(0, 1) if getattr(module, "transposed", False) else own
            importance.Fisher[module] = rows.flatten(1)
            importance.modules.append(module)


def _average_channels(group: ChannelGroup, scores: Tensor, width: int) -> Tensor:
    units = torch.tensor(group.units)
    values = scores.detach().cpu().double()
    total = torch.zeros(width, dtype=torch.float64).index_add_(0, units, values)
    return total / torch.bincount(units, minlength=width).clamp(min=1)


def _check_scores(name: str, group: str, made: ChannelGroup, scores: Any) -> None:
    count = len(made.units)
    layers = dict.fromkeys(type(dep.layer).__name__ for dep, _ in made.group)
    if scores is None:
        raise ModelError(
            f"importance '{name}' gives '{group}' no score: it looks at none of its layers "
            f"({', '.join(layers)}); use another importance or magnitude there"
        )
    if not isinstance(scores, Tensor):
        raise ModelError(
            f"importance '{name}' returned a {type(scores).__name__} for '{group}'; return a tensor with one "
            "score a channel"
        )
    if tuple(scores.shape) != (count,):
        raise ModelError(
            f"importance '{name}' returned scores of shape {tuple(scores.shape)} for '{group}', whose first "
            f"layer has {count} channels; return one score a channel"
        )
    if not bool(scores.isfinite().all()):
        raise ModelError(
            f"importance '{name}' returned scores for '{group}' that are not finite; use other arguments, or "
            "magnitude there"
        )


def _explain(name: str, what: str) -> AbstractContextManager[None]:
    def make_error(why: str) -> ModelError:
        return ModelError(f"importance '{name}' {what}: {why}")

    return run_user_code(f"importance '{name}'", make_error)
