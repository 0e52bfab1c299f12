"""Removed units that are constant as their weights prove, and what their leaving changes where it cannot be
kept."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from sparsify.cost.measure import copy_model
from sparsify.formatting.numbers import count_noun, format_share
from sparsify.forward import call_model
from sparsify.forward.calls import Inputs
from sparsify.forward.fresh_inputs import redraw
from sparsify.forward.trial_calls import accepts_inputs
from sparsify.graph import precision
from sparsify.graph.dead_units import find_dead_units
from sparsify.graph.model_map import ModelMap
from sparsify.graph.surgery import constants as proven_constants
from sparsify.graph.surgery.constant_shifts import Constants, constants_match
from sparsify.graph.verify import equivalence
from sparsify.pruning.plan_inputs import derive_seed, draw_fresh_inputs
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.scoring import copy_without_masks

CONTRADICTED = (
    "a comparison contradicted what the weights say of constant units, so "
    "none of these constants were kept; this is a "
    "bug: please report it with the recipe and the model's code"
)


def constants_of(
    dense: nn.Module, map: ModelMap, keep: Mapping[str, Sequence[int]], inputs: Inputs
) -> Constants:
    """What the removed units emit that no input changes, computed in float64 where the model runs in it;
    nothing, where it cannot be followed."""
    if not proven_constants.has_zeros(dense):
        return Constants()
    given = call_model.move_inputs_to_cpu(inputs)
    double = call_model.convert_inputs(given, torch.float64)
    try:
        return proven_constants.find_constants(
            precision.cast_model(copy_model(dense).cpu(), torch.float64).eval(), map, keep, double
        )
    except Exception:  # the model casts inside
        try:
            return proven_constants.find_constants(copy_model(dense).cpu().eval(), map, keep, given)
        except Exception:
            return Constants()


def confirmed_constants(
    plan: Plan, dense: nn.Module, keep: Mapping[str, Sequence[int]], inputs: Inputs
) -> tuple[Constants, tuple[str, ...]]:
    """What the removed units emit, and a note where other inputs contradict it: then none of it is believed.

    Constants that go on exactly are compared with the dense model by the proof. Of the others the proof sees
    the mean alone, so they are derived once more on other inputs, which must give the same numbers.
    """
    found = constants_of(dense, plan.map, keep, inputs)
    other = redraw(inputs, derive_seed(plan, 0))
    if all(shift.exact for shift in found.shifts) or not accepts_inputs(dense, other):
        return found, ()
    if constants_match(found, constants_of(dense, plan.map, keep, other)):
        return found, ()
    return Constants(), (CONTRADICTED,)


def unfollowed_constants(
    plan: Plan,
    dense: nn.Module,
    keep: Mapping[str, Sequence[int]],
    constants: Constants,
    inputs: Inputs,
) -> Iterator[str]:
    """Removed units that no weight produces, and whose constants mix with data on the way: what their leaving
    changes."""
    coupled = {group.name: group for group in plan.map.coupled}
    names = [name for name in keep if name in coupled and not coupled[name].statistics]
    own = copy_without_masks(dense)
    unmade = find_dead_units(plan.map, names, dict(own.named_parameters()), roles=("out",))
    for name, flags in unmade.items():
        accounted = {*keep[name], *constants.harmless.get(name, ()), *constants.accounted.get(name, ())}
        lost = [unit for unit, dead in enumerate(flags.tolist()) if dead and unit not in accounted]
        if not lost:
            continue
        width = plan.map.by_name[name].width
        rest = {name: [unit for unit in range(width) if unit not in lost]}
        # On several inputs: a gate may be closed, or a mean over the batch hide it, on one of them.
        tried = [
            one for one in (inputs, *draw_fresh_inputs(plan, dense, inputs)) if accepts_inputs(dense, one)
        ]
        change = max((equivalence.measure_effect(dense, plan.map, rest, one) for one in tried), default=0.0)
        if change > NOTICED:
            yield (
                f"{count_noun(len(lost), 'unit')} of '{name}' had no weights that produce "
                "them, but their constants were mixed "
                "with data before a layer read them: what they gave is lost, up to "
                f"{format_share(change)} of the largest output"
            )


NOTICED = 1e-9
"""largest change of an output, relative to its largest value, that is not worth a note"""
