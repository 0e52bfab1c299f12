"""Run the dense model with the scores of some experts at minus infinity: the masked model of a cut that
removes them.

Let s = W x be the scores that a router gives the experts. Those of removed experts are -inf in every product
with W, so that a softmax gives them 0, a sigmoid gives them 0, and a choice of the largest leaves them out.
What is added to scores on the way to a choice alone (`e_score_correction_bias` of DeepSeek-V3) is -inf too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsify.graph.model_map import Mixture
from sparsify.graph.names import all_names
from sparsify.graph.surgery.indices import Keep
from sparsify.graph.trace.module_stack import ModuleStack


class _RouterMask(ModuleStack):  # type: ignore[no-untyped-call]
    """Sets scores of removed experts to minus infinity in what data make of a router's weight.

    What is computed from weights alone on the way, such as rows of length 1 for a cosine, is followed.
    """

    def __init__(self, lost: dict[int, Tensor], count: dict[int, int], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self._lost, self._count = lost, count
        self._weights = {id(weight): weight for weight in weights}
        """all weights, and what is computed from a router's alone: no other tensor gets an id of theirs"""

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        own = next((id(value) for value in given if id(value) in self._lost), None)
        out = func(*args, **kwargs)
        if own is None or not isinstance(out, Tensor):
            return out
        dims = [dim for dim, size in enumerate(out.shape) if size == self._count[own]]
        if all(id(value) in self._weights or not value.dim() for value in given):
            self._weights[id(out)] = out
            if dims:
                self._lost[id(out)], self._count[id(out)] = self._lost[own], self._count[own]
            return out
        if not dims or not out.is_floating_point():
            return out
        places = self._lost[own].to(out.device)
        return out.index_fill(dims[-1], places, -torch.inf)


@contextmanager
def mask_experts(wide: nn.Module, mixtures: Sequence[Mixture], keep: Keep) -> Iterator[None]:
    """Run the model with the scores of removed experts at minus infinity; does nothing without any."""
    lost: dict[int, Tensor] = {}
    count: dict[int, int] = {}
    values = all_names(wide)
    before: list[tuple[Tensor, Tensor]] = []
    for mixture in mixtures:
        gone = torch.tensor(mixture.list_removed(keep.get(mixture.name, range(mixture.group.width))))
        if not len(gone):
            continue
        for name, _ in mixture.routers:
            lost[id(values[name])], count[id(values[name])] = gone, mixture.count
        for name in mixture.offsets:
            before.append((values[name], values[name].detach().clone()))
            with torch.no_grad():
                values[name].index_fill_(0, gone.to(values[name].device), -torch.inf)
    if not lost:
        yield
        return
    try:
        with _RouterMask(lost, count, list(values.values())):
            yield
    finally:
        with torch.no_grad():
            for tensor, old in before:
                tensor.copy_(old)
