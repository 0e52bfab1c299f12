"""Modes that see every operator, without what torch wraps around them."""

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
