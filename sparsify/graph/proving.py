"""Proving a cut: cut model against masked dense model, in float64; and probing which groups can be cut at all.

Let M be the dense model in which the consumers' input slices of every removed unit are zero. Then cut(model) == M for
any activation; in place of residual branches that left, M has zeros in the sums that they went into. Units that meet only
each other, as those of queries and keys do in their product, have no such slices: there M has zeros in what makes them, on
both sides. Where a statistic is taken over removed units (LayerNorm, GroupNorm, a mean over channels) M leaves them
out of it, and the verdict says `statistics change`: M is then no longer the dense model with some weights at zero.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsify.errors import ModelError, VerificationError
from sparsify.graph import masking
from sparsify.graph.branches import find_branches
from sparsify.graph.bundling import bundles
from sparsify.graph.call import Inputs, call, converted, on_meta, tensors
from sparsify.graph.cutting import Keep, cut, dropped, gone_branches
from sparsify.graph.operators import plain_attention
from sparsify.graph.settling import fewer, settled
from sparsify.graph.silencing import silenced
from sparsify.plan import Branch, Coupled, ModelMap
from sparsify_schemas.report import Verdict

TOLERANCE = 1e-9
"""largest difference in float64 that a cut may have, relative to the largest output"""
TRIAL = 1e-3
"""the same for a trial cut in float32, whose only question is whether a group was followed rightly"""

Fault = Callable[[Sequence[Coupled], ModelMap], str | None]
"""what is wrong with a cut of these groups, None if nothing is"""


def verify(
    dense: nn.Module, thin: nn.Module, map: ModelMap, keep: Keep, inputs: Inputs, *, before: nn.Module | None = None, reshaped: Sequence[str] = ()
) -> Verdict:
    """Compare a cut model with the masked dense one, in float64, and run it in train mode, backwards too, and by torch's fused paths.

    before: the dense model before groups inside its tensors were set to zero, for the control.
    reshaped: layers of the cut model that are computed otherwise than before.
    Raises VerificationError naming the coupled groups when they differ or when the cut model does not run.
    """
    narrowed = _narrowed_groups(map, keep)
    if not narrowed and not reshaped:
        return Verdict(outcome="nothing cut", difference=0.0, control=0.0)
    blamed = narrowed or list(reshaped)
    wide, narrow, inputs, tolerance = _precise(dense, thin, inputs)
    masked, found = _both(wide, narrow, map, keep, inputs, blamed)
    _runs_as_used(wide, narrow, inputs, blamed)
    plain = wide if before is None else deepcopy(before).to(next(wide.parameters()).dtype).eval()
    difference, control = _relative(found, masked), _relative(_outputs(plain, inputs), masked)
    if not difference <= tolerance:
        raise VerificationError(f"the cut model differs from the masked one by {difference:.1e} of the largest output{_blame(blamed)}")
    changing = any(map.by_name[name].statistics for name in narrowed)
    return Verdict(
        outcome="statistics change" if changing else "equal",
        difference=difference,
        control=control,
        groups=tuple(narrowed),
        note="; ".join(_remarks(changing, tolerance)),
    )


def _remarks(changing: bool, tolerance: float) -> Iterable[str]:
    if changing:
        yield "a statistic is taken over removed units (a normalisation, a mean): equal to the masked model with them left out of it"
    if tolerance > TOLERANCE:
        yield f"the model casts inside and does not run in float64: compared in its own precision, within {tolerance:.0e}"


def _precise(dense: nn.Module, thin: nn.Module, inputs: Inputs) -> tuple[nn.Module, nn.Module, Inputs, float]:
    """Both models and the inputs in float64; as they are where the dense model does not run like that."""
    wide, wide_inputs = _as(dense, torch.float64), converted(inputs, torch.float64)
    try:
        _outputs(wide, wide_inputs)
    except Exception:
        return deepcopy(dense).eval(), deepcopy(thin).eval(), inputs, TRIAL
    return wide, _as(thin, torch.float64), wide_inputs, TOLERANCE


def _narrowed_groups(map: ModelMap, keep: Keep) -> list[str]:
    return [name for name, kept in keep.items() if len(kept) < map.by_name[name].width and not _within_branches(map, keep, name)]


def _within_branches(map: ModelMap, keep: Keep, name: str) -> bool:
    """Whether a group left because all of it is in residual branches that leave."""
    return not keep[name] and name not in {b.name for b in map.branches}


def _both(
    wide: nn.Module, narrow: nn.Module, map: ModelMap, keep: Keep, inputs: Inputs, blamed: Sequence[str]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs of the masked dense and of the cut model; VerificationError when the latter does not run or its shapes differ."""
    changing = any(map.by_name[name].statistics for name in _narrowed_groups(map, keep))
    masked = _masked_outputs(wide, map, keep, inputs, changing)
    try:
        found = _outputs(narrow, inputs)
    except Exception as error:
        raise _does_not_run(error, blamed) from error
    if [t.shape for t in found] != [t.shape for t in masked]:
        raise VerificationError(f"the cut model's outputs changed their shapes{_blame(blamed)}")
    return masked, found


