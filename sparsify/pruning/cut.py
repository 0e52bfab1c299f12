"""From a plan to a cut that is proven."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn

from sparsify.cost.cost_model import Costs
from sparsify.cost.measure import copy_model
from sparsify.errors import ModelError, VerificationError
from sparsify.events import Listener, silence
from sparsify.formatting.numbers import format_share
from sparsify.formatting.verdict_text import LABELS, fold_notes, verdict_words
from sparsify.forward import call_model
from sparsify.forward.calls import Call, Inputs
from sparsify.forward.copies import copy_object
from sparsify.forward.free_memory import return_freed_memory
from sparsify.forward.input_records import apply_record
from sparsify.forward.opaque import explain_errors
from sparsify.forward.scratch import make_scratch
from sparsify.graph.expert_numbers import list_kept_widths
from sparsify.graph.model_shapes import check_shapes
from sparsify.graph.surgery import fold_constants, own_settings, stale_widths, transfer_state
from sparsify.graph.surgery import operations as cut_operations
from sparsify.graph.surgery.constant_shifts import Constants
from sparsify.graph.surgery.operations import Keep
from sparsify.graph.surgery.replay import replay_cuts
from sparsify.graph.trace import vocabulary
from sparsify.objective.objective import Objective, make_objective, objective_of_loss
from sparsify.pruning import layer_compaction, weight_masks
from sparsify.pruning.choice_notes import choice_notes
from sparsify.pruning.constant_units import (
    CONTRADICTED,
    confirmed_constants,
    constants_of,
    unfollowed_constants,
)
from sparsify.pruning.criteria.statistics import gather_statistics
from sparsify.pruning.followers import find_averaged_attribute
from sparsify.pruning.latency_budget import build_latency_models, choose_by_latency
from sparsify.pruning.memory_budget import choose_by_memory
from sparsify.pruning.plan_inputs import check_inputs, draw_fresh_inputs, move_inputs, redraw_planned_inputs
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import Chooser, choose
from sparsify.pruning.proof import CutParts, prove, rebuild_model
from sparsify.pruning.scoring import (
    Batches,
    count_batches,
    find_seeing,
    score_units,
    take_batches,
    takes_targets,
)
from sparsify_schemas.cuts import AddBias, Cuts, Fold, Zero
from sparsify_schemas.report import Verdict

Chosen = dict[str, list[int]]


@dataclass(frozen=True, repr=False)
class Result:
    """A verified cut."""

    model: nn.Module
    """the cut model"""
    dense: nn.Module
    """the model as it came in, untouched"""
    plan: Plan
    cuts: Cuts
    verdicts: tuple[Verdict, ...]
    followers: tuple[Any, ...] = ()
    """what was given as `follow`, of the same classes, cut alike"""
    notes: tuple[str, ...] = ()
    """numbers of the model that still state an old width, what became of the constants that removed units
    emitted, and what of the optimizer's state could not be carried over"""

    def __repr__(self) -> str:
        """What came out, in one line."""
        shares = ", ".join(f"{format_share(left)} of the {LABELS[what]}" for what, left in self._left())
        return f"<Result: {shares}; {', '.join(map(verdict_words, self.verdicts))}>"

    def _left(self) -> Iterator[tuple[str, float]]:
        costs, left = Costs(self.plan.map), measure_left(self.plan, self.model, (self.cuts,))
        yield from (
            (what, left[what] / costs.dense[what]) for what in ("macs", "params") if costs.dense[what]
        )


def measure_left(plan: Plan, model: nn.Module, rounds: Sequence[Cuts]) -> dict[str, float]:
    """MACs, params and bytes that cuts have left: of the widths, less what columns that are no longer
    computed had cost.

    plan: of the dense model. model: as the last cut left it.
    """
    layers = {layer.name: layer for layer in plan.map.layers}
    width = {name: group.width for name, group in plan.map.by_name.items()}
    kept = list_kept_widths(rounds)
    left = Costs(plan.map).of(
        {name: range(stay, width[name]) for name, stay in kept.items() if name in width}
    )
    there = {name for name, _ in model.named_modules()}
    for how in {e.module: e for cuts in rounds for e in cuts.executions if e.module in there}.values():
        lost = model.get_submodule(how.module).get_parameter("weight").shape[0] * (how.columns - how.live)
        left["macs"] -= layers[how.module].macs * lost / prod(layers[how.module].weight)
        left["params"] -= lost
    return left


