"""Trackers of Accelerate that a recipe names, fed from the events of a run."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from sparsify.errors import RunError, first_line
from sparsify.events import CutDone, EpochDone, Event, Listener, Note, StageStarted
from sparsify.runs.run_folder import LOG, make_slug
from sparsify_schemas.recipe import Recipe


def check_trackers(names: Sequence[str]) -> None:
    """Raises RunError where the package of a tracker is missing."""
    missing = next((name for name in names if find_spec(name) is None), None)
    if missing is not None:
        raise RunError(f"trackers: {missing} is not installed: pip install {missing}")


@contextmanager
def track_events(listener: Listener, recipe: Recipe, folder: Path) -> Iterator[Listener]:
    """A listener that also feeds the recipe's trackers, which are closed at the end.

    To be used on the main process alone. Raises RunError where a tracker cannot be started.
    """
    if not recipe.trackers:
        yield listener
        return
    feeds = [_Feed(name, _start_tracker(name, recipe, folder)) for name in recipe.trackers]
    counts = _count_events(folder)

    def tell(event: Event) -> None:
        # First the run's own listener: its log counts the steps after a kill.
        listener(event)
        counts[type(event).__name__] = counts.get(type(event).__name__, 0) + 1
        values = describe_event(event)
        for feed in list(feeds):
            failure = feed.send(values, counts[type(event).__name__]) if values else None
            if failure is not None:
                feeds.remove(feed)
                listener(Note(f"tracker {feed.name} failed and is not fed any more: {failure}"))

    try:
        yield tell
    finally:
        for feed in feeds:
            feed.close()


@dataclass(frozen=True)
class _Feed:
    """A tracker whose failures end no run."""

    name: str
    tracker: GeneralTracker

    def send(self, values: Mapping[str, Any], step: int) -> str | None:
        """Log values; what failed, if anything."""
        if self.name == "mlflow":  # which takes numbers alone
            values = {key: value for key, value in values.items() if not isinstance(value, str)}
        try:
            self.tracker.log(dict(values), step=step)
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"
        return None

    def close(self) -> None:
        try:
            self.tracker.finish()
        except Exception:  # the run is over, and all that it computed is in its folder
            return


def _start_tracker(name: str, recipe: Recipe, folder: Path) -> GeneralTracker:
    """Files of a tracker lie in the run's folder, where it has any; others name the run as its folder is
    named."""
    project = make_slug(recipe.title)
    try:
        make = LOGGER_TYPE_TO_CLASS[name]
        match name:
            case "tensorboard":
                tracker: GeneralTracker = make(name, folder)
            case "mlflow":
                tracker = make(project, run_name=folder.name)
            case _:
                tracker = make(project, name=folder.name, dir=str(folder))
        tracker.start()
        tracker.store_init_configuration(flatten_recipe(recipe))
    except Exception as error:
        raise RunError(
            f"trackers: {name} cannot be started: {type(error).__name__}: {first_line(error)}"
        ) from error
    return tracker


def flatten_recipe(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """Path of each value that the recipe gives -> the value: 'stages.0.optimizer.lr' -> 0.01."""
    found: dict[str, str | int | float | bool] = {}

    def collect(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                collect(part, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list | tuple):
            for place, part in enumerate(value):
                collect(part, f"{path}.{place}")
        elif value is not None:
            found[path] = value

    collect(recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True), "")
    return found


def describe_event(event: Event) -> dict[str, Any]:
    """The figures of an event, by name; nothing of events without figures."""
    match event:
        case StageStarted():
            return {"stage": event.name}
        case EpochDone():
            metric = event.judged_by.name
            figures = {
                "loss": event.loss,
                f"train_{metric}": event.train_metric,
                f"validation_{metric}": event.validation_metric,
                "sparsity": event.sparsity,
                "seconds": event.seconds,
                **{f"remaining_{what}": share for what, share in event.remaining},
            }
            return _keep_numbers(event.stage, figures)
        case CutDone():
            figures = {
                "macs": event.macs[1],
                "params": event.params[1],
                "difference": event.difference,
                f"validation_{event.judged_by.name}": event.validation_metric,
            }
            return _keep_numbers("cut", figures)
        case _:
            return {}


def _keep_numbers(group: str, figures: Mapping[str, float | None]) -> dict[str, Any]:
    return {
        f"{group}/{name}": value
        for name, value in figures.items()
        if value is not None and not math.isnan(value)
    }


def _count_events(folder: Path) -> dict[str, int]:
    """Event -> how often the log has it, so that the steps of a resumed run go on."""
    counts: dict[str, int] = {}
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        try:
            name = json.loads(line)["event"]
        except (ValueError, KeyError, TypeError):  # a line that a crash left without its end
            continue
        counts[name] = counts.get(name, 0) + 1
    return counts
