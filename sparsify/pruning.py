"""From a recipe and a model to a plan, and from a plan to a verified cut."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import executing, graph, zeroing
from sparsify.calls import Call, axes_of, called, calls_of, changed, examples_of, flattened, tensors_of, with_names
from sparsify.choose import Chooser, choose, priced
from sparsify.clock import Clock
from sparsify.compile import compile_plan
from sparsify.copies import copied_object
from sparsify.costs import Costs
from sparsify.criteria import group_scores
from sparsify.errors import ModelError, VerificationError
from sparsify.events import Listener, silence
from sparsify.feeding import inputs_for
from sparsify.figures import few, plural, share
from sparsify.followers import averaged_attribute
from sparsify.foretelling import foretold
from sparsify.graph import Inputs
from sparsify.graph.cutting import Keep
from sparsify.groups import check_fits, coupled_layout, dead_units
from sparsify.latency import clock, settled, target_steps
from sparsify.load import Loaded, load
from sparsify.looking import looks
from sparsify.measure import copied, counted_macs, detached
from sparsify.measure.calling import takes, tried_batches
from sparsify.memory import held, with_lifetimes
from sparsify.opaque import in_words, is_scripted
from sparsify.overview import LABELS
from sparsify.plan import ModelMap, Plan
from sparsify.redrawing import as_recorded, from_record, redraw
from sparsify.report import fold_notes, verdict_words
from sparsify.rounds import own_budgets
from sparsify.weighing import weighed_by
from sparsify_schemas.criterion import Activation, Criterion, Fpgm, FromData, Magnitude
from sparsify_schemas.cuts import AddBias, Crop, Cuts, Fold, Gather, Zero
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Verdict

Batches = Iterable[tuple[Tensor, Tensor]]
Scores = dict[str, list[float]]
Chosen = dict[str, list[int]]


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
    followers: tuple[Any, ...] = ()
    """what was given as `follow`, of the same classes, cut alike"""
    notes: tuple[str, ...] = ()
    """numbers of the model that still state an old width, what became of the constants that removed units emitted, and what of
    the optimizer's state could not be carried over"""

    def __repr__(self) -> str:
        """What came out, in one line."""
        shares = ", ".join(f"{share(left)} of the {LABELS[what]}" for what, left in self._left())
        return f"<Result: {shares}; {', '.join(map(verdict_words, self.verdicts))}>"

    def _left(self) -> Iterator[tuple[str, float]]:
        costs, left = Costs(self.plan.map), left_of(self.plan, self.model, (self.cuts,))
        yield from ((what, left[what] / costs.dense[what]) for what in ("macs", "params") if costs.dense[what])


def left_of(plan: Plan, model: nn.Module, rounds: Sequence[Cuts]) -> dict[str, float]:
    """MACs, params and bytes that cuts have left: of the widths, less what columns that are no longer computed had cost.

    plan: of the dense model. model: as the last cut left it.
    """
    layers, width = {layer.name: layer for layer in plan.map.layers}, {name: group.width for name, group in plan.map.by_name.items()}
    kept = {w.group: w.kept for cuts in rounds for w in cuts.widths}  # the last cut has the last word
    left = Costs(plan.map).of({name: range(stay, width[name]) for name, stay in kept.items() if name in width})
    there = {name for name, _ in model.named_modules()}
    for how in {e.module: e for cuts in rounds for e in cuts.executions if e.module in there}.values():
        lost = model.get_submodule(how.module).get_parameter("weight").shape[0] * (how.columns - how.live)
        left["macs"] -= layers[how.module].macs * lost / prod(layers[how.module].weight)
        left["params"] -= lost
    return left


