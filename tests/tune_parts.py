"""A network and data for studies that take a second, and a recipe to search."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

TOUCHED = "TUNE_PARTS_TOUCHED"
"""environment variable that names a file, to which reading of the test set adds a line"""


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))


def draw_examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points in three heaps."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=generator)
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    return centres[targets] + torch.randn(count, 6, generator=generator), targets


def data() -> Any:
    return draw_examples(240, 1), draw_examples(90, 2)


class Watched(Dataset[tuple[Tensor, Tensor]]):
    """A test set that leaves a line for each example that is read, or whose number is asked for."""

    def __init__(self) -> None:
        self.inputs, self.targets = draw_examples(90, 2)

    def __len__(self) -> int:
        self._note("length")
        return 90

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self._note(str(index))
        return self.inputs[index], self.targets[index]

    def _note(self, what: str) -> None:
        with Path(os.environ[TOUCHED]).open("a") as file:
            file.write(f"{what}\n")


def watched_data() -> Any:
    return draw_examples(240, 1), Watched()


def broken_net() -> nn.Module:
    raise RuntimeError("no network today")


def make_search(search: dict[str, Any], epochs: int = 1) -> dict[str, Any]:
    return {
        "version": 1,
        "title": "Heaps",
        "seed": 3,
        "model": {"build": "tune_parts:net"},
        "data": {"source": "tune_parts:data", "validation": "25%"},
        "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}],
        "stages": [
            {"kind": "cut", "repair": False},
            {
                "kind": "train",
                "name": "learn",
                "epochs": epochs,
                "batch": 32,
                "optimizer": {"kind": "sgd", "lr": 0.05},
            },
        ],
        "search": search,
    }


BOTH = {
    "rules.0.sparsity": ["10%", "90%"],
    "stages.1.optimizer.lr": {"log": [1e-3, 1e-1]},
}
