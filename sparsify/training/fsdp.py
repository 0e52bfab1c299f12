"""Training a model in parts: parameters, gradients and optimizer state spread over
processes by FSDP 2, and gathered again."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.distributed import gather_tensor, is_sharded
from sparsify.training.layout import order_weights


def shard_model(model: nn.Module, device: torch.device) -> nn.Module:
    """Spread a model over all processes, in place: each of its parts by itself,
    or all at once where parts share parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    order_weights(model, "contiguous")  # others FSDP does not take
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    every = list(model.named_parameters(remove_duplicate=False))
    if len(every) == len({id(p) for _, p in every}):
        for part in _list_parts(model):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    # otherwise what is changed in place after a pass without gradients would be lost
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def _list_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Children with parameters; of lists of modules, which have no forward pass, what they hold."""
    for child in model.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _list_parts(child)
        elif any(True for _ in child.parameters()):
            yield child


def gather_state(state: Any) -> Any:
    """Nested mappings and lists with every sharded tensor gathered,
    all others as they are; all processes must call."""
    match state:
        case Tensor():
            return gather_tensor(state)
        case Mapping():
            return {key: gather_state(value) for key, value in state.items()}
        case list():
            return [gather_state(value) for value in state]
        case _:
            return state


def shard_value(value: Any, parameter: Tensor) -> Any:
    """A gathered tensor of a sharded parameter's shape, sharded as that is; anything else as it is."""
    if (
        not is_sharded(parameter)
        or not isinstance(value, Tensor)
        or is_sharded(value)
        or value.shape != parameter.shape
    ):
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = parameter  # a DTensor
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
