"""What a model is called with: inputs of `forward`, or several calls of its methods, and their batch axes."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError, describe_error
from sparsify.forward.scratch import keep_values

Given = tuple[Any, ...] | Mapping[str, Any]
"""the arguments of one call, by position or keyword: tensors, plain values, and lists, mappings or
dataclasses of these"""
Inputs = tuple[Any, ...] | Mapping[str, Any]
"""the arguments of one call of `forward`, or a tuple of `Call`s"""
Axis = int | None
"""the batch dimension of a tensor; None if it has none"""


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a model, for models that are not called by `forward` alone.

    Args:
        method: The name of the model's method.
        inputs: Its arguments: a tuple by position, or a mapping by name.
        batch: The dimension that counts examples, None where nothing does: one for all tensors, or a mapping
            of the name of an argument to its dimension. Left out, it is the first dimension of every tensor
            in which that is as long as in the first tensor that has dimensions.

    Examples:
        >>> call = sparsify.Call("forward", (x,))
        >>> sparsify.make_plan(recipe, model, [call]).preview
        (('0', 8),)
        >>> graph = sparsify.Call("forward", {"input": x}, batch=None)  # nothing counts examples
        >>> graph.varies
        False
    """

    method: str = "forward"
    inputs: Given = ()
    batch: Axis | Mapping[str, Axis] | Literal["first"] = "first"
    names: tuple[str, ...] = ()
    """names of the positional arguments in the model's method"""
    vocabularies: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """path of an integer tensor -> number of rows of the table that it indexes"""
    fixed: bool = False
    """whether the model only accepts the given number of examples"""

    @property
    def varies(self) -> bool:
        """Whether the number of examples can be changed."""
        return not self.fixed and any(axis is not None for axis in batch_axes(self).values())


def list_calls(inputs: Inputs) -> tuple[Call, ...]:
    """The calls; one of `forward` if plain inputs are given."""
    if isinstance(inputs, tuple) and inputs and all(isinstance(value, Call) for value in inputs):
        return inputs
    return (Call(inputs=inputs),)


def normalize_inputs(inputs: Any) -> Inputs:
    """Inputs as a user may write them (a single call or a list of calls too), in a standard form."""
    if isinstance(inputs, Call):
        return (inputs,)
    return dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)


def simplify_inputs(inputs: Inputs) -> Inputs:
    """Plain inputs, if they are one call of `forward` that states nothing beyond the defaults."""
    calls = list_calls(inputs)
    if len(calls) != 1 or calls[0].method != "forward" or calls[0].fixed:
        return inputs
    as_assumed = batch_axes(calls[0]) == batch_axes(Call(inputs=calls[0].inputs))
    return calls[0].inputs if as_assumed else inputs


