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

from sparsify.graph.model_map import Mixture
from sparsify.graph.names import all_names
from sparsify.graph.surgery.indices import Keep
from sparsify.graph.trace.module_stack import ModuleStack

_SAME_VALUES = frozenset(
    "t transpose permute view _unsafe_view reshape _to_copy to clone detach alias expand unsqueeze squeeze "
    "contiguous lift_fresh".split()
)
"""operators whose result has the values of their first operand, in another form"""


class _RouterMask(ModuleStack):  # type: ignore[no-untyped-call]
    """Sets scores of removed experts to minus infinity in what is computed from a router's weight."""

    def __init__(self, lost: dict[int, Tensor], count: dict[int, int], weights: Sequence[Tensor]) -> None:
        super().__init__()
        self._lost, self._count = lost, count
        self._kept = list(weights)
        """so that no other tensor gets the id of one of them"""

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        own = next((id(v) for v in args if isinstance(v, Tensor) and id(v) in self._lost), None)
        out = func(*args, **kwargs)
        if own is None or not isinstance(out, Tensor):
            return out
        if func._schema.name.partition("::")[2] in _SAME_VALUES:
            self._kept.append(out)
            self._lost[id(out)], self._count[id(out)] = self._lost[own], self._count[own]
            return out
        dims = [dim for dim, size in enumerate(out.shape) if size == self._count[own]]
        if not dims or not out.is_floating_point():
            return out
        places = self._lost[own].to(out.device)
        return out.index_fill(dims[-1], places, -torch.inf)


@contextmanager
def mask_experts(wide: nn.Module, mixtures: Sequence[Mixture], keep: Keep) -> Iterator[None]:
    """Run the model with the scores of removed experts at minus infinity; does nothing without any."""
    lost: dict[int, Tensor] = {}
    count: dict[int, int] = {}
    values, weights = all_names(wide), list[Tensor]()
    before: list[tuple[Tensor, Tensor]] = []
    for mixture in mixtures:
        gone = torch.tensor(mixture.list_removed(keep.get(mixture.name, range(mixture.group.width))))
        if not len(gone):
            continue
        for name, _ in mixture.routers:
            lost[id(values[name])], count[id(values[name])] = gone, mixture.count
            weights.append(values[name])
        for name in mixture.offsets:
            before.append((values[name], values[name].detach().clone()))
            with torch.no_grad():
                values[name].index_fill_(0, gone.to(values[name].device), -torch.inf)
    if not lost:
        yield
        return
    try:
        with _RouterMask(lost, count, weights):
            yield
    finally:
        with torch.no_grad():
            for tensor, old in before:
                tensor.copy_(old)
