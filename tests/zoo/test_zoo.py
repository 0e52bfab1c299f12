"""The zoo, pinned: what becomes of each network at half width, and the least share of its parameters that goes.

    make unit             the small networks, and a few of each library's
    NIGHTLY=1 make unit   all of them, under random and under magnitude scores

A network that is new or that has changed is pinned by `python tests/zoo/table.py --only NAME --pin tests/zoo/expected.json`;
read the difference before it is committed.
"""

import importlib
import json
import os
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import networks
import table
import torch

PINNED: dict[str, dict[str, object]] = json.loads((Path(__file__).parent / "expected.json").read_text())
LIBRARIES = {"tv": "torchvision", "timm": "timm", "hf": "transformers"}
CHOSEN = (
    "tv.resnet18 tv.densenet121 tv.mobilenet_v2 tv.shufflenet_v2_x0_5 tv.squeezenet1_1 tv.regnet_y_400mf tv.googlenet_aux tv.vit tv.swin tv.swin_v2 tv.maxvit "
    "tv.r3d_18 timm.ghostnet_100 timm.res2net50_26w_4s timm.repvgg_a0 timm.poolformer_s12 timm.mobilevit_xs timm.lcnet_050 timm.resnest14d timm.edgenext_xx_small "
    "timm.convnext_pico hf.bert hf.distilbert hf.gpt2 hf.llama hf.llama_gqa hf.qwen2_tied hf.t5 hf.vit hf.whisper"
).split()
"""networks of libraries that every test run takes, the cheapest of each kind"""
SMALL = [name for name in PINNED if name.split(".")[0] not in LIBRARIES]
CASES = [(name, "random") for name in PINNED] + [(name, "magnitude") for name in PINNED]
if not os.environ.get("NIGHTLY"):
    CASES = [(name, scores) for name, scores in CASES if name in SMALL or (name in CHOSEN and scores == "random")]


@cache
def source(kind: str) -> dict[str, networks.Entry]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind in LIBRARIES:
            try:
                importlib.import_module(LIBRARIES[kind])
            except ModuleNotFoundError:
                return {}
        return networks.SOURCES[kind]()


def test_every_network_is_pinned() -> None:
    for kind in networks.SOURCES:
        found = set(source(kind))
        if found or kind not in LIBRARIES:
            assert found == {name for name in PINNED if name.split(".")[0] == kind}
    assert set(CHOSEN) <= set(PINNED)


def test_how_much_of_the_zoo_is_proven() -> None:
    """The pins themselves: a change for the worse cannot be pinned unseen."""
    outcomes = [str(pin["outcome"]) for pin in PINNED.values()]
    assert len(PINNED) >= 180
    assert set(outcomes) <= {"equal", "statistics change", "protected"}
    assert outcomes.count("protected") <= 4


@pytest.mark.parametrize(("name", "scores"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_outcome(name: str, scores: str) -> None:
    kind = name.split(".")[0]
    if kind in LIBRARIES:
        pytest.importorskip(LIBRARIES[kind])
    torch.set_num_threads(1)
    row, pin = table.row(name, source(kind)[name], scores), PINNED[name]
    assert row.outcome == pin["outcome"]
    assert int(100 * row.gone) >= pin["gone"]
    assert row.varies > table.VARIES, "the outputs do not depend on the inputs: the comparison would prove nothing"
    if row.outcome != "protected":
        assert row.control > 1e-4, "the removed units do not matter: the comparison would prove nothing"
        assert row.difference <= 1e-9
    else:
        assert row.protected and not row.cut
