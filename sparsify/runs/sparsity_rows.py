"""The report's row of each rule on groups inside tensors: how much was set to zero."""

from collections.abc import Iterator

from torch import nn

from sparsify.pruning.planning.cut_targets import find_last_zeroed
from sparsify.runs.report_notes import count_zeros
from sparsify.runs.run_record import RunRecord
from sparsify_schemas.report import (
    Sparsity,
)


def list_sparsity_rows(record: RunRecord, dense: nn.Module, cut: nn.Module) -> Iterator[Sparsity]:
    """A row for each rule on groups inside tensors, and one named 'model' over all parameters."""
    tensors_of = {assignment.rule: assignment.tensors for assignment in record.plan.assignments}
    zeroed = find_last_zeroed(record.cuts)
    for done in zeroed.values():
        names = tensors_of[done.rule]
        total = sum(dense.get_parameter(name).numel() for name in names)
        zero, stored = count_zeros(cut, names)
        yield Sparsity(
            what=f"rules.{done.rule}",
            group=done.group,
            nominal=_divide(done.zeros, done.weights),
            effective=1 - (stored - zero) / total if total else 0.0,
            weights=total,
        )
    if zeroed:
        total = sum(p.numel() for p in dense.parameters())
        nonzero = sum(int(p.count_nonzero()) for p in cut.parameters())
        zeros = sum(done.zeros for done in zeroed.values())
        yield Sparsity(
            what="model",
            group="",
            nominal=_divide(zeros, total),
            effective=1 - _divide(nonzero, total),
            weights=total,
        )


def _divide(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
