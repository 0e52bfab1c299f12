"""A cut by a pruner of torch-pruning: its choice at a given cost, as a log of kept indices."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from sparsify.cost.measure import count_macs
from sparsify.errors import ModelError, describe_error
from sparsify.formatting.numbers import format_share
from sparsify.formatting.verdict_text import LABELS
from sparsify.forward.call_model import convert_inputs
from sparsify.forward.copies import copy_model
from sparsify.graph.names import all_names
from sparsify.peers.dependency_groups import build_graph, call_on_inputs
from sparsify.peers.importances import give_squares, make_importance
from sparsify.peers.kept_elements import list_operations, put_positions
from sparsify.peers.requests import CutRequest
from sparsify.peers.torch_pruning_import import torch_pruning
from sparsify.recipe.import_path import resolve_callable

_STEPS = 10
"""ratios 0.1 ... 1 that are tried in order; the cost need not fall towards 1, where layers that would lose
all of their channels are left whole"""
_HALVINGS = 7
_HAIR = 1 + 1e-9


def cut_to_share(request: CutRequest) -> dict[str, Any]:
    """Find the smallest ratio at which the cut model costs at most the share, and log what it keeps.

    Returns `ratio`, `share`, `history` (of its pruner) and `operations` of a cut log. Raises ModelError
    where no ratio comes down to it.
    """
    dense = _measure_cost(request, request.model)

    @cache
    def share_at(ratio: float) -> float:
        pruned, _ = prune_model(request, ratio)
        try:
            return _measure_cost(request, pruned) / dense
        except ModelError as error:
            why = describe_error(error.__cause__ or error)
            raise ModelError(f"its cut model does not run, at ratio {ratio:.3g}: {why}") from error

    limit = request.share * _HAIR
    ratio = _find_ratio(share_at, limit)
    if ratio is None:
        least = min(share_at(step / _STEPS) for step in range(1, _STEPS + 1))
        raise ModelError(
            f"no ratio comes down to {format_share(request.share)} of the {LABELS[request.what]}: "
            f"the least is {format_share(least)}"
        )
    pruned, history = prune_model(request, ratio)
    return {
        "ratio": ratio,
        "share": share_at(ratio),
        "history": history,
        "operations": [op.model_dump() for op in _log_cut(request, pruned, history)],
    }


def _find_ratio(share_at: Any, limit: float) -> float | None:
    steps = [step / _STEPS for step in range(_STEPS + 1)]
    first = next((i for i, ratio in enumerate(steps) if share_at(ratio) <= limit), None)
    if first is None:
        return None
    if first == 0:
        return 0.0
    low, high = steps[first - 1], steps[first]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if share_at(middle) <= limit else (middle, high)
    return high


def prune_model(request: CutRequest, ratio: float) -> tuple[nn.Module, list[Any]]:
    """A copy cut at a ratio, and the pruner's history: [[module, is_out, channels], ...]."""
    model = copy_model(request.model).eval().requires_grad_(True)
    if request.gradients is not None:
        for name, parameter in model.named_parameters():
            parameter.grad = request.gradients[name].clone()
    importance = make_importance(request.importance, request.importance_args)
    if request.squares is not None:
        give_squares(importance, model, request.squares)
    torch.manual_seed(request.seed)
    pruner = _find_pruner(request.pruner)(
        model,
        request.inputs,
        importance=importance,
        pruning_ratio=ratio,
        ignored_layers=[model.get_submodule(name) for name in request.ignored],
        forward_fn=call_on_inputs,
        # its defaults are dictionaries that all pruners of a process write into
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        **request.args,
    )
    pruner.step()
    history = [[name, bool(is_out), list(map(int, at))] for name, is_out, at in pruner.pruning_history()]
    return model, history


def _find_pruner(name: str) -> Any:
    if ":" in name:
        return resolve_callable("pruner", name)
    return getattr(torch_pruning().pruner, name)


def _measure_cost(request: CutRequest, model: nn.Module) -> float:
    if request.what == "macs":
        return float(count_macs(model, request.inputs)[0])
    tensors = {id(t): t for t in all_names(model).values()}.values()
    if request.what == "params":
        return float(sum(p.numel() for p in model.parameters()))
    return float(sum(t.numel() * t.element_size() for t in tensors))


def _log_cut(request: CutRequest, pruned: nn.Module, history: list[Any]) -> Iterator[Any]:
    """What stayed, read off a copy whose weights hold their positions and that goes through the same cuts.

    Raises ModelError where that copy is not the model that the pruner cut.
    """
    positions = copy_model(request.model).double().eval()
    put_positions(positions)
    graph = build_graph(positions, convert_inputs(request.inputs, torch.float64))
    graph.load_pruning_history(history)
    yield from list_operations(request.model, pruned, positions)
