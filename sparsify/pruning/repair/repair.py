"""Repair a cut model with unlabelled examples, and keep the repair only if it helps."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sparsify.cost.measure.malloc import keep_heap
from sparsify.distributed import counts_of, share_state
from sparsify.errors import ModelError
from sparsify.events import Listener, Measuring, silence
from sparsify.forward.call_model import named_inputs
from sparsify.forward.calls import Inputs, map_tensors
from sparsify.forward.fused_attention import without_fused_attention
from sparsify.forward.opaque import explain_errors
from sparsify.forward.scratch import hold_weights
from sparsify.forward.trial_calls import eval_mode
from sparsify.graph.model_map import ModelMap
from sparsify.graph.model_shapes import check_shapes
from sparsify.graph.sound_values import hint_at_mask
from sparsify.nn.load_tensors import load_tensors
from sparsify.pruning.cut import Result
from sparsify.pruning.repair.agreement import measure_agreement, other_lengths, take_examples
from sparsify.pruning.repair.batch_norm import reestimate_statistics, why_not_reestimated
from sparsify.pruning.repair.calibration_examples import collect_examples, list_arguments, list_missing
from sparsify.pruning.repair.choose_fit import Settings
from sparsify.pruning.repair.least_squares import refit_layers
from sparsify.pruning.repair.memory import affordable_count, measure_example
from sparsify.pruning.repair.merging import merge_units
from sparsify.pruning.repair.place_weights import choose_weights
from sparsify.pruning.repair.skipped_layers import list_layers
from sparsify_schemas.base import AtKey
from sparsify_schemas.cuts import Cuts
from sparsify_schemas.report import Agreement, LayerRepair
from sparsify_schemas.stage import LEAST_EXAMPLES, Repair
from sparsify_schemas.task import Task

CLASSIFIES = Task()
KEPT_SHARE = 0.5
"""of the memory that a repair may take: where its tensors take no more, freed ones are kept to be used again,
which takes about a fifth more memory and a third less time"""
CHANGED = ("refitted", "merged")
"""outcomes of layers that have new weights"""


@dataclass(frozen=True)
class Repaired:
    """What a repair came to."""

    model: nn.Module
    """the cut model that was given, repaired in place"""
    method: str
    examples: int
    """calibration examples used, those held out included"""
    before: Agreement | None
    """with the dense model, on the examples held out; None without examples"""
    after: Agreement | None
    layers: tuple[LayerRepair, ...]
    reverted: bool
    """whether the repair made the outputs worse and was taken back"""
    seconds: float
    weighed: bool = False
    """whether places counted by how much the predictions depend on them"""

    def __repr__(self) -> str:
        """What came out, in one line."""
        done = sum(layer.outcome in CHANGED for layer in self.layers)
        if self.before is None or self.after is None:
            return f"<Repaired by {self.method}: {done} of {len(self.layers)} layers changed, without data>"
        errors = f"error of the outputs {self.before.error:.3g} -> {self.after.error:.3g}"
        if self.layers and not done:
            return f"<Repaired by {self.method}: no layer changed, {errors}>"
        if self.reverted:
            return f"<Repaired by {self.method}: taken back, as it did not help; {errors}>"
        verb = "merged" if self.method == "merge" else "refitted"
        layers = f"{done} layers {verb}, " if self.layers else ""
        layers += "places weighed, " if self.weighed else ""
        return f"<Repaired by {self.method}: {layers}{errors}>"


def repair(
    result: Result,
    batches: Iterable[Any] | None = None,
    *,
    method: str = "least_squares",
    examples: int = 1000,
    ridge: float = 0.01,
    seed: int = 0,
    weigh: str | None = None,
    processes: Any = None,
    listener: Listener = silence,
) -> Repaired:
    """Refit what a cut left, in closed form, so that it computes again what the dense model did.

    With X the inputs of a layer of the cut model as repaired so far and Y the outputs of the same layer of
    the dense model, both centred: W = W0 + (X'X + l I)^-1 X'(Y - X W0).

    Args:
        result: Of `sparsify.cut`. Its model is repaired in place.
        batches: Unlabelled training examples, never validation data: tensors, mappings of tensors, or (x, y)
            pairs of which x is taken. `merge` takes none; if given, they judge it.
        method: `least_squares`, `batch_norm`, `mean` or `merge`, as in the recipe's stage `repair`.
        examples: At most so many are used; fewer where their activations would take more than 2 GiB.
        ridge: l, relative to the mean diagonal of X'X: how strongly weights are pulled to those they have.
        seed: Of the places at which outputs are sampled.
        weigh: `places`: each place of a layer's output counts by how much the predictions depend on it;
            `none`: all alike. Left out: `places` where the recipe's task is segmentation.
        processes: A `torch.distributed` process group, such as `torch.distributed.group.WORLD`, all of whose
            processes call this, each with its own part of the examples. Their Gram matrices are summed, so
            that all have the same model afterwards. `examples` is then that of each.
        listener: Called with a progress event before the first and after each layer.

    Returns:
        `model` (that of the result), the agreement with the dense model `before` and `after` on examples held
        out, what became of each of the `layers`, and whether all was `reverted` because it did not help.

    Raises:
        ModelError: The result's dense model is not the one that was cut, there are too few examples, a batch
            is of another kind or holds numbers that are not finite, the dense model returns the same for all
            examples held out, or the model has nothing that the method changes.

    Examples:
        >>> result = sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)
        >>> repaired = sparsify.repair(result, [torch.randn(300, 4)])
        >>> repaired.after.error < repaired.before.error
        True
    """
    if not isinstance(result, Result):
        raise ModelError(f"repair takes what sparsify.cut returned, found {type(result).__name__}")
    wanted = {"kind": "repair", "method": method, "examples": examples, "ridge": ridge, "weigh": weigh}
    try:
        stage = Repair.model_validate(wanted)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        key, message = (cause.path[0], cause) if isinstance(cause, AtKey) else (first["loc"][0], first["msg"])
        raise ModelError(f"repair: '{key}': {message}") from None
    check_shapes(result.plan.map, result.dense)
    if _list_owners(result.model) & _list_owners(result.dense):
        raise ModelError(
            "the cut model and the dense model of the result share modules, so that a repair would change "
            "both; give the result a copy of the dense model as it was before the cut"
        )
    if batches is None and method == "merge":
        return merge_model(result.dense, result.model, result.plan.map, (result.cuts,))
    if batches is None:
        raise ModelError(
            f"a repair by '{method}' needs unlabelled training examples: pass batches; method 'merge' alone "
            "takes none"
        )
    inputs, count = collect_examples(batches, examples, taken=list_arguments(result.dense, result.plan.map))
    try:
        return repair_model(
            result.dense,
            result.model,
            (result.cuts,),
            inputs,
            count,
            stage,
            seed,
            result.plan.map,
            processes,
            listener,
            task=result.plan.recipe.task,
        )
    except ModelError as error:
        missing = list_missing(result.dense, inputs)
        if not missing or not isinstance(error.__cause__, TypeError):
            raise
        raise ModelError(
            f"the model needs {', '.join(map(repr, missing))} as well, and the batches do not give it: of a "
            "pair (x, y) x alone is taken; give the arguments of the model as a tuple, ((a, b), y), or as a "
            "mapping of their names"
        ) from error


def _list_owners(model: nn.Module) -> set[nn.Module]:
    """The modules that have parameters of their own."""
    return {module for module in model.modules() if module._parameters}


def merge_model(dense: nn.Module, model: nn.Module, model_map: ModelMap, rounds: Sequence[Cuts]) -> Repaired:
    """Merge removed units of a model into those that are left, without data; nothing judges it.

    Args:
        dense: The model before the cut.
        model: The cut model; it is repaired in place.
        model_map: Of the dense model.
        rounds: The log of the only cut.
    """
    started = time.perf_counter()
    with torch.no_grad():
        layers = merge_units(dense, model, model_map, rounds[0])
    seconds = time.perf_counter() - started
    return Repaired(model, "merge", 0, None, None, layers, False, seconds)


def repair_model(
    dense: nn.Module,
    model: nn.Module,
    rounds: Sequence[Cuts],
    inputs: Inputs,
    examples: int,
    stage: Repair,
    seed: int,
    model_map: ModelMap,
    processes: Any = None,
    listener: Listener = silence,
    task: Task = CLASSIFIES,
) -> Repaired:
    """The same for a model that several cuts have left.

    Args:
        dense: the model before the first cut.
        rounds: the logs of the cuts, in order.
        inputs: one call with all examples.
        model_map: of the dense model.
        processes: process group, each of which has other examples.
        listener: called with a progress event before the first and after each layer.
        task: what the model is for.
    """
    classes = task.kind == "classification"
    started = time.perf_counter()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs = map_tensors(inputs, lambda value: value.to(device))
    _check_inputs(inputs, examples, processes)
    why = why_not_reestimated(model) if stage.method == "batch_norm" else None
    if why is not None:
        raise ModelError(f"repair: 'method': {why}")
    precise = torch.autocast(device.type, enabled=False)
    with (
        explain_errors("repairing the cut model", "pass batches as the model takes them in training"),
        eval_mode(dense, model),
        hold_weights(dense),
        torch.no_grad(),
        precise,
        ExitStack() as heap,
        without_fused_attention(),  # it calls no layers, and fails on padded inputs where layers are watched
    ):
        refitted = list_layers(dense) if stage.method in ("least_squares", "mean") else frozenset()
        memory = int(stage.memory.count)
        size = measure_example(dense, inputs, examples, refitted)
        count = affordable_count(examples, memory, size)
        if count * size <= KEPT_SHARE * memory:
            heap.enter_context(keep_heap(any_size=True))
        others = other_lengths(inputs, examples)
        while count < examples and count in others:
            count -= 1
        everywhere = count if processes is None else sum(counts_of(count, processes))
        if everywhere < LEAST_EXAMPLES:
            raise ModelError(
                f"{stage.memory} of memory is enough for {everywhere} examples, and a repair "
                f"needs {LEAST_EXAMPLES}; "
                "raise 'memory'"
            )
        inputs = take_examples(inputs, examples, 0, count)
        # A merge is fitted to no examples, so that all may judge it.
        held_out = count if stage.method == "merge" else _choose_held_out(count, others)
        judged = take_examples(inputs, count, count - held_out, count)
        before = measure_agreement(dense, model, judged, held_out, processes, classes)
        if not before.correlation and not before.error:  # there is no spread to compare with
            raise ModelError(
                f"the dense model returns the same for all {held_out} calibration examples held out, so "
                "nothing tells whether a repair helps; pass examples that differ"
            )
        saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        weights = choose_weights(dense, task, inputs, count, seed, stage)
        taken_back = False
        for attempt in _list_attempts(stage):
            try:
                layers = _repair_layers(
                    dense,
                    model,
                    rounds,
                    inputs,
                    count,
                    held_out,
                    attempt,
                    seed,
                    model_map,
                    processes,
                    listener,
                    weights,
                )
                after = measure_agreement(dense, model, judged, held_out, processes, classes)
            except BaseException:  # an interruption leaves the model as it was
                load_tensors(model, saved)
                raise
            share_state(model, processes)  # equal to rounding before
            changed = stage.method == "batch_norm" or any(row.outcome in CHANGED for row in layers)
            if not changed or after.error < before.error:
                break
            load_tensors(model, saved)
            after, taken_back = before, True
    reverted = taken_back and not after.error < before.error
    seconds = time.perf_counter() - started
    return Repaired(model, stage.method, everywhere, before, after, layers, reverted, seconds, bool(weights))


def _list_attempts(stage: Repair) -> tuple[Repair, ...]:
    """The stage, and what is tried where it does not help: each layer towards its own outputs alone. In a
    deep model without batch normalisation, making up for shortcuts may add up to more than was lost."""
    if stage.method == "least_squares" and stage.shortcuts:
        return stage, stage.model_copy(update={"shortcuts": False})
    return (stage,)


LEAST_OF_EACH = 3
"""examples of each of several processes: two of them are held out"""
HELD_OUT = 0.1
"""share of the examples that is not fitted to: it judges each layer, and the whole model at the end"""


def held_out_of(examples: int) -> int:
    """How many of the examples, the last ones, are not fitted to."""
    return max(2, round(HELD_OUT * examples))


def _choose_held_out(examples: int, others: frozenset[int]) -> int:
    """The same, or a few more: what is taken of the examples must not be as many as a tensor is long that has
    no dimension for them."""
    held_out = held_out_of(examples)
    for more in range(held_out, max(held_out, examples - 1)):
        if more not in others and examples - more not in others:
            return more
    return held_out


def _check_inputs(inputs: Inputs, examples: int, processes: Any) -> None:
    """Refuse too few examples, and numbers that are not finite. Raises ModelError."""
    if processes is not None:
        counts = counts_of(examples, processes)
        if min(counts) < LEAST_OF_EACH:
            raise ModelError(
                f"repair needs at least {LEAST_OF_EACH} examples of each process, found {min(counts)}"
            )
        examples = sum(counts)
    if examples < LEAST_EXAMPLES:
        raise ModelError(
            f"repair needs at least {LEAST_EXAMPLES} examples, found {examples}; pass "
            "more unlabelled training examples"
        )
    for path, tensor in named_inputs(inputs):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(
                f"the calibration examples hold numbers that are not finite (input '{path}')"
                f"{hint_at_mask(tensor)}"
            )


def _repair_layers(
    dense: nn.Module,
    model: nn.Module,
    rounds: Sequence[Cuts],
    inputs: Inputs,
    examples: int,
    held_out: int,
    stage: Repair,
    seed: int,
    model_map: ModelMap,
    processes: Any,
    listener: Listener,
    weights: Mapping[str, Tensor],
) -> tuple[LayerRepair, ...]:
    match stage.method:
        case "merge":
            return merge_units(dense, model, model_map, rounds[0])
        case "batch_norm":
            fitted = examples - held_out
            reestimate_statistics(model, take_examples(inputs, examples, 0, fitted), fitted, processes)
            return ()
        case "least_squares" | "mean":
            settings = Settings(
                stage.method,
                stage.ridge,
                held_out=held_out,
                shortcuts=stage.shortcuts,
                seed=seed,
                processes=processes,
                weights=weights,
            )
            what = f"{stage.name}: layers"

            def progress(done: int, total: int) -> None:
                listener(Measuring(what, done, total))

            return refit_layers(dense, model, rounds, inputs, examples, settings, progress)
