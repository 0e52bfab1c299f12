"""Loss, deciding metric, zeros and strength over all epochs."""

from collections.abc import Callable, Iterator

from sparsify.formatting.numbers import (
    format_plain,
)
from sparsify.reporting.html.figure_text import format_metric, format_percent
from sparsify.reporting.html.markup import NOTHING, Html, join_markup, tag
from sparsify.reporting.html.plots import Series, draw_lines
from sparsify_schemas.report import Epoch, Report


def draw_training(report: Report) -> Html:
    """Loss, deciding metric, zeros and strength over all epochs, with the cuts marked."""
    epochs = report.history
    if not epochs:
        return NOTHING
    ends = tuple(_list_stage_ends(epochs))
    cuts = tuple(_list_cuts(report))

    def series(name: str, value: Callable[[Epoch], float | None]) -> Series:
        values = [(float(i), value(epoch)) for i, epoch in enumerate(epochs, 1)]
        return Series(name, tuple((x, y) for x, y in values if y is not None))

    validation = (
        series("validation", lambda e: e.validation_metric),
        series("validation", lambda e: e.validation_loss),
    )
    training = series("training", lambda e: e.train_metric)
    drawn = (
        draw_lines(
            "Loss",
            (series("training", lambda e: e.loss), validation[1]),
            format_plain,
            zero=True,
            ends=ends,
            cuts=cuts,
        ),
        draw_lines(
            report.metric.name.capitalize(),
            tuple(shown for shown in (training, validation[0]) if shown.points),
            format_metric(report),
            ends=ends,
            cuts=cuts,
        ),
        draw_lines(
            "Fraction of the groups that are zero",
            (series("zero", lambda e: e.sparsity),),
            format_percent,
            zero=True,
            ends=ends,
            cuts=cuts,
        ),
        draw_lines(
            "Strength of the penalty",
            (series("strength", lambda e: e.strength),),
            format_plain,
            zero=True,
            ends=ends,
            cuts=cuts,
        ),
    )
    loss, accuracies, zeros, strength = drawn
    if not any(epoch.sparsity for epoch in epochs):
        zeros = NOTHING
    key = "Dashed vertical lines: ends of stages."
    if cuts:
        key += " Triangles: cuts."
    return join_markup((tag("div.figures", loss, accuracies, zeros, strength), tag("p.note", key)))


def _list_stage_ends(epochs: tuple[Epoch, ...]) -> Iterator[float]:
    """Epochs that are the last of their stage, counted over all stages."""
    for place, epoch in enumerate(epochs, 1):
        if place == len(epochs) or epochs[place].stage != epoch.stage:
            yield float(place)


def _list_cuts(report: Report) -> Iterator[float]:
    """Epochs after which the model was cut, counted over all stages."""
    before, first = {}, 0
    for stage in report.stages:
        before[stage.name] = first
        first += stage.epochs
    yield from (float(before[r.stage] + r.epoch) for r in report.rounds if r.stage in before)
