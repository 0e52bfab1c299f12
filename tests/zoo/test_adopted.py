"""Networks cut by torch-pruning and adopted both ways, pinned: what becomes of each.

    make unit      a few
    make nightly   all of them

`equal`: the outputs of torch-pruning's model. `apart`: the same, and the report says that layers hold other
units than those they are coupled with. `refused`: an exact message. `differs`: torch-pruning couples other
layers than the model does, which a history alone cannot tell; the run is a proven cut of the dense model all
the same.
Pinned by `python tests/zoo/adopted.py --only own micro further --pin tests/zoo/adopted.json`.
"""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import adopted
import torch

PINNED: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "adopted.json").read_text())
CHOSEN = [
    "own.unet",
    "own.autoencoder",
    "own.several heads",
    "own.SegResNet",
    "own.non-local block",
    "own.tied convolutions",
    "micro.behind the input in a concat",
]
CASES = list(PINNED) if os.environ.get("NIGHTLY") else CHOSEN


def test_how_many_are_equal() -> None:
    """The pins themselves: a change for the worse cannot be pinned unseen."""
    for way, least in (("history", 90), ("weights", 100)):
        assert sum(pin[way] in ("equal", "apart") for pin in PINNED.values()) >= least
        assert sum(pin[way] == "differs" for pin in PINNED.values()) <= (9 if way == "history" else 0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_outcome(name: str) -> None:
    pytest.importorskip("torch_pruning")
    torch.set_num_threads(1)
    row = adopted.make_row(name, 120)
    assert row.torch_pruning == "cut"
    found = {"history": adopted.name_outcome(row.history), "weights": adopted.name_outcome(row.weights)}
    assert found == PINNED[name], row