def cut(
    plan: Plan,
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Inputs | Call | Sequence[Call] | None = None,
    batches: Batches | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    objective: Objective | None = None,
    follow: Sequence[Any] = (),
    listener: Listener = silence,
    agree: Callable[[Chosen], Chosen] = lambda keep: keep,
    chooser: Chooser = choose,
) -> Result:
    """Remove groups from a copy, and prove that the copy computes what the masked model does.

    Groups that are zero already leave first. The rules' `sparsity` and the budget decide how many more
    follow, the criterion decides which. The model itself is never changed.

    Args:
        plan: Made of this model.
        model: The dense model.
        optimizer: Is given the cut model's parameters, with its state narrowed. Schedulers and gradient
            scalers bound to it go on. Gradients and hooks are carried over too; a hook then sees gradients of
            the narrow shape.
        inputs: For the proof, as in `make_plan`. Left out, they are drawn at random in the shapes of the
            plan's.
        batches: Training batches, for criteria that look at data: pairs (x, y), or mappings with the targets
            among them. x is a tensor, or a mapping or tuple of the model's arguments. Criteria that take no
            gradient (`activation`, `wanda`, `reconstruction`) need no targets: a batch may be x alone, where
            that is a tensor or a mapping.
        loss: Of (outputs, y), in place of the recipe's task: a scalar, or a number for each example. Some of
        these
            criteria take its gradient.
        objective: The same, made by `make_objective`.
        follow: Models of the same structure that lose the same units, copied into `followers`; or objects
            that hold one as `module`, `ema_model`, `model` or `ema` (torch's AveragedModel, timm's
            ModelEmaV3), copied with the cut one inside.
        listener: Called with progress events. A limited latency is timed, and the choice repeated until it
            holds.
        agree: Called with the choice and returns the one to use, so that several processes cut the same
            units.
        chooser: Makes the choice.

    Returns:
        `model` (the cut copy), `cuts` (the log), `verdicts` (what the proof found), `followers` and `notes`.

    Raises:
        VerificationError: The proof failed. Neither model nor optimizer has changed then.
        ModelError: The plan belongs to another model, or the criterion needs batches.

    Examples:
        >>> result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
        >>> result
        <Result: 50.0 % of the MACs, 51.1 % of the parameters; cut verified: equal to the masked model ...>
        >>> result.model[0]
        Linear(in_features=4, out_features=8, bias=True)
    """
    call_model.check_model(model)
    call_model.require_values(model)
    if batches is None and count_batches(plan.recipe):
        kind = (
            "(x, y) training batches" if takes_targets(plan.recipe) else "training batches, targets or none"
        )
        raise ModelError(
            f"criterion '{find_seeing(plan.recipe)}' looks at training data: pass batches, an iterable of "
            f"{kind}, to cut"
        )
    if plan.recipe.budget.accuracy_drop is not None:
        raise ModelError(
            "budget.accuracy_drop is found by going through the recipe's stages; call "
            "sparsify.apply, or leave it out of a plan that is cut by hand"
        )
    check_shapes(plan.map, model)
    for other in follow:  # refused now, not when all is cut and proven
        find_averaged_attribute(plan.map, other, model)
    given = (
        redraw_planned_inputs(plan, model)
        if inputs is None
        else apply_record(plan.map.inputs, check_inputs(inputs, model))
    )
    dense = make_scratch(model)
    inputs = vocabulary.add_names_and_vocabularies(dense, given)
    batches = None if batches is None else take_batches(batches, plan.recipe)
    if objective is None:
        objective = make_objective(plan.recipe.task) if loss is None else objective_of_loss(loss)
    clocks = build_latency_models(plan.recipe, plan.recipe.budget.latency, dense, plan.map, inputs, listener)
    scores, dead, score_notes = score_units(plan, dense, batches, objective)
    keep = agree(
        choose_by_memory(
            plan,
            dense,
            inputs,
            lambda aim: choose_by_latency(aim, dense, scores, dead, clocks, inputs, listener, chooser),
            listener,
        )
    )
    with explain_errors("cutting the model"):
        zeroed, zeroing_log = weight_masks.zero_weights(
            plan, dense, keep, partial(gather_statistics, batches=batches, objective=objective)
        )
        keep = weight_masks.drop_dead_units(plan, zeroed, keep)
    constants, notes = confirmed_constants(plan, zeroed, keep, inputs)
    try:
        made = _carry_out(plan, dense, zeroed, keep, constants, inputs)
    except VerificationError:
        if constants == Constants():
            raise
        constants, notes = Constants(), (CONTRADICTED,)
        made = _carry_out(plan, dense, zeroed, keep, constants, inputs)
    thin, cuts = made.model, made.cuts.model_copy(update={"zeroed": zeroing_log})
    followers = tuple(_cut_follower(plan, other, model, thin, cuts, keep, inputs) for other in follow)
    notes += (*score_notes, *choice_notes(plan, cuts, scores, dead))
    notes += cuts.notes
    notes += tuple(unfollowed_constants(plan, zeroed, keep, constants, inputs))
    notes += tuple(fold_notes(op for op in cuts.operations if isinstance(op, Fold)))
    notes += transfer_state.transfer_state(model, thin, cuts, optimizer)
    return Result(thin, model, plan, cuts, made.verdicts, followers, notes)


