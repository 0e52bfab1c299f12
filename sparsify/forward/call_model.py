"""Call a model with positional or keyword inputs, and collect the tensors that it returns."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.distributed import is_sharded
from sparsify.errors import ModelError
from sparsify.forward import calls
from sparsify.forward.calls import Inputs, map_tensors
from sparsify.forward.opaque import is_nested, is_sparse


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model on copies of the inputs, since a forward may write into them. Several calls return a
    tuple."""
    return calls.call_without_copies(model, map_tensors(inputs, torch.clone))


@contextmanager
def restore_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the values of the buffers afterwards.

    A model that counts its calls, or observes ranges in eval mode too, would answer differently every
    time.
    """
    before = [
        (b, b.clone()) for b in model.buffers() if not (b.is_inference() or is_sparse(b) or is_nested(b))
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if buffer.shape == value.shape:
                    buffer.copy_(value)


def named_inputs(inputs: Inputs) -> list[tuple[str, Tensor]]:
    """(path, tensor) of every call, in order."""
    return [pair for each in calls.list_calls(inputs) for pair in calls.tensors_by_path(each).items()]


def float_tensors(output: Any) -> Iterator[Tensor]:
    """Every real or complex tensor in a nested output, in a fixed order; other values are skipped."""
    return (tensor for tensor in every_tensor(output) if tensor.is_floating_point() or tensor.is_complex())


def whole_tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor of whole numbers or booleans in a nested output, in a fixed order."""
    every = (tensor for tensor in every_tensor(output) if tensor.layout == torch.strided)
    return (tensor for tensor in every if not (tensor.is_floating_point() or tensor.is_complex()))


def every_tensor(output: Any) -> Iterator[Tensor]:
    """Every tensor in a nested output, in a fixed order, also integers and booleans."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from every_tensor(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from every_tensor(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from every_tensor(getattr(output, field.name))


def convert_inputs(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The inputs with real and complex tensors in another precision."""
    return map_tensors(inputs, lambda value: cast_tensor(value, dtype))


def move_inputs_to_cpu(inputs: Inputs) -> Inputs:
    """The inputs on the CPU."""
    return map_tensors(inputs, lambda value: value.cpu())


def move_inputs_to_meta(inputs: Inputs) -> Inputs:
    """The inputs with floating-point tensors as shapes alone; whole numbers and masks keep their values."""

    def drop_values(tensor: Tensor) -> Tensor:
        has_fractions = tensor.is_floating_point() or tensor.is_complex()
        return tensor.to("meta") if has_fractions else tensor.cpu()

    return map_tensors(inputs, drop_values)


_WRAPPERS = {
    "OptimizedModule": ("torch.compile", "_orig_mod", "compile"),
    **{
        name: (name, "module", "wrap")
        for name in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
    },
}
"""class -> (its name for users, attribute with the module inside, what to do again after the cut)"""


def check_model(model: nn.Module) -> None:
    """Refuse wrappers whose layers only look like the user's model. Raises ModelError."""
    for name, module in model.named_modules():
        if type(module).__name__ in _WRAPPERS:
            wrapper, inside, again = _WRAPPERS[type(module).__name__]
            if name:
                where, cure = f"'{name}'", f"put the module inside it (.{inside}) in its place"
            else:
                where, cure = "the model", f"pass the module inside it (model.{inside})"
            raise ModelError(f"{where} is wrapped by {wrapper}; {cure} and {again} after the cut")
    sharded = next((name for name, p in model.named_parameters() if is_sharded(p)), None)
    if sharded is not None:
        raise ModelError(
            f"'{sharded}' is sharded over processes; load the whole state "
            "(torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True) "
            "into a model that is not sharded, cut that, and shard it anew"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "the model is a TorchScript module, which cannot be cut; "
            "pass the Python module that it was made from"
        )


def require_values(model: nn.Module) -> None:
    """Refuse a model whose weights are shapes alone. Raises ModelError."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    without = [name for name, tensor in tensors if tensor.is_meta]
    if not without:
        return
    named = f"'{without[0]}' and {len(without) - 1:,} others" if len(without) > 1 else f"'{without[0]}'"
    raise ModelError(
        f"on the meta device, without values: {named}; such a model can be planned and "
        "nothing else; load its weights first (model.to_empty(device='cpu'), then model.load_state_dict)"
    )


def cast_tensor(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A real or complex tensor in another precision; any other tensor as it is."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
