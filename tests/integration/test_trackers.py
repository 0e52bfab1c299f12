"""Losses, metrics and cuts go to the trackers that a recipe names, and steps go on after a kill."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

import sparsify
from sparsify.errors import RecipeError, RunError
from sparsify.events import EpochDone, Note
from sparsify.runs.apply import apply
from sparsify.runs.save_load import verify_run

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Seen on a board",
    "seed": 3,
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%"},
    "rules": [{"layers": "conv*", "group": "filter", "sparsity": "50%"}],
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 2, "batch": 256, "optimizer": {"kind": "adam"}},
        {"kind": "cut"},
        {"kind": "train", "name": "tune", "epochs": 1, "batch": 256, "optimizer": {"kind": "adam"}},
    ],
    "trackers": ["wandb"],
}


class Fake(GeneralTracker):
    """Takes the place of a service."""

    name = "wandb"
    requires_logging_directory = False
    made: list["Fake"] = []

    def __init__(self, project: str, **options: Any) -> None:
        super().__init__()
        self.project, self.options = project, options
        self.config: dict[str, Any] = {}
        self.rows: list[tuple[int | None, dict[str, Any]]] = []
        self.is_open = False
        self.made.append(self)

    def start(self) -> None:
        self.is_open = True

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **_more: Any) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.is_open = False


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with a module in place of the service's own package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    Fake.made.clear()


def figures(fake: Fake, key: str) -> list[tuple[int | None, Any]]:
    return [(step, values[key]) for step, values in fake.rows if key in values]


def test_a_tracker_is_fed_from_the_events() -> None:
    run = apply(RECIPE, from_scratch=True, timing=0.02)
    report = verify_run(run)
    (fake,) = Fake.made
    assert not fake.is_open
    assert fake.project == "seen-on-a-board"
    assert fake.options == {"name": "seen-on-a-board-1", "dir": "runs/seen-on-a-board-1"}
    assert fake.config["seed"] == 3 and fake.config["stages.0.epochs"] == 2
    assert fake.config["rules.0.layers.0"] == "conv*" and fake.config["trackers.0"] == "wandb"
    rows = report.history
    assert figures(fake, "learn/loss") == [(1, rows[0].loss), (2, rows[1].loss)]
    assert figures(fake, "tune/loss") == [(3, rows[2].loss)]
    assert figures(fake, "learn/validation_accuracy") == [
        (1, rows[0].validation_metric),
        (2, rows[1].validation_metric),
    ]
    assert figures(fake, "tune/train_accuracy") == [(3, rows[2].train_metric)]
    assert figures(fake, "cut/macs") == [(1, report.cut.macs)]
    assert figures(fake, "cut/params") == [(1, report.cut.params)]
    assert figures(fake, "cut/validation_accuracy") == [(1, report.rounds[0].validation_metric)]
    assert figures(fake, "stage") == [(1, "learn"), (2, "cut"), (3, "repair"), (4, "tune")]


def test_steps_go_on_after_a_kill() -> None:
    def stop(event: object) -> None:
        if isinstance(event, EpochDone) and event.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(RECIPE, from_scratch=True, timing=0.02, listener=stop)
    apply(resume="runs/seen-on-a-board-1", timing=0.02)
    first, second = Fake.made
    assert not first.is_open and not second.is_open
    # The first epoch was logged and not saved, so it was done twice.
    assert [step for step, _ in figures(second, "learn/loss")] == [2, 3]
    assert [step for step, _ in figures(second, "tune/loss")] == [4]


def test_a_tracker_that_fails_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Fake, values: dict[str, Any], step: int | None = None, **_more: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(Fake, "log", fail)
    heard: list[str] = []
    run = apply(
        RECIPE,
        from_scratch=True,
        timing=0.02,
        listener=lambda event: heard.append(event.text) if isinstance(event, Note) else None,
    )
    verify_run(run)
    said = "tracker wandb failed and is not fed any more: ConnectionError: no network"
    assert heard.count(said) == 1


def test_a_tracker_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Fake) -> None:
        raise ValueError("no key; log in first")

    monkeypatch.setattr(Fake, "start", fail)
    with pytest.raises(RunError) as caught:
        apply(RECIPE, from_scratch=True, timing=0.02)
    assert str(caught.value) == "trackers: wandb cannot be started: ValueError: no key; log in first"


def test_a_missing_package_is_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").unlink()
    with pytest.raises(RunError) as caught:
        apply({**RECIPE, "trackers": ["wandb"]}, from_scratch=True, timing=0.02)
    assert str(caught.value) == "trackers: wandb is not installed: pip install wandb"
    assert not Path("runs").exists()


def test_recipes_say_what_is_no_tracker() -> None:
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe({**RECIPE, "trackers": ["tensorbord"]})
    assert str(caught.value) == (
        "<recipe>: trackers.0: expected one of tensorboard, mlflow, wandb, found the text 'tensorbord'; did "
        "you "
        "mean 'tensorboard'?"
    )
    with pytest.raises(RecipeError) as caught:
        sparsify.load_recipe({**RECIPE, "trackers": ["wandb", "wandb"]})
    assert str(caught.value) == "<recipe>: trackers: 'wandb' stands there twice; leave one out"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_of_tensorboard_lie_in_the_run() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = apply({**RECIPE, "trackers": ["tensorboard"]}, from_scratch=True, timing=0.02)
    report = verify_run(run)
    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("learn/loss")]
    assert losses == [(row.epoch, pytest.approx(row.loss)) for row in report.history[:2]]
    assert [event.value for event in found.Scalars("cut/macs")] == [report.cut.macs]
