"""How much the layers that read a group lose for good when its units go: what no refit of their weights can
make up for.

For each layer that reads the group (a convolution or a Linear layer), X are its inputs in the dense model, H
= X'X / n centred, W its weight as a matrix, and G = E[g g'] with g the gradient of <outputs, v> at the
layer's output, v ~ N(0, I): the Gauss-Newton matrix of the squared error of the model's outputs, from
unlabelled examples. Removing unit j and refitting the others costs

    e_j = tr(W_j' [(H^-1)_jj]^-1 W_j G)

after which W <- W - (H^-1)_:j [(H^-1)_jj]^-1 W_j and H^-1 is updated for the inputs that are left. Units go
one by one, the cheapest first; of wide groups one in 64 of those that are left goes at a time. The errors add
up to a curve for each group, of several layers that read it to the sum of theirs. A unit's score is the slope
of the curve's lower convex hull where the unit goes, so that taking units of all groups by score per cost is
choosing by one Lagrange multiplier.

Weighed by places (segmentations), g is the gradient of log p(y), y being classes drawn from the predictions
p, and H = sum w X'X / sum w with the weights w of `drawn_classes`: most pixels are background, which the
model is sure of, and alike they would be most of H.

A residual branch has the error of `branch_errors`, the experts of a mixture have those of `expert_errors`.

Source: optimal brain surgeon (Hassibi and Stork 1993) on groups of weights.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError, TrainingError
from sparsify.formatting.numbers import list_few
from sparsify.forward.calls import first_tensor
from sparsify.graph.model_map import Coupled, Mixture, ModelMap
from sparsify.objective.objective import move, require_gradients
from sparsify.objective.predictions import call_on_batch, find_prediction
from sparsify.pruning.criteria.branch_errors import branch_errors
from sparsify.pruning.criteria.drawn_classes import measure_lengths, sum_surprise, weigh
from sparsify.pruning.criteria.error_curve import score_by_curve
from sparsify.pruning.criteria.expert_errors import expert_errors
from sparsify.pruning.criteria.layer_gradients import LayerOutput, differentiate, project_outputs
from sparsify.pruning.criteria.surgeon import Surgeon
from sparsify.pruning.layer_matrix import (
    Places,
    groups_of,
    input_rows,
    is_product,
    output_rows,
    sample_places,
    weight_matrix,
    weight_rows,
)
from sparsify_schemas.criterion import Criterion, Reconstruction
from sparsify_schemas.task import Task

PLACES = 64
"""outputs of one example at which the inputs of a layer are sampled, at most"""
MEMORY = 2 * 2**30
"""bytes that the matrices H of all readers may take, at most, where the criterion is a default"""
STEPS = 64
"""of the units that are left, one in so many goes at a time"""


class CannotScoreError(ModelError):
    """A group that the criterion cannot score.

    reason: in half a sentence; required: whether this ends the run, or another criterion takes over.
    """

    def __init__(self, reason: str, required: bool) -> None:
        super().__init__(
            f"criterion 'reconstruction' cannot score a group: {reason}; use magnitude or taylor there"
        )
        self.reason, self.required = reason, required


_WHERE = "criterion 'reconstruction': "
LEAST_VARIANCE = 1e-12
"""of an input, relative to its mean square: six digits are the same"""


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group. columns: unit -> numbers of the weight's columns that multiply it."""

    layer: str
    columns: tuple[Tensor, ...]


