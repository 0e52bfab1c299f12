"""Unwrap models, optimizers and sharded tensors of distributed training."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError

_INSIDE = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}
_WRAPPED_OPTIMIZERS = ("AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer")


def unwrap_model(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of torch.compile and DDP. Raises ModelError for FSDP 1."""
    while type(model).__name__ in _INSIDE:
        model = getattr(model, _INSIDE[type(model).__name__])
    if type(model).__name__ == "FullyShardedDataParallel":
        raise ModelError(
            "the model is wrapped by FullyShardedDataParallel, whose flat parameters hold no groups; "
            "shard it by torch.distributed.fsdp.fully_shard instead"
        )
    return model


def find_processes(model: nn.Module) -> Any:
    """The process group that trains this model, each process on its part of a batch.

    None for a single process.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    while type(model).__name__ == "OptimizedModule":
        model = getattr(model, _INSIDE["OptimizedModule"])
    processes = torch.distributed.group.WORLD
    if isinstance(model, nn.parallel.DistributedDataParallel):
        processes = model.process_group
    return processes if torch.distributed.get_world_size(processes) > 1 else None


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside a wrapper of Accelerate, Lightning or Fabric, which take no step hooks."""
    while type(optimizer).__name__ in _WRAPPED_OPTIMIZERS:
        optimizer = optimizer.optimizer
    found: torch.optim.Optimizer = optimizer
    return found


@dataclass(frozen=True)
class Extent:
    """The part of a sharded tensor in this process.

    Where it is along one dimension, and its process group.
    """

    dim: int
    start: int
    length: int
    processes: Any
    """A torch.distributed process group, over which sums are taken."""


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor (DTensor), in the same memory; another tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def gather_tensor(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, partial sums completed. All of its processes must call this."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def shard_like(part: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor, as a DTensor that is sharded like the parameter."""
    if not is_sharded(parameter):
        return part
    like: Any = parameter  # a DTensor; its class is imported only where tensors are sharded
    sharded: Tensor = sys.modules["torch.distributed.tensor"].DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return sharded


def take_part(whole: Tensor, own: Extent | None) -> Tensor:
    """This process's part of a tensor that every process has."""
    return whole if own is None else whole.narrow(own.dim, own.start, own.length)


def add_over_processes(value: Tensor, processes: Any) -> Tensor:
    """Sum a value over processes in place; without processes it stays. All of them must call this."""
    if processes is not None:
        torch.distributed.all_reduce(value, group=processes)
    return value


def share_state(model: nn.Module, processes: Any) -> None:
    """Give all processes the first one's parameters and buffers, in place. All of them must call this."""
    if processes is None:
        return
    first = torch.distributed.get_global_rank(processes, 0)
    for tensor in model.state_dict().values():
        torch.distributed.broadcast(tensor, first, group=processes)


def counts_of(number: int, processes: Any) -> list[int]:
    """The numbers of all processes, in their order. All of them must call this."""
    found: list[int] = [0] * torch.distributed.get_world_size(processes)
    torch.distributed.all_gather_object(found, number, group=processes)
    return found


def sum_before(number: int, processes: Any) -> tuple[int, int]:
    """(sum of the numbers of the processes before this one, sum of all). All of them must call this."""
    if processes is None:
        return 0, number
    found = counts_of(number, processes)
    return sum(found[: torch.distributed.get_rank(processes)]), sum(found)


def find_extent(name: str, tensor: Any) -> Extent | None:
    """The part of a sharded tensor in this process; None for a whole tensor.

    Raises ModelError where it is sharded over several dimensions.
    """
    if not is_sharded(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements
    shards = [(axis, p.dim) for axis, p in enumerate(placements) if p.is_shard()]
    if not shards:
        return None
    if len(shards) > 1 or any(p.is_partial() for p in placements):
        raise ModelError(
            f"'{name}' is sharded over several dimensions ({placements}); "
            "penalties support one, as fully_shard makes it"
        )
    (axis, dim), *_ = shards
    size = tensor.shape[dim]
    # As torch.chunk divides: the last parts may be empty.
    start = min(mesh.get_local_rank(axis) * math.ceil(size / mesh.size(axis)), size)
    return Extent(dim, start, tensor.to_local().shape[dim], mesh.get_group(axis))


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a DTensor."""
    # A DTensor exists only where its module is imported, which takes a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
