"""Hooks: a plan's penalties acting through the step hooks of any torch.optim optimizer.

    with attach(plan, model, optimizer) as hooks:
        for x, y in loader:
            optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step()

Gradient penalties act before the optimizer's step, proximal ones and the holding of zeros after it;
neither touches the loss. The state is a few numbers and goes into a checkpoint.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sparsify.cost.cost_model import Costs, absolute_limits
from sparsify.distributed import alike, bare, extent, is_sharded, local, part_of, sharing, unwrapped, whole
from sparsify.errors import ModelError
from sparsify.graph.group_index import check_fits, dead_units, find_nonzero, inner_layout
from sparsify.pruning.planning.plan import Plan
from sparsify.training.penalties import auto_strength, gsm, sensitivity
from sparsify.training.penalties.setup import Regularizer, ready, strength
from sparsify.training.penalties.state import recalled, remembered
from sparsify_schemas.group import Group, in_one_tensor, within
from sparsify_schemas.penalty import Agp, Gsm, Sensitivity, Threshold


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
        self._model = model = unwrapped(model)
        self._parameters = trained(model, optimizer)
        self._regularizers = tuple(regularizers)
        self._steered = [r.steered for r in regularizers if r.steered is not None]
        self._masks = dict(masks)
        self._length = (steps_per_epoch, steps)
        self._span = (0, steps if until is None else until)
        """steps of the last cut and of the next one, or of the stage's beginning and end:
        from one to the other a goal is reached"""
        self._processes = processes
        of_id = {id(p): g for g, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._group_of = {name: of_id[id(p)] for name, p in self._parameters.items()}
        self._witness = next(
            (group["params"], i, p)
            for group in optimizer.param_groups
            for i, p in enumerate(group["params"])
            if p.requires_grad
        )
        self._step = 0
        self._passes = 0
        self._leaves: dict[str, Tensor] = dict(self._parameters)
        """what forward passes compute with: of a sharded parameter the whole one that FSDP has put in its
        place"""
        self._outputs: dict[int, Tensor] = {}
        """of forward passes whose backward pass has not come yet"""
        self._pending = [[0.0] * len(optimizer.param_groups) for _ in regularizers]
        self._costs = Costs(plan.map)
        self.seconds = 0.0
        """time spent in the hooks so far"""
        self._handles = [
            optimizer.register_step_pre_hook(_untraced(self._before)),
            optimizer.register_step_post_hook(_untraced(self._after)),
        ]
        if any(r.action.output is not None for r in regularizers):
            self._handles += [model.register_forward_hook(self._watch), *self._watched_leaves()]

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

    def state_dict(self) -> dict[str, Any]:
        """The step, since when there was no cut, what each proximal penalty has still to carry out,
        which weights are held at zero, and under each rule's place in the plan what its penalty remembers."""
        held = {name: mask != 0 for name, mask in self._masks.items()}
        own = {r.rule: remembered(r.action, r.layouts, self._parameters) for r in self._regularizers}
        return {
            "step": self._step,
            "since": self._span[0],
            "pending": [list(row) for row in self._pending],
            "held": held,
            "own": own,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises ModelError when it belongs to other penalties."""
        try:
            step, since, own, held = (
                int(state["step"]),
                int(state["since"]),
                dict(state["own"]),
                dict(state["held"]),
            )
            rows = [[float(owed) for owed in row] for row in state["pending"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            step, since, rows, own, held = 0, 0, [], {}, {}
        pairs = [recalled(r.action, r.layouts, self._parameters, own.get(r.rule)) for r in self._regularizers]
        same = own.keys() == {r.rule for r in self._regularizers} and all(
            isinstance(mask, Tensor) for mask in held.values()
        )
        same = same and self._masks.keys() <= held.keys() <= self._parameters.keys()
        if [len(row) for row in rows] != [len(row) for row in self._pending] or None in pairs or not same:
            raise ModelError(
                "the saved penalty state belongs to another recipe or to an optimizer with other parameter "
                "groups"
            )
        self._step, self._span, self._pending = step, (since, self._span[1]), rows
        for name, mask in held.items():  # weights that a penalty has brought to zero since are free to return
            if (
                mask.shape == self._parameters[name].shape
            ):  # else of the model before a cut: what is zero now is held
                parameter = self._parameters[name]
                part = local(mask) if is_sharded(mask) else part_of(mask, extent(name, parameter))
                self._masks[name] = alike(part.to(local(parameter.detach())), parameter)
        for here, saved in (pair for own_pairs in pairs for pair in own_pairs or ()):
            here.copy_(saved)

    def start_at(self, step: int, own: Mapping[int, Any]) -> None:
        """Begin at a later step of the stage, as after a cut between two epochs:
        schedules go on, and penalties with what the cut has left of what they remembered,
        as far as it is that; all else is new."""
        self._step, self._span = step, (step, self._span[1])
        for r in self._regularizers:
            if not r.spec.facts().chooses:  # else it chooses anew, for what the next cut is to leave
                for here, saved in recalled(r.action, r.layouts, self._parameters, own.get(r.rule)) or ():
                    here.copy_(saved)

    @property
    def strength(self) -> float | None:
        """Strength of the first penalty that has one, at the present step; None without such."""
        return next(
            (
                found
                for r in self._regularizers
                if not isinstance(r.spec, Agp) and (found := self._strength(r)) is not None
            ),
            None,
        )

    def hold(self, names: Iterable[str]) -> None:
        """Keep what is zero now in these tensors at zero from now on."""
        self._masks |= zeros_of(self._parameters, names)

    def woken(self) -> float | None:
        """Share of what gsm rules cover that was passive in one step and active in the next,
        mean over the steps since the last call."""
        shares = [gsm.woken_share(r.action.state) for r in self._regularizers if isinstance(r.spec, Gsm)]
        return sum(shares) / len(shares) if shares else None

    def threshold(self) -> tuple[Threshold, tuple[str, ...]] | None:
        """When and how small weights become zero, and in which tensors; None where no penalty asks for it."""
        asking = [(r.spec.threshold, r.names) for r in self._regularizers if isinstance(r.spec, Sensitivity)]
        found = [(threshold, names) for threshold, names in asking if threshold is not None]
        return (
            (found[0][0], tuple(dict.fromkeys(name for _, names in found for name in names)))
            if found
            else None
        )

    def sparsity(self) -> float:
        """Share of the covered groups (of single weights, for groups `weight` and n:m) that are zero now.
        Sharded: call on all processes."""
        zero = total = 0
        for flags in self._dead().values():
            zero, total = zero + int(flags.sum()), total + flags.numel()
        for group, tensors in self._inner():
            weights = {name: self._parameters[name].detach() for name in tensors}
            if within(group):
                layout = inner_layout(group, tensors, weights)
                alive = layout.reduce(partial(find_nonzero, weights))[:-1]
                zero, total = zero + int((alive == 0).sum()), total + layout.count
            else:
                zero, total = (
                    zero + sum(int(whole((w == 0).sum())) for w in weights.values()),
                    total + sum(w.numel() for w in weights.values()),
                )
        return zero / total if total else 0.0

    def remaining(self) -> dict[str, float]:
        """MACs, then what is budgeted besides -> share of the dense model that would
        remain if the dead groups left now."""
        gone = {name: torch.nonzero(flags).flatten().tolist() for name, flags in self._dead().items()}
        now, dense = self._costs.of(gone), self._costs.dense
        return {
            what: now[what] / dense[what]
            for what in {"macs": 0.0, **absolute_limits(self._plan.recipe.budget, dense)}
            if dense[what]
        }

    def flush(self) -> None:
        """Before the model is looked at: proximal penalties with `every` above 1 carry out the steps that
        they have saved up, and those with noise have the model compute without it, until the next step."""
        with torch.no_grad():
            self._restore({}, 1.0)
            for i, regularizer in enumerate(self._regularizers):
                self._proximal(i, regularizer)
            self._show(noisy=False)

    def _restore(self, gradients: Mapping[str, Tensor], scale: float) -> None:
        """The last shown first: each finds the weights as it left them."""
        for regularizer in reversed(self._regularizers):
            if regularizer.action.restore is not None:
                regularizer.action.restore(self._weights(), gradients, scale)

    def _show(self, *, noisy: bool) -> None:
        for regularizer in self._regularizers:
            if regularizer.action.show is not None:
                regularizer.action.show(self._weights(), noisy)

    def _dead(self) -> dict[str, Tensor]:
        names = [name for a in self._plan.assignments for name in a.coupled]
        return dead_units(self._plan.map, names, dict(self._model.named_parameters()))

    def _inner(self) -> Iterator[tuple[Group, list[str]]]:
        """Groups inside tensors that rules cover, and in which tensors."""
        for assignment in self._plan.assignments:
            group = self._plan.recipe.rules[assignment.rule].group
            if group is not None and in_one_tensor(group):
                yield group, [name for name in assignment.tensors if name in self._parameters]

    def goal(self) -> tuple[float, float] | None:
        """(part of the goal that is due, part reached) where a strength is
        found; None where all are given."""
        if not self._steered:
            return None
        since, until = self._span
        due = min(
            auto_strength.due(s.spec, self._step - since, self._length[0], until - since)
            for s in self._steered
        )
        return due, auto_strength.reached(self._plan, self._steered, self._weights(), self.remaining())

    def _strength(self, regularizer: Regularizer) -> float | None:
        return strength(regularizer, self._step, *self._length, self._span)

    def _steer(self, optimizer: torch.optim.Optimizer) -> None:
        """Right after a proximal action: later the optimizer's momentum may have woken a dead group a
        little."""
        (since, until), (per_epoch, whole) = self._span, self._length
        moment = auto_strength.interval(
            whole, max((r.spec.facts().every for r in self._regularizers if r.steered), default=1)
        )
        if self._steered and self._step % moment == 0:
            lr = max(float(group["lr"]) for group in optimizer.param_groups) * auto_strength.horizon(
                until - since, moment
            )
            auto_strength.steer(
                self._plan,
                self._steered,
                self._weights(),
                auto_strength.When(self._step - since, per_epoch, until - since, whole, moment, lr),
            )

    def _watched_leaves(self) -> Iterator[RemovableHandle]:
        owners: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name, parameter in self._parameters.items():
            if is_sharded(parameter):
                module, _, attribute = name.rpartition(".")
                owners[module].append((name, attribute))
        for module, own in owners.items():
            yield self._model.get_submodule(module).register_forward_pre_hook(partial(self._see_leaves, own))

    def _see_leaves(self, own: Sequence[tuple[str, str]], module: nn.Module, _args: Any) -> None:
        self._leaves |= {name: getattr(module, attribute) for name, attribute in own}

    def _watch(self, model: nn.Module, _args: Any, returned: Any) -> None:
        """In every forward pass that is trained on: have penalties look while its backward pass is at the
        outputs."""
        if not (model.training and torch.is_grad_enabled()):
            return
        outputs = sensitivity.rows_of_outputs(returned)
        if outputs.requires_grad:
            # Held here and not by the hook: a tensor whose hook holds it would never be freed.
            self._passes += 1
            self._outputs[self._passes] = outputs
            outputs.register_hook(partial(self._at_outputs, self._passes))  # type: ignore[no-untyped-call]

    def _at_outputs(self, key: int, gradient: Tensor) -> None:
        started, outputs = time.perf_counter(), self._outputs.pop(key, None)
        if outputs is None:
            return  # a pass of a penalty's own
        for regularizer in self._regularizers:
            if regularizer.action.output is not None:
                regularizer.action.output(self._leaves, outputs, gradient, self._processes)
        self.seconds += time.perf_counter() - started

    def _before(
        self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Any]] | None:
        # step(closure) makes the gradients anew inside the step,
        # so there the penalties act at the end of the closure.
        held, place, parameter = self._witness
        if place >= len(held) or held[place] is not parameter:
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
        if _scalar(optimizer, "found_inf", 0.0):
            return  # the step will be skipped
        weights = self._weights()
        gradients = {n: local(p.grad) for n, p in self._parameters.items() if p.grad is not None}
        # A fused optimizer under a GradScaler still holds scaled gradients here
        # and unscales them inside its kernel.
        scale = _scalar(optimizer, "grad_scale", 1.0)
        self._restore(gradients, scale)
        for regularizer in self._regularizers:
            if regularizer.action.before is not None:
                regularizer.action.before(weights, gradients, scale)
        for regularizer in self._regularizers:
            if regularizer.action.gradient is not None:
                regularizer.action.gradient(weights, gradients, (self._strength(regularizer) or 0.0) * scale)
        self.seconds += time.perf_counter() - started

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        self._outputs.clear()
        if _scalar(optimizer, "found_inf", 0.0):
            return  # the step was skipped
        started = time.perf_counter()
        for i, regularizer in enumerate(self._regularizers):
            strength = self._strength(regularizer) or 0.0
            if regularizer.action.after is not None:
                regularizer.action.after(self._weights(), strength)
            if regularizer.action.proximal is None:
                continue
            for g, group in enumerate(optimizer.param_groups):
                self._pending[i][g] += float(group["lr"]) * strength
            if (self._step + 1) % regularizer.spec.facts().every == 0:
                self._proximal(i, regularizer)
        for name, mask in self._masks.items():
            self._parameters[name].mul_(mask)
        self._step += 1
        self._steer(optimizer)
        self._show(noisy=True)
        self.seconds += time.perf_counter() - started

    def _weights(self) -> dict[str, Tensor]:
        """This process's part of every parameter; a penalty changes it in place."""
        return {name: local(p.detach()) for name, p in self._parameters.items()}

    def _proximal(self, i: int, regularizer: Regularizer) -> None:
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
    processes, model, optimizer = sharing(model), unwrapped(model), bare(optimizer)
    check_fits(plan.map, model)
    parameters = trained(model, optimizer)
    regularizers = ready(plan, parameters, steps_per_epoch, steps) if penalties else []
    rules = plan.recipe.rules
    held = [
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
        zeros_of(parameters, held),
        steps_per_epoch or 1,
        steps or 1,
        until,
        processes,
    )


def zeros_of(parameters: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """For each named tensor 0 where it is zero and 1 elsewhere."""
    return {name: (parameters[name].detach() != 0).to(parameters[name].dtype) for name in names}


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """The model's parameters that the optimizer moves; a penalty moves no others."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) in moved}
    if not found:
        raise ModelError(
            "the optimizer holds none of the model's parameters; pass the optimizer that trains this model"
        )
    return found


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook whose numbers change at every step, kept out of a compiled optimizer step.

    Decided while tracing: `disable` loads the compiler,
    which costs a second that a plain loop need not spend.
    """

    def act(*given: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(hook)(*given)  # type: ignore[no-untyped-call]
        return hook(*given)

    return act


def _scalar(optimizer: torch.optim.Optimizer, name: str, default: float) -> float:
    found = getattr(optimizer, name, None)
    return default if found is None else float(found)
