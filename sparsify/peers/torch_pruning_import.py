"""Import torch-pruning, on first use."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from sparsify.errors import ModelError, describe_error

REQUIREMENT = "torch-pruning>=1.6,<2"
_MISSING = object()


@cache
def torch_pruning() -> Any:
    """The package. Raises ModelError where it is missing or does not import."""
    try:
        with _without("timm"):
            import torch_pruning as package
    except Exception as error:
        raise ModelError(
            f"torch-pruning cannot be imported ({describe_error(error)}): pip install '{REQUIREMENT}'"
        ) from error
    return package


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Let the import of a package fail at once.

    torch-pruning looks for timm to count the operations of its layers, which is not used here. That takes a
    second, warns or breaks where timm or its torchvision do not fit, and fails where timm is another version.
    """
    before: ModuleType | object | None = sys.modules.get(name, _MISSING)
    sys.modules[name] = None  # type: ignore[assignment] # how Python marks what must not be imported
    try:
        yield
    finally:
        if before is _MISSING:
            del sys.modules[name]
        else:
            sys.modules[name] = before  # type: ignore[assignment]
