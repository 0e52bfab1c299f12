"""How far a cut model still says what the dense model says of the same inputs."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsify.distributed import add_over_processes
from sparsify.errors import ModelError
from sparsify.forward.call_model import call_model, every_tensor
from sparsify.forward.calls import Inputs, map_tensors
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.trial_calls import eval_mode
from sparsify_schemas.report import Agreement

CHUNK = 64
"""examples of one forward call, at most"""
FIRST_CHUNK = 8
"""of the first call, which tells how large the outputs of one example are"""
ROUNDING = 1e-6
"""outputs that vary by less than this part of their size are the same for all examples"""
OUTPUT_BYTES = 2**26
"""of the outputs of one forward call, at most, unless one example has more: a language model scores every
word of its vocabulary"""


def measure_agreement(
    dense: nn.Module,
    model: nn.Module,
    inputs: Inputs,
    examples: int,
    processes: Any = None,
    classes: bool = True,
) -> Agreement:
    """Compare the outputs of two models on the same inputs, in eval mode; each gets its own mode back.

    With a and b the outputs of dense and cut model, each less its mean over the examples:

        correlation = sum(a b) / sqrt(sum(a a) sum(b b)),    error = sum((y_cut - y_dense)^2) / sum(a a)

    Args:
        inputs: one call with all examples along the first dimension of each tensor that has as many.
        examples: how many.
        processes: process group, each of which has other examples.
        classes: whether an output [N, C] is scores of C classes.

    A correlation near zero says that the outputs no longer follow the inputs.
    """
    if not examples:
        return Agreement(correlation=1.0, error=0.0)
    compared = _Comparison(processes)
    start, size = 0, FIRST_CHUNK
    with eval_mode(dense, model), without_fused_attention():
        axes = _find_example_axes(dense, inputs, examples)
        while start < examples:
            # One example left over joins the others: some models drop dimensions of length 1.
            is_last = size > 1 and start + size == examples - 1
            end = examples if is_last else min(start + size, examples)
            part = take_examples(inputs, examples, start, end)
            outputs = [_list_by_example(one, part, axes) for one in (dense, model)]
            compared.add(*outputs)
            size = _fit_chunk(outputs[0], end - start)
            start = end
    return compared.summarize(classes)


class _Comparison:
    """Sums over the outputs of two models, from which agreement follows, without the outputs themselves.

    Outputs are taken relative to their mean over the first examples, so that no sum of squares is large
    beside the spread: sum((a - mean)^2) = sum((a - s)^2) - n (mean - s)^2 for every shift s.
    """

    def __init__(self, processes: Any) -> None:
        self._processes = processes
        self._shifts: tuple[Tensor, Tensor] | None = None
        self._count = 0
        self._sums: list[Tensor] = []
        """of both models' outputs, over the examples"""
        self._products = torch.zeros(4, dtype=torch.float64)
        """a a, b b, a b, and the squared difference, over everything"""
        self._pairs: list[tuple[int, int]] | None = []
        """examples of the same class and all examples of each call; None where there are no classes"""

    def add(self, dense: list[Tensor], cut: list[Tensor]) -> None:
        """Add the outputs of one call."""
        joined = _join_outputs(dense)
        known = ~joined.reshape(len(joined), -1).isnan().any(1)
        # An example that is all padding may come to no number.
        if bool(known.any()) and not bool(known.all()):
            dense = [one[known] for one in dense]
            cut = [one[known] for one in cut]
        first, second = _join_outputs(dense).double(), _join_outputs(cut).double()
        masked = first.isinf()  # such as scores of classes that do not count
        if bool(masked.any()):
            first, second = first.masked_fill(masked, 0.0), second.masked_fill(masked, 0.0)
        if self._shifts is None:
            self._shifts = self._mean(first), self._mean(second)
            self._sums = [torch.zeros_like(first[0]), torch.zeros_like(second[0])]
        a, b = first - self._shifts[0], second - self._shifts[1]
        self._count += len(first)
        self._sums[0] += a.sum(0)
        self._sums[1] += b.sum(0)
        # One product at a time: each is as large as the outputs, in float64.
        sums = (a * a).sum(), (b * b).sum(), (a * b).sum(), (second - first).square().sum()
        self._products += torch.stack(sums).cpu()
        same = count_same_classes(dense[0], cut[0]) if len(dense) == 1 else None
        self._pairs = None if same is None or self._pairs is None else [*self._pairs, (same, len(first))]

    def _mean(self, outputs: Tensor) -> Tensor:
        """Over the first examples of all processes."""
        count = add_over_processes(outputs.new_tensor(len(outputs)), self._processes)
        return add_over_processes(outputs.sum(0), self._processes) / count

    def summarize(self, classes: bool) -> Agreement:
        """Agreement over the examples of all processes."""
        device = self._sums[0].device
        numbers = [float(self._count), *self._products.tolist()]
        reduced = add_over_processes(
            torch.tensor(numbers, dtype=torch.float64, device=device), self._processes
        )
        count, of_dense, of_cut, joint, distance = reduced.tolist()
        mean, other = (add_over_processes(value, self._processes) / count for value in self._sums)
        total = max(0.0, of_dense - count * float((mean * mean).sum()))
        assert self._shifts is not None
        if total <= count * ROUNDING**2 * float(self._shifts[0].square().sum()):
            total = 0.0
        of_other = max(0.0, of_cut - count * float((other * other).sum()))
        joint -= count * float((mean * other).sum())
        scale = (total * of_other) ** 0.5
        same = None
        if classes and self._pairs is not None:
            agreeing = torch.tensor(self._pairs, dtype=torch.float64, device=device).sum(0)
            right, judged = add_over_processes(agreeing, self._processes).tolist()
            same = right / judged
        correlation = min(1.0, max(-1.0, joint / scale)) if scale else 0.0
        error = distance / total if total else 0.0
        return Agreement(correlation=correlation, error=error, same_prediction=same)


