"""Find which bias or running mean can absorb a shift of a product's outputs."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from sparsify.graph.surgery.biases import can_take_bias, find_bias
from sparsify.graph.surgery.constant_readers import ConstantTracer, Reader, memory_address
from sparsify.graph.surgery.constant_shifts import ShiftTarget


def find_target(tracer: ConstantTracer, reader: Reader) -> ShiftTarget | None:
    """Find what can absorb a shift of this product's outputs.

    In order: the bias of the product, the bias of its layer, the normalisation behind it, a new bias.
    """
    if reader.crossed:
        return None
    count = len(reader.kept)
    everything = torch.arange(count)
    if reader.bias is not None:
        name = tracer.names_by_memory.get(reader.bias.untyped_storage().data_ptr())
        if name is None or reader.bias.numel() != count:
            return _target_masked_bias(tracer, reader)
        first, step = int(reader.bias.storage_offset()), max(reader.bias.stride())
        return ShiftTarget("bias", name, first + step * everything)
    module = tracer.modules.get(reader.module)
    weight = reader.weight.removeprefix(f"{reader.module}.") if reader.module else reader.weight
    bias = None if module is None else find_bias(module, weight)
    if module is not None and bias is not None:
        name = f"{reader.module}.{bias.name}" if reader.module else bias.name
        if bias.exists:
            stored = tracer.names_by_memory.get(
                module.get_parameter(bias.name).untyped_storage().data_ptr(), name
            )
            return ShiftTarget("bias", stored, everything)
        if reader.norm is None or reader.readers != 1:
            return _target_new_bias(tracer, reader, module, name) if can_take_bias(module) else None
    if reader.norm is not None and reader.readers == 1:
        name = tracer.names_by_memory.get(reader.norm.untyped_storage().data_ptr())
        if name is not None and reader.norm.numel() == count:
            return ShiftTarget("running_mean", name, everything)
    return None


def _target_masked_bias(tracer: ConstantTracer, reader: Reader) -> ShiftTarget | None:
    """The stored bias under a mask of torch.nn.utils.prune, if the mask hides nothing."""
    prefix = f"{reader.module}." if reader.module else ""
    stored, mask = tracer.tensors.get(f"{prefix}bias_orig"), tracer.tensors.get(f"{prefix}bias_mask")
    if stored is None or mask is None or not bool(mask.all()) or stored.numel() != len(reader.kept):
        return None
    return ShiftTarget("bias", f"{prefix}bias_orig", torch.arange(len(reader.kept)))


def _target_new_bias(tracer: ConstantTracer, reader: Reader, module: nn.Module, name: str) -> ShiftTarget:
    """A bias to be created. In a packed projection it starts at the product's first row."""
    if not isinstance(module, nn.MultiheadAttention):
        return ShiftTarget("bias", name, torch.arange(len(reader.kept)), reader.module)
    columns = tracer.tensors[reader.weight].shape[1]
    rows = reader.first_element // columns + torch.arange(len(reader.kept))
    return ShiftTarget("bias", name, rows, reader.module, rows_of=reader.weight)


def is_covered(tracer: ConstantTracer, target: ShiftTarget, readers: Sequence[Reader]) -> bool:
    """Whether these products are the only readers of the target."""
    if target.module:
        products = Counter(reader.module for reader in readers)[target.module]
        return products == tracer.calls[target.module] or not isinstance(
            tracer.modules[target.module], nn.Linear | nn.modules.conv._ConvNd
        )
    if target.tensor.endswith("bias_orig"):
        return True
    memory, *_ = memory_address(tracer.tensors[target.tensor])
    first, size = int(target.index[0]), len(target.index)
    reads = {read: count for read, count in tracer.reads.items() if read[0] == memory}
    others = [
        read
        for read in reads
        if read[1] < first + size and first < read[1] + read[2] and read[1:] != (first, size)
    ]
    return reads.get((memory, first, size), 0) == len(readers) and not others