@dataclass
class _Moments:
    """Sums over the examples seen so far."""

    rows: float = 0.0
    """how many, or the sum of their weights"""
    total: Tensor | None = None
    """sum of x"""
    square: Tensor | None = None
    """sum of x x'"""
    curvature: Tensor | None = None
    """sum of g g' over places and examples"""
    examples: int = 0
    reached: bool = False
    """whether a gradient came back to the layer"""

    def add_inputs(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """rows: [rows, columns] in float64."""
        weighed = rows if weights is None else rows * weights[:, None]
        square = weighed.T @ rows
        self.rows += len(rows) if weights is None else float(weights.sum())
        self.total = weighed.sum(0) if self.total is None else self.total + weighed.sum(0)
        self.square = square if self.square is None else self.square + square

    def inputs(self) -> Tensor:
        """H, the covariance of the inputs."""
        assert self.total is not None and self.square is not None
        mean = self.total / self.rows
        return self.square / self.rows - mean[:, None] * mean

    def vary(self) -> bool:
        """Whether an input varies by more than float32 rounds."""
        assert self.square is not None
        mean_squares = self.square.diagonal() / self.rows
        return bool((self.inputs().diagonal() > LEAST_VARIANCE * mean_squares).any())

    def outputs(self) -> Tensor:
        """G, summed over the places of one example."""
        assert self.curvature is not None
        return self.curvature / self.examples


def model_scores(
    spec: Criterion,
    model: nn.Module,
    model_map: ModelMap,
    names: Sequence[str],
    batches: Sequence[tuple[Tensor, Tensor]],
    seed: int,
    task: Task,
) -> dict[str, Tensor]:
    """Scores of a criterion that sees the model in ways of its own, of which this is the only one."""
    assert isinstance(spec, Reconstruction)
    weighed = task if task.weighs_places(spec.weigh) else None
    taken = batches[: spec.batches]
    score = partial(reconstruction_scores, model, model_map, names, taken, spec.ridge, seed, spec.required)
    try:
        return score(weighed)
    except (ModelError, TrainingError) as error:
        if weighed is None or spec.weigh is not None or isinstance(error, CannotScoreError):
            raise
    return score(None)  # a model whose predictions of classes cannot be told


def reconstruction_scores(
    model: nn.Module,
    model_map: ModelMap,
    names: Sequence[str],
    batches: Sequence[tuple[Any, Any]],
    ridge: float,
    seed: int,
    required: bool = True,
    task: Task | None = None,
) -> dict[str, Tensor]:
    """Scores of the units of coupled groups: group -> [units], in the order of the units.

    Args:
        model: the dense model; it is left in eval mode.
        batches: (x, y) pairs of which x is looked at.
        ridge: added to the diagonal of H, relative to its mean.
        required: whether no other criterion takes over where this one cannot; the matrices H may then take
            any memory.
        task: whose predictions of classes weigh the places of what layers give; None: all count alike.

    Raises:
        CannotScoreError: no convolution and no Linear layer reads a group, no gradient reaches one that does,
            what arrives at one is not finite, nothing that arrives varies, the matrices are too large, or the
            module of a mixture is not called.
    """
    branches = [branch for branch in model_map.branches if branch.name in names]
    inputs = [x for x, _ in batches]
    check_size = partial(_check_size, required)
    errors = branch_errors(model.eval(), branches, inputs, ridge, seed, check_size)
    mixtures = [mixture for mixture in model_map.mixtures if mixture.name in names]
    errors |= expert_errors(model, mixtures, inputs, seed)
    _check_mixtures(mixtures, errors, required)
    _check_errors(errors, required)
    groups = {name: model_map.by_name[name] for name in names if name not in errors}
    if not groups:
        return errors
    readers = {name: tuple(find_readers(model, group)) for name, group in groups.items()}
    _check_readers(readers, required)
    layers = sorted({reader.layer for own in readers.values() for reader in own})
    size = 8 * sum(weight_matrix(model.get_submodule(layer)).shape[1] ** 2 for layer in layers)
    check_size(size)
    moments = _gather_moments(model.eval(), layers, inputs, seed, task)
    for name, own in readers.items():
        readers[name] = tuple(reader for reader in own if moments[reader.layer].rows)
    _check_readers(readers, required)
    _check_moments(readers, moments, required)
    if not any(moments[reader.layer].vary() for own in readers.values() for reader in own):
        raise CannotScoreError(
            f"what arrives at {list_few(tuple(map(repr, layers)), 3)} is the same at every place of every "
            "example",
            required,
        )
    scores = {name: _score_units(model, readers[name], moments, groups[name].width, ridge) for name in groups}
    return errors | scores


def _check_errors(errors: Mapping[str, Tensor], required: bool) -> None:
    for name, error in errors.items():
        if not bool(error.isfinite().all()):
            raise CannotScoreError(f"without '{name}' the outputs are NaN or infinite", required)


def _check_mixtures(mixtures: Sequence[Mixture], errors: Mapping[str, Tensor], required: bool) -> None:
    for mixture in mixtures:
        if mixture.name not in errors:
            raise CannotScoreError(
                f"'{mixture.module}', which holds the experts and the router of '{mixture.name}', is not "
                "called as a module",
                required,
            )


def _check_size(required: bool, size: int) -> None:
    """size: in bytes."""
    if not required and size > MEMORY:
        raise CannotScoreError(
            f"its matrices take {size / 2**30:.1f} GiB, which is more than {MEMORY // 2**30}", required
        )


def _check_readers(readers: Mapping[str, Sequence[Reader]], required: bool) -> None:
    for name, own in readers.items():
        if not own:
            raise CannotScoreError(
                f"no convolution or Linear layer without groups, called as a layer, reads '{name}'", required
            )


def _check_moments(
    readers: Mapping[str, Sequence[Reader]], moments: Mapping[str, _Moments], required: bool
) -> None:
    for name, own in readers.items():
        layers = [reader.layer for reader in own]
        if not any(moments[layer].reached for layer in layers):
            raise CannotScoreError(
                f"no gradient reaches {', '.join(map(repr, layers))}, which reads '{name}'", required
            )
        for layer in layers:
            seen = (moments[layer].inputs(), moments[layer].outputs())
            if not all(bool(matrix.isfinite().all()) for matrix in seen):
                raise CannotScoreError(
                    f"NaN or infinity arrives at '{layer}', which reads '{name}', or its gradients are such",
                    required,
                )


def find_readers(model: nn.Module, group: Coupled) -> Iterator[Reader]:
    """The layers whose inputs a group's units are."""
    for part in group.slices:
        layer, _, tensor = part.tensor.rpartition(".")
        module = model.get_submodule(layer)
        if part.role != "in" or tensor != "weight" or not is_product(module) or groups_of(module) != 1:
            continue
        weight = module.get_parameter("weight")
        if weight.is_complex():
            continue
        inputs = weight.shape[part.dim]
        taps = weight_matrix(module).shape[1] // inputs
        owners = torch.full((inputs,), -1)
        for span in part.spans:
            end = span.start + span.units * span.repeat
            owners[span.start : end] = span.unit + torch.arange(span.units).repeat_interleave(span.repeat)
        columns = owners.repeat_interleave(taps)
        yield Reader(layer, tuple((columns == unit).nonzero().flatten() for unit in range(group.width)))


def _gather_moments(
    model: nn.Module, layers: Sequence[str], inputs: Sequence[Tensor], seed: int, task: Task | None
) -> dict[str, _Moments]:
    """Pass the examples through the model, forwards and backwards, and add up what the layers see."""
    moments = {name: _Moments() for name in layers}
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    outputs: dict[str, list[LayerOutput]] = {}
    sampled: dict[str, list[tuple[Tensor, Places]]] = {}
    """what places of these outputs are computed from, until their weights are known"""

    def after(name: str) -> Callable[[nn.Module, Any, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            given = first_tensor(args, kwargs)
            assert given is not None
            outputs.setdefault(name, []).append(LayerOutput.of(output))
            places = sample_places(module, output.detach(), PLACES, generator)
            rows = input_rows(module, given.detach(), places)[:, 0].double()
            if task is None:
                moments[name].add_inputs(rows)
            else:
                sampled.setdefault(name, []).append((rows, places))

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(after(name), with_kwargs=True) for name in layers
    ]
    require_gradients(model)
    try:
        for x in inputs:
            outputs.clear()
            sampled.clear()
            returned = call_on_batch(model, move(x, device))
            if task is None:
                examples, loss = 1, project_outputs(returned, generator)
            else:
                scores = find_prediction(returned, task, _WHERE)
                loss = sum_surprise(scores, task, generator, _WHERE)
                examples = len(scores)
            if not outputs:
                break  # their weights are read in ways of the layer above them
            seen = [(name, output) for name, own in outputs.items() for output in own]
            gradients = differentiate(loss, [output for _, output in seen])
            for (name, output), gradient in zip(seen, gradients, strict=True):
                module = model.get_submodule(name)
                _add_curvature(module, moments[name], output.values, gradient)
                if task is not None:
                    rows, places = sampled[name].pop(0)
                    moments[name].add_inputs(rows, _weigh_rows(module, gradient, places, examples))
            for name, own in outputs.items():  # what a layer gives at several calls is of the same examples
                moments[name].examples += len(own[0].values)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _weigh_rows(module: nn.Module, gradient: Tensor | None, places: Places, examples: int) -> Tensor | None:
    """Weights of a layer's outputs at the places, [rows]; None where no gradient comes back to it."""
    if gradient is None:
        return None
    sizes = measure_lengths(module, gradient)
    weights = weigh(sizes, examples if len(sizes) % examples == 0 else 1)
    return weight_rows(module, weights, places).double()


def _add_curvature(module: nn.Module, own: _Moments, output: Tensor, gradient: Tensor | None) -> None:
    own.reached |= gradient is not None
    found = torch.zeros_like(output) if gradient is None else gradient
    every = sample_places(module, found, found.numel(), torch.Generator())
    rows = output_rows(module, found, every).double()
    product = rows.T @ rows
    own.curvature = product if own.curvature is None else own.curvature + product


def _score_units(
    model: nn.Module, readers: Sequence[Reader], moments: Mapping[str, _Moments], width: int, ridge: float
) -> Tensor:
    surgeons = [
        Surgeon(
            weight_matrix(model.get_submodule(reader.layer))[0].double(),
            moments[reader.layer].inputs(),
            moments[reader.layer].outputs(),
            reader.columns,
            ridge,
        )
        for reader in readers
    ]
    order: list[int] = []
    errors = [0.0]
    left = torch.arange(width)
    while len(left):
        costs = torch.stack([surgeon.costs(left) for surgeon in surgeons]).sum(0).cpu()
        # Of a wide group several units go at a time, as matrices are updated faster by many columns at once.
        count = max(1, len(left) // STEPS)
        cheapest = costs.argsort(stable=True)[:count]
        leaving = left[cheapest]
        error = max(0.0, sum(surgeon.remove(leaving) for surgeon in surgeons))
        errors += [errors[-1] + error * (number + 1) / count for number in range(count)]
        order += leaving.tolist()
        staying = torch.ones(len(left), dtype=torch.bool)
        staying[cheapest] = False
        left = left[staying]
    return score_by_curve(order, errors)