def make_plan(
    recipe: str | Path | Mapping[str, Any] | Recipe | Loaded,
    model: nn.Module,
    inputs: Inputs | Call | Sequence[Call] | None = None,
    *,
    examples: int | None = None,
    strict: bool = False,
    listener: Listener = silence,
) -> Plan:
    """Resolve a recipe against a model: what each rule reaches, what is protected and why, what the budget allows.

    inputs: what one forward call takes, a tuple or a mapping of tensors, plain values, and lists, mappings or dataclasses of
    these; or a `sparsify.Call`, or a list of them, all of which the model is followed, tried, proven and counted in. Drawn at
    random as the recipe's `inputs` or `calls` say when left out.
    examples: in the training set, so that notes can say how far the stages will come; they speak of steps when left out.
    A model on the meta device can be planned too: its plan has no preview of widths.
    The structure is tried out: layers that a trial cut shows to be beyond what can be followed are protected.
    Where the budget limits a latency, layers that the target's table does not know yet are timed, and `listener` is told.
    Raises RecipeError (the recipe is wrong or does not fit the model), ModelError (the model cannot be traced) and
    TargetError (a target whose latency is limited cannot be timed here).
    """
    loaded = load(recipe)
    graph.check_model(model)
    _check_initialized(model)
    given = inputs_for(loaded.recipe, model) if inputs is None else _checked(inputs, model)
    inputs = tried_batches(model, graph.understood(model, given))
    counted = counted_macs(model, inputs)
    macs = counted.by_module
    model = copied(model)
    with torch.random.fork_rng(devices=[]), in_words("trying out which layers can be cut"):
        map, reaching = _followed_in(model, inputs, macs)
        map = replace(graph.probe(model, map, reaching), inputs=map.inputs)
        if any(rule.group == "depth" for rule in loaded.recipe.rules):
            map = graph.with_branches(model, map, inputs, macs)
    if any(budget.peak_memory is not None for budget in (loaded.recipe.budget, *(own for _, own in own_budgets(loaded.recipe)))):
        with in_words("measuring the peak of memory"):
            map = with_lifetimes(model, map, inputs)
    clocks = _clocks(loaded.recipe, loaded.recipe.budget.latency, model, map, inputs, listener)
    aligned = any(rule.keep.multiple_of == "auto" for rule in loaded.recipe.rules)
    steps = target_steps(loaded.recipe.targets if aligned else {}) | {c.target: c.steps for c in clocks}
    plan = compile_plan(loaded, map, strict=strict, clocks=clocks, steps=steps)
    weighing = _clocks(loaded.recipe, weighed_by(loaded.recipe), model, map, inputs, listener)
    prices = tuple((c.target, name, price) for c in weighing for name, price in priced(plan, c).items())
    said = (*_batch_notes(inputs), *_uncounted(counted.missed), *foretold(loaded.recipe, examples))
    plan = replace(plan, prices=prices, notes=(*plan.notes, *said))
    if any(p.is_meta for p in model.parameters()):
        return replace(plan, notes=(*plan.notes, "the model has shapes and no weights: trial cuts checked that it runs, not what it computes"))
    keep = choose(plan, *scored(plan, model, None), clocks=clocks)
    shapes = Costs(map).shapes({name: range(map.by_name[name].width - len(kept)) for name, kept in keep.items()})
    return replace(
        plan, preview=tuple((name, len(kept)) for name, kept in keep.items()), predicted=tuple((c.target, c.ms(shapes)) for c in clocks)
    )


def cut(
    plan: Plan,
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Inputs | Call | Sequence[Call] | None = None,
    batches: Batches | None = None,
    follow: Sequence[Any] = (),
    listener: Listener = silence,
    agree: Callable[[Chosen], Chosen] = lambda keep: keep,
    chooser: Chooser = choose,
) -> Result:
    """Choose what goes, remove it from a copy, and prove that the copy computes what the masked model does.

    optimizer: carried over to the cut model, state included; schedulers and scalers bound to it go on. Gradients and hooks
    are carried too; a hook then sees gradients of the narrow shape. inputs: for the proof; random ones of the shapes that
    the plan was made with when left out. batches: (x, y) training batches, needed by criteria that look at data. follow: models of
    the same structure that lose the same units, copied into `followers`; or objects that hold one as `module`, `ema_model`,
    `model` or `ema` (torch's AveragedModel, timm's ModelEmaV3), copied with the cut one inside.
    listener: told of the timing, where the budget limits a latency: what is chosen is timed, and chosen anew until the budget
    holds as measured. agree: called with the choice, so that several processes go on with one. chooser: what makes the choice.
    Raises VerificationError when the proof fails; neither model nor optimizer has changed then.
    """
    graph.check_model(model)
    if batches is None and _batches_needed(plan.recipe):
        kind = next(r.criterion.kind for r in plan.recipe.rules if isinstance(r.criterion, FromData))
        raise ModelError(f"criterion '{kind}' looks at training data: pass batches, an iterable of (x, y) training batches, to cut")
    if plan.recipe.budget.accuracy_drop is not None:
        raise ModelError("budget.accuracy_drop is found by going through the recipe's stages; call sparsify.apply, or leave it out of a plan that is cut by hand")
    check_fits(plan.map, model)
    for other in follow:  # refused now, not when all is cut and proven
        averaged_attribute(plan.map, other, model)
    given = _like_those_of(plan, model) if inputs is None else as_recorded(plan.map.inputs, _checked(inputs, model))
    inputs = graph.understood(model, given)
    batches = None if batches is None else taken(batches, plan.recipe)
    dense = copied(model)
    clocks = _clocks(plan.recipe, plan.recipe.budget.latency, dense, plan.map, inputs, listener)
    scores = scored(plan, dense, batches)
    keep = agree(held(plan, dense, inputs, lambda aim: settled(aim, dense, *scores, clocks, inputs, listener, chooser), listener))
    with in_words("cutting the model"):
        zeroed, deeds = zeroing.zeroed(plan, dense, keep, partial(looks, batches=batches))
        keep = zeroing.without_dead(plan, zeroed, keep)
    constants, notes = _confirmed_constants(plan, zeroed, keep, inputs)
    try:
        made = _carried_out(plan, dense, zeroed, keep, constants, inputs)
    except VerificationError:
        if constants == graph.Constants():
            raise
        constants, notes = graph.Constants(), (CONTRADICTED,)
        made = _carried_out(plan, dense, zeroed, keep, constants, inputs)
    thin, cuts = made.model, made.cuts.model_copy(update={"zeroed": deeds})
    followers = tuple(_followed(plan, other, model, thin, cuts, keep, inputs) for other in follow)
    notes += cuts.notes
    notes += tuple(_unfollowed(plan, zeroed, keep, constants, inputs))
    notes += tuple(fold_notes(op for op in cuts.operations if isinstance(op, Fold)))
    notes += graph.carry(model, thin, cuts, optimizer)
    return Result(thin, model, plan, cuts, made.verdicts, followers, notes)


