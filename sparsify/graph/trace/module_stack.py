"""Which module is running, and which sum in it: an address that is the same in every run of a forward
call."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sparsify.forward.opaque import are_wrappers, holds_nested, is_composite, is_higher_order, is_scripted
from sparsify.forward.operator_mode import OperatorMode


class ModuleStack(OperatorMode):
    """Sees every operator, and knows which module it runs in.

    Composite operators are decomposed, and tensors that wrap others are unwrapped.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.within: list[str] = []
        self._sums: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if are_wrappers(types):
            return NotImplemented
        if is_higher_order(func):
            return self.run_higher_order(func, args, kwargs)
        if is_composite(func) and not holds_nested((args, kwargs)):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        return self.run_operator(func, args, kwargs)

    def restart(self) -> None:
        """The model is run once more from its beginning: sums are counted anew."""
        self._sums.clear()

    def run_operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator."""
        return func(*args, **kwargs)

    def run_higher_order(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator that takes functions: what these do is not seen."""
        return func(*args, **kwargs)

    @contextmanager
    def track_modules(self, model: nn.Module) -> Iterator[None]:
        """Track which module is running."""
        names = {module: name for name, module in model.named_modules() if not is_scripted(module)}

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.within.append(names[module])
            self.on_enter(names[module], args, kwargs)

        def leave(module: nn.Module, _args: Any, result: Any) -> None:
            self.on_exit(names[module], result)
            self.within.pop()

        handles: list[Any] = []
        for module in names:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def on_enter(self, name: str, args: Any, kwargs: Any) -> None:
        """A module is called."""

    def on_exit(self, name: str, result: Any) -> None:
        """A module has returned."""

    def sum_at(self, func: Any, args: Any) -> tuple[str, int] | None:
        """(module, number of earlier sums of two tensors in it) if the operator is such a sum.

        Call it once for each operator: it counts them.
        """
        if func._schema.name not in ("aten::add", "aten::add_") or not all(
            isinstance(a, Tensor) for a in args[:2]
        ):
            return None
        module = (
            self.within[-1] if self.within else ""
        )  # a method other than forward runs in the model itself
        self._sums[module] += 1
        return module, self._sums[module] - 1


def find_owner_of_code(called: nn.Module | None, names: Mapping[nn.Module, str]) -> str | None:
    """The module whose method runs, where it is another than the one that was called: its forward may call
    methods of modules inside it (`self.positions.get_bias()`), which read their own attributes.

    names: of all modules. None where no method of another module runs.
    """
    frame = sys._getframe(1)
    while True:
        code = frame.f_code
        is_method = code.co_argcount > 0 and code.co_varnames[0] == "self"
        owner = frame.f_locals.get("self") if is_method else None
        if isinstance(owner, nn.Module):
            if owner is called:
                return None
            if owner in names:
                return names[owner]
        if frame.f_back is None:
            return None
        frame = frame.f_back
