"""A first look that tells that no weight of a tensor is dead."""

import pytest
import torch
from torch import Tensor

from sparsify.graph.dead_units import FIRST, is_alive_everywhere


def has_dead_index(tensor: Tensor) -> bool:
    """By definition: some slice along some dimension is zero."""
    slices = [piece for dim in range(tensor.dim()) for piece in tensor.unbind(dim)]
    return any(not bool((piece != 0).any()) for piece in slices)


@pytest.mark.parametrize("shape", [(3, 2), (40, 30), (20, 18, 3, 3), (1, 5), (4, 1, 3)])
def test_it_never_calls_a_dead_index_alive(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    told = 0
    for _ in range(60):
        tensor = torch.randn(shape, generator=generator)
        tensor *= torch.rand(shape, generator=generator) < 0.6
        if torch.rand((), generator=generator) < 0.5:
            dim = int(torch.randint(len(shape), (), generator=generator))
            tensor.select(dim, int(torch.randint(shape[dim], (), generator=generator))).zero_()
        alive = is_alive_everywhere(tensor)
        told += alive
        assert not (alive and has_dead_index(tensor))
    assert told or min(shape) == 1


def test_what_lies_further_behind_is_not_looked_at() -> None:
    weight = torch.zeros(2, FIRST + 1)
    weight[:, -1] = 1.0
    weight[0, :FIRST] = 1.0
    assert not has_dead_index(weight)
    assert not is_alive_everywhere(weight)  # then the whole tensor is counted
    assert not is_alive_everywhere(torch.ones(5)) and not is_alive_everywhere(torch.ones(0, 4))
    assert not is_alive_everywhere(torch.ones(4, 4, device="meta"))
