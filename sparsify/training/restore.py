"""Putting saved state back, after looking that it is what it should be:
a run's folder may have been tampered with."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import RunError
from sparsify.training.fsdp import shard_value


def _known_state(optimizer: torch.optim.Optimizer) -> set[str] | None:
    """What the optimizer keeps of each parameter; None of one that is not known here."""
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return {"step", "exp_avg", "exp_avg_sq"}
    return {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else None


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a state that was saved of this very optimizer.
    Raises RunError when it is another's, or was tampered with."""
    known = _known_state(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def plain(groups: Any) -> list[dict[str, Any]]:
        kept = []
        for group in groups:
            kept.append({key: value for key, value in group.items() if key != "lr"})
        return kept

    def fits(value: Any, parameter: Tensor) -> bool:
        if known is None and isinstance(value, int | float):
            return math.isfinite(value)
        return value is None or (
            isinstance(value, Tensor)
            and value.is_floating_point()
            and (value.numel() == 1 or value.shape == parameter.shape)
        )

    try:
        sound = plain(saved["param_groups"]) == plain(optimizer.state_dict()["param_groups"]) and all(
            (known is None or set(own) in (set(), known))
            and all(fits(value, parameters[place]) for value in own.values())
            for place, own in saved["state"].items()
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        sound = False
    if not sound:
        raise RunError(
            "the saved state of the optimizer is damaged, or belongs to another model or recipe; "
            "start a new run"
        )
    state = {}
    for place, own in saved["state"].items():
        state[place] = {key: shard_value(value, parameters[place]) for key, value in own.items()}
    optimizer.load_state_dict({**saved, "state": state})


def restore_scale(scaler: torch.amp.GradScaler, saved: object) -> None:
    """Load the scale of the loss, as it was saved in such a stage. Raises RunError when it is not that."""
    known = scaler.state_dict()
    if (
        not isinstance(saved, Mapping)
        or saved.keys() != known.keys()
        or not all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in saved.values())
    ):
        raise RunError(
            "the saved scale of the loss is damaged, or belongs to another recipe; start a new run"
        )
    if known:
        scaler.load_state_dict(dict(saved))
