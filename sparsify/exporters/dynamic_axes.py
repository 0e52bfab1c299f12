"""Find out which sizes a model takes along the axes that an exported file leaves open."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from sparsify.cost.measure.onnx_export import AxisNames, short_reason
from sparsify.errors import ModelError, RunError
from sparsify.exporters.compare import compute_outputs
from sparsify.forward.calls import Call, add_argument_names, argument_name, batch_axes, tensors_by_path
from sparsify.forward.input_records import draw_from_record, resize_record
from sparsify.forward.recorded_calls import RecordedCall

Requested = Mapping[str, Mapping[int, str] | Sequence[int]]
"""Name of an input -> its open axes; with names, axes of one name have one size. As torch.onnx.export's
`dynamic_axes`."""
Sizes = Mapping[str, Mapping[int, int]]
"""Path of an input -> axis -> length."""
STEPS = (1, 2, 4, 8, 16, 32, 64)
"""What a size may have to be a multiple of: encoders halve images up to six times."""


@dataclass(frozen=True)
class DynamicAxis:
    """A dimension of the inputs that may have any size."""

    name: str
    """its name in the file"""
    inputs: tuple[tuple[str, int], ...]
    """the inputs that have it, and the axis of each"""
    planned: int
    """its size in the plan's inputs"""
    multiple_of: int
    """what its size must be a multiple of"""
    sizes: tuple[int, int]
    """the two other sizes at which the file is compared with the model"""


@dataclass(frozen=True)
class _Group:
    """Axes that have one size."""

    name: str
    axes: tuple[tuple[str, int], ...]
    """path of an input, axis"""
    planned: int
    named: bool
    """whether the user says that they belong together"""


@dataclass(frozen=True)
class _Model:
    """A model and how it is called."""

    model: nn.Module
    record: RecordedCall
    call: Call
    """random inputs in the planned shapes, with the names of the arguments"""

    def name_of(self, path: str) -> str:
        return argument_name(self.call, path)

    def find_refusal(self, sizes: Sizes) -> str | None:
        """Why the model does not run at these sizes; None if it does."""
        inputs = draw_from_record((resize_record(self.record, sizes),))
        try:
            compute_outputs(self.model, inputs)
        except Exception as error:
            return short_reason(error)
        return None


def find_dynamic_axes(
    model: nn.Module, record: RecordedCall, requested: Requested
) -> tuple[DynamicAxis, ...]:
    """What the model allows along the axes that were asked for, found by running it.

    Axes that carry no name are varied one by one. Those that the model only takes together with others of
    the same length, such as the tokens and their mask, become one dimension.

    Raises RunError where an input or axis does not exist, ModelError where the model takes no other size.
    """
    call = add_argument_names(model, draw_from_record((record,)))[0]
    own = _Model(model, record, call)
    found: list[DynamicAxis] = []
    refused: dict[_Group, str] = {}
    for group in _read_groups(own, requested):
        axis, reason = _try_sizes(own, group, len(found))
        if axis is not None:
            found.append(axis)
        elif group.named:
            raise ModelError(_describe_refusal(own, group, reason))
        else:
            refused[group] = reason
    for group in _merge_equal(list(refused)):
        # A group of one axis was tried above.
        axis, reason = (None, refused[group]) if group in refused else _try_sizes(own, group, len(found))
        if axis is None:
            raise ModelError(_describe_refusal(own, group, reason))
        found.append(axis)
    made = tuple(sorted(found, key=lambda axis: axis.inputs))
    for index in range(2):
        together = own.find_refusal(sizes_of(own.call, made, index))
        if together is not None:
            stated = describe_sizes(made, index)
            raise ModelError(f"the model does not take {stated} together: {together}")
    return made


def axis_names(call: Call, axes: Sequence[DynamicAxis]) -> AxisNames:
    """The names of the open axes, by path of the input."""
    paths = {argument_name(call, path): path for path in tensors_by_path(call)}
    found: dict[str, dict[int, str]] = {}
    for axis in axes:
        for name, at in axis.inputs:
            found.setdefault(paths[name], {})[at] = axis.name
    return found


def sizes_of(call: Call, axes: Sequence[DynamicAxis], index: int) -> Sizes:
    """The first or the second of the other sizes, by path of the input."""
    lengths = {axis.name: axis.sizes[index] for axis in axes}
    return {
        path: {at: lengths[name] for at, name in entry.items()}
        for path, entry in axis_names(call, axes).items()
    }


def describe_sizes(axes: Sequence[DynamicAxis], index: int) -> str:
    """'height 9, width 13'"""
    return ", ".join(f"{axis.name} {axis.sizes[index]}" for axis in axes)


