"""Criteria of other packages: what they look at is gathered here, and they score our coupled groups."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsify.errors import DataError, ModelError
from sparsify.graph.model_map import ModelMap
from sparsify.peers.importances import score_units
from sparsify.pruning.criteria.scores import Statistics
from sparsify_schemas.criterion import TorchPruning


class RuleScoreError(ModelError):
    """A rule's criterion cannot score what the rule reaches."""

    def __init__(self, rule: int, reason: str) -> None:
        self.rule, self.reason = rule, reason
        super().__init__(f"rules.{rule}.criterion: {reason}")


def peer_scores(
    spec: TorchPruning,
    model: nn.Module,
    map: ModelMap,
    names: Sequence[str],
    statistics: Statistics | None,
    seed: int,
    rule: int,
) -> dict[str, Tensor]:
    """Coupled group -> the score of each of its units: [width]. Raises RuleScoreError.

    statistics: leaves the gradients of a batch, or of an example, in the weights of the model.
    """
    squares = None
    if statistics is not None:
        squares = gather_gradients(spec, model, statistics)
    try:
        return score_units(spec.importance, spec.args, model, map, names, seed, squares)
    except (ModelError, DataError) as error:
        raise RuleScoreError(rule, str(error)) from error


def gather_gradients(
    spec: TorchPruning, model: nn.Module, statistics: Statistics
) -> dict[str, Tensor] | None:
    """Leave the gradient, mean over the batches, in `grad` of every weight: zero where none came back.

    Returns weight -> sum of its squared gradients, where the importance looks at examples.
    """
    squares_wanted = spec.facts().sees == "gradients of examples"
    sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in model.named_parameters()}
    squares = {name: torch.zeros_like(value) for name, value in sums.items()}
    count = 0
    for _ in statistics():
        count += 1
        for name, parameter in model.named_parameters():
            if parameter.grad is None:
                continue
            sums[name] += parameter.grad
            if squares_wanted:
                squares[name] += parameter.grad.square()
    for name, parameter in model.named_parameters():
        parameter.grad = sums[name] / max(count, 1)
    return squares if squares_wanted else None


def check_peer_scores(
    spec: TorchPruning, model: nn.Module, map: ModelMap, names: Sequence[str], seed: int, rule: int
) -> None:
    """Try whether the importance scores these groups, with the weights in place of gradients. Raises
    RuleScoreError."""

    def pretend() -> list[None]:
        for parameter in model.parameters():
            parameter.grad = parameter.detach().clone()
        return [None]

    peer_scores(spec, model, map, names, pretend if spec.count_batches() else None, seed, rule)
