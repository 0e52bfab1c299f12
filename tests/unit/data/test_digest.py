"""Digests of examples that a user's own callable holds: every change is seen, and nothing else."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparsify.data import Datasets, Examples
from sparsify.data.columns import Varied
from sparsify.data.digest import hash_datasets
from sparsify.errors import RunError
from sparsify.events import EpochDone
from sparsify.runs.apply import apply


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


def test_a_change_of_arrays_behind_a_collate_refuses_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "behind_collate", raising=False)
    Path("behind_collate.py").write_text(
        "import numpy as np, torch\n"
        "class Rows(torch.utils.data.Dataset):\n"
        "    def __init__(self, rows): self.rows = rows\n"
        "    def __len__(self): return len(self.rows)\n"
        "    def __getitem__(self, i): return self.rows[i], np.int64(i % 2)\n"
        "def rows():\n"
        "    rows = np.load('rows.npy')\n"
        "    return Rows(rows), Rows(rows[:4])\n"
        "def collate(examples):\n"
        "    return torch.tensor(np.stack([x for x, _ in examples])), "
        "torch.tensor([int(y) for _, y in examples])\n"
        "def net():\n"
        "    nn = torch.nn\n"
        "    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))\n"
    )
    rows = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    np.save("rows.npy", rows)
    recipe = {
        "version": 1,
        "title": "Collate",
        "model": {"build": "behind_collate.net"},
        "data": {"source": "behind_collate:rows"},
        "task": {"kind": "classification", "collate": "behind_collate:collate"},
        "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}],
        "stages": [
            {"kind": "train", "name": "learn", "epochs": 2, "optimizer": {"kind": "adam"}},
            {"kind": "cut"},
        ],
    }

    def stop(event: object) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(recipe, from_scratch=True, timing=0.02, listener=stop)
    changed = rows.copy()
    changed[7, 1] += 1
    np.save("rows.npy", changed)
    with pytest.raises(RunError) as caught:
        apply(resume=Path("runs/collate-1"), timing=0.02)
    assert str(caught.value) == (
        "the training inputs of data.source 'behind_collate:rows' were changed since the run began; start a "
        "new run with them"
    )
    np.save("rows.npy", rows)
    assert apply(resume=Path("runs/collate-1"), timing=0.02) == Path("runs/collate-1")