def _does_not_run(error: Exception, groups: Sequence[str]) -> VerificationError:
    return VerificationError(f"the cut model does not run: {type(error).__name__}: {_first_line(error)}{_blame(groups)}")


def probe(model: nn.Module, map: ModelMap, inputs: Inputs) -> ModelMap:
    """The map with every group protected that trial cuts to about half width show to be beyond what can be followed.

    First that the cut model runs, in eval and in train mode, on the meta device (shapes without numbers, so that the
    culprits are found in little time); then that it computes what the masked one does, on random well-conditioned
    weights, so that dead channels of a trained model hide nothing; with one half of the units in float32, with the
    other in float64, so that every unit leaves once. All groups are tried at once; only when that fails are the
    culprits searched by halving.
    """
    trials = _Trials(model, inputs)
    reasons: dict[str, str] = {}
    groups = settled([c for c in map.coupled if c.protected is None], lambda c: trials.alone(c, map, trials.faults[:2]))
    map = _with(map, groups)
    good = trials.survivors(groups, map, reasons)
    map, saved = _saved(map, [c for c in groups if c.name in reasons], lambda c: trials.alone(c, map, trials.faults))
    if saved:
        reasons = {name: why for name, why in reasons.items() if name in map.by_name and name not in saved}
        trials.survivors([*good, *(map.by_name[name] for name in saved)], map, reasons)
    return _with(map, [replace(map.by_name[name], protected=why) for name, why in reasons.items()])


def _with(map: ModelMap, groups: Iterable[Coupled]) -> ModelMap:
    """The map with these groups in place of those of the same names."""
    return replace(map, coupled=tuple({c.name: c for c in [*map.coupled, *groups]}.values()))


def _saved(map: ModelMap, failed: Sequence[Coupled], fault: Callable[[Coupled], str | None]) -> tuple[ModelMap, list[str]]:
    """The map with what can be cut after all in place of what failed, and its names: groups that go in step, and groups
    without an attribute that held a length by chance."""
    saved: list[str] = []
    for candidate, names in [*bundles(failed), *((group, (group.name,)) for group in failed)]:
        if set(names) & set(saved) or any(name not in map.by_name for name in names):
            continue
        found = next((c for c in [*([candidate] if names[1:] else []), *fewer(candidate)] if fault(c) is None), None)
        if found is not None:
            map = _with(replace(map, coupled=tuple(c for c in map.coupled if c.name == found.name or c.name not in names)), [found])
            saved.append(found.name)
    return map, saved


class _Trials:
    """Trial cuts of one model, the quickest first: shapes, numbers in float32, numbers in float64."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        shapes = _Shapes(model, inputs)
        inputs = converted(inputs, torch.float32)
        self.faults: list[Fault] = [shapes.fault] if shapes.works else []
        if any(p.is_meta for p in model.parameters()):
            return  # a model of shapes alone can be planned, not compared
        trial = _scrambled(model, inputs)
        exact, _, exact_inputs, tolerance = _precise(trial, trial, inputs)
        self.faults += [
            lambda chosen, map: _fault(trial, map, {c.name: _half(c) for c in chosen}, inputs, TRIAL),
            lambda chosen, map: _fault(exact, map, {c.name: _rest(c) for c in chosen}, exact_inputs, tolerance),
        ]

    def alone(self, group: Coupled, map: ModelMap, faults: Sequence[Fault]) -> str | None:
        """What is wrong with a cut of one group."""
        own = replace(map, coupled=(group,))
        return next((why for fault in faults if (why := fault([group], own)) is not None), None)

    def survivors(self, groups: Sequence[Coupled], map: ModelMap, reasons: dict[str, str]) -> list[Coupled]:
        """The groups that can be cut together; the others get their reason."""
        good = list(groups)
        for fault in self.faults:
            good = _good(good, lambda chosen, fault=fault: fault(chosen, map), reasons) if good else good  # type: ignore[misc]
        return good


def with_branches(model: nn.Module, map: ModelMap, inputs: Inputs, macs: Mapping[str, int]) -> ModelMap:
    """The map with the model's residual blocks and branches, those protected that a trial cut in float64, on random
    weights, shows to be none that can leave; all that are not inside each other at once, and the culprits by halving.

    macs: multiply-accumulates by module name. Raises ModelError for a model without numbers.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ModelError("group 'depth' needs a model with weights: what a residual block computes tells whether it can leave")
    map = replace(map, branches=find_branches(deepcopy(model), map, inputs, macs))
    reasons: dict[str, str] = {}
    inputs = converted(inputs, torch.float32)
    exact, _, exact_inputs, tolerance = _precise(trial := _scrambled(model, inputs), trial, inputs)
    for level in _levels([b for b in map.branches if b.group.protected is None]):
        _good([b.group for b in level], lambda chosen: _fault(exact, map, {c.name: [] for c in chosen}, exact_inputs, tolerance), reasons)

    def judged(b: Branch) -> Branch:
        return replace(b, group=replace(b.group, protected=reasons[b.name])) if b.name in reasons else b

    return replace(map, branches=tuple(judged(b) for b in map.branches))


