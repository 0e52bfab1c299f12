"""Growing l2: an ever stronger decay on what has been chosen to go."""

import torch

from sparsify.distributed import local_part
from sparsify.graph.group_index import Layout, add_scaled
from sparsify.graph.row_pieces import convert_flags, split_rows
from sparsify.training.penalties.step_action import Action, Tensors
from sparsify_schemas.penalty import GrowingL2


def make_action(spec: GrowingL2, layout: Layout, parameters: Tensors, single: bool) -> Action:
    """gradient += min(limit, delta * number of rises so far) * w on what `state["chosen"]` marks:
    single weights in the order of the layout's parts, or slots."""
    names = tuple(part.name for part in layout.parts)
    count = layout.count + 1
    if single:
        count = sum(local_part(parameters[name]).numel() for name in names)
    chosen = torch.zeros(count, dtype=torch.bool, device=parameters[names[0]].device)

    def on_weights(weights: Tensors, gradients: Tensors, strength: float) -> None:
        for name, own in zip(names, torch.split(chosen, [weights[n].numel() for n in names]), strict=True):
            if name in gradients:
                flags = own.view_as(weights[name])
                for gradient, weight, flag in split_rows(gradients[name], weights[name], flags):
                    gradient.addcmul_(weight, convert_flags(flag, weight.dtype), value=strength)

    def on_groups(weights: Tensors, gradients: Tensors, strength: float) -> None:
        for part in layout.parts:
            if part.name in gradients:
                weight = weights[part.name]
                add_scaled(gradients[part.name], weight, part.axes, chosen.to(weight.dtype) * strength)

    def strength_at(step: int, _span: tuple[int, int], _steps_per_epoch: int) -> float:
        return min(spec.limit, spec.delta * (1 + step // spec.every))

    return Action(
        gradient=on_weights if single else on_groups,
        strength_at=strength_at,
        state={"chosen": chosen},
        per={"chosen": "weight" if single else "group"},
    )
