"""The saved state of attached penalties, as it is written and as it is read back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from sparsify.errors import ModelError
from sparsify.training.penalties.setup import Regularizer
from sparsify.training.penalties.state import Pairs, copy_state, match_saved_state


@dataclass(frozen=True)
class HooksState:
    """What a checkpoint holds of the hooks."""

    step: int
    since: int
    """step of the last cut, or of the stage's beginning"""
    pending: list[list[float]]
    """lr * strength that each proximal penalty has still to carry out, for each parameter group"""
    held: Mapping[str, Tensor]
    """tensor -> where it may be other than zero"""
    own: Mapping[int, Any]
    """rule -> state of its penalty"""

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Self | None:
        """None where something else was saved."""
        try:
            step, since = int(saved["step"]), int(saved["since"])
            pending = [list(map(float, row)) for row in saved["pending"]]
            own, held = dict(saved["own"]), dict(saved["held"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        are_masks = all(isinstance(mask, Tensor) for mask in held.values())
        return cls(step, since, pending, held, own) if are_masks else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "since": self.since,
            "pending": [list(row) for row in self.pending],
            "held": dict(self.held),
            "own": dict(self.own),
        }


def save_penalties(
    regularizers: Sequence[Regularizer], parameters: Mapping[str, Tensor]
) -> dict[int, dict[str, Any]]:
    """Rule -> a copy of the state of its penalty."""
    return {r.rule: copy_state(r.action, r.layouts, parameters) for r in regularizers}


def match_state(
    saved: HooksState | None,
    present: HooksState,
    regularizers: Sequence[Regularizer],
    parameters: Mapping[str, Tensor],
) -> tuple[HooksState, Pairs]:
    """The saved state, and pairs (part of a penalty's state, what was saved of it) to be copied.

    Raises ModelError when it belongs to other penalties or to another optimizer.
    """
    refused = ModelError(
        "the saved penalty state belongs to another recipe or to an optimizer with other parameter groups"
    )
    if saved is None or saved.own.keys() != present.own.keys():
        raise refused
    lengths = [len(row) for row in saved.pending]
    if lengths != [len(row) for row in present.pending]:
        raise refused
    if not present.held.keys() <= saved.held.keys() <= parameters.keys():
        raise refused
    pairs: Pairs = []
    for regularizer in regularizers:
        own = saved.own[regularizer.rule]
        found = match_saved_state(regularizer.action, regularizer.layouts, parameters, own)
        if found is None:
            raise refused
        pairs += found
    return saved, pairs
