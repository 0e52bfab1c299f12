"""Batches made by other processes, and examples that are read when they are needed: the same to the last
bit."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sparsify
from sparsify.data import batches, load_data
from sparsify.errors import SparsifyError
from sparsify.events import EpochDone, RunStarted
from sparsify.runs import run_folder
from sparsify.runs.apply import apply
from sparsify.runs.save_load import verify_run

sys.path.append(str(Path(__file__).parent))
import data_parts
import lazy_parts

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # Python 3.12 on fork
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # torch on machines of one core
]


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts lie where a user's own module lies: in the current folder."""
    for module in (data_parts, lazy_parts):
        (tmp_path / Path(str(module.__file__)).name).write_text(Path(str(module.__file__)).read_text())
    monkeypatch.chdir(tmp_path)


def recipe(source: str, model: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "title": "Workers",
        "model": model or {"build": "data_parts.mlp"},
        "data": {"source": source, **data},
        "rules": [{"layers": "0", "group": "neuron", "sparsity": "50%"}],
        "stages": [
            {
                "kind": "train",
                "name": "learn",
                "epochs": 3,
                "batch": 16,
                "optimizer": {"kind": "adamw", "lr": 0.01},
            },
            {"kind": "cut"},
        ],
    }


def outcome(given: dict[str, Any], out: str) -> tuple[Any, ...]:
    """All that a run computes: losses, metrics, and the weights of both models."""
    return of_run(apply(given, from_scratch=True, out=out, timing=0.02))


def of_run(run: Path) -> tuple[Any, ...]:
    report = verify_run(run)
    rows = [
        (row.loss, row.train_metric, row.validation_loss, row.validation_metric) for row in report.history
    ]
    weights = (load_file(run / run_folder.DENSE), load_file(run / run_folder.WEIGHTS))
    listed = [(name, value.tolist()) for model in weights for name, value in sorted(model.items())]
    return rows, listed, report.dense.test_metric, report.cut.test_metric


DIGITS = {"build": "sparsify.models.digits_cnn"}


def test_workers_make_the_same_batches(tmp_path: Path) -> None:
    """With images that are moved and mirrored at random."""
    given = recipe("digits", DIGITS, validation="70%", augment={"crop": 1, "flip": True})
    given["rules"] = [{"layers": "Conv2d", "group": "filter", "sparsity": "50%"}]
    given["stages"][0] |= {"epochs": 1, "batch": 128}
    alone = outcome(given, "alone")
    assert outcome({**given, "data": {**given["data"], "workers": 2, "pin": True}}, "workers") == alone


def test_workers_are_processes(tmp_path: Path) -> None:
    lazy_parts.READ.clear()
    sys.modules["lazy_parts"] = lazy_parts
    given = recipe("lazy_parts:rows", lazy=True, workers=2)
    data = load_data(sparsify.load_recipe(given).recipe.data, 0)
    lazy_parts.READ.clear()
    made = batches(data.train, 16, seed=0)
    assert made.num_workers == 2
    assert len(list(made)) == 7 and lazy_parts.READ == []


def test_examples_read_when_they_are_needed_are_the_same(tmp_path: Path) -> None:
    in_memory = outcome(recipe("lazy_parts:rows"), "memory")
    assert outcome(recipe("lazy_parts:rows", lazy=True), "lazy") == in_memory
    assert outcome(recipe("lazy_parts:rows", lazy=True, workers=2), "workers") == in_memory


def test_examples_are_not_read_before_they_are_needed(tmp_path: Path) -> None:
    sys.modules["lazy_parts"] = lazy_parts
    lazy_parts.READ.clear()
    read: list[int] = []

    def listen(event: object) -> None:
        if isinstance(event, RunStarted):
            read.extend(lazy_parts.READ)

    apply(recipe("lazy_parts:rows", lazy=True), from_scratch=True, timing=0.02, listener=listen)
    assert 0 < len(set(read)) < 10, "of 150 examples, a few are looked at for their form"
    assert len(set(lazy_parts.READ)) == 120, "all are read in the end"


@pytest.mark.nightly
def test_chance_in_a_dataset_follows_from_the_seed(tmp_path: Path) -> None:
    given = recipe("lazy_parts:noisy", lazy=True)
    once = outcome(given, "once")
    torch.manual_seed(99)
    assert outcome(given, "twice") == once
    assert outcome(recipe("lazy_parts:noisy", lazy=True, workers=3), "workers") == once
    assert outcome({**given, "seed": 1}, "other") != once


def test_chance_is_drawn_anew_in_each_epoch_and_leaves_global_states_alone() -> None:
    data = load_data(sparsify.load_recipe(recipe("lazy_parts:noisy", lazy=True)).recipe.data, 0)
    state = torch.get_rng_state()

    def rows(seed: int) -> torch.Tensor:
        x, y = (torch.cat(parts) for parts in zip(*batches(data.train, 16, seed=seed), strict=True))
        assert len(y) == 108
        return x[x[:, 0].argsort()]

    assert torch.equal(rows(1), rows(1)) and not torch.equal(rows(1), rows(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    given = recipe("lazy_parts:noisy", lazy=True, workers=2)
    whole = outcome(given, "whole")

    def stop(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(given, from_scratch=True, out="stopped", timing=0.02, listener=stop)
    (folder,) = Path("stopped").iterdir()
    assert of_run(apply(resume=folder, timing=0.02)) == whole


def test_an_endless_set_is_read_to_its_stated_length(tmp_path: Path) -> None:
    data = load_data(sparsify.load_recipe(recipe("lazy_parts:endless")).recipe.data, 0)
    assert (len(data.train), len(data.validation), len(data.test)) == (54, 6, 20)


FAULTS = {
    "without workers": (
        recipe("lazy_parts:broken", lazy=True, split="last"),
        "lazy_parts:broken: train: reading example 77 failed: ValueError: no such file",
    ),
    "in a worker": (
        recipe("lazy_parts:broken", lazy=True, split="last", workers=2),
        "lazy_parts:broken: train: reading example 77 failed: ValueError: no such file",
    ),
    "more classes than outputs": (
        recipe("lazy_parts:rows", {"build": "data_parts.mlp", "args": {"outputs": 2}}, lazy=True),
        "the targets hold class 2 and the model has 2 outputs; build the model for as many, or name another "
        "task",
    ),
    "no examples": (recipe("lazy_parts:empty", lazy=True), "lazy_parts:empty: train: has no examples"),
    "an iterable set": (
        recipe("lazy_parts:endless", lazy=True),
        "lazy_parts:endless: train: data.lazy reads examples by their numbers, and an iterable Dataset has "
        "none; "
        "leave it out",
    ),
    "arrays": (
        recipe("lazy_parts:arrays", lazy=True),
        "lazy_parts:arrays: train: data.lazy reads the examples of a Dataset, and this is a tuple; leave it "
        "out",
    ),
    "a set that is too short": (
        recipe("lazy_parts:short"),
        "lazy_parts:short: train: the Dataset says that it has 60 examples and gave 58",
    ),
    "a set that is read at once": (
        recipe("digits", lazy=True),
        "<recipe>: data.lazy: 'lazy' acts on package.module:callable; 'digits' is read at once, leave it out",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_read_is_said(fault: str, tmp_path: Path) -> None:
    given, message = FAULTS[fault]
    with pytest.raises(SparsifyError) as caught:
        apply(given, from_scratch=True, timing=0.02)
    assert str(caught.value) == message