def _fit_chunk(outputs: list[Tensor], examples: int) -> int:
    """How many examples the next call takes."""
    held = sum(output.numel() * output.element_size() for output in outputs) / examples
    return int(min(CHUNK, max(1, OUTPUT_BYTES // max(1.0, held))))


def share_of_same_classes(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    """Share of the examples of which both models name the same class; None where outputs are no [N, C] scores
    of two classes or more.

    pairs: outputs of both models for each batch.
    """
    same = 0
    for dense, cut in pairs:
        count = count_same_classes(dense, cut)
        if count is None:
            return None
        same += count
    return same / sum(len(a) for a, _ in pairs)


def count_same_classes(dense: Tensor, cut: Tensor) -> int | None:
    """Examples of which both name the same class; None where outputs are no [N, C] scores of two classes or
    more."""
    if dense.dim() != 2 or dense.shape[1] < 2:
        return None
    return int((dense.argmax(dim=1) == cut.argmax(dim=1)).sum())


def _find_example_axes(model: nn.Module, inputs: Inputs, examples: int) -> list[int | None]:
    """Of each floating-point output, the dimension that counts the examples; None where none does.

    It is the first one that is as long as the call has examples, with one example more and one less. Where no
    output has one, as of a model whose inputs have time first, the rows of outputs of one shape are compared.
    """
    many = min(examples, 3)
    counts = (many,) if many == 1 else (many, many - 1)
    with torch.no_grad():
        calls = [call_model(model, take_examples(inputs, examples, 0, count)) for count in counts]
    axes: list[int | None] = []
    shapes = []
    for outputs in zip(*map(_list_outputs, calls), strict=True):
        shapes.append({output.shape for output in outputs})
        lengths = list(zip(*(output.shape for output in outputs), strict=False))
        axes.append(lengths.index(counts) if counts in lengths else None)
    if any(axis is not None for axis in axes):
        return axes
    if all(len(own) == 1 for own in shapes):
        return [0] * len(axes)
    raise ModelError(
        "no dimension of the model's outputs counts its examples, so its outputs cannot be compared"
    )


def _list_by_example(model: nn.Module, inputs: Inputs, axes: list[int | None]) -> list[Tensor]:
    """What the model returns for each example, [N, ...] of each output that has a dimension for them."""
    with torch.no_grad():
        outputs = _list_outputs(call_model(model, inputs))
    pairs = zip(outputs, axes, strict=True)
    return [output.movedim(axis, 0) for output, axis in pairs if axis is not None]


def _list_outputs(output: object) -> list[Tensor]:
    """The floating-point outputs."""
    found = [one.float() for one in every_tensor(output) if one.is_floating_point() and one.dim()]
    if not found:
        raise ModelError("the model returns no floating-point numbers, so its outputs cannot be compared")
    return found


def _join_outputs(found: list[Tensor]) -> Tensor:
    """The only output as it is, of several a row for each example."""
    if len(found) == 1:
        return found[0]
    return torch.cat([one.reshape(len(one), -1) for one in found], dim=1)


def take_examples(inputs: Inputs, examples: int, start: int, end: int) -> Inputs:
    """Some of the examples of one call; tensors without an example dimension go along whole."""
    return map_tensors(
        inputs, lambda value: value[start:end] if value.dim() and len(value) == examples else value
    )


def other_lengths(inputs: Inputs, examples: int) -> frozenset[int]:
    """First sizes of the tensors of a call that have no example dimension, such as a mask of positions: a
    number of examples by which such a tensor would be taken for one of examples."""
    tensors = [value for value in every_tensor(inputs) if value.dim()]
    return frozenset(len(value) for value in tensors if len(value) != examples)
