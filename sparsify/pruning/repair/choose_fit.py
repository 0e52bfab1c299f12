"""Fit one layer to given outputs, and keep the fit only where it helps on examples that were held out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sparsify.distributed import add_over_processes
from sparsify.pruning.repair.regression import (
    TINY,
    Fit,
    fit_intercept,
    fit_ridge,
    mean_of_all,
    mean_square,
)
from sparsify_schemas.report import LayerRepair

UNCHANGED = 1e-6
"""error, relative to the spread of the outputs, below which a layer is as it was in the dense model"""
NO_INTERCEPT = "it has no bias, and no batch normalisation behind it"


@dataclass(frozen=True)
class Settings:
    """How layers are refitted; see `sparsify_schemas.stage.Repair`."""

    method: Literal["least_squares", "mean"] = "least_squares"
    ridge: float = 0.01
    rows: int = 16_000
    """outputs of a layer that are sampled, over all examples"""
    held_out: int = 0
    """examples at the end that are not fitted to and judge each refit; 0: all examples do both"""
    shortcuts: bool = True
    """whether the last layer of a sum makes up for what the other addend lost"""
    seed: int = 0
    processes: Any = None
    """process group, each of which has other examples; all of them refit alike"""
    layers: frozenset[str] | None = None
    """layers that may be refitted; None: all"""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """layer -> how much each place of its output counts; left out: all alike"""
    zeroed: frozenset[str] = frozenset()
    """tensors of which the cut set single weights to zero, which stay zero"""

    def mask_of(self, tensor: str, weight: Tensor) -> Tensor | None:
        """Which elements of a weight may change; None: all."""
        return weight != 0 if tensor in self.zeroed else None


def choose_fit(
    name: str,
    rows: Tensor,
    targets: Tensor,
    start: Fit,
    dtype: torch.dtype,
    examples: int,
    settings: Settings,
    *,
    shiftable: bool,
    mask: Tensor | None = None,
    sizes: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[LayerRepair, Fit | None]:
    """What became of a layer, and its new weights where they do better than `start`.

    Args:
        name: of the layer, for the report.
        rows: its inputs, [rows, groups, inputs], examples first.
        targets: what it should compute of them, [rows, groups, outputs].
        start: the weights that it has.
        dtype: the precision of these weights.
        examples: how many the rows come from.
        shiftable: whether the layer can take another intercept.
        mask: which of its weights may change, where the cut set some to zero.
        sizes: [rows], by which what is made is divided behind the layer. A few rows of a language model are
            a thousand times as large as the others and alone decide the error as it stands: new weights must
            do better with every row divided by its size as well.
        weights: [rows], how much each counts, 1 in the mean; None: all alike.
    """
    split = split_rows(len(rows), examples, settings)
    fitted, judged = (_find_finite(rows, targets, part) for part in split)
    processes = settings.processes
    spread = spread_of(targets[judged], processes)
    roots = None if weights is None else weights[judged].sqrt()
    before = mean_square(rows[judged], targets[judged], start, processes, roots) / spread
    if is_unchanged(before, dtype):
        return repair_row(name, "unchanged", before, before), None
    if settings.method == "mean" and not shiftable:
        return repair_row(name, "skipped", before, before, NO_INTERCEPT), None
    own = None if weights is None else weights[fitted]
    fit = fit_rows(
        rows[fitted], targets[fitted], start, settings, shiftable=shiftable, mask=mask, weights=own
    )
    after = mean_square(rows[judged], targets[judged], fit, processes, roots) / spread
    better = after < before
    if better and sizes is not None:
        scales = sizes[judged].clamp_min(TINY).reciprocal()
        scales = scales if roots is None else scales * roots
        fits = start, fit
        errors = [mean_square(rows[judged], targets[judged], one, processes, scales) for one in fits]
        better = errors[1] < errors[0]
    if not better:
        return repair_row(name, "reverted", before, after), None
    return repair_row(name, "refitted", before, after), fit


def fit_rows(
    rows: Tensor,
    targets: Tensor,
    start: Fit,
    settings: Settings,
    *,
    shiftable: bool,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
) -> Fit:
    """The fit that the settings ask for."""
    if settings.method == "least_squares":
        return fit_ridge(
            rows,
            targets,
            start,
            settings.ridge,
            intercept=shiftable,
            mask=mask,
            processes=settings.processes,
            weights=weights,
        )
    return fit_intercept(rows, targets, start, settings.processes) if shiftable else start


def split_rows(rows: int, examples: int, settings: Settings) -> tuple[slice, slice]:
    """The rows that are fitted to, and those that judge: of the examples held out, or all of them."""
    fitted = rows - round(rows * settings.held_out / examples)
    return slice(fitted), slice(fitted, None) if fitted < rows else slice(None)


def _find_finite(rows: Tensor, targets: Tensor, part: slice) -> slice | Tensor:
    """Those rows of a part whose numbers are finite: what attends to nothing, as in padding, is not a
    number."""
    parts = rows[part], targets[part]
    finite = parts[0].flatten(1).isfinite().all(1) & parts[1].flatten(1).isfinite().all(1)
    if bool(finite.all()) or not bool(finite.any()):
        return part
    places = torch.arange(len(rows), device=rows.device)[part]
    return places[finite]


def spread_of(targets: Tensor, processes: Any = None) -> float:
    """Mean variance of the outputs over the rows of all processes; 1 where they are all the same."""
    if processes is None:
        return float(targets.var(0, correction=0).mean()) or 1.0
    mean = add_over_processes(targets.double().sum(0), processes)
    mean /= add_over_processes(targets.new_tensor(len(targets), dtype=torch.float64), processes)
    return mean_of_all((targets - mean.to(targets.dtype)).square(), processes) or 1.0


def is_unchanged(error: float, dtype: torch.dtype) -> bool:
    """Whether an error, relative to the spread, is no more than rounding."""
    return error <= max(UNCHANGED, torch.finfo(dtype).eps ** 2)


def repair_row(
    layer: str,
    outcome: Literal["refitted", "reverted", "unchanged", "skipped"],
    before: float | None = None,
    after: float | None = None,
    reason: str = "",
) -> LayerRepair:
    return LayerRepair(layer=layer, outcome=outcome, before=before, after=after, reason=reason)