def _read_groups(own: _Model, requested: Requested) -> list[_Group]:
    """The axes as asked for: those of one name together, any other by itself. Raises RunError."""
    groups: dict[str, _Group] = {}
    for name, axes in requested.items():
        path = _find_path(own, name)
        for given in axes:
            at = _check_axis(own, path, given)
            dimension = axes[given] if isinstance(axes, Mapping) else None
            label = dimension or f"{own.name_of(path)}_{at}"
            size = tensors_by_path(own.call)[path].shape[at]
            group = groups.get(label, _Group(label, (), size, bool(dimension)))
            _check_group(own, group, (path, at), size)
            groups[label] = replace(group, axes=(*group.axes, (path, at)))
    return list(groups.values())


def _find_path(own: _Model, name: str) -> str:
    paths = list(tensors_by_path(own.call))
    found = next((path for path in paths if name in (path, own.name_of(path))), None)
    if found is None:
        known = ", ".join(own.name_of(path) for path in paths)
        raise RunError(f"there is no input '{name}' to leave an axis of open; the model takes: {known}")
    return found


def _check_axis(own: _Model, path: str, axis: int) -> int:
    """The axis, counted from the first. Raises RunError."""
    tensor, name = tensors_by_path(own.call)[path], own.name_of(path)
    if not -tensor.dim() <= axis < tensor.dim():
        raise RunError(f"'{name}' has no axis {axis}: its shape is {'x'.join(map(str, tensor.shape))}")
    at = axis % tensor.dim()
    if at == batch_axes(own.call)[path]:
        raise RunError(
            f"axis {at} of '{name}' counts the examples, of which the file takes any number already"
        )
    return at


def _check_group(own: _Model, group: _Group, added: tuple[str, int], size: int) -> None:
    if group.name == "batch":
        raise RunError("'batch' is the name of the axis that counts the examples; choose another name")
    if added in group.axes:
        raise RunError(f"axis {added[1]} of '{own.name_of(added[0])}' is named twice")
    if size != group.planned:
        path, at = group.axes[0]
        raise RunError(
            f"'{group.name}' is {group.planned} long in axis {at} of '{own.name_of(path)}' and {size} in "
            f"axis {added[1]} of '{own.name_of(added[0])}'; axes of one name have one size"
        )


def _merge_equal(groups: Sequence[_Group]) -> Iterator[_Group]:
    """One group of all that have the same planned length."""
    for planned in dict.fromkeys(group.planned for group in groups):
        alike = [group for group in groups if group.planned == planned]
        axes = tuple(axis for group in alike for axis in group.axes)
        yield replace(alike[0], axes=axes)


def _try_sizes(own: _Model, group: _Group, place: int) -> tuple[DynamicAxis | None, str]:
    """The axis with the smallest step that the model takes, or the first reason why it takes none."""
    first = ""

    def refuses(size: int) -> bool:
        nonlocal first
        lengths: dict[str, dict[int, int]] = {}
        for path, at in group.axes:
            lengths.setdefault(path, {})[at] = size
        reason = own.find_refusal(lengths)
        if reason is not None and not first:
            first = f"{size}: {reason}"
        return reason is not None

    for step in STEPS:
        if group.planned % step:
            break
        for pair in _size_pairs(group.planned, step, place):
            if not any(map(refuses, pair)):
                inputs = tuple((own.name_of(path), at) for path, at in group.axes)
                return DynamicAxis(group.name, inputs, group.planned, step, pair), ""
    return None, first


def _size_pairs(planned: int, step: int, place: int) -> Iterator[tuple[int, int]]:
    """Two sizes besides the planned one: a smaller and a larger, two larger, two smaller.

    They are odd multiples of the step, so that a model which needs a larger step is seen to refuse them.
    place: of the dimension among several, so that each gets sizes of its own.
    """
    units = planned // step
    next_odd = units + 1 + units % 2 + 2 * place
    last_odd = units - 1 - units % 2 - 2 * place
    half = (units // 2 | 1) - 2 * place
    pairs = (
        (half if 0 < half < units else last_odd, (units + units // 2 | 1) + 2 * place),
        (next_odd, next_odd + 4),
        (last_odd - 4, last_odd),
    )
    for low, high in pairs:
        sizes = (low * step, high * step)
        if min(sizes) > 1 and planned not in sizes:
            yield sizes


def _describe_refusal(own: _Model, group: _Group, reason: str) -> str:
    path, at = group.axes[0]
    others = [f"axis {at} of '{own.name_of(path)}'" for path, at in group.axes[1:]]
    together = f" (with {' and '.join(others)})" if others else ""
    return (
        f"axis {at} of '{own.name_of(path)}'{together} cannot be left open: the model takes {group.planned} "
        f"and no other size. With {reason}"
    )
