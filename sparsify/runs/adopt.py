"""adopt: takes a model that was cut elsewhere and its dense model, writes the run folder of the same cut.

load -> plan -> units that stayed (from a history, or from shapes and weights) -> cut and prove -> the file's
weights -> save -> reload -> measure -> report
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from sparsify.data import load_data
from sparsify.errors import ModelError, VerificationError, describe_error
from sparsify.events import Listener, Note, silence
from sparsify.formatting.numbers import format_share
from sparsify.forward.calls import Inputs
from sparsify.forward.input_records import apply_record
from sparsify.graph.adoption.pruning_history import parse_history, read_history
from sparsify.graph.adoption.unit_matching import (
    Match,
    find_strays,
    match_units,
    measure_distance,
    sort_tensors,
)
from sparsify.graph.adoption.width_inference import infer_widths
from sparsify.graph.names import all_names
from sparsify.graph.surgery.operations import kept_indices
from sparsify.graph.trace.channel_groups import Leaving
from sparsify.graph.verify.run_models import compare_with, relative_difference, run_model
from sparsify.modelfile.match_state_dict import check_fits, format_shape, load_state
from sparsify.objective.objective import check_trainable, make_objective
from sparsify.pruning.cut import Result, cut_units
from sparsify.pruning.fitting_inputs import find_inputs
from sparsify.pruning.make_plan import plan_recipe
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import load
from sparsify.runs import run_folder
from sparsify.runs.adopted_files import AdoptedFiles, read_files
from sparsify.runs.kept_units import (
    HISTORY,
    KeptUnits,
    describe_heads,
    describe_likeness,
    describe_strays,
    describe_training,
    describe_whole_units,
)
from sparsify.runs.run_record import RunRecord
from sparsify.runs.save_load import NEEDS_BUILDER, TIMING_SECONDS, move_to_cpu, save_record
from sparsify.runs.setup import Source
from sparsify_schemas.budget import Budget
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Verdict

EQUAL = 1e-5
"""largest difference, in the model's own precision, to the outputs of the module in the file: rounding"""
UNLIKE = 0.7
"""distance of rows, over their length, from which on they are not those of the dense model: rows that have
nothing to do with each other are about 1 apart"""


def adopt(
    recipe: Source,
    model_file: str | Path | None = None,
    *,
    dense: str | Path | None = None,
    history: str | Path | None = None,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    timing: float = TIMING_SECONDS,
    listener: Listener = silence,
) -> Path:
    """Make a run of a model that was cut elsewhere, by torch-pruning or by any script.

    The units that stayed are told by the history, else by the shapes of the weights; with the dense weights
    at hand also which ones they were, by matching rows. The dense model is cut to them and the cut is proven
    as any other. The file's weights are then loaded into it.

    Args:
        recipe: Names the dense model's builder under `model:`, and data or inputs; `task` and `targets` as
            for `apply`. Rules, stages, budget and baselines are not carried out, and rules may be missing.
        model_file: The cut model: a state dict, a checkpoint (with a history, where it has one under
            `pruning`), or a whole module. May be left out where dense weights and a history are given.
        dense: The dense model's weights, or the whole module. Left out, its builder's random weights stand
            for them: the proof is then one of the structure, and the dense model is not judged.
        history: torch-pruning's `pruning_history`, as JSON or as torch.save writes it.
        out: The folder in which the run's folder is made.
        overrides: `path.to.key=value` pairs that replace values of the recipe.
        allow: Packages whose classes a pickled model may use.
        timing: Seconds spent on timing each target.
        listener: Called with progress events.

    Returns:
        The path of the run's folder, `out/<title>-<n>`.

    Raises:
        ModelError: What was cut cannot be told. The message names each layer.
        VerificationError: The adopted model computes something else than the module in the file.

    Examples:
        >>> digits = {"version": 1, "title": "adopted", "model": {"build": "sparsify.models.digits_cnn"},
        ...           "data": {"source": "digits"}}
        >>> run = sparsify.adopt(digits, "pruned.pt", dense="digits.pt")  # doctest: +SKIP
        >>> sparsify.load_run(run)  # doctest: +SKIP
    """
    loaded = load(recipe, overrides, needs_rules=False).recipe
    source = read_files(loaded, model_file, dense, history, allow)
    with torch.random.fork_rng(devices=[]):
        datasets = load_data(loaded.data, loaded.seed, loaded.task) if loaded.data is not None else None
        inputs = find_inputs(loaded, source.dense, datasets)
        if datasets is not None:
            check_trainable(source.dense, datasets, make_objective(loaded.task, datasets.classes))
        plan, units = _find_cut(source, loaded, inputs, listener)
        inputs = move_to_cpu(apply_record(plan.map.inputs, inputs))
        listener(Note("cutting the dense model to the same units, and proving the cut"))
        result = cut_units(plan, source.dense, units.keep, inputs)
        strays = _find_strays(source, units, plan)
        proven = run_model(result.model, inputs)
        notes = (
            *_describe_source(source, units, result),
            *_load_weights(source, units, result, strays, inputs),
        )
        apart = relative_difference(run_model(result.model, inputs), proven) if strays else None
        record = RunRecord(
            plan=replace(plan, recipe=loaded),
            cuts=(result.cuts,),
            verdicts=tuple(_state_basis(result, source, apart)),
            notes=(*notes, *([NEEDS_BUILDER] if loaded.model is None else [])),
            dense_trained=True,
            dense_known=source.dense_known,
            placed=False,
        )
        listener(Note("measuring the dense and the cut model side by side"))
        folder = run_folder.create_folder(Path(out), loaded.title)
        with run_folder.remove_unbegun(folder):
            save_record(folder, record, result, inputs, datasets, timing)
    return folder