CONTRADICTED = (
    "a comparison contradicted what the weights say of constant units, so none of these constants were kept; this is a "
    "bug: please report it with the recipe and the model's code"
)


@dataclass(frozen=True)
class _Made:
    """A cut that was carried out and proven."""

    model: nn.Module
    cuts: Cuts
    verdicts: tuple[Verdict, ...]


def _carried_out(
    plan: Plan,
    dense: nn.Module,
    zeroed: nn.Module,
    keep: Mapping[str, Sequence[int]],
    constants: graph.Constants,
    inputs: Inputs,
) -> _Made:
    """Remove the units, make layers cheaper, fold constants, and prove what comes of it as rebuilt from log and weights."""
    with in_words("cutting the model"):
        thin, cuts = graph.cut(zeroed, plan.map, keep, plan.digest)
        cuts = graph.follow_widths(dense, thin, cuts, inputs)
        reshaped, executions = executing.realise(plan, thin, inputs)
        folded = graph.fold(thin, constants.shifts, plan.map, keep)
    operations = (*cuts.operations, *reshaped, *folded.operations, *zeroing.counts(plan, thin))
    cuts = cuts.model_copy(update={"operations": operations, "executions": executions})
    fresh = _fresh(plan, dense, inputs)
    with in_words("proving the cut"):
        delivered = _reloaded(zeroed, thin, cuts, fresh, inputs)
        done = _Cut(dense, zeroed, delivered, keep, reshaped, constants, folded.values, fresh)
        verdicts = _prove(plan, done, inputs)
    return _Made(thin, cuts, verdicts)


def _followed(plan: Plan, other: Any, model: nn.Module, thin: nn.Module, cuts: Cuts, keep: Keep, inputs: Inputs) -> Any:
    """The same units out of a further model of the same structure, weights zero where those of the cut model are."""
    name = averaged_attribute(plan.map, other, model)
    if name is not None:  # an average goes on with as many steps behind it
        inside = getattr(other, name)
        narrow = _followed(plan, inside, model, thin, cuts, keep, inputs)
        return copied_object(other, f"the {type(other).__name__} in follow", {id(inside): narrow, id(model): thin})
    own = copied(other)
    narrow = graph.replay(own, cuts)
    created = {op.module for op in cuts.operations if isinstance(op, AddBias)}
    shifts = _constants(own, plan.map, keep, _suited(inputs, own)).shifts
    graph.fold(narrow, shifts, plan.map, keep, created)
    with torch.no_grad():
        for op in cuts.operations:
            if isinstance(op, Zero):
                narrow.get_parameter(op.tensor).mul_(thin.get_parameter(op.tensor) != 0)
    graph.carry(other, narrow, cuts)
    return narrow


EXAMPLES = (1, 2, 5)
"""batch sizes at which a cut is proven, where the model takes them"""


