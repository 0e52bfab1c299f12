"""The notes of a report: unequal training, zeros in the tensors, removed blocks, folded constants."""

from collections.abc import Iterable, Mapping

from torch import nn

from sparsify.formatting.numbers import count_noun, list_few
from sparsify.formatting.verdict_text import fold_notes
from sparsify.runs.run_record import RunRecord
from sparsify_schemas.cuts import Fold
from sparsify_schemas.group import in_one_tensor, removes_branches
from sparsify_schemas.target import Target


def write_notes(record: RunRecord, cut: nn.Module, targets: Mapping[str, Target]) -> Iterable[str]:
    """Yield the notes in the order in which the report shows them. targets: those that were timed."""
    yield from record.notes
    yield from _note_unequal_training(record)
    # Notes of the plan on zeroed weights are left out: the counts follow below.
    yield from (note for note in record.plan.notes if "weights are set to zero" not in note)
    yield from dict.fromkeys(note for cuts in record.cuts for note in cuts.notes)
    yield from _note_zeros(record, cut)
    yield from _note_removed_blocks(record)
    yield from fold_notes(op for cuts in record.cuts for op in cuts.operations if isinstance(op, Fold))
    if not record.plan.recipe.targets and targets:
        yield _note_default_targets(targets)


def count_zeros(model: nn.Module, names: Iterable[str]) -> tuple[int, int]:
    """(elements that are zero, elements) of the named tensors."""
    state = model.state_dict()
    tensors = [state[name] for name in names if name in state]
    zeros = sum(int((tensor == 0).sum()) for tensor in tensors)
    return zeros, sum(tensor.numel() for tensor in tensors)


def _note_unequal_training(record: RunRecord) -> Iterable[str]:
    """Where the accuracies compared are of models that were not trained for as long."""
    before, after = record.epochs
    fine_tuned = f"fine-tuned for {count_noun(after, 'epoch')} after the cut"
    if before and not record.dense_trained:
        more = f" and {fine_tuned}" if after else ""
        trained = f"trained for {count_noun(before, 'epoch')} before the cut{more}"
        yield f"the cut model was {trained}; the dense model was not"
    elif after:
        yield f"the cut model was {fine_tuned}; the dense model was not"


def _note_zeros(record: RunRecord, cut: nn.Module) -> Iterable[str]:
    rules = record.plan.recipe.rules
    for assignment in record.plan.assignments:
        if not in_one_tensor(rules[assignment.rule].group):
            continue
        zero, total = count_zeros(cut, assignment.tensors)
        if zero:
            yield (
                f"rules.{assignment.rule}: {zero} of {total} stored weights are zero; "
                "zeros in the tensors make the model neither faster nor its file smaller"
            )


def _note_removed_blocks(record: RunRecord) -> Iterable[str]:
    rules = record.plan.recipe.rules
    removed = {width.group for cuts in record.cuts for width in cuts.widths if not width.keep}
    for assignment in record.plan.assignments:
        if not removes_branches(rules[assignment.rule].group):
            continue
        names = tuple(name for name in assignment.coupled if name in removed)
        blocks = count_noun(len(assignment.coupled), "residual block")
        listed = f": {list_few(names, 12)}" if names else ""
        yield f"rules.{assignment.rule}: {len(names)} of {blocks} were removed{listed}"


def _note_default_targets(targets: Mapping[str, Target]) -> str:
    runtimes = "ONNX Runtime and eager PyTorch" if "onnxruntime" in targets else "eager PyTorch"
    return (
        "the recipe names no target, so both models were timed on this machine's CPU: "
        f"{runtimes}, 1 thread, batch 1"
    )
