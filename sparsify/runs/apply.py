"""apply: takes a recipe and a dense model, writes a run folder with a smaller model and its report.

Read this first.

load -> plan -> per stage: train (with cuts between epochs where the recipe asks for them), cut or repair
     -> save -> reload -> measure -> report
A budget with `accuracy_drop` repeats the stages from the first cut on, once for each trial.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sparsify.cost.latency import calibrate
from sparsify.data import data_for_inputs
from sparsify.errors import RunError, SparsifyError
from sparsify.events import Listener, Note, silence
from sparsify.forward.calls import Inputs
from sparsify.forward.input_records import apply_record
from sparsify.objective.objective import check_trainable, make_objective
from sparsify.peers.cross_check import cross_check
from sparsify.peers.group_comparison import CrossCheck
from sparsify.pruning.fitting_inputs import find_inputs
from sparsify.pruning.make_plan import plan_recipe
from sparsify.pruning.planning.plan import Plan
from sparsify.recipe import Positions
from sparsify.runs import run_folder
from sparsify.runs.accuracy_search import search_depth
from sparsify.runs.baselines import Baselines, make_baselines
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.held_out import TEST_NOT_READ
from sparsify.runs.preflight import check_data
from sparsify.runs.run_record import RunRecord
from sparsify.runs.save_load import NEEDS_BUILDER, TIMING_SECONDS, complete_run
from sparsify.runs.setup import (
    Run,
    RunRequest,
    Source,
    load_progress,
    make_request,
    open_run,
    plan_request,
    read_dense_model,
    resume_request,
)
from sparsify.runs.stages import run_remaining_stages
from sparsify_schemas.budget import Budget
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.target import Target


def apply(
    recipe: Source | None = None,
    model_file: str | Path | None = None,
    *,
    out: str | Path = "runs",
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    from_scratch: bool = False,
    strict: bool = False,
    resume: str | Path | None = None,
    timing: float = TIMING_SECONDS,
    name: str | None = None,
    reads_test: bool = True,
    listener: Listener = silence,
) -> Path:
    """Carry out a recipe and return the run's folder, `out/<title>-<n>`.

    A missed budget does not raise; the report says so. A `search` of the recipe is left out; see `tune`.

    Args:
        recipe: A path, a mapping or a Recipe.
        model_file: Weights, a module or an earlier run.
        out: The folder in which the run's folder is made.
        overrides: `path.to.key=value` pairs that replace values of the recipe.
        allow: Packages whose classes a pickled model may use.
        from_scratch: Train from random weights; takes no model file.
        strict: A layer that cannot be cut safely is an error.
        resume: The folder of an interrupted run to continue; takes neither recipe nor model.
        timing: Seconds spent on timing each target.
        name: The name of the run's folder in place of its title and a number.
        reads_test: Whether the test set is read at the end. Without it the report has no figures of it, and
            says so; of what a callable returns as test set nothing is read.
        listener: Called with progress events.

    Returns:
        The path of the run's folder.

    Raises:
        SparsifyError: The run can be resumed afterwards, as it can when the process is killed.

    Examples:
        >>> digits = {
        ...     "version": 1,
        ...     "title": "one cut",
        ...     "model": {"build": "sparsify.models.digits_cnn"},
        ...     "data": {"source": "digits"},
        ...     "rules": [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}],
        ... }
        >>> run = sparsify.apply(digits, from_scratch=True)
        >>> run.name, (run / "report.html").exists()
        ('one-cut-1', True)
    """
    if resume is not None:
        request = resume_request(Path(resume), recipe, overrides)
    else:
        request = make_request(recipe, model_file, overrides, allow, from_scratch, strict, repairs=True)
        state = replace(request.state, reads_test=reads_test)
        request = replace(request, name=name, state=state)
        check_data(request.loaded)
    with (
        torch.random.fork_rng(devices=[]),
        open_run(request, Path(out), timing, listener) as run,
        _explain_lost_process(run),
    ):
        model, checkpoint = _run_all_stages(run)
        baselines = make_baselines(run, model, checkpoint, _run_all_stages)
        _finish(run, model, checkpoint, baselines)
    return run.folder


def _run_all_stages(run: Run) -> tuple[nn.Module, Checkpoint]:
    """Run every stage that is left; where the budget limits the accuracy drop, once for each trial."""
    model, checkpoint = load_progress(run)
    model, checkpoint = run_remaining_stages(run, model, checkpoint)
    return search_depth(run, model, checkpoint, run_remaining_stages)


def _finish(
    run: Run,
    model: nn.Module,
    checkpoint: Checkpoint,
    baselines: Baselines,
) -> None:
    """Save, reload and measure both models, and write the report. Remove the temporary files."""
    run.listener(Note("measuring the dense and the cut model side by side"))
    if run.accelerator.is_main_process:
        record = RunRecord(
            plan=run.plan,
            cuts=checkpoint.cuts,
            verdicts=tuple(r.verdict for r in checkpoint.rounds),
            rounds=checkpoint.rounds,
            stages=checkpoint.stages,
            history=checkpoint.history,
            search=checkpoint.search,
            dense_trained=run.state.from_scratch,
            baselines=baselines.made,
            failed=baselines.failed,
        )
        record = replace(record, notes=(*_describe_dense_model(run, record), *baselines.failures))
        complete_run(run.folder, record, model, run.inputs, run.datasets, run.build, run.timing)
        run_folder.remove_temporary_files(run.folder)
    run.accelerator.wait_for_everyone()


def _describe_dense_model(run: Run, record: RunRecord) -> Iterator[str]:
    """Notes for the report: which dense model it compares with, and whether loading needs a builder."""
    which = "first cut" if len(record.rounds) > 1 else "cut"
    if run.state.from_scratch and not record.epochs[0]:
        yield (
            "the run began with random weights, and its dense model has them: "
            f"no epoch of training came before the {which}"
        )
    elif run.state.from_scratch:
        yield (
            "the run trained from random weights: its dense model is the one that was trained, "
            f"as it was right before the {which}"
        )
    else:
        yield f"the dense model is {Path(run.state.model_file or '').name} as given"
    if run.build is not None:
        yield NEEDS_BUILDER
    if not run.state.reads_test:
        yield TEST_NOT_READ


def preview(
    recipe: Source,
    model_file: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    from_scratch: bool = False,
    strict: bool = False,
    listener: Listener = silence,
) -> Plan:
    """Return the plan that `apply` would follow with the same arguments; write nothing.

    Raises SparsifyError.
    """
    request = make_request(recipe, model_file, overrides, allow, from_scratch, strict, repairs=True)
    return _preview_request(request, listener)[0]


def preview_beside_peer(
    recipe: Source,
    model_file: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
    from_scratch: bool = False,
    strict: bool = False,
    listener: Listener = silence,
) -> tuple[Plan, CrossCheck]:
    """The same, and its coupled groups beside those of torch-pruning. Raises SparsifyError."""
    request = make_request(recipe, model_file, overrides, allow, from_scratch, strict, repairs=True)
    plan, model, inputs = _preview_request(request, listener)
    listener(Note("torch-pruning follows the model's structure too, in a process of its own"))
    with torch.random.fork_rng(devices=[]):
        return plan, cross_check(model, plan.map, inputs)


def _preview_request(request: RunRequest, listener: Listener) -> tuple[Plan, nn.Module, Inputs]:
    """The plan of a run that was asked for, its dense model, and the calls that were followed."""
    loaded = request.loaded.recipe
    with torch.random.fork_rng(devices=[]):
        model, _ = read_dense_model(request)
        datasets = data_for_inputs(loaded)
        if datasets is not None:
            check_trainable(model, datasets, make_objective(loaded.task, datasets.classes))
        inputs = find_inputs(loaded, model, datasets)
        plan = plan_request(request, model, inputs, datasets, listener)
        return plan, model, apply_record(plan.map.inputs, inputs)


def measure_layers(
    recipe: Source,
    model_file: str | Path | None,
    name: str,
    target: Target,
    *,
    listener: Listener = silence,
) -> None:
    """Time the layers of a recipe's network on a target, into the table that a latency budget reads.

    model_file: when left out, the model is built with random weights. Raises SparsifyError.
    """
    request = make_request(recipe, model_file, (), (), model_file is None, False)
    with torch.random.fork_rng(devices=[]):
        model, _ = read_dense_model(request)
        inputs = find_inputs(request.loaded.recipe, model, data_for_inputs(request.loaded.recipe))
        positions = Positions(request.loaded.positions.file)
        layer_map = plan_recipe(_without_goals(request), model, inputs, positions=positions).map
        calibrate.build_latency_model(
            name, target, model, layer_map, apply_record(layer_map.inputs, inputs), listener
        )


def _without_goals(request: RunRequest) -> Recipe:
    """Drop budget, penalties and baselines: only the geometry matters for timing.

    Validators are skipped on purpose: some rules and baselines are valid only beside a budget.
    """
    recipe = request.loaded.recipe
    rules = tuple(rule.model_copy(update={"penalty": None}) for rule in recipe.rules)
    return recipe.model_copy(update={"budget": Budget(), "rules": rules, "baselines": ()})


_CONNECTION = re.compile("gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
"""How torch.distributed says that another process does not answer; gloo raises a plain RuntimeError."""


@contextmanager
def _explain_lost_process(run: Run) -> Iterator[None]:
    """Turn a lost distributed peer (seen as a connection error) into a RunError that says how to resume."""
    try:
        yield
    except (RuntimeError, SparsifyError) as error:
        cause = error if isinstance(error, RuntimeError) else error.__cause__
        if run.accelerator.num_processes == 1 or not _is_connection_error(cause):
            raise
        raise RunError(
            "another process of this run has stopped (its own output says why), "
            "and this one cannot continue alone; "
            f"run 'sparsify apply --resume {run.folder}', on any number of processes"
        ) from error


def _is_connection_error(error: BaseException | None) -> bool:
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and _CONNECTION.search(str(error)) is not None
