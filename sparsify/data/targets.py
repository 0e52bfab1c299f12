"""Targets as a task takes them: what fits is converted, what does not is refused with the place of the
fault."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from sparsify.data.columns import IGNORED, Column, Varied, leaves, map_leaves, stack
from sparsify.errors import DataError
from sparsify_schemas.task import Task

NAMES = ("labels", "label", "targets", "target", "y")
"""keys of an example under which its target is looked for, in this order"""


def split_target(example: Any, name: str | None, where: str = "an example") -> tuple[Any, Any]:
    """(inputs, target) of a column, mapping or anything else that holds both; the target is None where it is
    nowhere.

    name: the key of the target; None to look under the usual names. Raises DataError, which begins with
    `where`, if there is no such key.
    """
    if not isinstance(example, Mapping):
        return example, None
    if name is not None and name not in example:
        keys = ", ".join(map(str, example))
        raise DataError(f"{where} has no key '{name}', which data.target names; its keys are {keys}")
    key = next((key for key in ((name,) if name else NAMES) if key in example), None)
    inputs = {other: value for other, value in example.items() if other != key}
    return inputs, None if key is None else example[key]


def split_batch(batch: Any, name: str | None = None, optional: bool = False) -> tuple[Any, Any]:
    """(inputs, targets) of a pair, or of a mapping with the targets under a usual name.

    optional: targets may be missing, of a tensor, a mapping or a list of one tensor; they are None then.
    Raises DataError where there are no targets.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if optional and isinstance(batch, tuple | list) and len(batch) == 1:  # as a TensorDataset of inputs gives
        return batch[0], None
    if optional and isinstance(batch, Mapping) and name not in batch:
        name = None
    inputs, targets = split_target(batch, name, "a batch")
    if targets is None and not (optional and isinstance(batch, Tensor | Mapping)):
        raise DataError(
            f"a batch is a {type(batch).__name__} without targets; pass pairs (inputs, targets), or mappings "
            f"with one of {', '.join(NAMES)}"
        )
    return inputs, targets


def convert_targets(targets: Column | None, inputs: Column, task: Task, name: str) -> Column:
    """The targets as the task takes them: whole numbers as int64, real ones as float32.

    Raises DataError, which begins with `name`.
    """
    if targets is None:
        targets = _from_inputs(inputs, task, name)
    match task.kind:
        case "classification":
            return _classes(targets, name)
        case "multilabel":
            return _labels(targets, name)
        case "regression":
            return map_leaves(targets, lambda leaf: _real(leaf, name))
        case "segmentation":
            return _ignore(_masks(targets, name), task)
        case "language_model" | "masked_language_model":
            return _ignore(_tokens(targets, name), task)
        case "own":
            return targets


def _from_inputs(inputs: Column, task: Task, name: str) -> Column:
    if task.kind == "language_model":
        return _token_ids(inputs, name)
    if task.kind == "regression" and isinstance(inputs, Tensor):
        return inputs.float().div(255) if inputs.dtype == torch.uint8 else inputs
    raise DataError(
        f"{name}: has no targets; return pairs (inputs, targets), or mappings with one of "
        f"{', '.join(NAMES)}, or say in data.target which key holds them"
    )


def _token_ids(inputs: Column, name: str) -> Column:
    """The tokens themselves, -100 where the attention mask is zero."""
    ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs
    if not isinstance(ids, Tensor | Varied):
        raise DataError(f"{name}: has neither targets nor 'input_ids' to take them from")
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if isinstance(ids, Tensor) and isinstance(mask, Tensor):
        return ids.long().masked_fill(mask == 0, IGNORED)
    return ids


def _classes(targets: Column, name: str) -> Tensor:
    tensor = _single(targets, name)
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    if tensor.ndim != 1 or not _is_whole(tensor):
        raise DataError(
            f"{name}: targets must be whole numbers, one per example; they are {describe(tensor)}"
            f"{_other_task(tensor)}"
        )
    if len(tensor) and int(tensor.min()) < 0:
        raise DataError(f"{name}: target {int(tensor.min())} is out of range; classes count from 0")
    return tensor.long()


