"""Digests of examples that a user's own callable holds: every change is seen, and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparsify.data import Datasets, Examples
from sparsify.data.columns import Varied
from sparsify.data.digest import hash_datasets


def digest(value: Any) -> str:
    """Of the training inputs, one of which is the value."""
    examples = Examples(Varied((value, 1)), torch.tensor([0, 1]))
    return hash_datasets(Datasets(examples, examples[:0], examples, 2))["training inputs"]


@dataclass
class Boxes:
    corners: torch.Tensor
    name: str = "boxes"
    own: list[Any] = field(default_factory=list)


class Plain:
    def __init__(self, value: Any) -> None:
        self.value, self.own = value, self


def palette(last: int) -> Image.Image:
    image = Image.new("P", (2, 2))
    image.putpalette([0, 0, last] * 256)
    return image


VALUES: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "array": (lambda x: np.array([1.0, x]), 2, 3),
    "type of an array": (lambda x: np.zeros(4, x), "float32", "int32"),
    "shape of an array": (lambda x: np.zeros(x), (2, 3), (3, 2)),
    "array of objects": (lambda x: np.array([np.zeros(2), np.full(3, x)], dtype=object), 1, 2),
    "number of NumPy": (np.float32, 1, 2),
    "image": (lambda x: Image.new("RGB", (2, 2), (0, 0, x)), 1, 2),
    "palette": (palette, 1, 2),
    "complex number": (lambda x: complex(1, x), 1, 2),
    "decimal": (Decimal, "1.5", "1.25"),
    "date": (lambda x: datetime(2020, 1, x), 1, 2),
    "set": (set, "ab", "ac"),
    "dataclass": (lambda x: Boxes(torch.tensor([1.0, x])), 1, 2),
    "object": (lambda x: Plain([x]), 1, 2),
    "tensor with a gradient": (lambda x: torch.full((2,), float(x), requires_grad=True), 1, 2),
    "conjugate": (lambda x: torch.tensor([complex(1, x)]).conj(), 1, -1),
    "nested": (lambda x: {"a": [np.arange(3), (x,)]}, 1, 2),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_change_of_a_value_is_seen(kind: str) -> None:
    make, before, after = VALUES[kind]
    assert digest(make(before)) == digest(make(before))
    assert digest(make(before)) != digest(make(after))


def test_sets_of_text_are_the_same_in_every_process() -> None:
    code = (
        "import torch; from sparsify.data import Datasets, Examples\n"
        "from sparsify.data.columns import Varied; from sparsify.data.digest import hash_datasets\n"
        "value = {'a', 'b', 'c', 'd', 'e'}\n"
        "examples = Examples(Varied((value, 1)), torch.tensor([0, 1]))\n"
        "print(hash_datasets(Datasets(examples, examples[:0], examples, 2))['training inputs'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == digest({"a", "b", "c", "d", "e"})
