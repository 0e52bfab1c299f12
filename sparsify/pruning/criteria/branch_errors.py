"""How much the outputs of a model change for good when a residual branch goes: by what no linear map of its
shortcut can make up for.

A branch adds q to its shortcut p. Over sampled places of unlabelled examples, q is regressed on p,

    A = (P'P + l I)^-1 P'Q,   P and Q centred,

and the model runs once more with its prediction from p in place of q. The error is the squared change of the
outputs, mean over examples, each output less its mean over the last dimension, as a softmax has it. That is
the unit in which `reconstruction` has the errors of units that layers read, so both are ranked together.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.forward.call_model import every_tensor
from sparsify.graph.model_map import Branch, Sum
from sparsify.graph.trace.zero_branches import Replacement, replace_branches
from sparsify.objective.objective import move
from sparsify.objective.predictions import call_on_batch
from sparsify.pruning.layer_matrix import is_product

PLACES = 64
"""of one example, at which shortcut and branch are sampled, at most"""
FEWEST_BATCHES = 2
"""on which each branch is left out, at least"""
PASSES = 3
"""batches on which branches are left out for each batch that is looked at, over all branches: about what
a backward pass through all of them would cost"""


@dataclass
class _Moments:
    """Sums over the sampled places of one sum p + q, in float64."""

    rows: int
    shortcut: Tensor
    """sum of p, [channels]"""
    branch: Tensor
    """sum of q, [channels]"""
    square: Tensor
    """sum of p p'"""
    product: Tensor
    """sum of p q'"""

    def add(self, other: "_Moments") -> None:
        self.rows += other.rows
        self.shortcut += other.shortcut
        self.branch += other.branch
        self.square += other.square
        self.product += other.product


@dataclass(frozen=True)
class _Prediction:
    """q as a linear map of p: p A + c."""

    matrix: Tensor
    constant: Tensor
    axis: int
    """of the channels"""

    def __call__(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        made = shortcut.movedim(self.axis, -1).to(self.matrix) @ self.matrix + self.constant
        return made.movedim(-1, self.axis).to(branch)


def branch_errors(
    model: nn.Module,
    branches: Sequence[Branch],
    inputs: Sequence[Any],
    ridge: float,
    seed: int,
    check_size: Callable[[int], None],
) -> dict[str, Tensor]:
    """Name of each branch -> [its error].

    Args:
        model: the dense model in eval mode.
        inputs: of each batch, as the model takes them.
        ridge: l, relative to the mean diagonal of P'P.
        seed: of the sampled places.
        check_size: called with the bytes that the matrices P'P and P'Q take together, as they become more.
    """
    if not branches:
        return {}
    device = next(model.parameters()).device
    batches = [move(x, device) for x in inputs]
    predictions = _fit_predictions(model, branches, batches, ridge, seed, check_size)
    count = max(FEWEST_BATCHES, PASSES * len(batches) // len(branches))
    errors = dict.fromkeys((branch.name for branch in branches), 0.0)
    examples = 0
    for x in batches[:count]:
        with torch.no_grad():
            dense = list(_centred_outputs(call_on_batch(model, x)))
        examples += max((len(output) for output in dense), default=0)
        for branch in branches:
            left_out = {own: predictions.get(own, _predict_nothing) for own in branch.sums}
            with replace_branches(model, left_out):
                outputs = _centred_outputs(call_on_batch(model, x))
                errors[branch.name] += _squared_change(dense, outputs)
    return {name: torch.tensor([error / max(examples, 1)]) for name, error in errors.items()}


def _predict_nothing(_shortcut: Tensor, branch: Tensor) -> Tensor:
    return torch.zeros_like(branch)


def _centred_outputs(returned: object) -> Iterator[Tensor]:
    for output in every_tensor(returned):
        if output.is_floating_point() and output.dim():
            yield output - output.mean(-1, keepdim=True) if output.shape[-1] > 1 else output


def _squared_change(dense: Sequence[Tensor], outputs: Iterator[Tensor]) -> float:
    changes = [after - before for before, after in zip(dense, outputs, strict=True)]
    return sum(float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2 for change in changes)


def _fit_predictions(
    model: nn.Module,
    branches: Sequence[Branch],
    batches: Sequence[Any],
    ridge: float,
    seed: int,
    check_size: Callable[[int], None],
) -> dict[Sum, Replacement]:
    """A prediction of what each sum's branch adds; none where shortcut and branch have different shapes."""
    generator = torch.Generator().manual_seed(seed)
    moments: dict[Sum, _Moments] = {}
    axes: dict[Sum, int] = {}

    def look(own: Sum, convolves: int, shortcut: Tensor, branch: Tensor) -> Tensor:
        if shortcut.shape == branch.shape and branch.dim() > 1 and branch.is_floating_point():
            axes[own] = 1 if branch.dim() == convolves + 2 else -1
            found = _take_moments(shortcut, branch, axes[own], generator)
            if own in moments:
                moments[own].add(found)
            else:
                moments[own] = found
                check_size(sum(8 * 2 * len(one.shortcut) ** 2 for one in moments.values()))
        return branch

    sums = {own: _find_dimensions(model, branch) for branch in branches for own in branch.sums}
    watched = {own: partial(look, own, convolves) for own, convolves in sums.items()}
    with replace_branches(model, watched) as restart:
        for x in batches:
            call_on_batch(model, x)
            restart()
    return {own: _fit(found, axes[own], ridge) for own, found in moments.items()}


def _find_dimensions(model: nn.Module, branch: Branch) -> int:
    """Of the places that the last layer of a branch convolves over; -1 where that is no convolution."""
    layers = []
    for stub in branch.stubs:
        layers += [module for module in model.get_submodule(stub.module).modules() if is_product(module)]
    if not layers or isinstance(layers[-1], nn.Linear):
        return -1
    return layers[-1].get_parameter("weight").dim() - 2


def _take_moments(shortcut: Tensor, branch: Tensor, axis: int, generator: torch.Generator) -> _Moments:
    """Of the same places in every example."""
    places = shortcut.movedim(axis, -1)[0, ..., 0].numel()
    chosen = torch.randperm(places, generator=generator)[:PLACES].to(shortcut.device)
    p, q = _rows_at(shortcut, axis, chosen), _rows_at(branch, axis, chosen)
    return _Moments(len(p), p.sum(0), q.sum(0), p.T @ p, p.T @ q)


def _rows_at(value: Tensor, axis: int, places: Tensor) -> Tensor:
    """[rows, channels] in float64, examples first."""
    laid_out = value.movedim(axis, -1)
    flat = laid_out.reshape(len(value), -1, laid_out.shape[-1])
    return flat[:, places].flatten(0, 1).double()


def _fit(moments: _Moments, axis: int, ridge: float) -> _Prediction:
    shortcut, branch = moments.shortcut / moments.rows, moments.branch / moments.rows
    square = moments.square / moments.rows - torch.outer(shortcut, shortcut)
    product = moments.product / moments.rows - torch.outer(shortcut, branch)
    # Shortcuts that are zero everywhere predict nothing.
    size = square.diagonal().mean().clamp(min=1e-30)
    square.diagonal().add_(ridge * size)
    matrix = torch.linalg.solve(square, product)
    return _Prediction(matrix.float(), (branch - shortcut @ matrix).float(), axis)
