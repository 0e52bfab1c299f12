"""Trial cuts take short cuts: the zoo gets the same protections without them.

make unit      some networks of each kind
make nightly   all of them
"""

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))

import networks
import old_trials
import table
from test_zoo import PINNED, SMALL, source

from sparsify.graph import build_map

EVERY = list(PINNED) if os.environ.get("NIGHTLY") else [*SMALL[::9], "tv.swin", "hf.llama_gqa"]


@pytest.mark.parametrize("name", EVERY)
def test_quick_trials_protect_what_plain_ones_do(name: str) -> None:
    given: networks.Entry = source(name.split(".")[0])[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = given.build().eval()
        inputs = given.fresh(2, 0)
        table.perturb(model, inputs)
        traced = build_map.build_map(model, inputs, {})
        quick, plain = old_trials.both_ways(model, traced, inputs)
    assert quick == plain
