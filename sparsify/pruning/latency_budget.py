"""A latency budget held as measured: choose by prediction, time what was chosen, correct the prediction,
choose again."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import nn

from sparsify.cost.cost_model import Costs, absolute_limits, latency_key
from sparsify.cost.latency import calibrate
from sparsify.cost.latency_model import LatencyModel
from sparsify.cost.measure.onnx_reuse import Pattern
from sparsify.cost.measure.runtimes import TimedCall, make_shared_pattern, prepare, use_threads
from sparsify.cost.measure.timing import choose_clock, time_interleaved
from sparsify.events import Listener, Measuring, Note, silence
from sparsify.formatting.numbers import format_share
from sparsify.forward.calls import Inputs
from sparsify.forward.trial_calls import eval_mode
from sparsify.graph.model_map import ModelMap
from sparsify.graph.surgery import operations
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import Chooser, choose
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.target import Target
from sparsify_schemas.units import Share

ROUNDS = 6
"""choices that are timed at most"""
AIM = 0.96
"""of the limit: what is chosen is predicted to take so much, as measurements differ by some percent"""
SURE = 0.98
"""of the limit: what takes more may be found above the limit when it is timed again"""
CLOSE = 0.94
"""of the limit: what takes less could have kept more"""
SECONDS = 1.5
"""spent on each comparison"""
Keep = dict[str, list[int]]


@dataclass(frozen=True)
class _Try:
    keep: Keep
    used: float
    """of the limit, the largest over the targets, as measured"""


@dataclass(frozen=True)
class _Dense:
    """The dense network ready to be called, and the pattern by which cuts of it are."""

    call: TimedCall
    like: Pattern | None

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, target: Target) -> Self:
        like = make_shared_pattern(model, inputs, target)
        return cls(prepare(model, inputs, target, like), like)


def choose_by_latency(
    plan: Plan,
    model: nn.Module,
    scores: Mapping[str, Sequence[float]],
    dead: Mapping[str, Sequence[bool]],
    clocks: Sequence[LatencyModel],
    inputs: Inputs,
    listener: Listener = silence,
    chooser: Chooser = choose,
) -> Keep:
    """Coupled group -> units that stay, such that every latency budget holds as measured, 94 to 98 % of it
    used.

    Where no choice of six comes so near, the slowest that holds; where none holds, the fastest. Targets
    that cannot be timed on this machine use the predicted latency.
    """
    timed = [c for c in clocks if c.measured]
    if not timed:
        return chooser(plan, scores, dead, clocks=clocks, aim=AIM if clocks else 1.0)
    tries: list[_Try] = []
    aim = AIM
    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.inference_mode())
        dense = {c.target: _Dense.of(model, inputs, plan.recipe.targets[c.target]) for c in timed}
        for number in range(ROUNDS):
            keep = chooser(plan, scores, dead, clocks=clocks, aim=aim)
            if any(keep == before.keep for before in tries):
                # a prediction that was corrected and still chooses the same: ask for less, or where something
                # holds for a little more
                least_used = min(trial.used for trial in tries)
                aim *= 1.02 if least_used <= SURE else 0.95
                continue
            listener(Measuring("timing what was chosen", number, ROUNDS))
            thin = operations.cut(model, plan.map, keep, plan.digest)[0]
            clocks = tuple(
                _correct_models(plan, clocks, dict(_time_cut(plan, thin, timed, dense, inputs)), keep)
            )
            used = _predict_used(plan, keep, clocks)
            tries.append(_Try(keep, used))
            listener(Note(f"timed {format_share(used)} of what the latency budget allows"))
            if CLOSE <= used <= SURE:
                break
    listener(Measuring("timing what was chosen", ROUNDS, ROUNDS))
    close = [trial for trial in tries if CLOSE <= trial.used <= SURE]
    within = close or [trial for trial in tries if trial.used <= 1]
    if within:
        return max(within, key=lambda trial: trial.used).keep
    return min(tries, key=lambda trial: trial.used).keep


def _time_cut(
    plan: Plan, thin: nn.Module, timed: Sequence[LatencyModel], dense: Mapping[str, _Dense], inputs: Inputs
) -> Iterator[tuple[str, float]]:
    """Target -> milliseconds of the cut model, in units of the dense model's as its clock has them where a
    share is asked."""
    with eval_mode(thin):
        for clock in timed:
            target: Target = plan.recipe.targets[clock.target]
            with use_threads(target):
                whole = dense[clock.target]
                rounds = time_interleaved(
                    [whole.call, prepare(thin, inputs, target, whole.like)],
                    SECONDS,
                    np.random.default_rng(0),
                    choose_clock(target),
                )
            ratio, own = float(np.median(rounds[:, 1] / rounds[:, 0])), float(np.median(rounds[:, 1])) * 1e3
            relative = isinstance(plan.recipe.budget.latency[clock.target], Share)
            yield clock.target, ratio * (clock.dense_ms or own) if relative else own


def _correct_models(
    plan: Plan, clocks: Sequence[LatencyModel], achieved: Mapping[str, float], keep: Keep
) -> Iterator[LatencyModel]:
    shapes = Costs(plan.map).shapes(_list_removed(plan, keep))
    for clock in clocks:
        yield clock.with_measurement(shapes, achieved[clock.target]) if clock.target in achieved else clock


def _predict_used(plan: Plan, keep: Keep, clocks: Sequence[LatencyModel]) -> float:
    costs = Costs(plan.map, clocks)
    now, allowed = costs.of(_list_removed(plan, keep)), absolute_limits(plan.recipe.budget, costs.dense)
    return max(now[latency_key(c.target)] / allowed[latency_key(c.target)] for c in clocks)


def _list_removed(plan: Plan, keep: Keep) -> dict[str, list[int]]:
    """How many units go; which ones makes no difference to what is left."""
    return {name: list(range(plan.map.by_name[name].width - len(kept))) for name, kept in keep.items()}


def build_latency_models(
    recipe: Recipe,
    targets: Iterable[str],
    model: nn.Module,
    map: ModelMap,
    inputs: Inputs,
    listener: Listener,
) -> tuple[LatencyModel, ...]:
    return tuple(
        calibrate.build_latency_model(name, recipe.targets[name], model, map, inputs, listener)
        for name in targets
    )
