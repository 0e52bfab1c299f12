"""The content of the page's sections, each made from the report alone."""

from collections.abc import Callable, Iterable, Iterator
from math import nan

from sparsify.formatting.numbers import (
    accuracy,
    brief,
    count,
    divide,
    known,
    milliseconds,
    plain,
    plural,
    points,
    share,
    signed,
    size,
    times,
    tiny,
)
from sparsify.formatting.verdict_text import verdict_words
from sparsify.graph.layer_types import layer_type_of
from sparsify.pruning.planning.depth_search import best
from sparsify.reporting.baseline_table import baseline_ms
from sparsify.reporting.headline import describe_missed
from sparsify.reporting.html.markup import NOTHING, Html, joined, tag, text
from sparsify.reporting.html.plots import Mark, Series, bar, lines, scatter
from sparsify.reporting.latency_table import is_overloaded
from sparsify.reporting.provenance_table import describe_processes, format_minute
from sparsify_schemas.report import Epoch, Latency, LayerRow, Report, Side

Section = Callable[..., Html]
_ROWS = 100
"""Bars in one list; of more layers, the largest are shown."""
_TARGETS = 3
"""Plots of accuracy against time."""
_LONG = 16
"""Bars in one column."""
_UNITS = ("ms", "us", "s", "B", "KiB", "MiB", "GiB")
"""Units that two figures may share; the suffix of a count stays with its figure."""
_NAME = 20
"""Letters of the longest name in two columns of bars."""
_STEPS = 40
"""Ticks on one bar; more would not be told apart."""


def top(report: Report, sentence: str) -> Html:
    """Title, tiles with the main figures, and the headline."""
    machine = report.environment
    place = [machine.processor, plural(machine.cores, "core")]
    place += filter(None, [describe_processes(report)])
    made = f"{format_minute(report.created)}, {', '.join(place)}, seed {report.seed}"
    return tag(
        "header",
        tag("p.made", made),
        tag("h1", report.title),
        tag("div.tiles", *_tiles(report)),
        tag("p.headline", sentence),
    )


def _tiles(report: Report) -> Iterator[Html]:
    dense, cut = report.dense, report.cut
    timed = headline_latency(report)
    if timed is not None:
        yield _speed_tile(report, timed)
    yield _left_tile("MACs left", dense.macs, cut.macs, count)
    yield _left_tile("Parameters left", dense.params, cut.params, count)
    yield _left_tile("File left", dense.bytes, cut.bytes, size)
    yield from _accuracy_tile(dense, cut)
    yield _verdict_tile(report)


def _speed_tile(report: Report, timed: Latency) -> Html:
    left = divide(1, timed.speedup)
    if left is None:
        left = divide(timed.cut_ms, timed.dense_ms)
    figure, remark = _speed(timed)
    change = f"{_format_pair(timed.dense_ms, timed.cut_ms, milliseconds)} on {timed.target}"
    warning = ", under load" if is_overloaded(timed, report.environment.cores) else ""
    return _tile(
        "Speed",
        figure,
        f"{remark}{change}{warning}",
        bar(1.0, left or 0.0, label=f"{share(left)} of the time left"),
        "bad" if figure.endswith("slower") else "",
    )


def _tile(name: str, figure: str, said: str, drawn: Html = NOTHING, role: str = "") -> Html:
    return tag(
        f"div.tile{f'.{role}' if role else ''}",
        tag("span.name", name),
        tag("strong", figure),
        tag("span.said", said),
        drawn,
    )


def _left_tile(name: str, before: int, after: int, show: Callable[[float], str]) -> Html:
    left = divide(after, before)
    drawn = bar(1.0, left or 0.0, label=f"{share(left)} left")
    return _tile(name, share(left), _format_pair(before, after, show), drawn)