def _fresh(plan: Plan, dense: nn.Module, inputs: Inputs) -> tuple[Inputs, ...]:
    """Inputs that nothing was planned or chosen with; as many as were given where the model takes no other number."""
    fresh = tuple(redraw(inputs, _seed_of(plan, batch), batch) for batch in EXAMPLES)
    return fresh if any(takes(dense, one) for one in fresh) else (redraw(inputs, _seed_of(plan, 0)),)


def _seed_of(plan: Plan, batch: int) -> int:
    """A seed that nothing was planned or chosen with."""
    return int(plan.digest[:12], 16) + batch


def _constants(dense: nn.Module, map: ModelMap, keep: Mapping[str, Sequence[int]], inputs: Inputs) -> graph.Constants:
    """What the removed units emit that no input changes, computed in float64 where the model runs in it; nothing, where
    it cannot be followed."""
    given = graph.on_cpu(inputs)
    double = graph.converted(given, torch.float64)
    try:
        return graph.find_constants(graph.cast(copied(dense).cpu(), torch.float64).eval(), map, keep, double)
    except Exception:  # the model casts inside
        try:
            return graph.find_constants(copied(dense).cpu().eval(), map, keep, given)
        except Exception:
            return graph.Constants()


def _confirmed_constants(
    plan: Plan, dense: nn.Module, keep: Mapping[str, Sequence[int]], inputs: Inputs
) -> tuple[graph.Constants, tuple[str, ...]]:
    """What the removed units emit, and a note where other inputs contradict it: then none of it is believed.

    Constants that go on exactly are compared with the dense model by the proof. Of the others the proof sees the mean
    alone, so they are derived once more on other inputs, which must give the same numbers.
    """
    found = _constants(dense, plan.map, keep, inputs)
    other = redraw(inputs, _seed_of(plan, 0))
    if all(shift.exact for shift in found.shifts) or not takes(dense, other):
        return found, ()
    if graph.same_constants(found, _constants(dense, plan.map, keep, other)):
        return found, ()
    return graph.Constants(), (CONTRADICTED,)


def _unfollowed(
    plan: Plan, dense: nn.Module, keep: Mapping[str, Sequence[int]], constants: graph.Constants, inputs: Inputs
) -> Iterator[str]:
    """Removed units that no weight produces, and whose constants mix with data on the way: what their leaving changes."""
    names = [name for name in keep if name in {c.name for c in plan.map.coupled} and not plan.map.by_name[name].statistics]
    own = copied(dense)
    _apply_masks(own)
    unmade = dead_units(plan.map, names, dict(own.named_parameters()), roles=("out",))
    for name, flags in unmade.items():
        accounted = {*keep[name], *constants.whole.get(name, ()), *constants.told.get(name, ())}
        lost = [unit for unit, dead in enumerate(flags.tolist()) if dead and unit not in accounted]
        if not lost:
            continue
        width = plan.map.by_name[name].width
        rest = {name: [unit for unit in range(width) if unit not in lost]}
        # On several inputs: a gate may be closed, or a mean over the batch hide it, on one of them.
        tried = [one for one in (inputs, *_fresh(plan, dense, inputs)) if takes(dense, one)]
        change = max((graph.effect(dense, plan.map, rest, one) for one in tried), default=0.0)
        if change > NOTICED:
            yield (
                f"{plural(len(lost), 'unit')} of '{name}' had no weights that produce them, but their constants were mixed "
                f"with data before a layer read them: what they gave is lost, up to {share(change)} of the largest output"
            )


NOTICED = 1e-9
"""largest change of an output, relative to its largest value, that is not worth a note"""


def _reloaded(dense: nn.Module, thin: nn.Module, cuts: Cuts, fresh: Sequence[Inputs], inputs: Inputs) -> nn.Module:
    """The cut model as a reader of the log and the weights would rebuild it.

    Raises VerificationError when it computes something else than the cut model itself.
    """
    again = graph.replay(dense, cuts).eval()
    again.load_state_dict(thin.state_dict())
    difference = graph.compare(copied(thin).eval(), again, (*fresh, inputs))
    if not difference <= RELOADED:
        raise VerificationError(
            f"the cut model rebuilt from its log and weights differs by {difference:.1e} of the largest output from the "
            "cut model itself; this is a bug: please report it with the recipe and the model's code; nothing was saved"
        )
    return again


RELOADED = 1e-5
"""largest difference, in the model's own precision, between the cut model and its rebuilt form: rounding alone"""