def _levels(branches: Sequence[Branch]) -> Iterator[list[Branch]]:
    """The branches from the outermost to the innermost."""
    while branches:
        size = {b.name: (len(b.tensors), -i) for i, b in enumerate(branches)}
        level = [b for b in branches if not any(o.overlaps(b) and size[o.name] > size[b.name] for o in branches)]
        yield level
        branches = [b for b in branches if b not in level]


class _Shapes:
    """Trial cuts on the meta device. `works` says whether the dense model runs there at all."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.inputs = on_meta(inputs)
        self.model = _on_meta(model)
        self.modes = [mode for mode in (False, True) if self._run(self.model, mode) is not None]
        self.works = False in self.modes
        self.shapes = {mode: self._run(self.model, mode) for mode in self.modes}

    def _run(self, model: nn.Module, training: bool) -> list[torch.Size] | None:
        try:
            with torch.no_grad():
                return [t.shape for t in tensors(call(model.train(training), self.inputs))]
        except Exception as error:
            self.error = error
            return None

    def fault(self, groups: Sequence[Coupled], map: ModelMap) -> str | None:
        thin, _ = cut(self.model, map, {c.name: _half(c) for c in groups}, plan="probe")
        for mode in self.modes:
            found = self._run(thin, mode)
            if found is None:
                return f"the cut model does not run: {type(self.error).__name__}: {_first_line(self.error)}"
            if found != self.shapes[mode]:
                return "the cut model's outputs change their shapes"
        return None


def _good(groups: Sequence[Coupled], fault: Callable[[Sequence[Coupled]], str | None], reasons: dict[str, str]) -> list[Coupled]:
    """The groups that can be cut together; the others get their reason."""
    good = _search(groups, fault, reasons)
    if len(good) < len(groups) and good and fault(good) is not None:
        _accumulate(good, fault, reasons)  # each part was fine by itself: add the groups one by one
    return [c for c in good if c.name not in reasons]


def _search(groups: Sequence[Coupled], fault: Callable[[Sequence[Coupled]], str | None], reasons: dict[str, str]) -> list[Coupled]:
    """The groups without fault by halving; the others get their reason."""
    if not groups:
        return []
    why = fault(groups)
    if why is None:
        return list(groups)
    if len(groups) == 1:
        reasons[groups[0].name] = f"a trial cut failed: {why}"
        return []
    half = len(groups) // 2
    return _search(groups[:half], fault, reasons) + _search(groups[half:], fault, reasons)


def _accumulate(groups: Sequence[Coupled], fault: Callable[[Sequence[Coupled]], str | None], reasons: dict[str, str]) -> None:
    good: list[Coupled] = []
    for group in groups:
        why = fault([*good, group])
        if why is None:
            good.append(group)
        else:
            reasons[group.name] = f"a trial cut together with other layers failed: {why}"


def _fault(trial: nn.Module, map: ModelMap, keep: Keep, inputs: Inputs, tolerance: float) -> str | None:
    narrowed = _narrowed_groups(map, keep)
    try:
        thin, _ = cut(trial, map, keep, plan="probe")
        masked, found = _both(trial, thin, map, keep, inputs, narrowed)
        difference = _relative(found, masked)
        if not difference <= tolerance:
            raise VerificationError(f"the cut model differs from the masked one by {difference:.1e} of the largest output")
        _runs_as_used(trial, thin, inputs, narrowed)
    except VerificationError as error:
        return str(error).partition(" [groups")[0]
    except Exception as error:
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def _half(group: Coupled) -> list[int]:
    generator = torch.Generator().manual_seed(group.width)
    count = max(1, group.width // 2)
    return sorted(torch.randperm(group.width, generator=generator)[:count].tolist())


def _rest(group: Coupled) -> list[int]:
    """Units that `_half` removes, less one where it can be spared: every unit leaves in a trial, and the number differs."""
    rest = sorted(set(range(group.width)) - set(_half(group)))
    return rest[: max(1, len(rest) - 1)]


def _scrambled(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A float32 copy with random weights of ordinary scale; the model's own weights where those blow up."""
    copy = _as(model, torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*copy.named_parameters(), *copy.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
            elif tensor.dim() > 1:
                fan_in = max(1, tensor[0].numel())
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * (1.5 / fan_in**0.5))
            elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.1)
    try:
        finite = all(bool(t.isfinite().all()) for t in _outputs(copy, inputs))
    except Exception:
        finite = False
    return copy if finite else _as(model, torch.float32)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without numbers whose tied weights are still tied, which `model.to("meta")` would undo."""
    found: dict[int, Any] = {}
    for parameter in model.parameters():
        found[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        found[id(buffer)] = buffer.to("meta")
    return deepcopy(model, found)


def _as(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return deepcopy(model).to(dtype).eval()


def _masked_outputs(wide: nn.Module, map: ModelMap, keep: Keep, inputs: Inputs, changing: bool) -> list[torch.Tensor]:
    model = _masked(wide, map, keep)
    sums = [s for b in gone_branches(map, keep) for s in b.sums]
    if not changing:
        with silenced(model, sums):
            return _outputs(model, inputs)
    # Inside branches that leave as well: what comes out of one has the labels of what it is added to.
    widths = {name: keep[name] for name in _narrowed_groups(map, keep) if keep[name]}
    gone: dict[tuple[str, int], set[int]] = {}
    for (tensor, dim, _), lost in dropped(map, widths).items():
        gone.setdefault((tensor, dim), set()).update(lost)
    return masking.outputs(model, inputs, gone, sums)


def _masked(wide: nn.Module, map: ModelMap, keep: Keep) -> nn.Module:
    """The dense model with the consumers' input slices of every removed unit set to zero; where units have no consumer
    with weights (queries times keys), all that makes them. Its branches are left as they are."""
    copy = deepcopy(wide)
    values = dict([*copy.named_parameters(), *copy.named_buffers()])
    branches = {b.name: keep[b.name] for b in gone_branches(map, keep)}
    read = {name: kept for name, kept in keep.items() if any(s.role == "in" for s in map.by_name[name].slices)}
    unread = {name: kept for name, kept in keep.items() if name not in read}
    with torch.no_grad():
        for chosen, role in (({**read, **branches}, "in"), ({**unread, **branches}, "out")):
            for (tensor, dim, own), lost in dropped(map, chosen).items():
                if own == role:
                    values[tensor].index_fill_(dim, torch.tensor(sorted(lost), device=values[tensor].device), 0.0)
    return copy


def _outputs(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    # Dropout and the like are off in eval mode; what is random all the same gets the same draws on both sides.
    with torch.no_grad(), torch.random.fork_rng(devices=[]), plain_attention():
        torch.manual_seed(0)
        return list(tensors(call(model, inputs)))


def _runs_as_used(wide: nn.Module, narrow: nn.Module, inputs: Inputs, groups: Sequence[str]) -> None:
    """Forward and backward in train mode, and forward by torch's fused paths; what the dense model cannot do with these
    inputs is not asked of the cut one."""
    for use in (_backwards, _fused):
        try:
            use(deepcopy(narrow), inputs)
        except Exception as error:
            try:
                use(deepcopy(wide), inputs)
            except Exception:
                continue
            raise _does_not_run(error, groups) from error


def _fused(model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        call(model.eval(), inputs)


def _backwards(model: nn.Module, inputs: Inputs) -> None:
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results: Iterable[Any] = [t.sum() for t in tensors(call(model.train(), inputs)) if t.requires_grad]
        total = sum(results)
        if isinstance(total, torch.Tensor):
            total.backward()  # type: ignore[no-untyped-call]


def _relative(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Largest difference of an output relative to its own largest value; nan where one is not a number."""
    gaps = [0.0]
    for a, b in zip(found, wanted, strict=True):
        if a.numel():
            gaps.append(float((a - b).abs().max()) / max(float(b.abs().max()), torch.finfo(b.dtype).tiny))
    return math.nan if any(math.isnan(gap) for gap in gaps) else max(gaps)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _blame(groups: Sequence[str]) -> str:
    shown = ", ".join(groups[:5]) + (f" and {len(groups) - 5} more" if len(groups) > 5 else "")
    return f" [groups: {shown}]"
