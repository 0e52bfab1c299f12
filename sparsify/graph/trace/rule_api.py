"""What an operator's rule is given: the operator that ran, and the tracer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sparsify.graph.trace.axis_labels import AxisLabels, LabelAlgebra
from sparsify.graph.trace.labels import Labels


@dataclass(frozen=True)
class Op:
    """One operator that ran."""

    name: str
    args: Any
    kwargs: Mapping[str, Any]
    out: Any


class Follower(Protocol):
    """What a rule needs of the tracer."""

    labels: Labels
    algebra: LabelAlgebra

    def labels_of(self, tensor: Tensor) -> AxisLabels:
        """The labels of a tensor."""

    def note_length(self, axis_labels: AxisLabels) -> AxisLabels:
        """Remember that a length was used."""


Rule = Callable[[Follower, Op], AxisLabels | list[AxisLabels]]
