"""Calibration examples: batches as a user has them, joined into one call of the model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsify.data.targets import split_target
from sparsify.errors import ModelError, first_line
from sparsify.forward.calls import Inputs
from sparsify.pruning.repair.agreement import take_examples


def collect_examples(
    batches: Iterable[Any] | None, examples: int, caller: str = "repair"
) -> tuple[Inputs, int]:
    """Join batches into one call, and count its examples; shorter sequences are padded with zeros at their
    ends.

    Raises ModelError when there are none.
    """
    if isinstance(batches, Tensor | str | Mapping) or not isinstance(batches, Iterable):
        raise ModelError(
            f"{caller} takes an iterable of batches, found {type(batches).__name__}; put "
            "a single batch in a list"
        )
    parts: list[Any] = []
    count = 0
    for batch in batches:
        inputs = _find_inputs(batch, caller)
        parts.append(inputs)
        count += _count(inputs)
        if count >= examples:
            break
    if not count:
        raise ModelError(
            f"{caller} needs calibration examples, and the batches held none; "
            "pass unlabelled training examples"
        )
    try:
        joined = _join(parts)
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ModelError(f"the batches do not fit each other: {first_line(error)}") from None
    used = min(count, examples)
    return take_examples(joined, count, 0, used), used


def _find_inputs(batch: Any, caller: str) -> Any:
    """The inputs of a batch: x of (x, y), what a mapping holds besides its targets, a tensor as the only
    input."""
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, Mapping) and any(isinstance(value, Tensor) for value in batch.values()):
        return dict(split_target(batch, None)[0])
    if isinstance(batch, Sequence) and batch:
        first = batch[0]
        if isinstance(first, tuple) and first and all(isinstance(value, Tensor) for value in first):
            return first
        if isinstance(first, Tensor | Mapping):
            return _find_inputs(first, caller)
    raise ModelError(
        f"{caller} takes batches that are tensors, mappings of tensors or (x, y) "
        f"pairs, found {type(batch).__name__}"
    )


def _count(inputs: Any) -> int:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((len(value) for value in values if isinstance(value, Tensor) and value.dim()), 0)


def _join(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _join_values([part[key] for part in parts]) for key in first}
    return tuple(_join_values(values) for values in zip(*parts, strict=True))


def _join_values(values: Sequence[Any]) -> Any:
    if not isinstance(values[0], Tensor):
        return values[0]
    if len({value.dim() for value in values}) > 1 or values[0].dim() != 2 or values[0].is_floating_point():
        return torch.cat(list(values))  # only rows of tokens and their masks are padded
    length = max(value.shape[1] for value in values)
    return torch.cat([functional.pad(value, (0, length - value.shape[1])) for value in values])
