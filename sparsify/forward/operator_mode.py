"""Modes that see every operator, without what torch wraps around them."""

from functools import cache
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that is called directly.

    torch wraps the method of any other mode so that torch.compile leaves it alone. The wrapper imports
    torch._dynamo, which takes more than a second, and costs as much as a small operator at each call. No
    model is compiled under our modes: see `without_compiling`.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@cache
def written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Place and name of each argument that an operator writes into."""
    infos = [(argument.name, argument.alias_info) for argument in func._schema.arguments]
    return tuple((at, name) for at, (name, info) in enumerate(infos) if info is not None and info.is_write)