def _drop_goals(recipe: Recipe) -> Recipe:
    """The recipe of a plan that says what can be cut, and asks for nothing."""
    return recipe.model_copy(update={"rules": (), "budget": Budget(), "baselines": ()})


def _find_cut(
    source: AdoptedFiles, recipe: Recipe, inputs: Inputs, listener: Listener
) -> tuple[Plan, KeptUnits]:
    """The plan by whose units the cut can be told, and the units.

    Channels that fall into groups leave by whole groups or by places in all groups: what our own cuts would
    take is tried first. Where rows tell the units, the way by which they are told exactly is taken, else the
    nearest. Raises ModelError with the first reason.
    """
    refused: ModelError | None = None
    told: list[tuple[Plan, KeptUnits]] = []
    for leaving in get_args(Leaving) if _has_channel_groups(source.dense) else ("most units",):
        listener(Note("following the dense model's structure, trying out cuts"))
        plan = plan_recipe(
            _drop_goals(recipe), source.dense, inputs, listener=listener, leaving=leaving, every_group=True
        )
        try:
            told.append((plan, _find_units(source, plan)))
        except ModelError as error:
            refused = refused or error
            continue
        if told[-1][1].is_certain:
            return told[-1]
    if not told:
        assert refused is not None
        raise refused
    if not source.dense_known:
        _check_one_way(source, told)
    return min(told, key=lambda way: way[1].distance)


def _check_one_way(source: AdoptedFiles, told: Sequence[tuple[Plan, KeptUnits]]) -> None:
    """Refuse shapes to which two different cuts lead: by groups of a norm, or by places in them."""
    first, *others = told
    for plan, units in others:
        for name in first[1].keep:
            one, other = first[0].map.by_name[name], plan.map.by_name.get(name)
            if name not in units.keep or other is None or one.slices != other.slices:
                raise ModelError(
                    f"{source.path}: whether '{name}' lost whole groups of a normalisation or the same "
                    "places of each does not show in shapes; give the dense weights by --dense"
                )


def _has_channel_groups(model: nn.Module) -> bool:
    """Whether a layer has groups of several channels each."""
    for module in model.modules():
        channels = getattr(module, "num_channels", getattr(module, "in_channels", 0))
        groups = getattr(module, "num_groups", getattr(module, "groups", 1))
        if isinstance(groups, int) and isinstance(channels, int) and 1 < groups < channels:
            return True
    return False


def _find_units(source: AdoptedFiles, plan: Plan) -> KeptUnits:
    """The units that stayed. Raises ModelError where they cannot be told."""
    refused = ""
    if source.history is not None:
        try:
            return KeptUnits(_follow_history(source, plan), {}, HISTORY)
        except ModelError as error:
            if not source.has_own_history:
                raise  # else the weights themselves are asked
            refused = f"Warning: the history in the file was not used: {error}"
    assert source.state is not None
    shapes = {name: tuple(value.shape) for name, value in source.state.items()}
    try:
        widths = infer_widths(plan.map, shapes)
    except ModelError as error:
        raise ModelError(f"{source.path}: {error}") from None
    if not source.dense_known:
        first = {name: list(range(kept)) for name, kept in widths.items()}
        return KeptUnits(first, {}, "the shapes alone", refused)
    matches = match_units(plan.map, widths, all_names(source.dense), source.state)
    _check_likeness(source, matches)
    stayed = {name: sorted(match.units) for name, match in matches.items()}
    return KeptUnits(stayed, matches, "matching rows", refused)


def _check_likeness(source: AdoptedFiles, matches: Mapping[str, Match]) -> None:
    """Refuse rows that are like none of the dense model's: their units are others than ours."""
    name = max(matches, key=lambda name: matches[name].distance, default="")
    if name and matches[name].distance > UNLIKE:
        raise ModelError(
            f"{source.path}: the rows of '{name}' are like none of the dense model's (the nearest choice is "
            f"off by {format_share(matches[name].distance)} of their length): it may have lost something "
            "else than units of ours, such as channels inside of attention heads, or it was trained anew; "
            "give its history, or the whole module, whose outputs are compared"
        )


def _follow_history(source: AdoptedFiles, plan: Plan) -> dict[str, list[int]]:
    entries = parse_history(source.history, str(source.path))
    keep = read_history(source.dense, plan.map, entries)
    _check_shapes(source, plan, keep)
    if source.state is not None and source.dense_known:
        _check_history(source, plan, keep, source.state)
    return keep


