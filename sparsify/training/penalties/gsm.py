"""Global sparse momentum: of all gradients only those of the most important weights go on; decay acts on
all."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sparsify.distributed import local_part
from sparsify.graph.group_index import Layout, scale, wide
from sparsify.graph.row_pieces import borrow_memory, split_rows
from sparsify.training.penalties.step_action import Action, Tensors
from sparsify.training.penalties.topk import Portions, kth_largest, sum_over_processes

EXACT = 1 << 20
"""single weights up to which all are ranked;
of more, every 31st is, in runs of 16 so that few cache lines are touched"""
_RUN, _STRIDE = 16, 31


def make_action(layouts: Sequence[Layout], parameters: Tensors, share: float, single: bool) -> Action:
    """The loss's gradient stays where T is among the Q largest of all layouts
    together, and becomes zero elsewhere.

    single: T = |w * dL/dw| of each weight; otherwise T = |sum over w in g of w * dL/dw| of each group.
    Q = (1 - share) of their number. `state` adds up, over all steps, the share that was passive in one and
    active in the next.
    Source: Ding et al., arXiv:1909.12778, algorithm 1.
    """
    return _on_weights(layouts, parameters, share) if single else _on_groups(layouts, parameters, share)


def _on_weights(layouts: Sequence[Layout], parameters: Tensors, share: float) -> Action:
    owners = {part.name: part.processes for layout in layouts for part in layout.parts}
    names = tuple(owners)
    every = sum(parameters[n].numel() for n in names) <= EXACT
    looked = {n: len(_sample_elements(local_part(parameters[n]), every)) for n in names}
    among = tuple((looked[n], processes) for n, processes in owners.items())
    total, device = sum(looked.values()), parameters[names[0]].device
    everywhere, state = (
        int(sum_over_processes(torch.ones(total, device=device), among, torch.count_nonzero)),
        _make_state(total, device),
    )
    keep = _count_active(everywhere, share)
    # Kept from step to step: to get so much memory anew takes longer than to fill it.
    scores = torch.empty(total, device=device)

    def mask(weights: Tensors, gradients: Tensors, _scale: float) -> None:
        for name, own in zip(names, torch.split(scores, list(looked.values())), strict=True):
            if name in gradients:
                torch.mul(
                    wide(_sample_elements(weights[name], every)),
                    _sample_elements(gradients[name], every),
                    out=own,
                ).abs_()
            else:
                own.zero_()
        least = kth_largest(scores, keep, among)
        _count_reactivated(state, scores >= least, everywhere, among)
        below = float(least.nextafter(least.new_tensor(-1.0)))
        for name in names:
            if name in gradients:
                _mask_gradient(weights[name], gradients[name], below)

    return Action(
        before=mask,
        reactivated=partial(measure_reactivation, state),
        state=state,
        per={"active": "weight"} if every else {},
    )


def _on_groups(layouts: Sequence[Layout], parameters: Tensors, share: float) -> Action:
    total = sum(layout.count for layout in layouts)
    device = parameters[layouts[0].parts[0].name].device
    keep, state = _count_active(total, share), _make_state(total, device)
    scores = torch.empty(total, device=device)

    def mask(weights: Tensors, gradients: Tensors, _scale: float) -> None:
        for layout, own in zip(
            layouts, torch.split(scores, [layout.count for layout in layouts]), strict=True
        ):
            products = layout.reduce_products(
                lambda name: (weights[name], gradients[name]) if name in gradients else None
            )
            own.copy_(products[:-1].abs_())
        active = scores >= kth_largest(scores, keep)
        _count_reactivated(state, active, total)
        _mask_groups(layouts, gradients, active)

    return Action(
        before=mask,
        reactivated=partial(measure_reactivation, state),
        state=state,
        per={"active": "group"},
    )


def _make_state(total: int, device: torch.device) -> dict[str, Tensor]:
    return {
        "active": torch.ones(total, dtype=torch.bool, device=device),
        "woken": torch.zeros((), dtype=torch.float64, device=device),
        "steps": torch.zeros((), dtype=torch.int64),
    }


def _count_active(total: int, share: float) -> int:
    return max(1, total - int(total * share + 0.5))


def _count_reactivated(state: Tensors, active: Tensor, of: int, among: Portions = ()) -> None:
    state["woken"] += sum_over_processes(active > state["active"], among, torch.count_nonzero).double() / of
    state["steps"] += 1
    state["active"].copy_(active)


def _sample_elements(tensor: Tensor, every: bool) -> Tensor:
    """All elements, or the first of every few runs: a share of 1 / 31, spread evenly."""
    flat = tensor.detach().reshape(-1)
    if every:
        return flat
    period = _RUN * _STRIDE
    whole = len(flat) // period * period
    return torch.cat([flat[:whole].view(-1, period)[:, :_RUN].reshape(-1), flat[whole::_STRIDE]])


def _mask_gradient(weight: Tensor, gradient: Tensor, below: float) -> None:
    """gradient <- gradient where |weight * gradient| > below, else 0."""
    for w, g in split_rows(weight, gradient):
        if w.dtype == g.dtype == torch.float32:
            product = torch.mul(w, g, out=borrow_memory(w))
            torch.ops.aten.hardshrink_backward.grad_input(g, product, below, grad_input=g)
        else:
            g.mul_((wide(w) * g).abs() > below)


def measure_reactivation(state: Tensors) -> float:
    """Share of weights or groups that were passive in one step and active in the next,
    mean over the steps counted; counts anew."""
    steps = int(state["steps"])
    share = float(state["woken"]) / steps if steps else 0.0
    state["woken"].zero_()
    state["steps"].zero_()
    return share


def _mask_groups(layouts: Sequence[Layout], gradients: Tensors, active: Tensor) -> None:
    for layout, own in zip(layouts, torch.split(active, [layout.count for layout in layouts]), strict=True):
        factor = torch.cat([own.float(), own.new_ones(1).float()])
        for part in layout.parts:
            if part.name in gradients:
                scale(gradients[part.name], part.axes, factor)
