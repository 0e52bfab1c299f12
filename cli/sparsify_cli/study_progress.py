"""Progress of `tune` on stderr: a bar of trials on a terminal, a line per trial in a log, or nothing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import assert_never

from sparsify.events import EpochDone
from sparsify.formatting.numbers import count_noun, drop_zeros, format_count, format_seconds, metric
from sparsify.reporting.study_tables import to_flow_text
from sparsify.tuning.tune_events import (
    StudyOpened,
    StudyWaits,
    TrialEvent,
    TrialFinished,
    TrialStarted,
    TuneEvent,
    TuneListener,
    silence_study,
)
from sparsify_cli.render import say
from sparsify_schemas.study import StudyTrial
from sparsify_schemas.task import Facts


@contextmanager
def narrate_study(quiet: bool) -> Iterator[TuneListener]:
    """A listener for `tune`, closed when the block ends."""
    if quiet:
        yield silence_study
    elif sys.stderr.isatty():
        with _draw_bar() as listener:
            yield listener
    else:
        yield _log_study


def _log_study(event: TuneEvent) -> None:
    text = describe_event(event)
    if text:
        say(text)


def describe_event(event: TuneEvent) -> str:
    """One line for an event; '' for those of a trial's run, which its own log has."""
    match event:
        case StudyOpened():
            way = "study" if event.is_new else "continuing"
            done = f", {event.finished} of them finished" if event.finished else ""
            return f"{way} {event.folder}: {count_noun(event.wanted, 'trial')}{done}"
        case TrialStarted():
            values = ", ".join(f"{name} {to_flow_text(value)}" for name, value in event.parameters.items())
            again = " goes on, as its worker was lost" if event.is_restart else ""
            return f"trial {event.number}{again}: {values}"
        case TrialFinished():
            return f"{_describe_trial(event.trial, event.judged_by)}; {_describe_best(event)}"
        case StudyWaits():
            return f"waiting for {count_noun(event.running, 'trial')} of other workers"
        case TrialEvent():
            return ""
        case _:
            assert_never(event)


def _describe_trial(trial: StudyTrial, judged_by: Facts) -> str:
    if trial.state == "failed":
        return f"trial {trial.number} failed: {trial.reason}"
    if trial.state == "stopped":
        return f"trial {trial.number} {trial.reason}"
    macs = "" if trial.costs is None else f" at {format_count(trial.costs.macs)} MACs"
    figure = _format_metric(trial.metric, judged_by)
    return f"trial {trial.number}: {judged_by.name} {figure}{macs}, {format_seconds(trial.seconds)}"


def _format_metric(value: float | None, judged_by: Facts) -> str:
    return drop_zeros(partial(metric, percent=judged_by.percent)(value))


def _describe_best(event: TrialFinished) -> str:
    done = f"{event.finished} of {event.wanted} finished"
    if event.best is None:
        return f"{done}, none complete yet"
    return f"{done}, best {_format_metric(event.best.metric, event.judged_by)} (trial {event.best.number})"


@contextmanager
def _draw_bar() -> Iterator[TuneListener]:
    """A bar of finished trials with the best one so far; each trial leaves a line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    figures = TextColumn("{task.fields[figures]}", markup=False)
    console = Console(stderr=True, highlight=False)
    with Progress(
        TextColumn("trials"),
        BarColumn(20),
        MofNCompleteColumn(),
        figures,
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("trials", total=None, figures="")
        best = [""]

        def listener(event: TuneEvent) -> None:
            if isinstance(event, StudyOpened):
                progress.update(task, total=event.wanted, completed=event.finished)
            if isinstance(event, TrialFinished):
                progress.update(task, completed=event.finished)
                best[0] = "" if event.best is None else _describe_best(event).partition(", ")[2]
            now = f"  {_describe_run(event)}" if isinstance(event, TrialEvent) else ""
            progress.update(task, figures=f"{best[0]}{now}")
            text = describe_event(event)
            if text and not isinstance(event, TrialStarted):
                progress.console.print(text, markup=False)

        yield listener


def _describe_run(event: TrialEvent) -> str:
    """Where the current trial is."""
    done = event.event
    if not isinstance(done, EpochDone):
        return f"trial {event.number}"
    return f"trial {event.number}: {done.stage}, epoch {done.epoch}"