def call_without_copies(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model on the inputs themselves. Several calls return a tuple."""
    calls = list_calls(inputs)
    with keep_values(model):
        results = tuple(_call_once(model, each) for each in calls)
    return results if calls is inputs else results[0]


def _call_once(model: nn.Module, each: Call) -> Any:
    method = model if each.method == "forward" else getattr(model, each.method)
    try:
        return method(**each.inputs) if isinstance(each.inputs, Mapping) else method(*each.inputs)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit, say, which would end the program as if all were well
        raise ModelError(f"the model's {each.method} failed: {describe_error(error)}") from error


def map_tensors(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with `change(tensor)` in place of every tensor."""
    calls = list_calls(inputs)
    if calls is inputs:
        return tuple(replace(each, inputs=_map_nested(each.inputs, change)) for each in calls)
    made: Inputs = _map_nested(inputs, change)
    return made


def _map_nested(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return rebuild_value(value, lambda _, tensor: change(tensor))


def rebuild_value(value: Any, change: Callable[[str, Tensor], Any], path: str = "") -> Any:
    """A nested value with `change(path, tensor)` in place of every tensor; containers keep their type."""
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, tuple | list | Mapping) or _is_dataclass(value):
        prefix = f"{path}." if path else ""
        inner = {key: rebuild_value(item, change, f"{prefix}{key}") for key, item in list_items(value)}
        return _make_container(value, inner)
    return value


def list_items(value: Any) -> Iterator[tuple[Any, Any]]:
    """(key or index, item) of a container."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        yield from zip(names, value, strict=True)
    elif _is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def _make_container(value: Any, inner: dict[Any, Any]) -> Any:
    """A container of the same type with other items."""
    kind: Any = type(value)
    if isinstance(value, Mapping):
        try:
            return kind(inner)
        except TypeError:
            return inner
    if isinstance(value, tuple | list):
        return kind(*inner.values()) if hasattr(value, "_fields") else kind(inner.values())
    return replace(value, **inner)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def as_arguments(batch: Any) -> Inputs:
    """What a model is called with for a batch of inputs: a tensor alone is the first argument."""
    return batch if isinstance(batch, tuple | Mapping) else (batch,)


def first_tensor(args: Sequence[object], kwargs: Mapping[str, object]) -> Tensor | None:
    """The first tensor that a module was called with, by position or by name."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def flatten_value(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, tensor or plain value) of everything in a nested value, in order."""
    if isinstance(value, tuple | list | Mapping) or _is_dataclass(value):
        for key, item in list_items(value):
            yield from flatten_value(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def tensors_by_path(each: Call) -> dict[str, Tensor]:
    """Path -> tensor, in order: '0' or 'x' for an argument, 'images.1' for the second of a list."""
    return {path: value for path, value in flatten_value(each.inputs) if isinstance(value, Tensor)}


def all_tensors(inputs: Inputs) -> list[Tensor]:
    """Every tensor of every call, in order."""
    return [tensor for each in list_calls(inputs) for tensor in tensors_by_path(each).values()]


def argument_name(each: Call, path: str) -> str:
    """The name that the model's method has for the tensor: 'mask' for the third positional argument."""
    head, dot, rest = path.partition(".")
    place = int(head) if head.isdecimal() else -1
    if isinstance(each.inputs, Mapping) or not 0 <= place < len(each.names):
        return path
    return f"{each.names[place]}{dot}{rest}"


def batch_axes(each: Call) -> dict[str, Axis]:
    """Path -> the dimension that counts examples."""
    found = tensors_by_path(each)
    if each.batch == "first":
        size = next((tensor.size(0) for tensor in found.values() if tensor.dim()), None)
        dims: dict[str, int | None] = {}
        for path, tensor in found.items():
            counts_examples = tensor.dim() > 0 and tensor.size(0) == size
            dims[path] = 0 if counts_examples else None
        return dims
    if not isinstance(each.batch, Mapping):
        stated = each.batch
        assert not isinstance(stated, str)
        return {path: _axis_if_present(stated, tensor) for path, tensor in found.items()}
    return {
        path: _axis_if_present(_read_axis(each, each.batch, path), tensor) for path, tensor in found.items()
    }


def _read_axis(each: Call, batch: Mapping[str, Axis], path: str) -> Axis:
    """What a mapping states for a tensor: under its path, its name, or those of its argument."""
    whole = (
        path,
        argument_name(each, path),
        path.partition(".")[0],
        argument_name(each, path).partition(".")[0],
    )
    return next((batch[name] for name in whole if name in batch), None)


def _axis_if_present(axis: Axis, tensor: Tensor) -> Axis:
    """The dimension, if the tensor has it."""
    return axis if axis is not None and -tensor.dim() <= axis < tensor.dim() else None


def count_examples(each: Call) -> int | None:
    """How many examples a call gets; None if nothing counts them."""
    axes, found = batch_axes(each), tensors_by_path(each)
    return next((found[path].size(axis) for path, axis in axes.items() if axis is not None), None)


def resize_batch(inputs: Inputs, batch: int) -> Inputs:
    """Repeat or drop examples along the batch dimension of each tensor, and move the tensors to the CPU.

    A call that is fixed stays as it is.
    """
    calls = list_calls(inputs)
    fitted = tuple(_resize_call(each, batch) for each in calls)
    return fitted if calls is inputs else fitted[0].inputs


def _resize_call(each: Call, batch: int) -> Call:
    axes = batch_axes(each)

    def fit(path: str, tensor: Tensor) -> Tensor:
        axis = axes[path]
        own = tensor if tensor.is_meta else tensor.cpu()
        if axis is None or each.fixed:
            return own
        turn = torch.arange(batch, device=own.device) % own.shape[axis]
        return own.index_select(axis, turn)

    # What the axes were derived from may now be of another length, so they are stated from here on.
    return replace(each, inputs=rebuild_value(each.inputs, fit), batch=axes)


def describe_batch(inputs: Inputs) -> str:
    """'given inputs (batch 8)', or 'given inputs' without a batch; '' if the number of examples can be
    changed."""
    calls = list_calls(inputs)
    if any(each.varies for each in calls):
        return ""
    counts = sorted({count for each in calls if (count := count_examples(each)) is not None})
    return f"given inputs (batch {', '.join(map(str, counts))})" if counts else "given inputs"


def add_argument_names(model: nn.Module, inputs: Inputs) -> tuple[Call, ...]:
    """The calls with the names that the model's methods have for their positional arguments."""
    return tuple(replace(each, names=argument_names(model, each.method)) for each in list_calls(inputs))


def required_arguments(model: nn.Module, method: str = "forward") -> tuple[str, ...]:
    """Names of the arguments that a call cannot do without, in their order."""
    try:
        signature = inspect.signature(getattr(model, method), follow_wrapped=False)
    except (TypeError, ValueError, AttributeError):
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    every = signature.parameters.values()
    return tuple(p.name for p in every if p.kind in named and p.default is inspect.Parameter.empty)


def argument_names(model: nn.Module, method: str = "forward") -> tuple[str, ...]:
    """Names of the arguments that may be given by their place, in their order."""
    try:
        parameters = inspect.signature(getattr(model, method)).parameters.values()
    except (TypeError, ValueError, AttributeError):
        return ()
    ordered = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind in ordered)
