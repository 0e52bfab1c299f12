"""Gradual magnitude pruning: ever more of what is smallest is set to zero and held there."""

import torch

from sparsify.distributed import local_part
from sparsify.graph.group_index import Layout, scale
from sparsify.graph.row_pieces import set_to_zero
from sparsify.recipe.schedules import compute_rise
from sparsify.training.penalties.group_lasso import group_norms
from sparsify.training.penalties.step_action import Action, Tensors
from sparsify.training.penalties.topk import flag_lowest, list_portions
from sparsify_schemas.penalty import Agp


def make_action(spec: Agp, layout: Layout, parameters: Tensors, sparsity: float, single: bool) -> Action:
    """Held at zero: the share `strength` of the weights, or groups by ||w_g|| / sqrt(|g|);
    chosen anew whenever the share has changed."""
    names = tuple(part.name for part in layout.parts)
    count = layout.count
    if single:
        count = sum(local_part(parameters[name]).numel() for name in names)
    device = parameters[names[0]].device
    gone = torch.zeros(count, dtype=torch.bool, device=device)
    held = torch.zeros((), dtype=torch.float64)
    roots = layout.sizes(parameters).sqrt()
    among = list_portions([layout], parameters)

    def weights_to_zero(weights: Tensors, share: float) -> None:
        own = [weights[n] for n in names]
        if share != float(held):
            gone.copy_(flag_lowest(own, share, among))
            held.fill_(share)
        for weight, flags in zip(own, torch.split(gone, [w.numel() for w in own]), strict=True):
            set_to_zero(weight, flags.view_as(weight))

    def groups_to_zero(weights: Tensors, share: float) -> None:
        if share != float(held):
            gone.copy_(flag_lowest([(group_norms(layout, weights) / roots)[:-1]], share))
            held.fill_(share)
        stays = torch.cat([~gone, gone.new_ones(1)])
        for part in layout.parts:
            scale(weights[part.name], part.axes, stays)

    def strength_at(step: int, span: tuple[int, int], steps_per_epoch: int) -> float:
        """The share that is held at zero; it goes from one cut to the next."""
        since, until = span
        return sparsity * compute_rise(
            spec.start, spec.end, spec.every, step - since, steps_per_epoch, until - since
        )

    return Action(
        after=weights_to_zero if single else groups_to_zero,
        strength_at=strength_at,
        state={"gone": gone, "held": held},
        per={"gone": "weight" if single else "group"},
    )
