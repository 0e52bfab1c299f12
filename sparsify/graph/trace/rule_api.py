"""What a rule of an operator is given: the operator that ran, and whoever follows the labels."""

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
    """What a rule needs of whoever follows the labels."""

    labels: Labels
    algebra: LabelAlgebra

    def labels_of(self, tensor: Tensor) -> AxisLabels:
        """The shadow of a tensor."""

    def note_length(self, axis_labels: AxisLabels) -> AxisLabels:
        """Remember that a shape was written down."""


Rule = Callable[[Follower, Op], AxisLabels | list[AxisLabels]]