def _speed(timed: Latency) -> tuple[str, str]:
    """(the speed-up or why there is none, a remark before the times)."""
    slower = divide(1, timed.speedup)
    if slower is None or slower <= 0:
        return "not measured", ""
    if not timed.measured:
        return times(timed.speedup), "predicted: "
    if timed.low <= 1 <= timed.high:
        return "no difference", "not measurably different: "
    if timed.low > 1:
        return f"{times(timed.speedup)} faster", ""
    return f"{times(slower)} slower", ""


def _accuracy_tile(dense: Side, cut: Side) -> Iterator[Html]:
    for name, before, after in (
        ("Test accuracy", dense.test_accuracy, cut.test_accuracy),
        ("Validation accuracy", dense.validation_accuracy, cut.validation_accuracy),
    ):
        if after is not None and known(after):
            compared = "dense not measured"
            if before is not None and known(before):
                compared = f"dense {brief(accuracy(before))}, {brief(points(after - before))}"
            yield _tile(name, brief(accuracy(after)), compared)
            return
    yield _tile("Accuracy", "not measured", "the recipe has no data")


def _verdict_tile(report: Report) -> Html:
    missed = [describe_missed(limit) for limit in report.limits if not limit.met]
    verdict = report.verdict
    if missed:
        return _tile("Limits", "MISSED", "; ".join(missed), role="bad")
    met = f"; {plural(len(report.limits), 'limit')} met" if report.limits else ""
    if verdict.outcome == "equal":
        return _tile(
            "Cut",
            "verified",
            f"same outputs as the masked model, within {tiny(verdict.difference)}{met}",
            role="good",
        )
    figure = "statistics change" if verdict.outcome == "statistics change" else "nothing cut"
    return _tile("Cut", figure, f"{verdict_words(verdict)}{met}")


def headline_latency(report: Report) -> Latency | None:
    """The latency on the target that a budget limits, else on the first target."""
    limited = {limit.what.removeprefix("budget.latency.") for limit in report.limits}
    first_choice = [timed for timed in report.latency if timed.target in limited]
    return next(iter([*first_choice, *report.latency]), None)


def trade_off(report: Report) -> Html:
    """Accuracy against milliseconds on each target, or against MACs where nothing was timed.

    Targets that compute in int8 have a plot of their own, as the accuracies differ.
    """
    first = headline_latency(report)
    int8_targets = report.integers.forms[0].ms if report.integers else {}
    timed = [latency for latency in report.latency if latency.target not in int8_targets]
    if not timed:
        return _plot_trade_off(report, None)
    timed.sort(key=lambda latency: latency is not first)
    return joined(_plot_trade_off(report, latency) for latency in timed[:_TARGETS])


def _plot_trade_off(report: Report, timed: Latency | None) -> Html:
    show: Callable[[float], str] = milliseconds if timed else count
    named = [
        ("dense", "dense", report.dense),
        ("cut", "cut", report.cut),
        *((b.kind, "other", b.side) for b in report.baselines),
    ]
    spans = _time_spans(report, timed) if timed else {}
    marks = []
    for name, role, side in named:
        reached = _accuracy_of(report, side)
        cost, low, high = spans[name] if timed else (side.macs, side.macs, side.macs)
        if reached is not None and known(reached) and known(cost):
            span = (low, high) if known(low) and known(high) else (cost, cost)
            marks.append(Mark(name, cost, reached, role, f"{accuracy(reached)} at {show(cost)}", span))
    if len(marks) < 2:
        return NOTHING
    across = f"time on {timed.target}" if timed else "MACs"
    ticks = _milliseconds_axis(marks) if timed else _count_axis
    return scatter(f"{_accuracy_name(report)} against {across}", marks, across, ticks, _percent)


def _accuracy_of(report: Report, side: Side) -> float | None:
    """Test accuracy where the cut model has one, else validation accuracy."""
    return side.validation_accuracy if report.cut.test_accuracy is None else side.test_accuracy


def _accuracy_name(report: Report) -> str:
    return "Validation accuracy" if report.cut.test_accuracy is None else "Test accuracy"


def _percent(value: float) -> str:
    return brief(accuracy(value))


