"""Weights of a copy that is cut on trial: random ones of ordinary scale, and those of the model again."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.forward.calls import Inputs
from sparsify.forward.opaque import is_nested, is_sparse
from sparsify.forward.scratch import find_storage
from sparsify.graph.names import all_names
from sparsify.graph.verify.failed_allocations import raise_out_of_memory
from sparsify.graph.verify.run_models import run_model

PERIOD = 262_139
"""how many random numbers large weights repeat: a prime, so that rows and columns never meet the same ones"""


@dataclass(frozen=True)
class DrawnWeights:
    """What large weights of a trial model hold, so that they can be written anew rather than kept aside."""

    numbers: Tensor
    """[PERIOD], between -1 and 1"""
    places: dict[int, tuple[int, float]]
    """storage -> the first of the numbers in it, and what they are multiplied by"""

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is such a weight."""
        return tensor.layout is torch.strided and find_storage(tensor) in self.places

    def fill(self, tensor: Tensor) -> None:
        """Write the numbers of such a weight, in the order of its memory, whichever view of it is given."""
        start, spread = self.places[find_storage(tensor)]
        own = self.numbers.roll(-start) * spread
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        flat = tensor.as_strided((size,), (1,), 0)
        turns = flat.numel() // PERIOD
        flat[: turns * PERIOD].view(turns, PERIOD).copy_(own)
        flat[turns * PERIOD :].copy_(own[: flat.numel() - turns * PERIOD])


NOTHING_DRAWN = DrawnWeights(torch.empty(0), {})


def randomize_weights(model: nn.Module, trial: nn.Module, inputs: Inputs, scale: float = 1.0) -> DrawnWeights:
    """Give a float32 copy of the model random weights of ordinary scale, or of another one; the model's own
    weights if the outputs are not finite.

    Large weights repeat the same numbers, from another place each: to draw 100 million takes a second.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = DrawnWeights(torch.empty(0), {})
    with torch.no_grad():
        for name, tensor in [*trial.named_parameters(), *trial.named_buffers()]:
            if not tensor.is_floating_point() or is_sparse(tensor) or is_nested(tensor):
                continue
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.dim() > 1:
                spread = scale * 1.5 * (3 / max(1, tensor[0].numel())) ** 0.5
                if not _may_repeat(tensor):
                    tensor.uniform_(-spread, spread, generator=generator)
                    continue
                if not drawn.places:
                    drawn = DrawnWeights(torch.empty(PERIOD).uniform_(-1, 1, generator=generator), {})
                start = int(torch.randint(PERIOD, (), generator=generator))
                drawn.places[find_storage(tensor)] = start, spread
                drawn.fill(tensor)
            elif isinstance(tensor, nn.Parameter) or name.endswith("running_mean"):
                tensor.uniform_(-0.2, 0.2, generator=generator)
    try:
        finite = all(bool(t.isfinite().all()) for t in run_model(trial, inputs))
    except Exception as error:
        raise_out_of_memory(error)
        finite = False
    if not finite:
        copy_values(model, trial)
        drawn.places.clear()
    return drawn


def redraw_weights(model: nn.Module, trial: nn.Module, inputs: Inputs, scale: float | None) -> DrawnWeights:
    """Give the copy random weights of another scale; None: the model's own."""
    if scale is not None:
        return randomize_weights(model, trial, inputs, scale)
    copy_values(model, trial)
    return NOTHING_DRAWN


def _may_repeat(tensor: Tensor) -> bool:
    """Whether a tensor is large enough to repeat numbers, has no two rows that would be the same, and fills
    its memory in order."""
    fills = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor.numel() > 2 * PERIOD > 2 * tensor.shape[0] and tensor.is_contiguous() and fills


def restore_copy(model: nn.Module, trial: nn.Module) -> None:
    """Give a copy the model's values, and each of its modules the mode of the original."""
    copy_values(model, trial)
    for original, module in zip(model.modules(), trial.modules(), strict=True):
        module.training = original.training


@torch.no_grad()
def copy_values(model: nn.Module, trial: nn.Module) -> None:
    """Give a copy the values of the model's parameters and buffers, in its own precision."""
    values = all_names(model)
    for name, tensor in all_names(trial).items():
        if not (is_sparse(tensor) or is_nested(tensor)):
            tensor.copy_(values[name])
