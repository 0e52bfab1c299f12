"""Labels of tensors and results of operators that are known already."""

from dataclasses import dataclass

from torch import Tensor

from sparsify.graph.trace.axis_labels import AxisLabels
from sparsify.graph.trace.meta_kernels import ResultSpec


@dataclass(frozen=True)
class KnownResult:
    """Result of an operator that ran before on the same labels: the labels and, for meta tensors, the
    result."""

    labels: tuple[AxisLabels | None, ...]
    made: tuple[ResultSpec, ...] | None
    alone: bool
    """whether the result is one tensor, not a tuple"""


class MetaLabels:
    """The labels of meta tensors. It keeps the tensors alive: they take no memory."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Tensor, AxisLabels]] = {}

    def get(self, tensor: Tensor) -> AxisLabels | None:
        entry = self._entries.get(id(tensor))
        return None if entry is None else entry[1]

    def __setitem__(self, tensor: Tensor, axis_labels: AxisLabels) -> None:
        self._entries[id(tensor)] = tensor, axis_labels
