"""Hooks: a plan's penalties acting through the step hooks of any torch.optim optimizer.

    with attach(plan, model, optimizer) as hooks:
        for x, y in loader:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step()

Gradient penalties act before the optimizer's step, proximal ones and the holding of zeros after it;
neither touches the loss. The state is a few numbers and goes into a checkpoint.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from sparsify.cost.cost_model import Costs
from sparsify.distributed import (
    find_extent,
    find_processes,
    is_sharded,
    local_part,
    shard_like,
    take_part,
    unwrap_model,
    unwrap_optimizer,
)
from sparsify.errors import ModelError
from sparsify.forward.call_model import require_values
from sparsify.graph.dead_units import find_dead_units
from sparsify.graph.model_shapes import check_shapes
from sparsify.pruning.planning.plan import Plan
from sparsify.training.hooks_state import HooksState, match_state, save_penalties
from sparsify.training.optimizers import keep_untraced, read_scalar, trained_parameters
from sparsify.training.output_watch import OutputWatch
from sparsify.training.penalties import auto_strength
from sparsify.training.penalties.setup import Regularizer, build_regularizers, compute_strength
from sparsify.training.penalties.state import match_saved_state
from sparsify.training.zeroed_groups import mask_zeros, measure_remaining, measure_sparsity
from sparsify_schemas.group import in_one_tensor
from sparsify_schemas.penalty import Threshold


class Hooks:
    """Attached penalties; a context manager that detaches at its end. Made by `attach`."""

    def __init__(
        self,
        plan: Plan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        regularizers: Sequence[Regularizer],
        masks: Mapping[str, Tensor],
        steps_per_epoch: int,
        steps: int,
        until: int | None = None,
        processes: Any = None,
    ) -> None:
        self._plan = plan
        self._model = model = unwrap_model(model)
        self._parameters = trained_parameters(model, optimizer)
        self._regularizers = tuple(regularizers)
        self._tuned = [r.tuned for r in regularizers if r.tuned is not None]
        self._masks = dict(masks)
        self._length = (steps_per_epoch, steps)
        self._span = (0, steps if until is None else until)
        """steps of the last cut and of the next one, or of the stage's beginning and end:
        from one to the other a goal is reached"""
        of_id = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._group_of = {name: of_id[id(p)] for name, p in self._parameters.items()}
        self._witness = next(
            (group["params"], i, p)
            for group in optimizer.param_groups
            for i, p in enumerate(group["params"])
            if p.requires_grad
        )
        self._step = 0
        self._pending = [[0.0] * len(optimizer.param_groups) for _ in regularizers]
        self._costs = Costs(plan.map)
        self._own_seconds = 0.0
        self._handles = [
            optimizer.register_step_pre_hook(keep_untraced(self._before)),
            optimizer.register_step_post_hook(keep_untraced(self._after)),
        ]
        actions = [r.action.output for r in regularizers if r.action.output is not None]
        self._watch = OutputWatch(model, self._parameters, actions, processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Carry out what proximal penalties still owe, and remove the hooks. Detaching twice does nothing."""
        if self._handles:
            self.flush()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._watch.detach()

    def state_dict(self) -> dict[str, Any]:
        """The step, since when there was no cut, what each proximal penalty has still to carry out,
        which weights are held at zero, and under each rule's place in the plan the state of its penalty."""
        return self._state().to_dict()

    def _state(self) -> HooksState:
        held = {name: mask != 0 for name, mask in self._masks.items()}
        own = save_penalties(self._regularizers, self._parameters)
        return HooksState(self._step, self._span[0], self._pending, held, own)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises ModelError when it belongs to other penalties."""
        saved, pairs = match_state(
            HooksState.read(state), self._state(), self._regularizers, self._parameters
        )
        self._step, self._span, self._pending = saved.step, (saved.since, self._span[1]), saved.pending
        for name, mask in saved.held.items():
            # Weights that a penalty has brought to zero since are free to return. A mask of another shape
            # is of the model before a cut: what is zero now is held.
            parameter = self._parameters[name]
            if mask.shape == parameter.shape:
                part = local_part(mask) if is_sharded(mask) else take_part(mask, find_extent(name, parameter))
                self._masks[name] = shard_like(part.to(local_part(parameter.detach())), parameter)
        for here, value in pairs:
            here.copy_(value)

    def start_at(self, step: int, own: Mapping[int, Any]) -> None:
        """Begin at a later step of the stage, as after a cut between two epochs:
        schedules go on, and penalties with what the cut has left of what they remembered,
        as far as it is that; all else is new."""
        self._step, self._span = step, (step, self._span[1])
        for r in self._regularizers:
            if not r.spec.facts().chooses:  # else it chooses anew, for what the next cut is to leave
                for here, saved in (
                    match_saved_state(r.action, r.layouts, self._parameters, own.get(r.rule)) or ()
                ):
                    here.copy_(saved)

    @property
    def seconds(self) -> float:
        """Time spent in the hooks so far."""
        return self._own_seconds + self._watch.seconds

    @property
    def strength(self) -> float | None:
        """Strength of the first penalty that has one, at the present step; None without such."""
        shown = [r for r in self._regularizers if r.spec.facts().strength_is == "lambda"]
        found = (self._strength_of(regularizer) for regularizer in shown)
        return next((value for value in found if value is not None), None)

    def hold(self, names: Iterable[str]) -> None:
        """Keep what is zero now in these tensors at zero from now on."""
        self._masks |= mask_zeros(self._parameters, names)

    def reactivated(self) -> float | None:
        """Fraction of the weights of gsm rules that switched from inactive to active between two steps,
        mean over the steps since the last call."""
        measures = [r.action.reactivated for r in self._regularizers if r.action.reactivated is not None]
        shares = [measure() for measure in measures]
        return sum(shares) / len(shares) if shares else None

    def threshold(self) -> tuple[Threshold, tuple[str, ...]] | None:
        """When and how small weights become zero, and in which tensors; None where no penalty asks for it."""
        asking = [r for r in self._regularizers if r.spec.facts().threshold is not None]
        threshold = asking[0].spec.facts().threshold if asking else None
        if threshold is None:
            return None
        names = dict.fromkeys(name for regularizer in asking for name in regularizer.names)
        return threshold, tuple(names)

    def sparsity(self) -> float:
        """Share of the covered groups (of single weights, for groups `weight` and n:m) that are zero now.
        Sharded: call on all processes."""
        return measure_sparsity(self._plan, self._find_dead(), self._parameters)

    def remaining(self) -> dict[str, float]:
        """MACs, then what is budgeted besides -> share of the dense model that would
        remain if the dead groups left now."""
        return measure_remaining(self._plan, self._costs, self._find_dead())

    def flush(self) -> None:
        """Before the model is looked at: proximal penalties with `every` above 1 carry out the steps that
        they have saved up, and those with noise have the model compute without it, until the next step."""
        with torch.no_grad():
            self._restore({}, 1.0)
            for i, regularizer in enumerate(self._regularizers):
                self._act_proximally(i, regularizer)
            self._show_weights(noisy=False)

    def _restore(self, gradients: Mapping[str, Tensor], scale: float) -> None:
        """Undo in reverse order, so each penalty sees the weights it left."""
        for regularizer in reversed(self._regularizers):
            if regularizer.action.restore is not None:
                regularizer.action.restore(self._weights(), gradients, scale)

    def _show_weights(self, *, noisy: bool) -> None:
        for regularizer in self._regularizers:
            if regularizer.action.show is not None:
                regularizer.action.show(self._weights(), noisy)

    def _find_dead(self) -> dict[str, Tensor]:
        names = [name for a in self._plan.assignments for name in a.coupled]
        return find_dead_units(self._plan.map, names, dict(self._model.named_parameters()))

    def figures(self) -> dict[str, float]:
        """What a log shows: the share of groups that are zero; where a strength is found, how much of the
        goal is due and how much is reached, as the model would be cut now."""
        goal = self.goal()
        shown = {"sparsity": self.sparsity()}
        return shown if goal is None else {**shown, "goal_due": goal[0], "goal_reached": goal[1]}

    def goal(self) -> tuple[float, float] | None:
        """(part of the goal that is due, part reached) where a strength is
        found; None where all are given."""
        if not self._tuned:
            return None
        since, until = self._span
        due = min(
            auto_strength.compute_due(s.spec, self._step - since, self._length[0], until - since)
            for s in self._tuned
        )
        return due, auto_strength.measure_progress(self._plan, self._tuned, self._weights(), self.remaining())

    def _strength_of(self, regularizer: Regularizer) -> float | None:
        return compute_strength(regularizer, self._step, *self._length, self._span)

    def _adjust_strengths(self, optimizer: torch.optim.Optimizer) -> None:
        """Right after a proximal action: later the optimizer's momentum may have woken a dead group a
        little."""
        (since, until), (per_epoch, whole) = self._span, self._length
        interval = auto_strength.count_interval(
            whole, max((r.spec.facts().every for r in self._regularizers if r.tuned), default=1)
        )
        if self._tuned and self._step % interval == 0:
            lr = max(float(group["lr"]) for group in optimizer.param_groups) * auto_strength.count_horizon(
                until - since, interval
            )
            auto_strength.adjust_strengths(
                self._plan,
                self._tuned,
                self._weights(),
                auto_strength.ControlStep(self._step - since, per_epoch, until - since, whole, interval, lr),
            )

    def _before(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Any]] | None:
        # step(closure) makes the gradients anew inside the step,
        # so there the penalties act at the end of the closure.
        group, place, parameter = self._witness
        if place >= len(group) or group[place] is not parameter:
            raise ModelError(
                "the optimizer has gone on to a cut model, and these penalties are of the model before: "
                "detach them, "
                "and attach a plan of the cut model"
            )
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._add_gradients(optimizer)
            return None

        def penalized() -> Any:
            loss = closure()
            self._add_gradients(optimizer)
            return loss

        return args[:1], {**kwargs, "closure": penalized}

    @torch.no_grad()
    def _add_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        started = time.perf_counter()
        if read_scalar(optimizer, "found_inf", 0.0):
            return  # the step will be skipped
        weights = self._weights()
        gradients = {n: local_part(p.grad) for n, p in self._parameters.items() if p.grad is not None}
        # A fused optimizer under a GradScaler still holds scaled gradients here
        # and unscales them inside its kernel.
        scale = read_scalar(optimizer, "grad_scale", 1.0)
        self._restore(gradients, scale)
        for regularizer in self._regularizers:
            if regularizer.action.before is not None:
                regularizer.action.before(weights, gradients, scale)
        for regularizer in self._regularizers:
            if regularizer.action.gradient is not None:
                regularizer.action.gradient(
                    weights, gradients, (self._strength_of(regularizer) or 0.0) * scale
                )
        self._own_seconds += time.perf_counter() - started

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        self._watch.forget()
        if read_scalar(optimizer, "found_inf", 0.0):
            return  # the step was skipped
        started = time.perf_counter()
        for i, regularizer in enumerate(self._regularizers):
            strength = self._strength_of(regularizer) or 0.0
            if regularizer.action.after is not None:
                regularizer.action.after(self._weights(), strength)
            if regularizer.action.proximal is None:
                continue
            for g, group in enumerate(optimizer.param_groups):
                self._pending[i][g] += float(group["lr"]) * strength
            if (self._step + 1) % regularizer.spec.facts().every == 0:
                self._act_proximally(i, regularizer)
        for name, mask in self._masks.items():
            self._parameters[name].mul_(mask)
        self._step += 1
        self._adjust_strengths(optimizer)
        self._show_weights(noisy=True)
        self._own_seconds += time.perf_counter() - started

    def _weights(self) -> dict[str, Tensor]:
        """This process's part of every parameter; a penalty changes it in place."""
        return {name: local_part(p.detach()) for name, p in self._parameters.items()}

    def _act_proximally(self, i: int, regularizer: Regularizer) -> None:
        if regularizer.action.proximal is None or not any(self._pending[i]):
            return
        amounts = {name: self._pending[i][self._group_of[name]] for name in regularizer.names}
        self._pending[i] = [0.0] * len(
            self._pending[i]
        )  # before it acts: what fails is not tried again on detaching
        regularizer.action.proximal(self._weights(), amounts)


