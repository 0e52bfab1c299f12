"""Progress of `apply` on stderr: a bar on a terminal, a line per epoch in a log, nothing when quiet."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, assert_never

from sparsify.events import (
    CutDone,
    EpochDone,
    Event,
    Listener,
    Measuring,
    Note,
    RunStarted,
    StageStarted,
    StepDone,
    silence,
)
from sparsify.formatting.numbers import (
    count_noun,
    format_count,
    format_plain,
    format_seconds,
    format_share,
    format_tiny,
    metric,
)
from sparsify.formatting.verdict_text import LABELS
from sparsify_cli.render import say
from sparsify_schemas.task import Facts

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_REDRAW = 0.1
"""Seconds between two updates within an epoch."""


@contextmanager
def narrate(quiet: bool, start: str = "") -> Iterator[Listener]:
    """A listener for `apply`, closed when the block ends.

    start: what is done until the first event, shown on a terminal.
    """
    if quiet:
        yield silence
    elif sys.stderr.isatty():
        with _draw_bars(start) as listener:
            yield listener
    else:
        yield _log


def _log(event: Event) -> None:
    """Print one line for each event, except single steps."""
    text = _describe_event(event)
    if text:
        say(text)


def _describe_event(event: Event) -> str:
    match event:
        case RunStarted():
            return f"{'continuing' if event.resumed else 'run'} {event.folder}"
        case StageStarted():
            return _describe_start(event)
        case StepDone():
            return ""
        case EpochDone():
            figures, time = _describe_figures(event), format_seconds(event.seconds)
            return f"{event.stage}, epoch {event.epoch}: {figures}, {time}"
        case CutDone():
            return _describe_cut(event)
        case Measuring():
            return f"{event.what}: {event.done} of {event.total}" if event.done in (0, event.total) else ""
        case Note():
            return event.text
        case _:
            assert_never(event)


def _describe_start(event: StageStarted) -> str:
    if event.kind in ("cut", "repair") or event.done == event.epochs:
        return ""
    if event.done:
        return f"{event.name}: continuing at epoch {event.done + 1} of {event.epochs}"
    return f"{event.name}: {count_noun(event.epochs, 'epoch')} of {count_noun(event.steps_per_epoch, 'step')}"


def _describe_figures(event: EpochDone) -> str:
    parts = [f"loss {_format_loss(event.loss)}"]
    parts += _describe_metric(event)
    parts.append(f"zero {format_share(event.sparsity)}")
    parts += [f"{LABELS.get(what, what)} {format_share(left)}" for what, left in event.remaining]
    return ", ".join(parts)


def _describe_metric(event: EpochDone) -> list[str]:
    """'val 97.53 %'; other metrics than accuracy are named: 'val perplexity 35.34'."""
    which, figure = "val", event.validation_metric
    if figure is None:
        which, figure = "train", event.train_metric
    return [] if figure is None else [f"{which} {_format_metric(figure, event.judged_by)}"]


def _format_metric(figure: float, judged_by: Facts) -> str:
    text = metric(figure, judged_by.percent)
    return text if judged_by == Facts() else f"{judged_by.name} {text}"


def _describe_cut(event: CutDone) -> str:
    outcome = event.outcome
    if outcome == "equal":
        outcome = f"equal (difference {format_tiny(event.difference)})"
    macs, params = (" -> ".join(map(format_count, figures)) for figures in (event.macs, event.params))
    text = f"cut: {outcome}; MACs {macs}, parameters {params}"
    if event.validation_metric is not None:
        text += f", val {_format_metric(event.validation_metric, event.judged_by)}"
    return text


def _format_loss(value: float) -> str:
    return format_plain(float(f"{value:.3g}"))


@contextmanager
def _draw_bars(start: str) -> Iterator[Listener]:
    """A bar for the current stage; a finished stage leaves one line."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    figures = TextColumn(
        "{task.fields[figures]}",
        markup=False,
        table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
    )
    name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
    console = Console(stderr=True, highlight=False)
    with Progress(
        name, BarColumn(10), figures, TimeRemainingColumn(), console=console, transient=True, expand=True
    ) as progress:
        draw = draw_events(progress, lambda text: progress.console.print(text, markup=False))
        begun = [progress.add_task(start, total=None, figures="")] if start else []

        def listener(event: Event) -> None:
            if begun:
                progress.remove_task(begun.pop())
            draw(event)

        yield listener


def draw_events(progress: "Progress", write: Callable[[str], None]) -> Listener:
    """A listener that draws events on a bar.

    Its state is the stage, its progress, and the time of the last update.
    """
    stage: list[StageStarted] = []
    task: list[TaskID] = []
    gauge: list[TaskID] = []
    last: list[EpochDone] = []
    drawn = [0.0]

    def close() -> None:
        if task:
            progress.remove_task(task.pop())
        if last:
            write(f"{last[-1].stage}: {count_noun(last[-1].epoch, 'epoch')}, {_describe_figures(last[-1])}")
        last.clear()

    def meter(event: Measuring) -> None:
        """A second bar, which is removed when everything is measured."""
        if not gauge:
            gauge.append(progress.add_task(event.what, total=event.total, figures=""))
        progress.update(
            gauge[-1],
            description=event.what,
            completed=event.done,
            total=event.total,
            figures=f"{event.done}/{event.total}",
        )
        if event.done >= event.total:
            progress.remove_task(gauge.pop())

    def draw(epoch: int, step: int, loss: float) -> None:
        started = stage[-1]
        left = [f"{LABELS.get(w, w)} {format_share(v)}" for w, v in last[-1].remaining] if last else []
        seen = [_figures_short(last[-1])] if last else []
        shown = [f"{min(epoch, started.epochs)}/{started.epochs}", f"loss {_format_loss(loss)}", *seen, *left]
        progress.update(
            task[-1], completed=(epoch - 1) * started.steps_per_epoch + step, figures="  ".join(shown)
        )

    def listener(event: Event) -> None:
        match event:
            case StageStarted():
                close()
                stage[:] = [event]
                total = event.epochs * event.steps_per_epoch or None
                task.append(progress.add_task(event.name, total=total, figures=""))
            case StepDone():
                if time.monotonic() - drawn[0] > _REDRAW:
                    drawn[0] = time.monotonic()
                    draw(event.epoch, event.step, event.loss)
            case EpochDone():
                last[:] = [event]
                draw(event.epoch, stage[-1].steps_per_epoch, event.loss)
                if event.epoch == stage[-1].epochs:
                    close()
            case Measuring():
                meter(event)
            case RunStarted() | CutDone() | Note():
                if isinstance(event, CutDone):
                    close()
                write(_describe_event(event))
            case _:
                assert_never(event)

    return listener


def _figures_short(event: EpochDone) -> str:
    measured = event.train_metric if event.validation_metric is None else event.validation_metric
    name = "acc" if event.judged_by == Facts() else event.judged_by.name
    shown = "" if measured is None else f"{name} {metric(measured, event.judged_by.percent)}  "
    return f"{shown}zero {format_share(event.sparsity)}"
