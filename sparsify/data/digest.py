"""Digests of examples: the same as long as every byte of them is."""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsify.data.columns import Column, Varied
from sparsify.data.examples import Datasets, Examples


def hash_datasets(datasets: Datasets) -> dict[str, str]:
    """Part of the data -> SHA-256 of it, of examples that are read later by their number and the first
    two."""
    found = {}
    for which, parts in (("training", (datasets.train, datasets.validation)), ("test", (datasets.test,))):
        known = [_take_known(part) for part in parts]
        found[f"{which} inputs"] = _hash_columns([part.inputs for part in known], parts)
        found[f"{which} targets"] = _hash_columns([part.targets for part in known], parts)
    return found


def _take_known(examples: Examples) -> Examples:
    return examples if examples.read is None else examples[:2].loaded() if len(examples) else examples


def _hash_columns(columns: list[Column], parts: tuple[Examples, ...]) -> str:
    digest = hashlib.sha256()
    for column, part in zip(columns, parts, strict=True):
        digest.update(f"{len(part)} examples\n".encode())
        _add_column(digest, column)
    return digest.hexdigest()


_PLAIN = (
    *(str, bytes, bytearray, bool, int, float, complex, type(None)),
    *(Decimal, Fraction, date, time, timedelta),
)
"""types of values that are written out"""


def _add_column(digest: Any, column: Column, around: tuple[int, ...] = ()) -> None:
    """Names, types, shapes and bytes of every part.

    around: ids of what the column is a part of; one of them once more ends the way."""
    around = (*around, id(column))
    if isinstance(column, Tensor):
        digest.update(f"{column.dtype} {list(column.shape)}\n".encode())
        content = column.detach().cpu().resolve_conj().resolve_neg().contiguous()
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(column, Varied):
        _add_parts(digest, column.items, around)
    elif isinstance(column, Mapping):
        for name, part in column.items():
            digest.update(f"{name}\n".encode())
            _add_parts(digest, (part,), around)
    elif isinstance(column, tuple | list):
        digest.update(f"{len(column)} parts\n".encode())
        _add_parts(digest, column, around)
    elif isinstance(column, _PLAIN):
        digest.update(f"{column!r}\n".encode())
    elif isinstance(column, set | frozenset):  # without an order
        digest.update("".join(sorted(map(_hash_value, column))).encode())
    else:
        _add_object(digest, column, around)


def _hash_value(value: Any) -> str:
    digest = hashlib.sha256()
    _add_column(digest, value)
    return digest.hexdigest()


def _add_parts(digest: Any, parts: Iterable[Any], around: tuple[int, ...]) -> None:
    for part in parts:
        if id(part) not in around:
            _add_column(digest, part, around)


def _add_object(digest: Any, value: Any, around: tuple[int, ...]) -> None:
    """Arrays, numbers of NumPy and images by what they hold; values of the user's own by their type and
    attributes."""
    digest.update(f"{type(value).__module__}.{type(value).__qualname__}\n".encode())
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        array = np.asarray(value)
        digest.update(f"{array.dtype} {array.shape}\n".encode())
        if array.dtype.hasobject:
            _add_parts(digest, array.ravel().tolist(), around)
        else:
            digest.update(np.ascontiguousarray(array).tobytes())
        if hasattr(value, "getpalette"):  # an image of pillow, whose pixels may be places in a palette
            _add_parts(digest, (value.mode, value.getpalette()), around)
    elif not isinstance(value, type | FunctionType):
        _add_parts(digest, (getattr(value, "__dict__", None),), around)
