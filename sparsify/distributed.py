"""What other libraries put around models, optimizers and tensors: what is inside, and which part of a tensor lies in this process."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import ModelError

_INSIDE = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}
_WRAPPED_OPTIMIZERS = ("AcceleratedOptimizer", "LightningOptimizer", "_FabricOptimizer")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile's and DDP's wrappers, whose parameters are the same. Raises ModelError for FSDP 1."""
    while type(model).__name__ in _INSIDE:
        model = getattr(model, _INSIDE[type(model).__name__])
    if type(model).__name__ == "FullyShardedDataParallel":
        raise ModelError(
            "the model is wrapped by FullyShardedDataParallel, whose flat parameters hold no groups; shard it by "
            "torch.distributed.fsdp.fully_shard instead"
        )
    return model


def sharing(model: nn.Module) -> Any:
    """The processes that train this model together, each on its part of a batch: DDP's, else all that there are; None for one alone."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    while type(model).__name__ == "OptimizedModule":
        model = getattr(model, _INSIDE["OptimizedModule"])
    processes = (
        model.process_group
        if isinstance(model, nn.parallel.DistributedDataParallel)
        else torch.distributed.group.WORLD
    )
    return processes if torch.distributed.get_world_size(processes) > 1 else None


def bare(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrappers of Accelerate, Lightning and Fabric, which take no step hooks."""
    while type(optimizer).__name__ in _WRAPPED_OPTIMIZERS:
        optimizer = optimizer.optimizer
    found: torch.optim.Optimizer = optimizer
    return found


@dataclass(frozen=True)
class Extent:
    """Where this process's part of a sharded tensor lies along one dimension, and among which processes sums are taken."""

    dim: int
    start: int
    length: int
    processes: Any
    """a torch.distributed process group"""


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor (DTensor), in the same memory; any other tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered, or a sum over one completed; all its processes must call."""
    if not is_sharded(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def alike(part: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of some numbers, as a tensor that is sharded as the parameter is."""
    if not is_sharded(parameter):
        return part
    like: Any = parameter  # a DTensor, whose class is not imported where no process shards
    sharded: Tensor = sys.modules["torch.distributed.tensor"].DTensor.from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return sharded


def part_of(whole: Tensor, own: Extent | None) -> Tensor:
    """This process's part of a tensor that all have."""
    return whole if own is None else whole.narrow(own.dim, own.start, own.length)


def added(value: Tensor, processes: Any) -> Tensor:
    """A value summed up over processes, in its own memory; as it is where there are none. All of them must call."""
    if processes is not None:
        torch.distributed.all_reduce(value, group=processes)
    return value


def before_this(number: int, processes: Any) -> tuple[int, int]:
    """(sum of the numbers of the processes before this one, sum of all); all of them must call."""
    if processes is None:
        return 0, number
    found: list[int] = [0] * torch.distributed.get_world_size(processes)
    torch.distributed.all_gather_object(found, number, group=processes)
    return sum(found[: torch.distributed.get_rank(processes)]), sum(found)


def extent(name: str, tensor: Any) -> Extent | None:
    """None for a tensor that is whole in this process. Raises ModelError where one is sharded over several dimensions."""
    if not is_sharded(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements
    shards = [(axis, p.dim) for axis, p in enumerate(placements) if p.is_shard()]
    if not shards:
        return None
    if len(shards) > 1 or any(p.is_partial() for p in placements):
        raise ModelError(
            f"'{name}' is sharded over several dimensions ({placements}); penalties follow one, as fully_shard makes it"
        )
    (axis, dim), *_ = shards
    size = tensor.shape[dim]
    start = min(
        mesh.get_local_rank(axis) * math.ceil(size / mesh.size(axis)), size
    )  # as torch.chunk: the last parts may be empty
    return Extent(dim, start, tensor.to_local().shape[dim], mesh.get_group(axis))


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a DTensor."""
    # Whoever has a DTensor has imported its module; everyone else is spared the second that it takes.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
