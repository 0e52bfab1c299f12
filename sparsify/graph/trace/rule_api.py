"""What an operator's rule is given: the operator that ran, and the tracer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from sparsify.graph.trace.axis_labels import AxisLabels
from sparsify.graph.trace.label_algebra import LabelAlgebra
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

    def labels_unread(self, tensor: Tensor) -> AxisLabels:
        """The labels of a tensor, without counting as a use of it."""

    def set_labels(self, tensor: Tensor, axis_labels: AxisLabels) -> None:
        """Replace the labels of a tensor."""

    def fix(self, axis_labels: AxisLabels, reason: str) -> None:
        """These labels must stay, for this reason."""

    def label_created(self, name: str, out: Any) -> AxisLabels | None:
        """Label a tensor that an operator creates."""

    def note_length(self, axis_labels: AxisLabels) -> AxisLabels:
        """Remember that a length was used."""

    def note_part(self, part: AxisLabels, dim: int, lengths: Sequence[int], number: int) -> None:
        """Remember which of several lengths a part of a split has."""

    def note_slice(self, labels: Tensor, length: int, reason: str) -> None:
        """Remember that the running module takes a slice of a dimension."""

    def follows_widths(self, length: int) -> bool:
        """Whether a part of this length may follow the widths of layers, rather than depend on data."""

    def find_group_count(self, groups: int) -> str | None:
        """`module:attribute` of the running layer that holds its number of channel groups; None where no
        layer of torch runs, or it holds another number."""


Rule = Callable[[Follower, Op], AxisLabels | list[AxisLabels]]