def _count_axis(value: float) -> str:
    return brief(count(value))


def _milliseconds_axis(marks: Iterable[Mark]) -> Callable[[float], str]:
    """The format of an axis in one unit."""
    in_microseconds = max(mark.x for mark in marks) < 0.2
    return lambda x: f"{1000 * x:g} us" if in_microseconds else f"{x:g} ms"


def _time_spans(report: Report, timed: Latency) -> dict[str, tuple[float, float, float]]:
    """Model -> (milliseconds, lower end, upper end), by the interval of its speed-up."""

    def ends(own: Latency | None) -> tuple[float, float]:
        if own is None or not own.measured or own.low <= 0:
            return nan, nan
        fastest, slowest = divide(timed.dense_ms, own.high), divide(timed.dense_ms, own.low)
        return (nan, nan) if fastest is None or slowest is None else (fastest, slowest)

    found = {"dense": (timed.dense_ms, nan, nan), "cut": (timed.cut_ms, *ends(timed))}
    for baseline in report.baselines:
        own = next((latency for latency in baseline.latency if latency.target == timed.target), None)
        found[baseline.kind] = (baseline_ms(baseline, timed), *ends(own))
    return found


def int8(report: Report) -> Html:
    """Accuracy against time of both models in float32 and in int8, on the first int8 target."""
    forms = report.integers.forms if report.integers else ()
    on_test = any(form.test_accuracy is not None for form in forms)
    targets = [target for form in forms for target in form.ms]
    marks = []
    for form in forms:
        reached = form.test_accuracy if on_test else form.validation_accuracy
        ms = form.ms.get(targets[0]) if targets else None
        if reached is None or ms is None or not (known(reached) and known(ms)):
            continue
        role = form.model if form.dtype == "float32" else "other"
        said = f"{accuracy(reached)} at {milliseconds(ms)}"
        marks.append(Mark(f"{form.model}, {form.dtype}", ms, reached, role, said))
    if len(marks) < 2:
        return NOTHING
    across = f"time on {targets[0]}"
    label = f"{'Test' if on_test else 'Validation'} accuracy against {across}"
    return scatter(label, marks, across, _milliseconds_axis(marks), _percent)


def search(report: Report) -> Html:
    """Validation accuracy of every depth that was tried, by the MACs that it left."""
    if report.search is None or not report.search.trials or not report.dense.macs:
        return NOTHING
    taken = best(report.search)
    marks = [Mark("dense", 1.0, report.search.dense, "dense", accuracy(report.search.dense))]
    for trial in report.search.trials:
        left = divide(trial.macs, report.dense.macs)
        if left is None:
            continue
        said = f"{accuracy(trial.validation_accuracy)} at {share(left)} of the MACs"
        name = "within the limit" if trial.inside else "over the limit"
        role = "other"
        if trial == taken:
            name, role = "taken", "cut"
        marks.append(Mark(name, left, trial.validation_accuracy, role, said))
    return scatter("Validation accuracy against MACs left", marks, "MACs left", _percent, _percent)


def predicted(report: Report) -> Html:
    """Measured against predicted milliseconds, where there is a prediction."""
    rows = []
    for timed in report.latency:
        if timed.predicted_dense_ms is None or timed.predicted_cut_ms is None or not timed.measured:
            continue
        dense = (timed.predicted_dense_ms, timed.dense_ms)
        cut = (timed.predicted_cut_ms, timed.cut_ms)
        scale = max(filter(known, (*dense, *cut)), default=0.0)
        rows.append(_prediction_row(f"dense on {timed.target}", *dense, scale))
        rows.append(_prediction_row(f"cut on {timed.target}", *cut, scale))
    return _bars("Predicted (hatched) and measured (solid)", rows)