def _other_task(targets: Tensor) -> str:
    """Which task such targets are usually of."""
    if targets.ndim >= 3 and _is_whole(targets):
        return "; for a class in each pixel write 'task: segmentation'"
    if targets.ndim == 2 and bool(((targets == 0) | (targets == 1)).all()):
        return "; for several labels of an example write 'task: multilabel'"
    return "; for real numbers write 'task: regression'" if targets.is_floating_point() else ""


def _labels(targets: Column, name: str) -> Tensor:
    tensor = _single(targets, name)
    if tensor.ndim != 2 or not bool(((tensor == 0) | (tensor == 1)).all()):
        raise DataError(
            f"{name}: targets of a multilabel task are 0 or 1 for each label, (examples, labels); "
            f"they are {describe(tensor)}"
        )
    return tensor.float()


def _real(targets: Tensor | Varied, name: str) -> Tensor:
    tensor = _single(targets, name).float()
    if not bool(tensor.isfinite().all()):
        raise DataError(f"{name}: {int((~tensor.isfinite()).sum())} targets are NaN or infinite")
    return tensor


def _masks(targets: Column, name: str) -> Column:
    if isinstance(targets, Varied):
        return stack([_mask(item, name, 2) for item in targets.items])
    return _mask(_single(targets, name), name, 3)


def _mask(mask: Any, name: str, dimensions: int) -> Tensor:
    if isinstance(mask, Tensor) and mask.ndim == dimensions + 1 and mask.shape[dimensions - 2] == 1:
        mask = mask.squeeze(dimensions - 2)
    is_mask = isinstance(mask, Tensor) and mask.ndim == dimensions and not mask.is_complex()
    if not is_mask or (mask.is_floating_point() and bool((mask != mask.round()).any())):
        raise DataError(
            f"{name}: targets of a segmentation are the number of a class for each pixel, "
            f"(examples, height, width); they are {describe(mask)}"
        )
    whole: Tensor = mask.long()
    return whole


def _tokens(targets: Column, name: str) -> Column:
    if isinstance(targets, Varied):
        wrong = next((item for item in targets.items if not _is_tokens(item, 1)), None)
        if wrong is None:
            return Varied(tuple(item.long() for item in targets.items))
        raise DataError(f"{name}: targets are token numbers, one per token; an example has {describe(wrong)}")
    tensor = _single(targets, name)
    if not _is_tokens(tensor, 2):
        raise DataError(f"{name}: targets are token numbers, (examples, tokens); they are {describe(tensor)}")
    return tensor.long()


def _is_tokens(value: Any, dimensions: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == dimensions and _is_whole(value)


def _ignore(targets: Column, task: Task) -> Column:
    """Targets that the task ignores become -100."""
    if task.ignore == IGNORED:
        return targets
    if isinstance(targets, Varied):
        return Varied(tuple(item.masked_fill(item == task.ignore, IGNORED) for item in targets.items))
    return targets.masked_fill(targets == task.ignore, IGNORED)


def _single(targets: Column, name: str) -> Tensor:
    if isinstance(targets, Tensor):
        if targets.is_floating_point() and not bool(targets.isfinite().all()):
            raise DataError(f"{name}: {int((~targets.isfinite()).sum())} targets are NaN or infinite")
        return targets
    found = leaves(targets)
    what = "of different shapes" if isinstance(targets, Varied) else f"in {len(found)} parts"
    raise DataError(f"{name}: targets must be one tensor; they are {what}")


def _is_whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def holds_pixels(leaf: Tensor | Varied, size: Sequence[int]) -> TypeGuard[Tensor]:
    """Whether a part of the targets has a number for each pixel of images [N, C, *size]."""
    return isinstance(leaf, Tensor) and leaf.dim() >= 3 and tuple(leaf.shape[-2:]) == tuple(size)


def describe(x: Any) -> str:
    """'10x3 float32'"""
    if not isinstance(x, Tensor):
        return f"a {type(x).__name__}"
    return f"{'x'.join(map(str, x.shape)) or 'a single number'} {str(x.dtype)[6:]}"