def _check_history(
    source: AdoptedFiles, plan: Plan, keep: Mapping[str, list[int]], state: Mapping[str, Tensor]
) -> None:
    """Refuse weights that are not those of the units which a history says stayed."""
    dense = all_names(source.dense)
    for tensor in plan.map.tensors:
        kept = kept_indices(plan.map, keep, tensor.name, tensor.shape)
        if tensor.name not in state or len(tensor.shape) < 2 or list(map(len, kept)) == list(tensor.shape):
            continue
        stayed = dense[tensor.name].detach()
        for dim, indices in enumerate(kept):
            stayed = stayed.index_select(dim, torch.tensor(indices))
        distance = measure_distance(stayed, state[tensor.name])
        if distance > UNLIKE:
            raise ModelError(
                f"{source.path}: '{tensor.name}' is not that of the units which the pruning history says "
                f"stayed (off by {format_share(distance)} of its length); the history is of another cut, or "
                "the model was trained anew"
            )


def _check_shapes(source: AdoptedFiles, plan: Plan, keep: Mapping[str, Sequence[int]]) -> None:
    """Refuse a history that does not lead to the shapes of the file."""
    state = source.state or {}
    for tensor in plan.map.tensors:
        found = state.get(tensor.name)
        if found is None:
            continue
        left = tuple(len(kept) for kept in kept_indices(plan.map, keep, tensor.name, tensor.shape))
        if left != tuple(found.shape):
            raise ModelError(
                f"{source.path}: '{tensor.name}' is {format_shape(found.shape)} in the file, and "
                f"{format_shape(left)} after the pruning history: torch-pruning coupled other "
                "layers than the model does; leave the history out, and the weights say which units stayed"
            )


def _find_strays(source: AdoptedFiles, units: KeptUnits, plan: Plan) -> dict[str, str]:
    """Tensors of the file that hold other units than those they are coupled with -> the coupled group."""
    if source.state is None:
        return {}
    return find_strays(plan.map, units.matches, all_names(source.dense), source.state)


def _describe_source(source: AdoptedFiles, units: KeptUnits, result: Result) -> Iterator[str]:
    """Notes on where the units come from, and on what is not known of them."""
    yield (f"{run_folder.ADOPTED} {source.path.name}; which units stayed was told by {units.told_by}")
    if not source.dense_known:
        yield (
            "the dense weights were not given: the cut is proven for the structure, with random weights; the "
            "dense model is not judged"
        )
        yield from describe_heads(result.plan, units)
    elif source.module is None:
        yield from describe_whole_units(result.plan, units)
    if units.refused:
        yield units.refused
    if not any(width.kept < width.width for width in result.cuts.widths):
        yield "nothing was cut: the file has the widths of the dense model"
    yield from describe_likeness(units)


def _load_weights(
    source: AdoptedFiles, units: KeptUnits, result: Result, strays: Mapping[str, str], inputs: Inputs
) -> Iterator[str]:
    """Put the file's weights into the cut model, and check what it computes. Yields notes."""
    if source.state is None:
        return
    dense = all_names(source.dense)
    state = (
        sort_tensors(result.plan.map, units.matches, dense, source.state) if units.matches else source.state
    )
    check_fits(result.model, state, source.path, "the dense model cut to the widths that its layers tell")
    if strays:
        yield describe_strays(strays)
    elif source.dense_known:
        yield describe_training(state, result.model)
    load_state(result.model, state, source.path, source.build)
    outputs = run_model(result.model, inputs)
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise ModelError(
            f"{source.path}: the outputs of the adopted model are not finite on random inputs; the training "
            "that made the weights failed, or they belong to another model"
        )
    if source.module is not None:
        known = _run_source(source, source.module, inputs)
        difference = compare_with(source.module, known, result.model, inputs, EQUAL)
        if difference.exceeds(EQUAL):
            raise VerificationError(
                f"{source.path}: the module in the file computes something else than a cut of the dense "
                f"model with the same weights: outputs differ {difference}; nothing was saved"
            )
        yield f"its outputs are those of the module in the file (largest difference {difference.real:.1e})"


def _run_source(source: AdoptedFiles, module: nn.Module, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs of the module in the file, real and whole numbers. Raises ModelError where it does not
    run."""
    whole = list[Tensor]()
    try:
        return run_model(module, inputs, whole=whole), whole
    except Exception as error:
        raise ModelError(
            f"{source.path}: the module in the file does not run on the recipe's inputs "
            f"({describe_error(error)}); give its weights alone"
        ) from error


def _state_basis(result: Result, source: AdoptedFiles, apart: float | None) -> Iterator[Verdict]:
    """The verdicts; with random weights where the dense ones are not known, wrong of what was cut apart."""
    for verdict in result.verdicts:
        changes: dict[str, Any] = {}
        if not source.dense_known:
            note = "Proven for the structure alone, with random weights in place of the dense ones."
            changes = {"reference": "masked model with random weights", "note": note}
        elif apart is not None:
            note = "The file's layers were cut apart: some hold other units than those they are coupled with."
            changes = {"outcome": "wrong", "difference": apart, "note": note}
        yield verdict.model_copy(update=changes)