def _uncounted(operators: Iterable[str]) -> Iterator[str]:
    for name in operators:
        yield f"the MACs of '{name}' are not counted: its operands have no plain shapes, or it runs functions of its own"


def _check_initialized(model: nn.Module) -> None:
    lazy = next((name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)), None)
    if lazy is not None:
        raise ModelError(f"'{lazy}' has no shape yet, as its layer is lazy; run the model once on example inputs first")


def _checked(inputs: Any, model: nn.Module) -> Inputs:
    """Copies, as a forward call may change them. Refuses what would only fail somewhere inside the model. Raises ModelError."""
    if isinstance(inputs, Tensor):
        raise ModelError("inputs is a single tensor; pass a tuple, (x,), as a forward call may take several")
    given = called(inputs)
    if not given:
        raise ModelError("inputs is empty; pass what one forward call takes, a tuple or a mapping of tensors")
    for each in calls_of(given):
        _check_call(each, model)
    return detached(given)


def _check_call(each: Call, model: nn.Module) -> None:
    if not callable(getattr(model, each.method, None)):
        raise ModelError(f"the model has no method '{each.method}' to call; {_near(each.method, dir(model))}")
    for path, value in flattened(each.inputs):
        if not (value is None or isinstance(value, Tensor | bool | int | float | str)):
            raise ModelError(
                f"inputs holds a {type(value).__name__} ('{path}'); an argument can be a tensor, a number, text, true, false, None, "
                "or a list, tuple, mapping or dataclass of these"
            )
    found = tensors_of(each)
    if isinstance(each.batch, Mapping):
        known = {name for path in found for name in (path, path.partition(".")[0])} | set(with_names(model, (each,))[0].names)
        stranger = next((name for name in each.batch if name not in known), None)
        if stranger is not None:
            raise ModelError(f"batch names '{stranger}', which is no tensor of the call; {_near(stranger, list(found))}")
    for path, axis in axes_of(each).items():
        shape = tuple(found[path].shape)
        if axis is not None and shape[axis] == 0:
            which = "the first input" if path == next(iter(found)) else f"'{path}'"
            dimension = "its first dimension" if axis == 0 else f"its dimension {axis}"
            raise ModelError(f"{which} has shape {shape}; {dimension} must be a batch of at least one example")


def _followed_in(model: nn.Module, inputs: Inputs, macs: Mapping[str, int]) -> tuple[ModelMap, Inputs]:
    """The structure, and the calls in which it was followed: further ones where the given calls do not reach every layer."""
    map = graph.inspect(model, inputs, macs)
    reaching = graph.further_calls(model, inputs, frozenset(map.unreached))
    if len(reaching) == len(calls_of(inputs)):
        return map, inputs
    return replace(graph.inspect(model, reaching, macs), inputs=map.inputs), reaching


def _batch_notes(inputs: Inputs) -> Iterator[str]:
    for each in calls_of(inputs):
        if each.fixed:
            what = "the model" if each.method == "forward" else f"'{each.method}'"
            yield f"{what} takes no other batch than the {examples_of(each)} examples that it was given, so it is timed, measured and exported with these"


def _near(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, 1)
    return f"did you mean '{close[0]}'?" if close else f"it has {few(tuple(n for n in known if not n.startswith('_')), 4)}"


def _like_those_of(plan: Plan, model: nn.Module) -> Inputs:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return changed(from_record(plan.map.inputs), lambda tensor: tensor.to(device))


def _suited(inputs: Inputs, model: nn.Module) -> Inputs:
    """On the model's device and in its precision; an average is often kept elsewhere and in more of it."""
    like = next(model.parameters())

    def fit(value: Tensor) -> Tensor:
        return value.to(like) if value.is_floating_point() else value.to(like.device)

    return changed(inputs, fit)


def taken(batches: Batches, recipe: Recipe) -> list[tuple[Tensor, Tensor]]:
    """As many of the training batches as the recipe's criteria look at."""
    return list(islice(batches, _batches_needed(recipe)))


def _batches_needed(recipe: Recipe) -> int:
    return max((r.criterion.batches for r in recipe.rules if isinstance(r.criterion, FromData)), default=0)


def _clocks(recipe: Recipe, targets: Iterable[str], model: nn.Module, map: ModelMap, inputs: Inputs, listener: Listener) -> tuple[Clock, ...]:
    return tuple(clock(name, recipe.targets[name], model, map, inputs, listener) for name in targets)