def cut_units(plan: Plan, model: nn.Module, keep: Mapping[str, Sequence[int]], inputs: Inputs) -> Result:
    """Keep these units, whatever rules, budget and weights say, and prove the cut.

    Nothing else changes: units that emit constants leave without making up for them.

    Args:
        plan: Made of this model.
        model: The dense model, which stays as it is.
        keep: Coupled group -> units that stay, ascending; groups that are not named stay whole.
        inputs: For the proof.

    Raises:
        VerificationError: The proof failed.
    """
    dense = make_scratch(model)
    made = _carry_out(plan, dense, dense, keep, Constants(), inputs)
    return Result(made.model, model, plan, made.cuts, made.verdicts, notes=made.cuts.notes)


@dataclass(frozen=True)
class _ProvenCut:
    """A cut that was carried out and proven."""

    model: nn.Module
    cuts: Cuts
    verdicts: tuple[Verdict, ...]


def _carry_out(
    plan: Plan,
    dense: nn.Module,
    zeroed: nn.Module,
    keep: Mapping[str, Sequence[int]],
    constants: Constants,
    inputs: Inputs,
) -> _ProvenCut:
    """Remove the units, make layers cheaper, fold constants, and prove what comes of it as rebuilt from log
    and weights."""
    return_freed_memory()
    with explain_errors("cutting the model"):
        thin, cuts = cut_operations.cut(zeroed, plan.map, keep, plan.digest)
        stated = own_settings.list_stated_heads(dense, plan.map, keep)
        cuts = stale_widths.follow_widths(dense, thin, cuts, inputs, stated)
        reshaped, executions = layer_compaction.make_layers_cheaper(plan, thin, inputs)
        folded = fold_constants.fold_constants(thin, constants.shifts, plan.map, keep)
    operations = (*cuts.operations, *reshaped, *folded.operations, *weight_masks.count_zeros(plan, thin))
    cuts = cuts.model_copy(update={"operations": operations, "executions": executions})
    fresh = draw_fresh_inputs(plan, dense, inputs)
    with explain_errors("proving the cut"):
        delivered = rebuild_model(zeroed, thin, cuts, fresh, inputs)
        done = CutParts(dense, zeroed, delivered, keep, reshaped, constants, folded.values, fresh)
        verdicts = prove(plan, done, inputs)
    return _ProvenCut(thin, cuts, verdicts)


def _cut_follower(
    plan: Plan, other: Any, model: nn.Module, thin: nn.Module, cuts: Cuts, keep: Keep, inputs: Inputs
) -> Any:
    """The same units out of a further model of the same structure, weights zero where those of the cut model
    are."""
    name = find_averaged_attribute(plan.map, other, model)
    if name is not None:  # an average goes on with as many steps behind it
        inside = getattr(other, name)
        narrow = _cut_follower(plan, inside, model, thin, cuts, keep, inputs)
        return copy_object(
            other, f"the {type(other).__name__} in follow", {id(inside): narrow, id(model): thin}
        )
    own = copy_model(other)
    narrow = replay_cuts(own, cuts)
    created = {op.module for op in cuts.operations if isinstance(op, AddBias)}
    shifts = constants_of(own, plan.map, keep, move_inputs(inputs, own)).shifts
    fold_constants.fold_constants(narrow, shifts, plan.map, keep, created)
    with torch.no_grad():
        for op in cuts.operations:
            if isinstance(op, Zero):
                narrow.get_parameter(op.tensor).mul_(thin.get_parameter(op.tensor) != 0)
    transfer_state.transfer_state(other, narrow, cuts)
    return narrow
