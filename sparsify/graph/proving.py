"""Proving a cut: cut model against masked dense model, in float64; and probing which groups can be cut at all.

Let M be the dense model in which the consumers' input slices of every removed unit are zero. Then cut(model) == M for
any activation. Where a statistic is taken over removed units (LayerNorm, GroupNorm, a mean over channels) M leaves them
out of it, and the verdict says `statistics change`: M is then no longer the dense model with some weights at zero.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sparsify.errors import VerificationError
from sparsify.graph import masking
from sparsify.graph.call import Inputs, call, converted, tensors
from sparsify.graph.cutting import Keep, cut, dropped
from sparsify.plan import Coupled, ModelMap
from sparsify_schemas.report import Verdict

TOLERANCE = 1e-9


def verify(dense: nn.Module, thin: nn.Module, map: ModelMap, keep: Keep, inputs: Inputs) -> Verdict:
    """Compare a cut model with the masked dense one, in float64, and run it forwards and backwards in both modes.

    Raises VerificationError naming the coupled group and what reaches it when they differ.
    """
    narrowed = [name for name, kept in keep.items() if len(kept) < map.by_name[name].width]
    if not narrowed:
        return Verdict(outcome="nothing cut", difference=0.0, control=0.0)
    wide, narrow = _double(dense), _double(thin)
    inputs = converted(inputs, torch.float64)
    changing = any(map.by_name[name].statistics for name in narrowed)
    plain, masked = _outputs(wide, inputs), _masked_outputs(wide, map, keep, inputs, changing)
    try:
        found = _outputs(narrow, inputs)
        _runs_backwards(wide, narrow, inputs)
    except VerificationError:
        raise
    except Exception as error:
        raise VerificationError(f"the cut model does not run: {type(error).__name__}: {_first_line(error)}{_blame(narrowed)}") from error
    if [t.shape for t in found] != [t.shape for t in plain]:
        raise VerificationError(f"the cut model's outputs changed their shapes{_blame(narrowed)}")
    difference, control = _relative(found, masked), _relative(plain, masked)
    if not difference <= TOLERANCE:
        raise VerificationError(f"the cut model differs from the masked one by {difference:.1e} of the largest output{_blame(narrowed)}")
    return Verdict(
        outcome="statistics change" if changing else "equal",
        difference=difference,
        control=control,
        groups=tuple(narrowed),
        note="a statistic is taken over removed units (a normalisation, a mean): equal to the masked model with them left out of it" if changing else "",
    )


def probe(model: nn.Module, map: ModelMap, inputs: Inputs) -> ModelMap:
    """The map with every group protected that a trial cut at half width shows to be beyond what can be followed.

    The trial runs on random well-conditioned weights, so that dead channels of a trained model hide nothing. All groups
    are tried at once; only when that fails are the culprits searched by halving.
    """
    trial = _scrambled(model, inputs)
    open_groups = [c for c in map.coupled if c.protected is None]
    reasons: dict[str, str] = {}

    def fault(groups: Sequence[Coupled]) -> str | None:
        """Why these groups cannot be cut together with those known to be good; None if they can."""
        return _fault(trial, map, groups, inputs)

    good = _search(open_groups, fault, reasons)
    if len(good) < len(open_groups) and fault(good) is not None:
        _accumulate(good, fault, reasons)  # each part was fine by itself: add the groups one by one
    coupled = tuple(replace(c, protected=reasons[c.name]) if c.name in reasons else c for c in map.coupled)
    return replace(map, coupled=coupled)


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


def _fault(trial: nn.Module, map: ModelMap, groups: Sequence[Coupled], inputs: Inputs) -> str | None:
    keep = {c.name: _half(c) for c in groups}
    try:
        thin, _ = cut(trial, map, keep, plan="probe")
        verify(trial, thin, map, keep, inputs)
    except VerificationError as error:
        return str(error).partition(" [groups")[0]
    except Exception as error:
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def _half(group: Coupled) -> list[int]:
    generator = torch.Generator().manual_seed(group.width)
    count = max(1, group.width // 2)
    return sorted(torch.randperm(group.width, generator=generator)[:count].tolist())


def _scrambled(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A double-precision copy with random weights of ordinary scale; the model's own weights where those blow up."""
    copy = _double(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*copy.named_parameters(), *copy.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
            elif tensor.dim() > 1:
                fan_in = max(1, tensor[0].numel())
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * (1.5 / fan_in**0.5))
            elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.1)
    try:
        finite = all(bool(t.isfinite().all()) for t in _outputs(copy, converted(inputs, torch.float64)))
    except Exception:
        finite = False
    return copy if finite else _double(model)


def _double(model: nn.Module) -> nn.Module:
    return deepcopy(model).double().eval()


def _masked_outputs(wide: nn.Module, map: ModelMap, keep: Keep, inputs: Inputs, changing: bool) -> list[torch.Tensor]:
    model = _masked(wide, map, keep)
    if not changing:
        return _outputs(model, inputs)
    gone: dict[tuple[str, int], set[int]] = {}
    for (tensor, dim, _), lost in dropped(map, keep).items():
        gone.setdefault((tensor, dim), set()).update(lost)
    return masking.outputs(model, inputs, gone)


def _masked(wide: nn.Module, map: ModelMap, keep: Keep) -> nn.Module:
    """The dense model with the consumers' input slices of every removed unit set to zero."""
    copy = deepcopy(wide)
    parameters = dict(copy.named_parameters())
    with torch.no_grad():
        for (tensor, dim, role), lost in dropped(map, keep).items():
            if role == "in":
                parameters[tensor].index_fill_(dim, torch.tensor(sorted(lost)), 0.0)
    return copy


def _outputs(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    # Dropout and the like are off in eval mode; what is random all the same gets the same draws on both sides.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(tensors(call(model, inputs)))


def _runs_backwards(wide: nn.Module, narrow: nn.Module, inputs: Inputs) -> None:
    """Forward and backward in train mode, if the dense model can do it with these inputs."""
    try:
        _backwards(deepcopy(wide), inputs)
    except Exception:
        return
    _backwards(deepcopy(narrow), inputs)


def _backwards(model: nn.Module, inputs: Inputs) -> None:
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results: Iterable[Any] = [t.sum() for t in tensors(call(model.train(), inputs)) if t.requires_grad]
        total = sum(results)
        if isinstance(total, torch.Tensor):
            total.backward()  # type: ignore[no-untyped-call]


def _relative(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    largest = max((float(t.abs().max()) for t in wanted if t.numel()), default=0.0)
    gap = max((float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True) if a.numel()), default=0.0)
    return gap / max(largest, torch.finfo(torch.float64).tiny)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _blame(groups: Sequence[str]) -> str:
    shown = ", ".join(groups[:5]) + (f" and {len(groups) - 5} more" if len(groups) > 5 else "")
    return f" [groups: {shown}]"