def scored(plan: Plan, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]] | None) -> tuple[Scores, dict[str, list[bool]]]:
    """What each unit of each coupled group is worth to its rule's criterion, and whether it is dead."""
    copy = copied(model)
    _apply_masks(copy)
    parameters = {name: torch.view_as_real(p) if p.is_complex() else p for name, p in copy.named_parameters()}
    with in_words("scoring the units that may go"):
        return _scored(plan, copy, parameters, batches)


def _scored(
    plan: Plan, copy: nn.Module, parameters: Mapping[str, Tensor], batches: Sequence[tuple[Tensor, Tensor]] | None
) -> tuple[Scores, dict[str, list[bool]]]:
    scores: Scores = {}
    for assignment in plan.assignments:
        rule = plan.recipe.rules[assignment.rule]
        layout = coupled_layout(plan.map, assignment.coupled, parameters, _looked_at(rule.criterion))
        if layout.count == 0:
            continue
        spec = _available(rule.criterion, batches)
        values = group_scores(spec, layout, parameters, looks(copy, spec, batches), plan.recipe.seed + assignment.rule)
        scores |= {name: part.tolist() for name, part in layout.split(values).items()}
    names = [name for a in plan.assignments for name in a.coupled]
    dead = {name: flags.tolist() for name, flags in dead_units(plan.map, names, parameters).items()}
    _check_finite(scores)
    return scores, dead


def _looked_at(spec: Criterion) -> frozenset[str]:
    """Roles of the slices by which a criterion judges a unit."""
    match spec:
        case Activation():
            return frozenset({"in", "whole"})
        case Fpgm():
            return frozenset({"out"})
        case _:
            return frozenset({"in", "out", "whole"})


@torch.no_grad()
def _apply_masks(model: nn.Module) -> None:
    """What a mask of torch.nn.utils.prune hides counts as the zero that it acts as."""
    for module in model.modules():
        if is_scripted(module):
            continue
        for name, mask in module.named_buffers(recurse=False):
            orig = module._parameters.get(f"{name.removesuffix('_mask')}_orig")
            if name.endswith("_mask") and orig is not None:
                orig.mul_(mask)


def _available(spec: Criterion, batches: object) -> Criterion:
    # A preview has no data: it shows what magnitude would choose.
    return Magnitude(kind="magnitude") if isinstance(spec, FromData) and batches is None else spec


def _check_finite(scores: Scores) -> None:
    for name, values in scores.items():
        if not torch.tensor(values).isfinite().all():
            raise ModelError(f"the weights of '{name}' or of what is coupled to it are not finite; restart from weights without NaN or inf")


@dataclass(frozen=True)
class _Cut:
    """What is to be proven: the dense model as it came, with groups at zero, and cut."""

    dense: nn.Module
    zeroed: nn.Module
    thin: nn.Module
    keep: Mapping[str, Sequence[int]]
    reshaped: tuple[Crop | Gather, ...]
    constants: graph.Constants
    folded: Mapping[str, Tensor]
    fresh: tuple[Inputs, ...]


def _prove(plan: Plan, done: _Cut, inputs: Inputs) -> tuple[Verdict, ...]:
    layers = tuple(dict.fromkeys(op.module for op in done.reshaped))
    try:
        verdict = graph.verify(
            done.zeroed,
            done.thin,
            plan.map,
            done.keep,
            inputs,
            before=None if done.dense is done.zeroed else done.dense,
            reshaped=layers,
            constants=done.constants,
            folded=done.folded,
            fresh=done.fresh,
        )
        return (verdict,)
    except VerificationError as error:
        raise VerificationError(f"{error}; {_culprit(plan, done, inputs)}; nothing was saved") from error


def _culprit(plan: Plan, done: _Cut, inputs: Inputs) -> str:
    for name, kept in done.keep.items():
        alone = {name: kept}
        try:
            graph.verify(done.zeroed, graph.cut(done.zeroed, plan.map, alone, plan.digest)[0], plan.map, alone, inputs)
        except VerificationError:
            layers = ", ".join(plan.map.by_name[name].layers)
            return f"group '{name}' fails by itself (it reaches {layers}): write a rule with 'protect: true' for '{name}'"
    if done.reshaped:
        try:
            graph.verify(done.zeroed, graph.cut(done.zeroed, plan.map, done.keep, plan.digest)[0], plan.map, done.keep, inputs)
            layers = ", ".join(dict.fromkeys(repr(op.module) for op in done.reshaped))
            return f"without the cheaper forms of {layers} it does not: leave these layers out of the rule"
        except VerificationError:
            pass
    return "no group fails by itself: protect layers one by one to find the pair that does"
