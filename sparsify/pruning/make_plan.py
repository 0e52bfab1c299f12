"""From a recipe and a model to a plan."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify.cost.cost_model import Costs
from sparsify.cost.latency.calibrate import read_width_steps
from sparsify.cost.latency_model import LatencyModel
from sparsify.cost.measure import count_macs_by_module
from sparsify.errors import ModelError, RecipeError
from sparsify.events import Listener, silence
from sparsify.forward import call_model
from sparsify.forward.calls import Call, Inputs, list_calls
from sparsify.forward.opaque import explain_errors, without_compiling
from sparsify.forward.scratch import make_scratch
from sparsify.forward.trial_calls import mark_fixed_calls
from sparsify.graph import build_map, coverage
from sparsify.graph.model_map import ModelMap
from sparsify.graph.sound_values import check_sound
from sparsify.graph.trace import vocabulary
from sparsify.graph.trace.channel_groups import Leaving
from sparsify.graph.trace.meta_kernels import FastMeta
from sparsify.graph.verify import mixture_trials, trial_cuts
from sparsify.pruning.config_notes import note_config_limits
from sparsify.pruning.criteria.peer_scores import RuleScoreError
from sparsify.pruning.fitting_inputs import find_inputs
from sparsify.pruning.frozen_notes import note_frozen_weights
from sparsify.pruning.latency_budget import build_latency_models
from sparsify.pruning.memory_budget import add_lifetimes
from sparsify.pruning.plan_inputs import check_inputs, note_batches
from sparsify.pruning.planning.compile import compile_plan
from sparsify.pruning.planning.cut_targets import list_own_budgets
from sparsify.pruning.planning.gsm_forecast import forecast_gsm
from sparsify.pruning.planning.match_layers import find_reached_groups, list_weighing_targets
from sparsify.pruning.planning.no_ops import IDLE, list_no_ops
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.planning.selection import choose
from sparsify.pruning.planning.unit_prices import price_groups
from sparsify.pruning.scoring import check_peers, score_units
from sparsify.recipe import NOWHERE, Loaded, Positions, load
from sparsify_schemas.group import removes_branches, removes_experts
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.table import Steps


def make_plan(
    recipe: str | Path | Mapping[str, Any] | Recipe | Loaded,
    model: nn.Module,
    inputs: Inputs | Call | Sequence[Call] | None = None,
    *,
    examples: int | None = None,
    strict: bool = False,
    listener: Listener = silence,
) -> Plan:
    """Resolve a recipe for a model: what each rule reaches, what is protected, what the budget allows.

    The structure is followed through real calls of the model. Groups that rules reach are then cut on
    trial, and groups whose trial cut fails are protected. Where the budget limits a latency, layers that the
    target's table lacks are timed. The model is left as it is. A model on the meta device can be planned too;
    its plan has no preview of widths.

    Args:
        recipe: A path, a mapping, or a recipe that is loaded already.
        model: The dense model.
        inputs: What one call of `forward` takes: a tuple or a mapping of tensors, plain values, and lists,
            mappings or dataclasses of these. Or a `Call`, or a list of them, which are all followed, tried,
            proven and counted. Left out, inputs are drawn at random as the recipe's `inputs` or `calls` say.
        examples: Number of training examples, so that notes can say in epochs how far the stages will come.
        strict: A layer that cannot be cut safely is an error.
        listener: Called with progress events.

    Returns:
        The plan: a frozen value without weights. `print(plan)` is one line, `describe(plan)` gives the
        tables.

    Raises:
        RecipeError: The recipe is wrong or does not fit the model.
        ModelError: The model cannot be followed.
        TargetError: A target whose latency is limited cannot be timed here.

    Examples:
        >>> plan = sparsify.make_plan(recipe, model, (x,))
        >>> plan.preview  # coupled group, width after a cut of the present weights
        (('0', 8),)
    """
    loaded = load(recipe)
    return plan_recipe(
        loaded.recipe,
        model,
        inputs,
        positions=loaded.positions,
        examples=examples,
        strict=strict,
        listener=listener,
    )


def plan_recipe(
    recipe: Recipe,
    model: nn.Module,
    inputs: Inputs | Call | Sequence[Call] | None = None,
    *,
    positions: Positions = NOWHERE,
    examples: int | None = None,
    strict: bool = False,
    listener: Listener = silence,
    leaving: Leaving = "most units",
    every_group: bool = False,
) -> Plan:
    """As `make_plan`, of a recipe that is not checked again: one that no longer has a rule would be refused.

    positions: where it is written, for messages. leaving: what leaves of channels that fall into groups.
    every_group: cut groups on trial that no rule reaches, too.
    """
    call_model.check_model(model)
    _check_initialized(model)
    with _keep_whole_numbers(model):
        scratch = make_scratch(model)
        given = find_inputs(recipe, scratch) if inputs is None else check_inputs(inputs, scratch)
        calls = mark_fixed_calls(scratch, vocabulary.add_names_and_vocabularies(scratch, given))
        check_sound(scratch, calls)
        counted = count_macs_by_module(scratch, calls)
        with torch.random.fork_rng(devices=[]), explain_errors("trying out which layers can be cut"):
            map, reaching = _follow(scratch, calls, counted.by_module, leaving)
            in_single = all(p.dtype == torch.float32 for p in scratch.parameters())
            reached = None if every_group else find_reached_groups(recipe, map)
            follow_other_sides = partial(
                build_map.build_map, scratch, reaching, counted.by_module, leaving, on_other_sides=True
            )
            tried = trial_cuts.protect_failing_groups(
                model, map, reaching, scratch if in_single else None, reached, follow_other_sides
            )
            map = replace(tried, inputs=map.inputs)
            map = _add_parts_of_rules(recipe, scratch, map, calls, counted.by_module)
        clocks = build_latency_models(recipe, recipe.budget.latency, scratch, map, calls, listener)
        plan = compile_plan(
            recipe,
            map,
            positions=positions,
            strict=strict,
            clocks=clocks,
            steps=_find_width_steps(recipe, clocks),
        )
        weighing = build_latency_models(recipe, list_weighing_targets(recipe), scratch, map, calls, listener)
        prices = ((c.target, name, price) for c in weighing for name, price in price_groups(plan, c).items())
        idle = tuple(list_no_ops(recipe, examples))
        if strict and idle:
            raise RecipeError(positions.problem(path, text, IDLE) for path, text in idle)
        said = (
            *(f"{path} {text}" for path, text in idle),
            *note_batches(calls),
            *_note_uncounted(counted.missed),
            *forecast_gsm(recipe, examples),
            *note_frozen_weights(plan, scratch),
            *note_config_limits(plan, scratch),
        )
        plan = replace(plan, prices=tuple(prices), notes=(*plan.notes, *said))
        return _preview_cut(plan, scratch, positions, clocks)


@contextmanager
def _keep_whole_numbers(model: nn.Module) -> Iterator[None]:
    """Within, whole numbers on the meta device keep their values beside it, where the model is there."""
    if not _has_shapes_alone(model):
        yield
        return
    with without_compiling(), FastMeta({}):
        yield


def _has_shapes_alone(model: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in model.parameters())


def _add_parts_of_rules(
    recipe: Recipe, model: nn.Module, map: ModelMap, inputs: Inputs, macs: Mapping[str, int]
) -> ModelMap:
    """The structure with what only some recipes ask for: residual branches, experts, lifetimes in memory."""
    if any(removes_branches(rule.group) for rule in recipe.rules):
        map = trial_cuts.add_branches(model, map, inputs, macs)
    if any(removes_experts(rule.group) for rule in recipe.rules):
        map = mixture_trials.add_mixtures(model, map, inputs, partial(_count_macs, inputs=inputs))
    budgets = [recipe.budget, *(own for _, own in list_own_budgets(recipe))]
    if any(budget.peak_memory is not None for budget in budgets):
        with explain_errors("measuring the peak of memory"):
            map = add_lifetimes(model, map, inputs)
    return map


def _find_width_steps(recipe: Recipe, clocks: Sequence[LatencyModel]) -> dict[str, Steps]:
    """Target -> multiples of what widths pay there."""
    aligned = any(rule.keep.multiple_of == "auto" for rule in recipe.rules)
    steps = read_width_steps(recipe.targets) if aligned else {}
    return steps | {clock.target: clock.steps for clock in clocks}


def _preview_cut(plan: Plan, model: nn.Module, positions: Positions, clocks: Sequence[LatencyModel]) -> Plan:
    """The plan with the widths and milliseconds that a cut of the weights as they are would have."""
    if _has_shapes_alone(model):
        limits = "the model has shapes and no weights: trial cuts checked that it runs, not what it computes"
        return replace(plan, notes=(*plan.notes, limits))
    try:
        check_peers(plan, model)
    except RuleScoreError as error:
        place = f"rules.{error.rule}.criterion"
        raise RecipeError([positions.problem(place, error.reason)]) from error
    scores, dead, _ = score_units(plan, model, None, None)
    keep = choose(plan, scores, dead, clocks=clocks)
    widths = {name: group.width for name, group in plan.map.by_name.items()}
    shapes = Costs(plan.map).shapes({name: range(widths[name] - len(kept)) for name, kept in keep.items()})
    preview = tuple((name, len(kept)) for name, kept in keep.items())
    predicted = tuple((clock.target, clock.ms(shapes)) for clock in clocks)
    return replace(plan, preview=preview, predicted=predicted)


def _count_macs(model: nn.Module, *, inputs: Inputs) -> int:
    return sum(count_macs_by_module(model, inputs).by_module.values())


def _note_uncounted(operators: Iterable[str]) -> Iterator[str]:
    for name in operators:
        yield (
            f"the MACs of '{name}' are not counted: its operands have no plain shapes, "
            "or it runs functions of its own"
        )


def _check_initialized(model: nn.Module) -> None:
    lazy = next((name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)), None)
    if lazy is not None:
        raise ModelError(
            f"'{lazy}' has no shape yet, as its layer is lazy; run the model once on example inputs first"
        )


def _follow(
    model: nn.Module, inputs: Inputs, macs: Mapping[str, int], leaving: Leaving
) -> tuple[ModelMap, Inputs]:
    """The structure, and the calls in which it was followed: further ones where the given calls do not reach
    every layer."""
    map = build_map.build_map(model, inputs, macs, leaving)
    reaching = coverage.find_further_calls(model, inputs, frozenset(map.unreached))
    if len(reaching) == len(list_calls(inputs)):
        return map, inputs
    return replace(build_map.build_map(model, reaching, macs, leaving), inputs=map.inputs), reaching