def _prediction_row(name: str, guess: float, measured: float, scale: float) -> tuple[str, Html, str]:
    said = f"predicted {milliseconds(guess)}, measured {milliseconds(measured)}"
    drawn = bar(divide(guess, scale) or 0.0, divide(measured, scale) or 0.0, label=said)
    ratio = divide(guess, measured)
    error = signed(share(None if ratio is None else ratio - 1))
    return name, drawn, f"{milliseconds(measured)}, predicted {error}"


def time_by_layer(report: Report, section: Section) -> Iterator[Html]:
    """Predicted milliseconds by layer for each target with a prediction, else MACs by layer."""
    shown = [timed for timed in report.latency if timed.by_layer]
    note = (
        "Predicted by the target's table, as single layers cannot be timed inside a network. "
        "(no layer): calls and other costs of no single layer."
    )
    for timed in shown:
        costs = [(layer.layer or "(no layer)", layer.dense_ms, layer.cut_ms) for layer in timed.by_layer]
        place = f" on {timed.target}" if len(shown) > 1 else ""
        yield section(f"Time by layer{place}", _cost_bars(costs, milliseconds), tag("p.note", note))
    if not shown:
        macs = [(layer.name, layer.macs, layer.macs_after) for layer in report.layers if layer.macs]
        yield section("MACs by layer", _cost_bars(macs, count))


def _cost_bars(costs: Iterable[tuple[str, float, float]], show: Callable[[float], str]) -> Html:
    every = [
        (name, max(before, 0), max(after, 0))
        for name, before, after in costs
        if known(before) and known(after)
    ]
    scale = max((max(before, after) for _, before, after in every), default=0.0)
    largest = set(sorted(every, key=lambda row: -max(row[1], row[2]))[:_ROWS])
    rows = []
    for name, before, after in every:
        if (name, before, after) in largest and scale:
            said = _format_pair(before, after, show)
            drawn = bar(divide(before, scale) or 0.0, divide(after, scale) or 0.0, label=said)
            rows.append((name, drawn, said))
    return _bars("Dense (hatched) and cut (solid)", rows, len(every))


def widths(report: Report) -> Html:
    """A bar for each layer: the hatched track is its width before, the solid part its width after."""
    timed = headline_latency(report)
    wide = [layer for layer in report.layers if layer.outputs and layer.macs]
    changed_first = sorted(wide, key=lambda layer: (layer.outputs_after == layer.outputs, -layer.macs))
    chosen = {layer.name for layer in changed_first[:_ROWS]}
    rows = [_width_row(layer, timed) for layer in wide if layer.name in chosen]
    caption = "Output width before (hatched, each layer its own scale) and after (solid)"
    if timed is not None and timed.steps is not None:
        steps = timed.steps
        caption += (
            f". Ticks: multiples of {steps.convolution} (linear layers {steps.linear}), "
            f"the widths that are fastest on {timed.target}"
        )
    return _bars(caption, rows, len(wide))


def _width_row(layer: LayerRow, timed: Latency | None) -> tuple[str, Html, str]:
    left = divide(layer.outputs_after, layer.outputs) or 0.0
    said = str(layer.outputs) if left == 1 else f"{layer.outputs} to {layer.outputs_after}"
    if layer.protected:
        said += ", kept"
    elif layer.removed:
        said += ", removed"
    return layer.name, bar(1.0, left, _step_ticks(layer, timed), label=said), said


def _step_ticks(layer: LayerRow, timed: Latency | None) -> tuple[float, ...]:
    if timed is None or timed.steps is None:
        return ()
    is_linear = layer_type_of(layer.kind or layer.type).timed == "linear"
    step = timed.steps.linear if is_linear else timed.steps.convolution
    if step <= 1 or layer.outputs / step > _STEPS:
        return ()
    return tuple(width / layer.outputs for width in range(step, layer.outputs, step))


def _format_pair(before: float, after: float, show: Callable[[float], str]) -> str:
    """'2.29 M to 396 k', '0.412 to 0.217 ms'; one figure where they are the same."""
    first, last = show(before), show(after)
    if first == last:
        return last
    number, _, unit = first.partition(" ")
    share_unit = unit in _UNITS and unit == last.rpartition(" ")[2]
    return f"{number if share_unit else first} to {last}"


