"""Find which mixtures can lose experts, by trial cuts before any training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from sparsify.errors import ModelError
from sparsify.forward.call_model import convert_inputs
from sparsify.forward.calls import Inputs
from sparsify.graph.mixtures import propose_mixtures
from sparsify.graph.model_map import Coupled, Mixture, ModelMap
from sparsify.graph.name_kinds import name_kind
from sparsify.graph.peft_adapters import find_adapter_names
from sparsify.graph.surgery import operations
from sparsify.graph.verify.group_trials import choose_double, judge_cut, repeat_examples
from sparsify.graph.verify.meta_trials import choose_half
from sparsify.graph.verify.run_models import copy_in_dtype, first_line, run_model
from sparsify.graph.verify.search_faults import find_cuttable
from sparsify.graph.verify.trial_weights import randomize_weights

CountMacs = Callable[[nn.Module], int]
"""multiply-accumulates of one forward call of a model"""
MANY = 16
"""examples of one trial more: a limit on the tokens of an expert (capacity) may not bind with few"""
MOST_NEEDED = 16
"""experts that a router is expected to choose at most"""


def add_mixtures(model: nn.Module, model_map: ModelMap, inputs: Inputs, count_macs: CountMacs) -> ModelMap:
    """Add the model's mixtures of experts to the map.

    Of each kind of mixture (`layers.0.mlp`, `layers.1.mlp`, ...) the first way of cutting it is taken in
    which the cut model computes, in float64 and on random weights, what the dense one does with the scores of
    the removed experts at minus infinity: without half of the experts, without the other half, without the
    first, and with as few as the model runs with. Then all mixtures are cut together. Those that fail there
    are tried by themselves; one without a way is marked protected.

    count_macs: a count of a model's operations. Raises ModelError for a model without weights.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ModelError(
            "group 'expert' needs a model with weights: a trial cut decides whether an expert can be removed"
        )
    trials = _Trials(model, model_map, convert_inputs(inputs, torch.float32))
    ways = {proposals[0].name: proposals for proposals in propose_mixtures(model, model_map)}
    found, followed = _choose_ways(trials, ways)
    reasons = _cut_together(trials, found)
    alone = [name for name in reasons if name in followed]
    if alone:
        found |= {name: _choose_way(trials, ways[name])[1] for name in alone}
        reasons = _cut_together(trials, found)
    plain = find_adapter_names(model).plain
    freed: dict[tuple[str, int], float] = {}
    made = []
    for name, mixture in found.items():
        mixture = _protect(mixture, reasons.get(name))
        kind = name_kind(name), mixture.count
        if mixture.group.protected is None and kind not in freed:
            freed[kind] = trials.count_freed(mixture, count_macs)
        made.append(replace(mixture, macs=freed.get(kind, 0.0), plain=plain.get(mixture.module, "")))
    return replace(model_map, mixtures=tuple(made))


def _choose_ways(
    trials: "_Trials", ways: Mapping[str, Sequence[Mixture]]
) -> tuple[dict[str, Mixture], set[str]]:
    """A way of each mixture, and the names of those that go the way of the first of their kind untried."""
    first: dict[str, tuple[int, int]] = {}
    found: dict[str, Mixture] = {}
    followed: set[str] = set()
    for name, proposals in ways.items():
        at, least = first.get(name_kind(name), (len(proposals), 1))
        if at < len(proposals):
            own = proposals[at]
            found[name] = replace(own, group=replace(own.group, least=least))
            followed.add(name)
            continue
        at, found[name] = _choose_way(trials, proposals)
        if found[name].group.protected is None:
            first[name_kind(name)] = at, found[name].group.least
    return found, followed


