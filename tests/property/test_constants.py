"""Laws of constants over random networks, by the public way: plan with one example, cut, compare with an
independent reference.

Some units of each network are dead and emit constants. What the cut model computes must be what the dense
model does without the living units that left: dead ones leave no trace, or the log says how much is lost.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))

import reference
from test_networks import CASES, INPUT, Net, Step, network, programs, seeded

import sparsify
from sparsify_schemas.cuts import AddBias, Fold

CONVOLUTIONS = ("Conv1d", "Conv2d", "ConvTranspose2d")
FEWER = settings(CASES, max_examples=CASES.max_examples // 3)
NEAR = 1e-6
"""what rounding a folded bias to single precision may change"""


@dataclass(frozen=True)
class Outcome:
    """What one network showed."""

    outcome: str
    folds: int
    created: int
    compared: bool


def with_dead_units(program: Sequence[Step], seed: int) -> Net:
    """The network of a program, a third of the units of some layers dead, with shifts of about 1 behind
    them."""
    model = network(program)
    chance = random.Random(seed)
    built_in = [
        m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
    ]
    inside = {id(m) for layer in built_in for m in layer.modules()}  # these read the biases of their layers
    for module in model.modules():
        plain = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
        if (
            plain and id(module) not in inside and chance.random() < 0.4
        ):  # a consumer without a bias, which a constant needs
            module.register_parameter("bias", None)
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    reference.kill(model, [name for name in layers if chance.random() < 0.7], 0.34, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(1)
    return model.eval()


def cut(model: Net, rules: list[dict[str, Any]]) -> Any:
    """Plan with one example, where the network takes one, and cut."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, *INPUT[1:], generator=generator)
    try:
        model(x)
    except ValueError:  # a normalisation by the statistics of the batch
        x = torch.randn(INPUT, generator=generator)
    recipe = {"version": 1, "title": "t", "rules": [{"override": True, **rule} for rule in rules]}
    return sparsify.cut(sparsify.make_plan(recipe, model, (x,)), model)


def all_layers(model: Net) -> list[dict[str, Any]]:
    """Rules on every convolution and Linear layer that name no amount: dead units leave, and no others."""
    types = {type(m).__name__.removeprefix("Parametrized") for m in model.modules()}
    rules = [{"layers": sorted(types & set(CONVOLUTIONS)), "group": "filter"}]
    return rules + ([{"layers": "Linear", "group": "neuron"}] if "Linear" in types else [])


def free_layers(model: Net, result: Any, share: str, criterion: str) -> list[dict[str, Any]]:
    """Rules on the layers that may lose units, by name."""
    modules = dict(model.named_modules())
    names = [
        group.name for group in result.plan.map.coupled if group.protected is None and group.name in modules
    ]
    amount = {"sparsity": share, "criterion": {"kind": criterion}}
    wide = [name for name in names if isinstance(modules[name], nn.modules.conv._ConvNd)]
    flat = [name for name in names if type(modules[name]) is nn.Linear]
    rules = [{"layers": wide, "group": "filter", **amount}, {"layers": flat, "group": "neuron", **amount}]
    return [rule for rule in rules if rule["layers"]]


def check(program: Sequence[Step], seed: int) -> Outcome:
    """The law over one network."""
    model = with_dead_units(program, seed)
    dead = cut(model, all_layers(model))
    rules = free_layers(model, dead, ["30%", "50%"][seed % 2], ["random", "magnitude"][seed // 2 % 2])
    both = cut(model, rules) if rules else dead
    traces = compared(dead, model, dead) and compared(both, model, dead)
    folds = [op for result in (dead, both) for op in result.cuts.operations if isinstance(op, Fold)]
    created = sum(isinstance(op, AddBias) for result in (dead, both) for op in result.cuts.operations)
    return Outcome(both.verdicts[0].outcome, len(folds), created, traces)


def compared(result: Any, model: Net, dead: Any) -> bool:
    """Whether the cut could be compared with the reference, and was right: neither statistics nor losses that
    were told."""
    (verdict,) = result.verdicts
    exact = all(op.exact for op in result.cuts.operations if isinstance(op, Fold))
    assert exact or any("lost" in note for note in result.notes), "what is lost is said"
    mixed = any("mixed with data" in note for note in result.notes)
    if not exact or mixed or verdict.outcome != "equal" or not _known_constants(result, dead):
        return False
    for batch in (1, 4):
        x = (torch.randn(batch, *INPUT[1:], generator=torch.Generator().manual_seed(10 + batch)),)
        try:
            model(*x)
        except ValueError:
            continue
        if result is dead:
            assert reference.to_dense(dead, model, x) <= NEAR, ("dead units left a trace", verdict)
            assert verdict.reference == "dense model" or verdict.control == 0
            continue
        gap = reference.compare(result, model, x, constants_kept=dead.cuts)
        assert gap.difference <= NEAR, (gap, verdict)
        if verdict.reference == "dense model":
            assert gap.to_dense <= NEAR, (gap, verdict)
    return True


def _known_constants(result: Any, dead: Any) -> bool:
    """Whether the constants are those of the cut of dead units alone: the reference keeps these and no
    others."""
    known = {(op.module, op.channels) for op in dead.cuts.operations if isinstance(op, Fold)}
    own = {(op.module, op.channels) for op in result.cuts.operations if isinstance(op, Fold)}
    return own <= known


@FEWER
@given(programs, st.integers(0, 1000))
@pytest.mark.filterwarnings("ignore")
def test_constants_stay_and_nothing_else_does(program: list[Step], seed: int) -> None:
    check(program, seed)


@pytest.mark.filterwarnings("ignore")
def test_the_law_is_about_something() -> None:
    """Enough of the networks have constants that are folded, biases that are created, and are compared."""
    found = [check(seeded(seed), seed) for seed in range(10, 20)]
    assert sum(o.compared and o.folds > 0 for o in found) >= 4
    assert sum(o.compared and o.created > 0 for o in found) >= 2