def _bars(caption: str, rows: Iterable[tuple[str, Html, str]], of: int = 0) -> Html:
    """A list of bars; a long one in two columns where there is room."""
    body, longest = [], 0
    for name, drawn, said in rows:
        head = tag("th", _break_at_dots(name), at={"scope": "row"})
        body.append(tag("tr", head, tag("td", drawn), tag("td.n", said)))
        longest = max(longest, len(name))
    if not body:
        return NOTHING
    fewer = f"; {len(body)} of {of} layers" if of > len(body) else ""
    note = tag("p.note", f"{caption}{fewer}.")
    if len(body) <= _LONG or longest > _NAME:
        return joined((note, tag("div", _bar_table(body))))
    middle = (len(body) + 1) // 2
    return joined((note, tag("div.halves", _bar_table(body[:middle]), _bar_table(body[middle:]))))


def _bar_table(rows: Iterable[Html]) -> Html:
    return tag("table.bars", tag("tbody", *rows))


def _break_at_dots(name: str) -> Html:
    """A dotted name that may be broken after its dots."""
    *first, last = name.split(".")
    parts = [joined((text(f"{part}."), tag("wbr"))) for part in first]
    return joined((*parts, text(last)))


def protected(report: Report) -> Html:
    """A table of the layers that kept their width, by reason."""
    reasons: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.protected and (layer.macs or layer.macs_after):
            reasons.setdefault(layer.protected, []).append(layer.name)
    if not reasons:
        return NOTHING
    rows = [tag("tr", tag("td", ", ".join(names)), tag("td", why)) for why, names in reasons.items()]
    head = tag("thead", tag("tr", tag("th", "kept its width"), tag("th", "why")))
    return tag("div.scroll", tag("table", head, tag("tbody", *rows)))


def training(report: Report) -> Html:
    """Loss, accuracy, zeros and strength over all epochs, with the cuts marked."""
    epochs = report.history
    if not epochs:
        return NOTHING
    ends = tuple(_stage_ends(epochs))
    cuts = tuple(_cut_places(report))

    def series(name: str, value: Callable[[Epoch], float | None]) -> Series:
        values = [(float(i), value(epoch)) for i, epoch in enumerate(epochs, 1)]
        return Series(name, tuple((x, y) for x, y in values if y is not None))

    validation = (
        series("validation", lambda e: e.validation_accuracy),
        series("validation", lambda e: e.validation_loss),
    )
    drawn = (
        lines(
            "Loss",
            (series("training", lambda e: e.loss), validation[1]),
            plain,
            zero=True,
            ends=ends,
            cuts=cuts,
        ),
        lines(
            "Accuracy",
            (series("training", lambda e: e.train_accuracy), validation[0]),
            _percent,
            ends=ends,
            cuts=cuts,
        ),
        lines(
            "Fraction of the groups that are zero",
            (series("zero", lambda e: e.sparsity),),
            _percent,
            zero=True,
            ends=ends,
            cuts=cuts,
        ),
        lines(
            "Strength of the penalty",
            (series("strength", lambda e: e.strength),),
            plain,
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
    return joined((tag("div.figures", loss, accuracies, zeros, strength), tag("p.note", key)))


def _stage_ends(epochs: tuple[Epoch, ...]) -> Iterator[float]:
    """Epochs that are the last of their stage, counted over all stages."""
    for place, epoch in enumerate(epochs, 1):
        if place == len(epochs) or epochs[place].stage != epoch.stage:
            yield float(place)


def _cut_places(report: Report) -> Iterator[float]:
    """Epochs after which the model was cut, counted over all stages."""
    before, first = {}, 0
    for stage in report.stages:
        before[stage.name] = first
        first += stage.epochs
    yield from (float(before[r.stage] + r.epoch) for r in report.rounds if r.stage in before)
