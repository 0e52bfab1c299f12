"""Digests of examples: the same as long as every byte of them is."""

import hashlib
from collections.abc import Mapping
from typing import Any

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


def _add_column(digest: Any, column: Column) -> None:
    """Names, types, shapes and bytes of every part."""
    if isinstance(column, Tensor):
        digest.update(f"{column.dtype} {list(column.shape)}\n".encode())
        digest.update(column.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(column, Varied):
        for item in column.items:
            _add_column(digest, item)
    elif isinstance(column, Mapping):
        for name, part in column.items():
            digest.update(f"{name}\n".encode())
            _add_column(digest, part)
    elif isinstance(column, tuple | list):
        digest.update(f"{len(column)} parts\n".encode())
        for part in column:
            _add_column(digest, part)
    elif isinstance(column, str | int | float | bool | bytes | None):
        digest.update(f"{column!r}\n".encode())
    else:  # a value of the user's own, of which nothing but its type is known to be the same
        digest.update(f"{type(column).__module__}.{type(column).__qualname__}\n".encode())
