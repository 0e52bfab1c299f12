"""Import torchmetrics, which itself imports torchvision wherever that is installed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from sparsify.errors import DataError


@cache
def torchmetrics() -> Any:
    """The package, imported on first use, since that takes a second. Raises DataError where it is missing."""
    try:
        with _broken_torchvision_set_aside():
            for part in ("classification", "text"):
                import_module(f"torchmetrics.{part}")
            return import_module("torchmetrics")
    except ImportError as error:
        raise DataError(
            f"metrics need torchmetrics, which cannot be imported ({error}): pip install torchmetrics"
        ) from error


class _Placeholder(ModuleType):
    """A module that has every attribute, for what is imported and not used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Placeholder(f"{self.__name__}.{name}")


@contextmanager
def _broken_torchvision_set_aside() -> Iterator[None]:
    """A torchvision that was built for another torch raises on import, and no metric used here needs it.

    While torchmetrics is imported, placeholders stand in for it.
    """
    if "torchvision" in sys.modules or _torchvision_works():
        yield
        return
    spec = find_spec("torchvision")
    names = ("torchvision", "torchvision.transforms", "torchvision.models", "torchvision.ops")
    for name in names:
        sys.modules[name] = _Placeholder(name)
    sys.modules["torchvision"].__spec__ = spec  # transformers, which is imported too, asks for it
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def _torchvision_works() -> bool:
    before = set(sys.modules)
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        return True  # torchmetrics does without
    except Exception:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "torchvision":
                sys.modules.pop(name)
        return False
    return True
