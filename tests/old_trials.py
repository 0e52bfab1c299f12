"""Trial cuts in the plain way, with which the quick way is compared: every group by values, found by halving
alone, every model copied in double precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn

from sparsify.forward.copies import copy_model
from sparsify.forward.trial_calls import mark_fixed_calls
from sparsify.graph.model_map import ModelMap
from sparsify.graph.verify import group_trials, search_faults, trial_cuts
from sparsify.graph.verify.equivalence import copy_in_double


@contextmanager
def try_in_the_plain_way() -> Iterator[None]:
    """Inside, trial cuts take no short cut."""
    trials = group_trials.GroupTrials
    protect = trial_cuts.protect_failing_groups

    def find_fault(
        self: group_trials.GroupTrials, model_map: ModelMap, keep: object, tolerance: float
    ) -> object:
        return group_trials.judge_cut(self.model, model_map, keep, self.inputs, self.double(), tolerance)

    with (
        mock.patch.object(trial_cuts, "_protect_by_shapes", lambda *_: None),
        mock.patch.object(group_trials, "WAYS_TO_WIDEN", (copy_in_double,)),
        mock.patch.object(trials, "_find_fault_in_double", find_fault),
        mock.patch.object(trial_cuts, "protect_failing_groups", lambda *given: protect(*given[:3])),
        mock.patch.object(group_trials, "_remember_last", lambda find: find),
        mock.patch.object(search_faults, "_split_by_kind", lambda groups: [groups]),
        mock.patch.object(search_faults, "_search_kind", search_faults._bisect_groups),
    ):
        yield


def describe(model_map: ModelMap) -> dict[str, object]:
    """What trial cuts decide of each group."""
    found: dict[str, object] = {}
    for group in model_map.coupled:
        slices = sorted((part.tensor, part.dim, part.role, str(part.spans)) for part in group.slices)
        found[group.name] = (group.width, group.protected, slices)
    return found


def both_ways(model: nn.Module, traced: ModelMap, inputs: object) -> tuple[dict[str, object], ...]:
    """What the quick way, with a scratch copy as in `make_plan`, and the plain way decide."""
    scratch = copy_model(model) if all(p.dtype == torch.float32 for p in model.parameters()) else None
    before = {} if scratch is None else {name: t.clone() for name, t in scratch.state_dict().items()}
    marked = mark_fixed_calls(model, inputs)
    quick = describe(trial_cuts.protect_failing_groups(model, traced, marked, scratch))
    if scratch is not None:
        after = scratch.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items()), "not restored"
    with try_in_the_plain_way():
        plain = describe(trial_cuts.protect_failing_groups(model, traced, inputs))
    return quick, plain
