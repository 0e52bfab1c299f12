"""The models of a run as reloaded from its folder, and whether they compute what was saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sparsify.cost import measure
from sparsify.data import Datasets
from sparsify.errors import VerificationError
from sparsify.forward import call_model
from sparsify.forward.calls import Inputs
from sparsify.objective.objective import Objective
from sparsify.runs.own_figures import NOTHING, OwnFigures
from sparsify_schemas.baseline import Baseline as Kind


@dataclass(frozen=True)
class ReloadedModels:
    """The models of a run as reloaded from its folder, and what they are measured on."""

    folder: Path
    dense: nn.Module
    cut: nn.Module
    baselines: Mapping[Kind, nn.Module]
    inputs: Inputs
    datasets: Datasets | None
    objective: Objective
    """what they are judged by"""
    own: OwnFigures = NOTHING
    """what a loop of one's own handed over, in place of datasets"""


def check_reloads(model: nn.Module, reloaded: nn.Module, inputs: Inputs, what: str) -> None:
    """Refuse a file whose model computes something else than the model that was saved.

    Raises VerificationError.

    Rounding is allowed for, as the memory layout may differ. A model that is random in eval mode is not
    checked.
    """
    model = measure.copy_model(model).cpu().eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        first, again, after = (
            list(call_model.float_tensors(call_model.call_model(m, inputs))) for m in (model, model, reloaded)
        )
    is_deterministic = _are_close(first, again)
    if is_deterministic and not _are_close(first, after):
        raise VerificationError(
            f"the {what} as reloaded from disk does not compute what it computed before it was saved; "
            "does `model:` in the recipe build the very model that the file was made from?"
        )


def _are_close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    def close(x: torch.Tensor, y: torch.Tensor) -> bool:
        scale = float(x.abs().max()) if x.numel() else 0.0
        return x.shape == y.shape and torch.allclose(x, y, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)

    return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
