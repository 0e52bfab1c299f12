"""Call a model on a batch, and find the prediction in what it returns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import SparsifyError, TrainingError, describe_error
from sparsify.forward.scratch import keep_values
from sparsify_schemas.task import Task


def call_on_batch(model: nn.Module, inputs: Any, where: str = "") -> Any:
    """What the model returns for the inputs of a batch: a tensor or list alone, the values of a tuple, the
    entries of a mapping by name.

    where: what messages begin with. Raises TrainingError when the model does not take them.
    """
    try:
        with keep_values(model):
            if isinstance(inputs, Mapping):
                return model(**inputs)
            return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    except (SparsifyError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # whatever a model of somebody else's raises, sys.exit among it
        raise TrainingError(
            f"{where}the model does not take a batch {describe_batch(inputs)}: {_line(error)}"
        ) from error


def _line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    usual = (RuntimeError, ValueError, TypeError, AttributeError, IndexError)
    is_plain = type(error) in usual or isinstance(error, torch.OutOfMemoryError)
    return str(error) if is_plain else describe_error(error)


def describe_batch(inputs: Any) -> str:
    """'of shape (2, 1, 28, 28)', 'with input_ids (2, 8), attention_mask (2, 8)'."""
    if isinstance(inputs, Tensor):
        return f"of shape {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return "with " + ", ".join(f"{name} {_shape(value)}" for name, value in inputs.items())
    if isinstance(inputs, tuple):
        return "of " + ", ".join(map(_shape, inputs))
    return f"of {len(inputs)} values" if isinstance(inputs, list) else f"of a {type(inputs).__name__}"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def find_prediction(returned: Any, task: Task, where: str = "") -> Any:
    """The prediction in what a model returned: what `task.outputs` names, else the tensor itself or its
    `logits`.

    A loss of the user's own is handed everything that the model returned, unless `task.outputs` names a part.

    Raises TrainingError when there is no such part, or none can be told.
    """
    if task.outputs is not None:
        return _part(returned, task.outputs, where)
    if isinstance(returned, Tensor) or task.loss not in (None, "model"):
        return returned
    logits = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise TrainingError(
        f"{where}the model returns {_described(returned)}; say in task.outputs which part is the prediction"
    )


def _part(returned: Any, key: str | int, where: str) -> Any:
    try:
        if isinstance(key, int) or isinstance(returned, Mapping):
            return returned[key]
        return getattr(returned, key)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise TrainingError(
            f"{where}task.outputs is {key!r}, and the model returns {_described(returned)}"
        ) from None


def _described(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a {type(returned).__name__} with {', '.join(map(str, returned))}"
    if isinstance(returned, tuple | list):
        return f"a {type(returned).__name__} of {len(returned)}"
    return f"a {type(returned).__name__}"
