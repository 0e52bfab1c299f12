"""The proof of a cut: the delivered model beside the masked dense model, on fresh inputs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.errors import VerificationError
from sparsify.forward.calls import Inputs
from sparsify.forward.free_memory import return_freed_memory
from sparsify.forward.scratch import borrow_model, is_plain, note_shared
from sparsify.graph.surgery import operations
from sparsify.graph.surgery.constant_shifts import Constants
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.verify import equivalence
from sparsify.graph.verify.run_models import compare_outputs
from sparsify.pruning.planning.plan import Plan
from sparsify_schemas.cuts import Crop, Cuts, Gather
from sparsify_schemas.report import Verdict


def rebuild_model(
    dense: nn.Module, thin: nn.Module, cuts: Cuts, fresh: Sequence[Inputs], inputs: Inputs
) -> nn.Module:
    """The cut model as a reader of the log and the weights would rebuild it.

    Raises VerificationError when it computes something else than the cut model itself.
    """
    again = replay_cuts(dense, cuts).eval()
    again.load_state_dict(thin.state_dict())
    _share_weights(again, thin)
    return_freed_memory()
    difference = compare_outputs(borrow_model(thin).eval(), again, (*fresh, inputs), RELOADED)
    if difference.exceeds(RELOADED):
        raise VerificationError(
            "the cut model rebuilt from its log and weights computes something else than the cut model "
            f"itself: outputs differ {difference}; this is a bug: please report it with the recipe and the "
            "model's code; nothing was saved"
        )
    return again


def _share_weights(again: nn.Module, thin: nn.Module) -> None:
    """Have two models with equal parameters hold these once in memory."""
    known = dict(thin.named_parameters())
    for name, parameter in again.named_parameters():
        if name in known and is_plain(parameter) and torch.equal(parameter, known[name]):
            parameter.data = known[name].data
    note_shared(again)


RELOADED = 1e-5
"""largest difference, in the model's own precision, between the cut model and its rebuilt form: rounding
alone"""


@dataclass(frozen=True)
class CutParts:
    """What is to be proven: the dense model as it came, with groups at zero, and cut."""

    dense: nn.Module
    zeroed: nn.Module
    thin: nn.Module
    keep: Mapping[str, Sequence[int]]
    reshaped: tuple[Crop | Gather, ...]
    constants: Constants
    folded: Mapping[str, Tensor]
    fresh: tuple[Inputs, ...]


def prove(plan: Plan, done: CutParts, inputs: Inputs) -> tuple[Verdict, ...]:
    layers = tuple(dict.fromkeys(op.module for op in done.reshaped))
    try:
        verdict = equivalence.verify_cut(
            done.zeroed,
            done.thin,
            plan.map,
            done.keep,
            inputs,
            before=None if done.dense is done.zeroed else done.dense,
            reshaped=layers,
            constants=done.constants,
            folded=done.folded,
            fresh=done.fresh,
        )
        return (verdict,)
    except VerificationError as error:
        hints = [str(error), _find_culprit(plan, done, inputs), *_explain_ties(plan, done)]
        raise VerificationError(f"{'; '.join(hints)}; nothing was saved") from error


def _explain_ties(plan: Plan, done: CutParts) -> Iterator[str]:
    """What may be behind it where experts left: a choice of the largest of equal scores is open."""
    own = [mixture for mixture in plan.map.mixtures if mixture.name in done.keep]
    if any(mixture.list_removed(done.keep[mixture.name]) for mixture in own):
        yield (
            "where a router gives experts equal scores, as for a padding token whose embedding is zero, the "
            "choice among them is open, and a cut model may choose another than the dense one"
        )


def _find_culprit(plan: Plan, done: CutParts, inputs: Inputs) -> str:
    for name, kept in done.keep.items():
        alone = {name: kept}
        try:
            equivalence.verify_cut(
                done.zeroed,
                operations.cut(done.zeroed, plan.map, alone, plan.digest)[0],
                plan.map,
                alone,
                inputs,
            )
        except VerificationError:
            layers = ", ".join(plan.map.by_name[name].layers)
            return (
                f"group '{name}' fails by itself (it reaches {layers}): write a rule with "
                f"'protect: true' for '{name}'"
            )
    if done.reshaped:
        try:
            equivalence.verify_cut(
                done.zeroed,
                operations.cut(done.zeroed, plan.map, done.keep, plan.digest)[0],
                plan.map,
                done.keep,
                inputs,
            )
            layers = ", ".join(dict.fromkeys(repr(op.module) for op in done.reshaped))
            return f"without the cheaper forms of {layers} it does not: leave these layers out of the rule"
        except VerificationError:
            pass
    return "no group fails by itself: protect layers one by one to find the pair that does"
