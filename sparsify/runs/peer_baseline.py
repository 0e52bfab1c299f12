"""Baseline torch_pruning: the cut is another package's, what follows is as of any other baseline."""

import time
from collections.abc import Sequence

from accelerate.utils import broadcast_object_list
from torch import nn

from sparsify.cost.cost_model import Costs
from sparsify.cost.measure import count_macs
from sparsify.data import batches
from sparsify.formatting.numbers import format_share
from sparsify.formatting.verdict_text import LABELS
from sparsify.forward.call_model import move_inputs_to_cpu
from sparsify.forward.calls import Inputs
from sparsify.objective.objective import evaluate
from sparsify.peers.limited_process import PeerError
from sparsify.peers.pruner_baseline import PeerCut, cut_by_peer, list_ignored
from sparsify.peers.requests import CutRequest, Limits, What
from sparsify.pruning import cut
from sparsify.pruning.criteria.peer_scores import gather_gradients
from sparsify.pruning.criteria.statistics import gather_statistics
from sparsify.pruning.plan_inputs import draw_fresh_inputs
from sparsify.pruning.planning.baseline_recipes import Cost
from sparsify.pruning.planning.plan import Plan
from sparsify.pruning.scoring import copy_without_masks
from sparsify.runs import run_folder
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.setup import Run
from sparsify.training.seeds import derive_seed
from sparsify_schemas.baseline import TorchPruningBaseline
from sparsify_schemas.report import Round, StageRow

_BATCH = 64
"""training examples in a batch that an importance is given"""


def share_cost(run: Run, cost: Cost, model: nn.Module, checkpoint: Checkpoint) -> tuple[What, float]:
    """(what is counted, share of the dense model's) that torch-pruning must come down to.

    Its process measures neither time nor peak memory: there the share of the MACs that the cut model has is
    what counts.
    """
    what = cost.what
    dense = Costs(run.plan.map).dense
    if what in ("macs", "params", "bytes"):
        return what, cost.value / dense[what]  # type: ignore[return-value]
    left = cut.measure_left(run.plan, model, checkpoint.cuts)
    return "macs", left["macs"] / dense["macs"]


def begin_peer_baseline(nested: Run, options: TorchPruningBaseline, cost: tuple[What, float]) -> None:
    """Cut by torch-pruning, and write the checkpoint that the baseline's training continues from.

    One process asks for the cut, as no two need agree. Raises PeerError in all of them.
    """
    shared: list[str | None] = [None]
    if nested.accelerator.is_main_process and not (nested.folder / run_folder.CHECKPOINT).exists():
        try:
            _write_cut(nested, options, cost)
        except PeerError as error:
            shared = [str(error)]
    broadcast_object_list(shared)
    if shared[0] is not None:
        raise PeerError(shared[0])
    nested.accelerator.wait_for_everyone()


def _write_cut(nested: Run, options: TorchPruningBaseline, cost: tuple[What, float]) -> None:
    started = time.perf_counter()
    limits = Limits(float(options.seconds), options.memory.count)
    request = _make_request(nested, options, cost)
    fresh: Sequence[Inputs] = (
        *map(move_inputs_to_cpu, draw_fresh_inputs(nested.plan, nested.dense, nested.inputs)),
        request.inputs,
    )
    made = cut_by_peer(request.model, nested.plan.map, request, limits, nested.plan.digest, fresh)
    name = nested.recipe.stages[nested.first].name
    figure = None
    if nested.datasets and len(nested.datasets.validation):
        figure = evaluate(made.model, nested.datasets.validation, nested.objective).deciding
    round_ = Round(
        stage=name,
        macs=count_macs(made.model, request.inputs)[0],
        params=sum(p.numel() for p in made.model.parameters()),
        validation_metric=figure,
        verdict=made.verdict.model_copy(update={"note": _describe_cut(options, made, cost)}),
    )
    seconds = time.perf_counter() - started
    row = StageRow(name=name, kind="cut", seconds=seconds, validation_metric=figure)
    Checkpoint(
        nested.state.digest,
        nested.state.model_digest,
        nested.first + 1,
        made.model.state_dict(),
        cuts=(made.log,),
        rounds=(round_,),
        stages=(row,),
    ).write(nested.folder)


def _describe_cut(options: TorchPruningBaseline, made: PeerCut, cost: tuple[What, float]) -> str:
    return (
        f"{options.pruner} with {options.importance} at ratio {made.ratio:.3g}, the smallest found that "
        f"leaves at most {format_share(cost[1])} of the {LABELS[cost[0]]}"
    )


def _make_request(nested: Run, options: TorchPruningBaseline, cost: tuple[What, float]) -> CutRequest:
    model = copy_without_masks(nested.dense).cpu().eval()
    gradients, squares = None, None
    criterion = options.criterion
    if criterion.count_batches() and nested.datasets is not None:
        seed = derive_seed(nested.recipe.seed, nested.first, 0)
        given = list(batches(nested.datasets.train, _BATCH, seed=seed))[: criterion.count_batches()]
        statistics = gather_statistics(model, criterion, given, nested.objective)
        assert statistics is not None
        squares = gather_gradients(criterion, model, statistics)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return CutRequest(
        model=model,
        inputs=move_inputs_to_cpu(nested.inputs),
        ignored=list_ignored(model, nested.plan.map, _list_prunable(nested.plan)),
        pruner=options.pruner,
        args=options.args,
        importance=options.importance,
        importance_args=options.importance_args,
        gradients=gradients,
        squares=squares,
        what=cost[0],
        share=cost[1],
        seed=nested.recipe.seed,
    )


def _list_prunable(plan: Plan) -> set[str]:
    """Layers whose outputs may be narrowed: those that rules match, and those that are coupled to them."""
    found: set[str] = set()
    for assignment in plan.assignments:
        found |= set(assignment.layers)
        for name in assignment.coupled:
            slices = plan.map.by_name[name].slices
            found |= {part.tensor.rpartition(".")[0] for part in slices if part.role == "out"}
    for rule in plan.recipe.rules:
        if rule.protect:
            found -= {layer.name for layer in plan.map.layers if layer.is_selected(rule.layers)}
    return found
