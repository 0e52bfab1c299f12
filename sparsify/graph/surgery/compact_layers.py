"""Carry out the operations that make a layer cheaper, Crop and Gather, on a model in place."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod

from torch import Tensor, nn

from sparsify.errors import RunError
from sparsify.nn import cropped, gathered
from sparsify_schemas.cuts import Crop, Gather, Range


def compact_layers(model: nn.Module, operations: Iterable[Crop | Gather]) -> None:
    """Carry out the operations in order. Raises RunError if they do not fit the model."""
    for op in operations:
        match op:
            case Crop():
                conv = _find_croppable(model, op)
                _replace_weight(conv, partial(cropped.select_positions, kept=op.grids))
                cropped.crop_convolution(conv, op.grids)
            case Gather():
                layer, columns = _find_gatherable(model, op)
                _replace_weight(layer, partial(gathered.select_columns, columns=columns))
                gathered.gather_inputs(layer, columns)


def _replace_weight(module: nn.Module, select: Callable[[Tensor], Tensor]) -> None:
    old = module.get_parameter("weight")
    module.weight = nn.Parameter(select(old.detach()), old.requires_grad)


def _find_module(modules: Mapping[str, nn.Module], name: str, deed: str) -> nn.Module:
    if name not in modules:
        raise RunError(
            f"the cut log {deed} '{name}', which this model does not have; was it built by the same recipe?"
        )
    return modules[name]


def _find_croppable(model: nn.Module, op: Crop) -> cropped.Conv:
    module = _find_module(dict(model.named_modules()), op.module, "crops the kernel of")
    if not cropped.can_crop(module):
        raise RunError(
            f"the cut log crops the kernel of '{op.module}', "
            f"which is a {type(module).__name__}, not a plain convolution"
        )
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if tuple(module.kernel_size) != op.kernel:
        raise RunError(
            f"the cut log expects '{op.module}' to have a kernel of {_format_kernel(op.kernel)}, "
            f"this model has {_format_kernel(module.kernel_size)}"
        )
    if not _grids_fit(op):
        raise RunError(
            f"the cut log keeps kernel positions of '{op.module}' "
            f"that lie beyond its {_format_kernel(op.kernel)}"
        )
    return module


def _grids_fit(op: Crop) -> bool:
    """Whether the operation keeps positions inside the kernel, in every dimension."""
    if len(op.grids) != len(op.kernel):
        return False
    last_positions = [first + step * (count - 1) for first, step, count in op.grids]
    return all(last < size for last, size in zip(last_positions, op.kernel, strict=True))


def _find_gatherable(model: nn.Module, op: Gather) -> tuple[nn.Linear | cropped.Conv, list[int]]:
    module = _find_module(dict(model.named_modules()), op.module, "gathers columns of")
    if not gathered.can_gather(module):
        raise RunError(
            f"the cut log gathers columns of '{op.module}', "
            "which is neither a plain Linear layer nor a plain convolution without groups"
        )
    assert isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    size = prod(module.weight.shape[1:])
    if size != op.size:
        raise RunError(f"the cut log expects '{op.module}' to have {op.size} columns, this model has {size}")
    if not are_ascending(op.keep, size):
        raise RunError(
            f"the cut log keeps columns of '{op.module}' that are out of order or beyond its {size}"
        )
    return module, [i for a, b in op.keep for i in range(a, b)]


def are_ascending(keep: Sequence[Range], size: int) -> bool:
    """Whether there are ranges, in order and within the size. Does not write them out: they may be huge."""
    ends = [end for part in keep for end in part]
    return bool(ends) and all(a < b for a, b in keep) and ends == sorted(ends) and ends[-1] <= size


def _format_kernel(kernel: Iterable[int]) -> str:
    return "x".join(map(str, kernel))
