"""Run the dense model with something else in place of what some residual branches add: with zeros, the masked
model of a cut that removes them."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.graph.model_map import Sum
from sparsify.graph.trace.module_stack import ModuleStack
from sparsify.graph.trace.operators import decompose_operators

Watched = Callable[[str, Tensor, Any], None]
"""(module, its first tensor input, what it returned)"""
Replacement = Callable[[Tensor, Tensor], Tensor]
"""(shortcut, what the branch adds to it) -> what is added in its place"""


class _Replacing(ModuleStack):  # type: ignore[no-untyped-call]
    """Puts something else in place of what branches add."""

    def __init__(
        self,
        instead: Mapping[Sum, Replacement],
        watched: Collection[str] = (),
        seen: Watched | None = None,
    ) -> None:
        super().__init__()
        self._instead = {(s.module, s.nth): (s.operand, replaced) for s, replaced in instead.items()}
        self._watched, self._seen = frozenset(watched), seen
        self._inputs: list[Tensor | None] = []

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        at = self.sum_at(func, args)
        if at is None or at not in self._instead:
            return func(*args, **kwargs)
        operand, replaced = self._instead[at]
        value = replaced(args[1 - operand], args[operand])
        if func._schema.name.endswith("_") and operand == 0:
            value = args[0].copy_(value)
        return func(*args[:operand], value, *args[operand + 1 :], **kwargs)

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
    instead = dict.fromkeys(sums, _make_zeros)
    with _run_with(model, _Replacing(instead, watched, seen)) as restart:
        yield restart


@contextmanager
def replace_branches(model: nn.Module, instead: Mapping[Sum, Replacement]) -> Iterator[Callable[[], None]]:
    """Run the model with something else in place of what branches add; no gradients are noted.

    Yields what to call before the model is run once more.
    """
    with _run_with(model, _Replacing(instead)) as restart:
        yield restart


def _make_zeros(_shortcut: Tensor, branch: Tensor) -> Tensor:
    return torch.zeros_like(branch)


@contextmanager
def _run_with(model: nn.Module, mode: _Replacing) -> Iterator[Callable[[], None]]:
    with decompose_operators(model), mode.track_modules(model), mode:
        yield mode.restart


def first_tensor(args: Any, kwargs: Any) -> Tensor | None:
    """The first tensor that a module is called with."""
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