class _Trials:
    """Trial cuts of one model on random weights."""

    def __init__(self, model: nn.Module, model_map: ModelMap, inputs: Inputs) -> None:
        self.map, self.inputs = model_map, inputs
        self.many = repeat_examples(inputs, MANY)
        self.model = copy_in_dtype(model, torch.float32)
        randomize_weights(model, self.model, inputs)
        self.double = choose_double(self.model, inputs)
        self.why = ""

    def find_fault(
        self, mixtures: Sequence[Mixture], keep: operations.Keep, inputs: Inputs | None = None
    ) -> str | None:
        """What is wrong with a cut of these mixtures; None if nothing is."""
        own = replace(self.map, mixtures=tuple(mixtures))
        return judge_cut(self.model, own, keep, inputs or self.inputs, self.double)

    def runs(self, mixture: Mixture, count: int) -> bool:
        """Whether the model runs with so many units."""
        own = replace(self.map, mixtures=(mixture,))
        try:
            thin = operations.cut_on_trial(self.model, own, {mixture.name: range(count)})
            run_model(thin, self.inputs)
        except Exception as error:
            self.why = f"{type(error).__name__}: {first_line(error)}"
            return False
        return True

    def count_freed(self, mixture: Mixture, count_macs: CountMacs) -> float:
        """Multiply-accumulates that leave with one unit, measured on half of them: where each token goes to
        a fixed number of experts, those of the router's row alone."""
        kept = max(mixture.group.least, mixture.group.width // 2)
        own = replace(self.map, mixtures=(mixture,))
        thin = operations.cut_on_trial(self.model, own, {mixture.name: range(kept)})
        return max(0.0, (count_macs(self.model) - count_macs(thin)) / (mixture.group.width - kept))


def _choose_way(trials: _Trials, proposals: Sequence[Mixture]) -> tuple[int, Mixture]:
    """The first way without a fault, with its place and the number of units that it needs; else the first,
    protected."""
    why: str | None = None
    for at, mixture in enumerate(proposals):
        found = _try_way(trials, mixture)
        if isinstance(found, Mixture):
            return at, found
        why = why or found
    first = proposals[0]
    return 0, replace(first, group=replace(first.group, protected=why))


def _try_way(trials: _Trials, mixture: Mixture) -> Mixture | str:
    """The mixture with the number of units that it needs, or what is wrong with it."""
    width = mixture.group.width
    least = next((n for n in range(1, min(width, MOST_NEEDED + 1)) if trials.runs(mixture, n)), width)
    if least >= width:
        return f"with one expert less the model does not run: {trials.why}"
    mixture = replace(mixture, group=replace(mixture.group, least=least))
    half, rest = choose_half(mixture.group), _choose_rest(mixture.group)
    for units in (half, rest, list(range(1, width)), list(range(least))):
        why = trials.find_fault((mixture,), {mixture.name: _fill(units, least, width)})
        if why is not None:
            return _explain(why)
    why = trials.find_fault((mixture,), {mixture.name: list(range(least))}, trials.many)
    if why is not None:
        return f"with {MANY} examples {why}"
    return mixture


def _fill(units: Sequence[int], least: int, width: int) -> list[int]:
    """These units, and as many others as are needed."""
    others = [unit for unit in range(width) if unit not in units]
    return sorted([*units, *others[: max(0, least - len(units))]])


def _explain(why: str) -> str:
    if "differs from the masked one by nan" in why:
        return (
            "where the router's score of an expert is minus infinity, the dense model gives no number, "
            "so nothing says what is right without that expert"
        )
    return why


def _cut_together(trials: _Trials, found: Mapping[str, Mixture]) -> dict[str, str]:
    """Mixture -> why it cannot be cut with the others."""
    reasons: dict[str, str] = {}
    every = {mixture.name: mixture for mixture in found.values()}
    good = [mixture.group for mixture in every.values() if mixture.group.protected is None]
    for choose in (choose_half, _choose_rest, _choose_least):
        good = find_cuttable(good, partial(_find_fault_together, trials, every, choose), reasons)
    names = {mixture.name: name for name, mixture in found.items()}
    return {names[name]: _explain(why) for name, why in reasons.items()}


def _find_fault_together(
    trials: _Trials,
    every: Mapping[str, Mixture],
    choose: Callable[[Coupled], list[int]],
    groups: Sequence[Coupled],
) -> str | None:
    keep = {group.name: _fill(choose(group), group.least, group.width) for group in groups}
    return trials.find_fault([every[group.name] for group in groups], keep)


def _choose_rest(group: Coupled) -> list[int]:
    """The units that the first trial took away."""
    return sorted(set(range(group.width)) - set(choose_half(group)))


def _choose_least(group: Coupled) -> list[int]:
    return list(range(group.least))


def _protect(mixture: Mixture, why: str | None) -> Mixture:
    if why is None:
        return mixture
    return replace(mixture, group=replace(mixture.group, protected=why))
