"""The zoo, pinned: what becomes of each network at half width, and the least share of its parameters that
goes.

    make unit      the small networks, every third also with dead units, and a few of each library's
    make nightly   all of them, in each mode, planned with one example and with two

Each goes through a recipe, `sparsify.make_plan` and `sparsify.cut`, and is judged by tests/reference.py on
fresh inputs at batch 1 and 4. A network that is new or that has changed is pinned by `python
tests/zoo/table.py --only NAME --modes random --planned 1 --pin tests/zoo/expected.json`; read the
difference before it is committed.
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
LIBRARIES = {"tv": "torchvision", "timm": "timm", "hf": "transformers", "arch": "transformers"}
CHOSEN = (
    "tv.resnet18 tv.mobilenet_v2 tv.shufflenet_v2_x0_5 tv.squeezenet1_1 tv.vit tv.swin "
    "timm.repvgg_a0 timm.lcnet_050 "
    "hf.bert hf.distilbert hf.gpt2 hf.llama "
    "hf.llama_gqa hf.qwen2_tied hf.t5 hf.vit hf.whisper "
    "arch.qwen3 arch.gemma3_text arch.wav2vec2-conformer"
).split()
"""networks of libraries that every test run takes, the cheapest of each kind"""
SMALL = [name for name in PINNED if name.split(".")[0] not in LIBRARIES]
CASES = [(name, mode, planned) for name in PINNED for mode in table.MODES for planned in (1, 2)]
if not os.environ.get("NIGHTLY"):
    chosen = [(name, "random", 1) for name in CHOSEN]
    CASES = [(name, "random", 1) for name in SMALL] + [(name, "dead", 1) for name in SMALL[::3]] + chosen


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
    assert len(PINNED) >= 280
    assert set(outcomes) <= {"equal", "statistics change", "protected"}
    assert outcomes.count("protected") <= 5


@pytest.mark.parametrize(("name", "mode", "planned"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_outcome(name: str, mode: str, planned: int) -> None:
    kind = name.split(".")[0]
    if kind in LIBRARIES:
        pytest.importorskip(LIBRARIES[kind])
    torch.set_num_threads(1)
    row, pin = table.row(name, source(kind)[name], mode, planned), PINNED[name]
    followed = (
        ("right", "loss told", "own verdict only") if name in table.NOT_FOLLOWED else ("right", "loss told")
    )
    assert row.judged in followed, table.shown(row)
    if mode == "dead":
        return
    as_pinned = [pin["outcome"]]
    if mode == "magnitude" and pin["outcome"] == "statistics change":
        as_pinned.append("equal")  # the pin is that of a random choice; this one may leave such groups alone
    assert row.outcome in as_pinned
    if row.outcome == "protected":
        assert row.protected and not row.cut
        return
    assert row.own <= 1e-9
    assert row.varies > table.VARIES, (
        "the outputs do not depend on the inputs: the comparison would prove nothing"
    )
    assert row.control > 1e-4, "the removed units do not matter: the comparison would prove nothing"
    if mode == "random":
        assert int(100 * row.gone) >= int(str(pin["gone"]))


@pytest.mark.filterwarnings("ignore")
def test_the_table_of_the_docs_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are kept in a file, a second call reads them, both judges stand beside each other."""
    rows, made = tmp_path / "rows.jsonl", tmp_path / "zoo.md"
    options = [
        "--only",
        "micro.chain",
        "micro.mean over channels",
        "own.LSTM, two layers",
        "--modes",
        "random",
        "dead",
    ]
    options += ["--planned", "1", "--json", str(rows), "--markdown", str(made)]
    monkeypatch.setattr(sys, "argv", ["table.py", *options])
    table.main()
    written = rows.read_text()
    table.main()
    assert rows.read_text() == written and len(written.splitlines()) == 6
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in made.read_text().splitlines()]
    assert lines[0] == list(table.SUMMARY)
    assert [line[:5] for line in lines[2:5]] == [
        ["one construct each", "2", "1", "1", "0"],
        ["small networks of our own", "1", "1", "0", "0"],
        ["all", "3", "2", "1", "0"],
    ]
    assert lines[6] == [
        "network",
        "own verdict",
        "own difference",
        "reference, batch 1",
        "reference, batch 4",
        "dead units: to the dense model",
        "gone",
        "judged",
    ]
    by_name = {line[0]: line[1] for line in lines[8:]}
    assert by_name == {
        "micro.chain": "equal",
        "micro.mean over channels": "statistics change",
        "own.LSTM, two layers": "equal",
    }
