"""From a recipe and a model to a plan, and from a plan to a verified cut."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import graph
from sparsify.choose import choose, weights_to_zero
from sparsify.compile import compile_plan
from sparsify.costs import Costs
from sparsify.criteria import Backward, group_scores, weight_scores
from sparsify.data import example_inputs, inputs_like
from sparsify.errors import ModelError, VerificationError
from sparsify.figures import share
from sparsify.graph import Inputs
from sparsify.groups import check_fits, coupled_layout, dead_units
from sparsify.load import Loaded, load
from sparsify.measure import copied, count_macs, detached
from sparsify.overview import LABELS
from sparsify.plan import Plan
from sparsify.report import verdict_words
from sparsify_schemas.criterion import Criterion, Magnitude, Taylor
from sparsify_schemas.cuts import Cuts, Zero
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Verdict

Batches = Iterable[tuple[Tensor, Tensor]]
Scores = dict[str, list[float]]


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

    def __repr__(self) -> str:
        """What came out, in one line."""
        costs = Costs(self.plan.map)
        left = costs.of({w.group: range(w.kept, w.width) for w in self.cuts.widths})
        shares = ", ".join(f"{share(left[what] / costs.dense[what])} of the {LABELS[what]}" for what in ("macs", "params") if costs.dense[what])
        return f"<Result: {shares}; {', '.join(map(verdict_words, self.verdicts))}>"


def make_plan(
    recipe: str | Path | Mapping[str, Any] | Recipe | Loaded, model: nn.Module, inputs: Inputs | None = None, *, strict: bool = False
) -> Plan:
    """Resolve a recipe against a model: what each rule reaches, what is protected and why, what the budget allows.

    inputs: what one forward call takes, a tuple or a mapping; drawn at random from the recipe's `inputs` when left out.
    A model on the meta device can be planned too: its plan has no preview of widths.
    The structure is tried out: layers that a trial cut shows to be beyond what can be followed are protected.
    Raises RecipeError (the recipe is wrong or does not fit the model) and ModelError (the model cannot be traced).
    """
    loaded = load(recipe)
    graph.check_model(model)
    _check_initialized(model)
    inputs = example_inputs(loaded.recipe, None) if inputs is None else _checked(inputs)
    _, macs = count_macs(model, inputs)
    model = copied(model)
    with torch.random.fork_rng(devices=[]):
        map = graph.probe(model, graph.inspect(model, inputs, macs), inputs)
        if any(rule.group == "depth" for rule in loaded.recipe.rules):
            map = graph.with_branches(model, map, inputs, macs)
    plan = compile_plan(loaded, map, strict=strict)
    if any(p.is_meta for p in model.parameters()):
        return replace(plan, notes=(*plan.notes, "the model has shapes and no weights: trial cuts checked that it runs, not what it computes"))
    keep = _choose(plan, model, None)
    return replace(plan, preview=tuple((name, len(kept)) for name, kept in keep.items()))


def cut(
    plan: Plan,
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Inputs | None = None,
    batches: Batches | None = None,
) -> Result:
    """Choose what goes, remove it from a copy, and prove that the copy computes what the masked model does.

    optimizer: carried over to the cut model, state included. inputs: for the proof; random ones of the shapes that the
    plan was made with when left out. batches: (x, y) training batches, needed by criterion taylor.
    Raises VerificationError when the proof fails; neither model nor optimizer has changed then.
    """
    graph.check_model(model)
    if batches is None and _batches_needed(plan.recipe):
        raise ModelError("criterion 'taylor' looks at the loss: pass batches, an iterable of (x, y) training batches, to cut")
    check_fits(plan.map, model)
    inputs = _like_those_of(plan, model) if inputs is None else _checked(inputs)
    batches = None if batches is None else list(islice(batches, _batches_needed(plan.recipe)))
    dense = copied(model)
    keep = _choose(plan, dense, batches)
    thin, cuts = graph.cut(dense, plan.map, keep, plan.digest)
    verdicts = _prove(plan, dense, thin, keep, inputs)
    folds = graph.fold(dense, thin, plan.map, keep, inputs)
    zeros = _zero_weights(plan, thin, batches)
    if optimizer is not None:
        thin = _with_values(graph.replay(model, cuts, optimizer), thin)
    cuts = cuts.model_copy(update={"operations": cuts.operations + folds + zeros})
    return Result(thin, model, plan, cuts, verdicts)


def _check_initialized(model: nn.Module) -> None:
    lazy = next((name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)), None)
    if lazy is not None:
        raise ModelError(f"'{lazy}' has no shape yet, as its layer is lazy; run the model once on example inputs first")


def _checked(inputs: Inputs) -> Inputs:
    """Copies, as a forward call may change them. Refuses what would only fail somewhere inside the model. Raises ModelError."""
    if isinstance(inputs, Tensor):
        raise ModelError("inputs is a single tensor; pass a tuple, (x,), as a forward call may take several")
    values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    if not values:
        raise ModelError("inputs is empty; pass what one forward call takes, a tuple or a mapping of tensors")
    stranger = next((value for value in values if not isinstance(value, Tensor)), None)
    if stranger is not None:
        raise ModelError(f"inputs holds a {type(stranger).__name__}; every input must be a tensor, other arguments need a default in forward")
    if values[0].dim() == 0 or values[0].shape[0] == 0:
        raise ModelError(f"the first input has shape {tuple(values[0].shape)}; its first dimension must be a batch of at least one example")
    return detached(inputs)


def _like_those_of(plan: Plan, model: nn.Module) -> Inputs:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    drawn = inputs_like(plan.map.inputs)
    return {k: v.to(device) for k, v in drawn.items()} if isinstance(drawn, dict) else tuple(v.to(device) for v in drawn)


def _batches_needed(recipe: Recipe) -> int:
    return max((r.criterion.batches for r in recipe.rules if isinstance(r.criterion, Taylor)), default=0)


def _choose(plan: Plan, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]] | None) -> dict[str, list[int]]:
    copy = copied(model)
    parameters = dict(copy.named_parameters())
    scores: Scores = {}
    for assignment in plan.assignments:
        rule = plan.recipe.rules[assignment.rule]
        layout = coupled_layout(plan.map, assignment.coupled, parameters)
        if layout.count == 0:
            continue
        spec = _available(rule.criterion, batches)
        values = group_scores(spec, layout, parameters, _backward(copy, spec, batches), plan.recipe.seed + assignment.rule)
        scores |= {name: part.tolist() for name, part in layout.split(values).items()}
    names = [name for a in plan.assignments for name in a.coupled]
    dead = {name: flags.tolist() for name, flags in dead_units(plan.map, names, parameters).items()}
    _check_finite(scores)
    return choose(plan, scores, dead)


def _available(spec: Criterion, batches: object) -> Criterion:
    # A preview has no data: it shows what magnitude would choose.
    return Magnitude(kind="magnitude") if isinstance(spec, Taylor) and batches is None else spec


def _check_finite(scores: Scores) -> None:
    for name, values in scores.items():
        if not torch.tensor(values).isfinite().all():
            raise ModelError(f"the weights of '{name}' or of what is coupled to it are not finite; restart from weights without NaN or inf")


def _backward(model: nn.Module, spec: Criterion, batches: Sequence[tuple[Tensor, Tensor]] | None) -> Backward | None:
    if batches is None or not isinstance(spec, Taylor):
        return None
    device = next(model.parameters()).device

    def run() -> Iterator[None]:
        model.eval().requires_grad_(True)
        for x, y in islice(batches, spec.batches):
            model.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x.to(device)), y.to(device)).backward()  # type: ignore[no-untyped-call]
            yield

    return run


def _prove(plan: Plan, dense: nn.Module, thin: nn.Module, keep: dict[str, list[int]], inputs: Inputs) -> tuple[Verdict, ...]:
    try:
        return (graph.verify(dense, thin, plan.map, keep, inputs),)
    except VerificationError as error:
        raise VerificationError(f"{error}; {_culprit(plan, dense, keep, inputs)}; nothing was saved") from error


def _culprit(plan: Plan, dense: nn.Module, keep: dict[str, list[int]], inputs: Inputs) -> str:
    for name, kept in keep.items():
        alone = {name: kept}
        try:
            graph.verify(dense, graph.cut(dense, plan.map, alone, plan.digest)[0], plan.map, alone, inputs)
        except VerificationError:
            layers = ", ".join(plan.map.by_name[name].layers)
            return f"group '{name}' fails by itself (it reaches {layers}): write a rule with 'protect: true' for '{name}'"
    return "no group fails by itself: protect layers one by one to find the pair that does"


def _zero_weights(plan: Plan, thin: nn.Module, batches: Sequence[tuple[Tensor, Tensor]] | None) -> tuple[Zero, ...]:
    """Set the weights to zero that rules with group `weight` demand: lowest scores first over all layers of the rule."""
    zeros = []
    for assignment in plan.assignments:
        rule = plan.recipe.rules[assignment.rule]
        if rule.group != "weight" or rule.sparsity is None:
            continue
        copy = copied(thin)
        left = dict(copy.named_parameters())
        names = [name for name in assignment.tensors if name in left]
        own = [left[name] for name in names]
        if not own:
            continue
        backward = _backward(copy, rule.criterion, batches)
        scores = torch.cat([weight_scores(rule.criterion, w, backward, plan.recipe.seed + i).flatten() for i, w in enumerate(own)])
        mask = torch.ones_like(scores)
        mask[scores.topk(weights_to_zero(len(scores), rule.sparsity.fraction), largest=False).indices] = 0
        with torch.no_grad():
            for name, part in zip(names, torch.split(mask, [w.numel() for w in own]), strict=True):
                weight = thin.get_parameter(name)
                weight.mul_(part.view_as(weight))
                zeros.append(Zero(tensor=name, count=int((weight == 0).sum()), size=weight.numel()))
    return tuple(zeros)


def _with_values(model: nn.Module, source: nn.Module) -> nn.Module:
    with torch.no_grad():
        for into, out in zip([*model.parameters(), *model.buffers()], [*source.parameters(), *source.buffers()], strict=True):
            into.copy_(out)
    return model
