"""Global sparse momentum: of all gradients only those of the most important weights go on; decay acts on all."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.groups import Layout, scale, wide
from sparsify.penalties.action import Action, Tensors
from sparsify.penalties.ranking import kth_largest


def action(layouts: Sequence[Layout], parameters: Tensors, share: float, single: bool) -> Action:
    """The loss's gradient stays where T is among the Q largest of all layouts together, and becomes zero elsewhere.

    single: T = |w * dL/dw| of each weight; otherwise T = |sum over w in g of w * dL/dw| of each group. Q = (1 - share) of
    their number. `state` counts, over all steps, what was passive in one and active in the next.
    Source: Ding et al., arXiv:1909.12778, algorithm 1.
    """
    names = tuple(dict.fromkeys(part.name for layout in layouts for part in layout.parts))
    total = sum(parameters[n].numel() for n in names) if single else sum(layout.count for layout in layouts)
    device = parameters[names[0]].device
    state = {
        "active": torch.ones(total, dtype=torch.bool, device=device),
        "woken": torch.zeros((), dtype=torch.int64, device=device),
        "steps": torch.zeros((), dtype=torch.int64),
    }
    keep = max(1, total - int(total * share + 0.5))
    # Kept from step to step: to get so much memory anew takes longer than to fill it.
    scores, active = torch.empty(total, device=device), torch.empty(total, dtype=torch.bool, device=device)

    def mask(weights: Tensors, gradients: Tensors, _scale: float) -> None:
        if single:
            _of_weights(names, weights, gradients, scores)
        else:
            _of_groups(layouts, weights, gradients, scores)
        torch.ge(scores, kth_largest(scores, keep), out=active)
        state["woken"] += torch.count_nonzero(active > state["active"])
        state["steps"] += 1
        state["active"].copy_(active)
        if single:
            for name, own in zip(names, torch.split(active, [weights[n].numel() for n in names]), strict=True):
                if name in gradients:
                    gradients[name].mul_(own.view_as(gradients[name]))
        else:
            _mask_groups(layouts, gradients, active)

    return Action(before=mask, state=state)


def woken_share(state: Tensors) -> float:
    """Share of weights or groups that were passive in one step and active in the next, mean over the steps counted; counts anew."""
    steps = int(state["steps"])
    share = int(state["woken"]) / (steps * state["active"].numel()) if steps else 0.0
    state["woken"].zero_()
    state["steps"].zero_()
    return share


def _of_weights(names: Sequence[str], weights: Tensors, gradients: Tensors, into: Tensor) -> None:
    for name, own in zip(names, torch.split(into, [weights[n].numel() for n in names]), strict=True):
        if name in gradients:
            torch.mul(wide(weights[name]), gradients[name], out=own.view_as(weights[name])).abs_()
        else:
            own.zero_()


def _of_groups(layouts: Sequence[Layout], weights: Tensors, gradients: Tensors, into: Tensor) -> None:
    for layout, own in zip(layouts, torch.split(into, [layout.count for layout in layouts]), strict=True):
        own.copy_(layout.reduce(lambda n: wide(weights[n]) * gradients[n] if n in gradients else None)[:-1].abs_())


def _mask_groups(layouts: Sequence[Layout], gradients: Tensors, active: Tensor) -> None:
    for layout, own in zip(layouts, torch.split(active, [layout.count for layout in layouts]), strict=True):
        factor = torch.cat([own.float(), own.new_ones(1).float()])
        for part in layout.parts:
            if part.name in gradients:
                for axis in part.axes:
                    scale(gradients[part.name], axis, factor.to(gradients[part.name].dtype))
