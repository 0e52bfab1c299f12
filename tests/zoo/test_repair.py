"""Networks of every kind are repaired without an error, and none comes out worse than its cut."""

import sys
from pathlib import Path

import pytest
import torch

import sparsify
from sparsify.pruning.repair.repair import CHANGED, repair_model
from sparsify_schemas.stage import Repair

sys.path.append(str(Path(__file__).parent))

import networks
import table

UNUSUAL = (
    "own.wavenet",
    "own.mixer",
    "own.cross attention",
    "further.rotary, complex",
    "further.queries and keys normalised",
    "further.scripted part",
    "further.two best experts",
    "further.perceiver",
    "further.coupling flow",
    "further.LSTM, time first",
    "further.weight norm by hooks",
    "further.channels, then places",
)
"""places that are no examples, layers that run several times, parts that cannot be looked into, two
outputs"""
EVERY = {**networks.micro(), **networks.own(), **networks.further()}
EXAMPLES = 32


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in UNUSUAL else pytest.mark.nightly) for name in EVERY]
)
@pytest.mark.filterwarnings("ignore")  # of the networks: scripted parts, old forms of weight norm
def test_a_repair_never_makes_a_network_worse(name: str) -> None:
    entry = EVERY[name]
    torch.manual_seed(0)
    model = entry.build().eval()
    table.perturb(model, entry.fresh(2, 0), shift=0.0)
    try:
        plan = table.planned(model, entry.fresh(2, 0), "random")
    except table.CannotBeCut:
        return
    result = sparsify.cut(plan, model)
    inputs, stage = entry.fresh(EXAMPLES, 3), Repair(kind="repair")
    repaired = repair_model(
        result.dense, result.model, (result.cuts,), inputs, EXAMPLES, stage, seed=0, model_map=plan.map
    )
    changed = any(layer.outcome in CHANGED for layer in repaired.layers)
    if changed and not repaired.reverted:
        assert repaired.after.error < repaired.before.error
    else:
        assert repaired.after == repaired.before
    assert all(layer.reason for layer in repaired.layers if layer.outcome == "skipped")
