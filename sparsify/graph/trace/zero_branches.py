"""Run the dense model with some residual branches at zero: the masked model of a cut that removes them."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.graph.model_map import Sum
from sparsify.graph.trace.module_stack import ModuleStack
from sparsify.graph.trace.operators import decompose_operators

Watched = Callable[[str, Tensor, Any], None]
"""(module, its first tensor input, what it returned)"""


class ZeroBranches(ModuleStack):  # type: ignore[no-untyped-call]
    """Puts zeros in place of one operand of the given sums."""

    def __init__(
        self, sums: Collection[Sum], watched: Collection[str] = (), seen: Watched | None = None
    ) -> None:
        super().__init__()
        self._operands = {(s.module, s.nth): s.operand for s in sums}
        self._watched, self._seen = frozenset(watched), seen
        self._inputs: list[Tensor | None] = []

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        at = self.sum_at(func, args)
        operand = None if at is None else self._operands.get(at)
        if operand is not None:
            in_place = func._schema.name.endswith("_") and operand == 0
            zeros = args[0].zero_() if in_place else torch.zeros_like(args[operand])
            args = (*args[:operand], zeros, *args[operand + 1 :])
        return func(*args, **kwargs)

    def on_enter(self, name: str, args: Any, kwargs: Any) -> None:
        x = first_tensor(args, kwargs) if name in self._watched else None
        self._inputs.append(None if x is None else x.clone())

    def on_exit(self, name: str, result: Any) -> None:
        x = self._inputs.pop()
        if x is not None and self._seen is not None:
            self._seen(name, x, result)


@contextmanager
def zero_branches(
    model: nn.Module, sums: Collection[Sum], watched: Collection[str] = (), seen: Watched | None = None
) -> Iterator[Callable[[], None]]:
    """Run the model with the branches of these sums at zero; does nothing without sums.

    Yields what to call before the model is run once more.
    """
    if not sums:
        yield lambda: None
        return
    mode = ZeroBranches(sums, watched, seen)
    with decompose_operators(model), mode.track_modules(model), mode:
        yield mode.restart


def first_tensor(args: Any, kwargs: Any) -> Tensor | None:
    """The first tensor that a module is called with."""
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