def attach(
    plan: Plan,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps_per_epoch: int | None = None,
    steps: int | None = None,
    penalties: bool = True,
    hold_zeros: bool = False,
    until: int | None = None,
) -> Hooks:
    """Attach a plan's penalties to an optimizer; the training loop stays as it is.

    The penalties act through the step hooks of the optimizer. Use the result in a `with` statement: at its
    end the hooks are removed, and what a proximal penalty still owes is carried out.

    Args:
        plan: Made of this model.
        model: May be wrapped by DDP or `torch.compile`, or sharded by `fully_shard`.
        optimizer: Of the model's parameters; Accelerate's optimizer works too.
        steps_per_epoch: Needed where a schedule counts in epochs (`ep`).
        steps: Of the whole stage. Needed where a schedule counts in shares of the stage (`dur`).
        penalties: False attaches no penalty, for a stage that only holds zeros.
        hold_zeros: Weights that are zero now stay zero, in rules on groups inside a tensor (weight, shape,
            tap, 4x1, 2:4).
        until: The step of the next cut, where the stage is cut before its end. `strength: auto` and agp reach
            their goal by then.

    Returns:
        The attached penalties. `sparsity()` is the share of groups that are zero, `state_dict()` and
        `load_state_dict()` belong into checkpoints, `flush()` carries out what is owed, `detach()` ends it.

    Raises:
        ModelError: The plan or the optimizer belongs to another model, or a schedule needs a length that was
            not given.

    Examples:
        >>> plan = sparsify.make_plan(recipe, model, (x,))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with sparsify.attach(plan, model, optimizer) as hooks:
        ...     for _ in range(40):
        ...         optimizer.zero_grad()
        ...         model(x).square().sum().backward()
        ...         optimizer.step()
        ...     hooks.flush()
        ...     hooks.sparsity() > 0
        True
    """
    processes, model, optimizer = find_processes(model), unwrap_model(model), unwrap_optimizer(optimizer)
    require_values(model)
    check_shapes(plan.map, model)
    parameters = trained_parameters(model, optimizer)
    regularizers = build_regularizers(plan, parameters, steps_per_epoch, steps) if penalties else []
    rules = plan.recipe.rules
    names = [
        t
        for a in plan.assignments
        if hold_zeros and in_one_tensor(rules[a.rule].group)
        for t in a.tensors
        if t in parameters
    ]
    return Hooks(
        plan,
        model,
        optimizer,
        regularizers,
        mask_zeros(parameters, names),
        steps_per_epoch or 1,
        steps or 1,
        until,
        processes,
    )
