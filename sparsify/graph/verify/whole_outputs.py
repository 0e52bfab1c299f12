"""Compare outputs of whole numbers and booleans: classes that were chosen, indices of kept boxes, masks.

They follow from real numbers by choices, such as that of the largest. Real numbers of two models that compute
the same still differ by rounding, so a choice between equal ones is open. A number that differs is one of
those if it also changes where each layer's outputs get noise as small as the difference that is allowed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

RUNS = 4
"""with noise, two of them with the noise of the others turned round: it moves a tie one way or the other"""


def find_differing(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Of each output, which of its places differ; None where it has another shape or is not there."""
    if len(found) != len(wanted):
        return [None]
    return [_compare(one, other) for one, other in zip(found, wanted, strict=True)]


def _compare(one: Tensor, other: Tensor) -> Tensor | None:
    return one != other if one.shape == other.shape and one.dtype == other.dtype else None


def count_differing(differing: Sequence[Tensor | None]) -> int:
    """How many places differ; an output of another shape counts as one."""
    known = [places for places in differing if places is not None]
    return len(differing) - len(known) + sum(int(places.sum()) for places in known)


def count_and_judge(
    found: Sequence[Tensor],
    wanted: Sequence[Tensor],
    model: nn.Module,
    run: Callable[[], Sequence[Tensor]],
    noise: float,
) -> tuple[int, bool]:
    """How many places differ, and whether each of them is a tie; see `are_ties`."""
    differing = find_differing(found, wanted)
    count = count_differing(differing)
    return count, not count or are_ties(differing, wanted, model, run, noise)


def are_ties(
    differing: Sequence[Tensor | None],
    wanted: Sequence[Tensor],
    model: nn.Module,
    run: Callable[[], Sequence[Tensor]],
    noise: float,
) -> bool:
    """Whether all that differs also changes in a model with noise.

    Args:
        differing: of `find_differing`.
        wanted: the outputs of the model without noise.
        model: what gets the noise, in its weights and in the outputs of its layers; it is left as it was.
        run: calls it, and returns the same outputs.
        noise: standard deviation, relative to each number.
    """
    open_places: list[Tensor | None] = [torch.zeros_like(one, dtype=torch.bool) for one in wanted]
    for number in range(RUNS):
        with _add_noise(model, noise if number % 2 else -noise, seed=number // 2):
            changed = find_differing(run(), wanted)
        if len(changed) != len(open_places):
            return True  # how many outputs there are is itself such a choice
        open_places = [_join(one, other) for one, other in zip(open_places, changed, strict=True)]
    if len(differing) != len(open_places):
        return False
    return all(
        is_open is None or (places is not None and not bool((places & ~is_open).any()))
        for places, is_open in zip(differing, open_places, strict=True)
    )


def _join(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The places that are open in one or the other; None where the shape itself is."""
    return None if one is None or other is None else one | other


@contextmanager
def _add_noise(model: nn.Module, size: float, seed: int) -> Iterator[None]:
    """Within, the weights of a model and the outputs of its layers are off by some noise."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(value: Tensor) -> Tensor:
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return value * (1 + size * drawn).to(value)

    def after_layer(_module: nn.Module, _args: Any, output: Any) -> Any:
        return disturb(output) if isinstance(output, Tensor) and output.is_floating_point() else output

    leaves = [module for module in model.modules() if next(module.children(), None) is None]
    weights = [value for value in model.parameters() if value.is_floating_point()]
    before = [value.detach().clone() for value in weights]
    handles = []
    try:
        with torch.no_grad():
            for value in weights:
                value.copy_(disturb(value))
        handles = [module.register_forward_hook(after_layer) for module in leaves]
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for value, own in zip(weights, before, strict=True):
                value.copy_(own)
