"""Calibration examples: batches as a user has them, joined into one call of the model."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from sparsify.data.targets import split_target
from sparsify.errors import ModelError, first_line
from sparsify.forward.calls import Inputs, argument_names, required_arguments
from sparsify.graph.model_map import ModelMap
from sparsify.pruning.repair.agreement import take_examples


def collect_examples(
    batches: Iterable[Any] | None,
    examples: int,
    caller: str = "repair",
    taken: Collection[str] = (),
) -> tuple[Inputs, int]:
    """Join batches into one call, and count its examples; shorter sequences are padded with zeros at their
    ends.

    taken: names of arguments that the model is given: a batch that is a mapping may hold targets beside
    them, under one of their usual names, and those are left out.

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
        inputs = _find_inputs(batch, caller, taken)
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
    except RuntimeError as error:  # such as tensors on several devices
        raise ModelError(f"the batches do not fit each other: {first_line(error)}") from None
    used = min(count, examples)
    return take_examples(joined, count, 0, used), used


def list_arguments(model: nn.Module, model_map: ModelMap) -> frozenset[str]:
    """Names of the arguments that the map was made with, and of those that no call can do without."""
    found = set(required_arguments(model))
    for each in model_map.inputs:
        by_place = argument_names(model, each.method)
        places = dict(enumerate(by_place))
        found |= {one.name or places.get(place, "") for place, one in enumerate(each.arguments)}
    return frozenset(found)


def list_missing(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Arguments that a call needs and a batch does not give."""
    given = inputs if isinstance(inputs, Mapping) else argument_names(model)[: len(inputs)]
    return tuple(name for name in required_arguments(model) if name not in given)


def _find_inputs(batch: Any, caller: str, taken: Collection[str]) -> Any:
    """The inputs of a batch: x of (x, y), what a mapping holds besides its targets, a tensor as the only
    input."""
    if isinstance(batch, Tensor):
        return (batch,)
    if isinstance(batch, Mapping) and any(isinstance(value, Tensor) for value in batch.values()):
        inputs, _ = split_target(batch, None)
        return {name: value for name, value in batch.items() if name in inputs or name in taken}
    if isinstance(batch, Sequence) and batch:
        first = batch[0]
        if isinstance(first, tuple) and first and all(isinstance(value, Tensor) for value in first):
            return first
        if isinstance(first, Mapping) and len(batch) > 1:  # the targets lie beside them
            return _find_inputs(first, caller, first.keys())
        if isinstance(first, Tensor | Mapping):
            return _find_inputs(first, caller, taken)
        if isinstance(first, list) and first and all(isinstance(value, Tensor) for value in first):
            raise ModelError(
                f"{caller} found a list of {len(first)} tensors as the inputs of a batch; if they are "
                "arguments of the model, as torch's DataLoader lists them, give a tuple or a mapping: "
                "[(tuple(x), y) for x, y in loader]"
            )
    raise ModelError(
        f"{caller} takes batches that are tensors, mappings of tensors or (x, y) "
        f"pairs, found {_describe(batch)}"
    )


def _describe(batch: Any) -> str:
    """What a batch is that cannot be taken, and how to make tensors of NumPy's arrays."""
    found, inside = type(batch).__name__, list[Any]()
    if isinstance(batch, Mapping):
        inside = list(batch.values())
    elif isinstance(batch, list | tuple):
        inside = list(batch)
        kinds = ", ".join(type(value).__name__ for value in inside)
        if len(inside) < 4:
            found += f" ({kinds})"
    is_numpy = any(isinstance(value, numpy.ndarray) for value in (batch, *inside))
    return f"{found}; make tensors of NumPy's arrays by torch.from_numpy" if is_numpy else found


def _count(inputs: Any) -> int:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((len(value) for value in values if isinstance(value, Tensor) and value.dim()), 0)


def _join(parts: Sequence[Any]) -> Any:
    first = parts[0]
    counts = [_count(part) for part in parts]
    for number, part in enumerate(parts, 1):
        if type(part) is not type(first) or _list_names(part) != _list_names(first):
            raise ModelError(
                f"the batches do not fit each other: batch {number} has the inputs {_show_names(part)}, the "
                f"first one {_show_names(first)}"
            )
    names = first if isinstance(first, Mapping) else range(len(first))
    joined = {}
    for name in names:
        joined[name] = _join_values(str(name), [part[name] for part in parts], counts)
    return joined if isinstance(first, Mapping) else tuple(joined.values())


def _list_names(inputs: Any) -> set[Any]:
    return set(inputs) if isinstance(inputs, Mapping) else set(range(len(inputs)))


def _show_names(inputs: Any) -> str:
    return ", ".join(map(str, inputs if isinstance(inputs, Mapping) else range(len(inputs)))) or "none"


def _join_values(name: str, values: Sequence[Any], counts: Sequence[int]) -> Any:
    """One input of all batches: its examples behind each other, or what is the same in every batch.

    counts: examples of each batch.
    """
    first = values[0]
    if not all(isinstance(value, Tensor) for value in values):
        if any(isinstance(value, Tensor) for value in values):
            raise ModelError(
                f"the batches do not fit each other: input '{name}' is a tensor in some and none in others"
            )
        return first
    has_examples = all(
        value.dim() > 0 and len(value) == count for value, count in zip(values, counts, strict=True)
    )
    if not has_examples:  # such as one mask [positions, positions] for all examples
        for number, value in enumerate(values, 1):
            if not torch.equal(value, first):
                raise ModelError(
                    f"the batches do not fit each other: input '{name}' has no dimension for the examples, "
                    f"and batch {number} has another one than the first; give the repair batches that "
                    "have the same, or one batch"
                )
        return first
    if first.dim() == 2 and not first.is_floating_point():  # rows of tokens and their masks are padded
        values = _pad(name, values)
        first = values[0]
    for number, value in enumerate(values, 1):
        if value.shape[1:] != first.shape[1:]:
            raise ModelError(
                f"the batches do not fit each other: input '{name}' has the shape {list(value.shape)} in "
                f"batch {number} and {list(first.shape)} in the first; only the number of examples, "
                "which comes first, may differ, and the length of rows of tokens: pad the others to one size"
            )
    return torch.cat(list(values))


def _pad(name: str, values: Sequence[Tensor]) -> Sequence[Tensor]:
    """Rows of one length, with zeros at their ends; in a mask of torch's kind, True says what is padded."""
    if any(value.dim() != 2 for value in values):
        return values
    length = max(value.shape[1] for value in values)
    is_told = name.endswith("padding_mask") and values[0].dtype == torch.bool
    return [functional.pad(value, (0, length - value.shape[1]), value=is_told) for value in values]
