"""Select kept units of a tensor that a module is given, where whoever makes it still makes all of them.

The slopes of ALiBi (Press et al., arXiv:2108.12409) depend on how many heads there are: made anew for fewer
heads they would be others. A module that has lost heads goes on being given those of all, and takes its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Argument = int | str
"""place or name of an argument of `forward`"""


class SelectGiven:
    """A hook before `forward`: runs of `size` places along a dimension of an argument keep some places.

    [..., n * size, ...] -> [..., n * kept, ...], such as [examples * heads, 1, times] of all heads. A tensor
    whose length along it is no multiple of `size` (1, where it is the same for all) passes as it is.
    """

    def __init__(self, argument: Argument, dim: int, size: int, keep: Sequence[int]) -> None:
        self.argument, self.dim, self.size, self.keep = argument, dim, size, tuple(keep)

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.argument, int):
            if self.argument < len(args):
                given = list(args)
                given[self.argument] = self.select(given[self.argument])
                args = tuple(given)
        elif self.argument in kwargs:
            kwargs = {**kwargs, self.argument: self.select(kwargs[self.argument])}
        return args, kwargs

    def select(self, given: Any) -> Any:
        """The kept places; what is no tensor as it is."""
        if not isinstance(given, Tensor) or given.dim() <= self.dim or given.shape[self.dim] % self.size:
            return given
        runs = given.shape[self.dim] // self.size
        places = torch.tensor(self.keep, device=given.device)
        if runs > 1:
            starts = torch.arange(runs, device=given.device) * self.size
            places = (starts[:, None] + places).flatten()
        return given.index_select(self.dim, places)


def select_given(module: nn.Module, argument: Argument, dim: int, size: int, keep: Sequence[int]) -> None:
    """Have a module select what it is given, after what it selects already."""
    hook = SelectGiven(argument, dim, size, keep)
    module.register_forward_pre_hook(hook, with_kwargs=True)
