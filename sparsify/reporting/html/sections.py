"""What stands in the sections of the page, each drawn from the report alone."""

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
from sparsify.reporting.html.markup import NOTHING, Html, joined, tag, text
from sparsify.reporting.html.plots import Mark, Series, bar, lines, scatter
from sparsify.reporting.latency_table import overloaded
from sparsify.reporting.report_tables import limit_name, shown_limit, trained_by, utc_minute
from sparsify_schemas.report import Epoch, Latency, LayerRow, Report, Side

Section = Callable[..., Html]
_ROWS = 100
"""bars in one list; of more layers those with the most to show"""
_TARGETS = 3
"""plots of accuracy against time"""
_LONG = 16
"""bars in one column"""
_UNITS = ("ms", "us", "s", "B", "KiB", "MiB", "GiB")
"""which two figures may share; a suffix of a count belongs to its figure"""
_NAME = 20
"""letters of the longest name in two columns of bars"""
_STEPS = 40
"""ticks on one bar; more would be a smear"""


def top(report: Report, sentence: str) -> Html:
    """Title, tiles that are read at a glance, and the same in one sentence."""
    machine = report.environment
    on = (machine.processor, plural(machine.cores, "core"), *filter(None, [trained_by(report)]))
    made = f"{utc_minute(report.created)}, {', '.join(on)}, seed {report.seed}"
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
        left = divide(1, timed.speedup)
        left = divide(timed.cut_ms, timed.dense_ms) if left is None else left
        figure, about = _speed(timed)
        arrow = f"{_both(timed.dense_ms, timed.cut_ms, milliseconds)} on {timed.target}"
        doubt = ", under load" if overloaded(timed, report.environment.cores) else ""
        yield _tile(
            "Speed",
            figure,
            f"{about}{arrow}{doubt}",
            bar(1.0, left or 0.0, label=f"{share(left)} of the time left"),
            "bad" if figure.endswith("slower") else "",
        )
    yield _left_tile("MACs left", dense.macs, cut.macs, count)
    yield _left_tile("Parameters left", dense.params, cut.params, count)
    yield _left_tile("File left", dense.bytes, cut.bytes, size)
    yield from _accuracy_tile(dense, cut)
    yield _verdict_tile(report)


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
    return _tile(
        name, share(left), _both(before, after, show), bar(1.0, left or 0.0, label=f"{share(left)} left")
    )


def _speed(timed: Latency) -> tuple[str, str]:
    """The ratio, or that there is none to speak of."""
    slower = divide(1, timed.speedup)
    if slower is None or slower <= 0:
        return "not measured", ""
    if not timed.measured:
        return times(timed.speedup), "predicted: "
    if timed.low <= 1 <= timed.high:
        return "no difference", "not measurably other than 1: "
    return (f"{times(timed.speedup)} faster" if timed.low > 1 else f"{times(slower)} slower"), ""


def _accuracy_tile(dense: Side, cut: Side) -> Iterator[Html]:
    for name, before, after in (
        ("Test accuracy", dense.test_accuracy, cut.test_accuracy),
        ("Validation accuracy", dense.validation_accuracy, cut.validation_accuracy),
    ):
        if after is not None and known(after):
            compared = (
                f"dense {brief(accuracy(before))}, {brief(points(after - before))}"
                if before is not None and known(before)
                else "dense not measured"
            )
            yield _tile(name, brief(accuracy(after)), compared)
            return
    yield _tile("Accuracy", "not measured", "the recipe has no data to measure it on")


def _verdict_tile(report: Report) -> Html:
    missed = [m for m in report.limits if not m.met]
    verdict = report.verdict
    if missed:
        return _tile(
            "Limits",
            "MISSED",
            "; ".join(f"{limit_name(m)} {shown_limit(m, m.achieved)}, asked {m.asked}" for m in missed),
            role="bad",
        )
    met = f"; {plural(len(report.limits), 'limit')} met" if report.limits else ""
    if verdict.outcome == "equal":
        return _tile(
            "Cut",
            "verified",
            f"computes what the masked model does, to {tiny(verdict.difference)}{met}",
            role="good",
        )
    return _tile(
        "Cut",
        "in shape only" if verdict.outcome == "statistics change" else "nothing cut",
        f"{verdict_words(verdict)}{met}",
    )


def headline_latency(report: Report) -> Latency | None:
    """Of the target that a budget limits, else of the first."""
    limited = {m.what.removeprefix("budget.latency.") for m in report.limits}
    return next(
        (t for t in report.latency if t.target in limited), report.latency[0] if report.latency else None
    )


def trade_off(report: Report) -> Html:
    """Accuracy against milliseconds on each target, or against MACs where nothing was timed.

    Targets that compute in integers have another accuracy, and a plot of their own.
    """
    first, quantised = headline_latency(report), report.integers.forms[0].ms if report.integers else {}
    timed = sorted((t for t in report.latency if t.target not in quantised), key=lambda t: t is not first)
    return joined(_trade_off(report, t) for t in timed[:_TARGETS]) if timed else _trade_off(report, None)


def _trade_off(report: Report, timed: Latency | None) -> Html:
    show: Callable[[float], str] = milliseconds if timed else count
    named = [
        ("dense", "dense", report.dense),
        ("cut", "cut", report.cut),
        *((b.kind, "other", b.side) for b in report.baselines),
    ]
    spent = _spans(report, timed) if timed else {name: (side.macs,) * 3 for name, _, side in named}
    on_test = report.cut.test_accuracy is not None
    found = []
    for name, role, side in named:
        reached, (cost, *ends) = (side.test_accuracy if on_test else side.validation_accuracy), spent[name]
        if reached is not None and known(reached) and known(cost):
            span = (ends[0], ends[1]) if all(map(known, ends)) else (cost, cost)
            found.append(Mark(name, cost, reached, role, f"{accuracy(reached)} at {show(cost)}", span))
    if len(found) < 2:
        return NOTHING
    what, across = ("Test" if on_test else "Validation"), (f"time on {timed.target}" if timed else "MACs")
    ticks: Callable[[float], str] = _milliseconds(found) if timed else lambda x: brief(count(x))
    return scatter(f"{what} accuracy against {across}", found, across, ticks, lambda y: brief(accuracy(y)))


def _spans(report: Report, timed: Latency) -> dict[str, tuple[float, float, float]]:
    """Model -> milliseconds, and between which ends: of the interval of its ratio to the dense model."""

    def ends(own: Latency | None) -> tuple[float, float]:
        fastest = divide(timed.dense_ms, own.high) if own and own.measured else None
        slowest = divide(timed.dense_ms, own.low) if own and own.measured and own.low > 0 else None
        return (nan, nan) if fastest is None or slowest is None else (fastest, slowest)

    found = {"dense": (timed.dense_ms, nan, nan), "cut": (timed.cut_ms, *ends(timed))}
    for b in report.baselines:
        own = next((t for t in b.latency if t.target == timed.target), None)
        found[b.kind] = (baseline_ms(b, timed), *ends(own))
    return found


def integers(report: Report) -> Html:
    """Accuracy against time of both models in floats and in integers, on the first target that has them."""
    forms = report.integers.forms if report.integers else ()
    on_test, target = (
        any(f.test_accuracy is not None for f in forms),
        next((t for f in forms for t in f.ms), ""),
    )
    found = []
    for form in forms:
        reached, role = (
            (form.test_accuracy if on_test else form.validation_accuracy),
            (form.model if form.dtype == "float32" else "other"),
        )
        if reached is not None and known(reached) and known(form.ms.get(target)):
            found.append(
                Mark(
                    f"{form.model}, {form.dtype}",
                    form.ms[target],
                    reached,
                    role,
                    f"{accuracy(reached)} at {milliseconds(form.ms[target])}",
                )
            )
    if len(found) < 2:
        return NOTHING
    label = f"{'Test' if on_test else 'Validation'} accuracy against time on {target}"
    return scatter(label, found, f"time on {target}", _milliseconds(found), lambda y: brief(accuracy(y)))


def _milliseconds(marks: Iterable[Mark]) -> Callable[[float], str]:
    """Round numbers of one unit, for an axis."""
    small = max(mark.x for mark in marks) < 0.2
    return lambda x: f"{1000 * x:g} us" if small else f"{x:g} ms"


def search(report: Report) -> Html:
    """Validated accuracy of every depth that was tried, by the MACs that it left."""
    if report.search is None or not report.search.trials or not report.dense.macs:
        return NOTHING
    taken, found = (
        best(report.search),
        [Mark("dense", 1.0, report.search.dense, "dense", accuracy(report.search.dense))],
    )
    for trial in report.search.trials:
        left = divide(trial.macs, report.dense.macs)
        if left is None:
            continue
        said = f"{accuracy(trial.validation_accuracy)} at {share(left)} of the MACs"
        name, role = (
            ("taken", "cut") if trial == taken else ("inside" if trial.inside else "outside", "other")
        )
        found.append(Mark(name, left, trial.validation_accuracy, role, said))
    percent: Callable[[float], str] = lambda y: brief(accuracy(y))  # noqa: E731
    return scatter("Validation accuracy against MACs left", found, "MACs left", percent, percent)


def predicted(report: Report) -> Html:
    """Measured against predicted milliseconds, where there is a prediction."""
    rows = []
    for t in report.latency:
        if t.predicted_dense_ms is None or t.predicted_cut_ms is None or not t.measured:
            continue
        most = max(
            filter(known, (t.dense_ms, t.cut_ms, t.predicted_dense_ms, t.predicted_cut_ms)), default=0.0
        )
        for name, guess, found in (
            ("dense", t.predicted_dense_ms, t.dense_ms),
            ("cut", t.predicted_cut_ms, t.cut_ms),
        ):
            said = f"predicted {milliseconds(guess)}, measured {milliseconds(found)}"
            off = divide(guess, found)
            figure = f"{milliseconds(found)}, predicted {signed(share(None if off is None else off - 1))}"
            rows.append(
                (
                    f"{name} on {t.target}",
                    bar(divide(guess, most) or 0.0, divide(found, most) or 0.0, label=said),
                    figure,
                )
            )
    return _bars("Predicted (hatched) against measured (solid)", rows)


def where_time_went(report: Report, section: Section) -> Iterator[Html]:
    """Milliseconds by layer as predicted, per target that has a prediction; MACs by layer otherwise."""
    shown = [t for t in report.latency if t.by_layer]
    for t in shown:
        spent = [(layer.layer or "(no layer)", layer.dense_ms, layer.cut_ms) for layer in t.by_layer]
        title = f"Where the milliseconds went{f' on {t.target}' if len(shown) > 1 else ''}"
        note = "Predicted by the target's table, as single layers cannot be timed inside a network. (no layer): calls and what else belongs to none."
        yield section(title, _spent(spent, milliseconds), tag("p.note", note))
    if not shown:
        work = [(layer.name, layer.macs, layer.macs_after) for layer in report.layers if layer.macs]
        yield section("Where the MACs went", _spent(work, count))


def _spent(spent: Iterable[tuple[str, float, float]], show: Callable[[float], str]) -> Html:
    every = [
        (name, max(before, 0), max(after, 0))
        for name, before, after in spent
        if known(before) and known(after)
    ]
    most = max((max(before, after) for _, before, after in every), default=0.0)
    most_shown = set(sorted(every, key=lambda row: -max(row[1], row[2]))[:_ROWS])
    rows = []
    for name, before, after in (row for row in every if row in most_shown and most):
        said = _both(before, after, show)
        rows.append((name, bar(divide(before, most) or 0.0, divide(after, most) or 0.0, label=said), said))
    return _bars("Dense (hatched) and cut (solid)", rows, len(every))


def widths(report: Report) -> Html:
    """A bar a layer: the hatched track is its width before, the solid part what is left of it."""
    timed = headline_latency(report)
    wide = [layer for layer in report.layers if layer.outputs and layer.macs]
    chosen = set(
        sorted(range(len(wide)), key=lambda i: (wide[i].outputs_after == wide[i].outputs, -wide[i].macs))[
            :_ROWS
        ]
    )
    rows = []
    for layer in (layer for i, layer in enumerate(wide) if i in chosen):
        left = divide(layer.outputs_after, layer.outputs) or 0.0
        said = str(layer.outputs) if left == 1 else f"{layer.outputs} to {layer.outputs_after}"
        said = f"{said}{', kept' if layer.protected else ', gone' if layer.removed else ''}"
        rows.append((layer.name, bar(1.0, left, _steps(layer, timed), label=said), said))
    step = timed.steps if timed is not None else None
    ticks = (
        f" Ticks: multiples of {step.convolution} (linear layers {step.linear}), the widths that {timed.target} rewards."
        if step and timed
        else ""
    )
    return _bars(
        f"Output width before (hatched, each layer its own scale) and after (solid).{ticks}".removesuffix(
            "."
        ),
        rows,
        len(wide),
    )


def _steps(layer: LayerRow, timed: Latency | None) -> tuple[float, ...]:
    if timed is None or timed.steps is None:
        return ()
    linear = layer_type_of(layer.kind or layer.type).timed == "linear"
    step = timed.steps.linear if linear else timed.steps.convolution
    return (
        tuple(at / layer.outputs for at in range(step, layer.outputs, step))
        if step > 1 and layer.outputs / step <= _STEPS
        else ()
    )


def _both(before: float, after: float, show: Callable[[float], str]) -> str:
    """'2.29 M to 396 k', '0.412 to 0.217 ms'; one figure where they are the same."""
    (first, _, unit), last = show(before).partition(" "), show(after).rpartition(" ")[2]
    if show(before) == show(after):
        return show(after)
    return f"{first if unit == last and unit in _UNITS else show(before)} to {show(after)}"


def _bars(caption: str, rows: Iterable[tuple[str, Html, str]], of: int = 0) -> Html:
    """A list of bars; a long one in two columns where there is room."""
    listed = list(rows)
    body = [
        tag("tr", tag("th", _breakable(name), at={"scope": "row"}), tag("td", drawn), tag("td.n", said))
        for name, drawn, said in listed
    ]
    if not body:
        return NOTHING
    fewer = f"; {len(body)} of {of} layers" if of > len(body) else ""
    narrow = max(len(name) for name, _, _ in listed) <= _NAME
    middle = (len(body) + 1) // 2 if len(body) > _LONG and narrow else len(body)
    halves = (tag("table.bars", tag("tbody", *part)) for part in (body[:middle], body[middle:]) if part)
    return joined(
        (tag("p.note", f"{caption}{fewer}."), tag("div.halves" if middle < len(body) else "div", *halves))
    )


def _breakable(name: str) -> Html:
    """A dotted name that a narrow column breaks at its dots."""
    parts = name.split(".")
    return joined((*(joined((text(f"{part}."), tag("wbr"))) for part in parts[:-1]), text(parts[-1])))


def protected(report: Report) -> Html:
    """Reason -> the layers that kept their width for it."""
    reasons: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.protected and (layer.macs or layer.macs_after):
            reasons.setdefault(layer.protected, []).append(layer.name)
    if not reasons:
        return NOTHING
    rows = (tag("tr", tag("td", ", ".join(names)), tag("td", why)) for why, names in reasons.items())
    head = tag("thead", tag("tr", tag("th", "kept its width"), tag("th", "why")))
    return tag("div.scroll", tag("table", head, tag("tbody", *rows)))


def training(report: Report) -> Html:
    """Loss, accuracy, zeros and strength over all epochs, with the cuts marked."""
    epochs = report.history
    if not epochs:
        return NOTHING
    ends = tuple(
        float(i + 1) for i, e in enumerate(epochs) if i + 1 == len(epochs) or epochs[i + 1].stage != e.stage
    )
    cuts = tuple(_cut_places(report))

    def series(name: str, value: Callable[[Epoch], float | None]) -> Series:
        return Series(
            name, tuple((float(i + 1), y) for i, e in enumerate(epochs) if (y := value(e)) is not None)
        )

    percent: Callable[[float], str] = lambda y: brief(accuracy(y))  # noqa: E731
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
            percent,
            ends=ends,
            cuts=cuts,
        ),
        lines(
            "Share of the groups that is zero",
            (series("zero", lambda e: e.sparsity),),
            percent,
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
    used = (drawn[0], drawn[1], drawn[2] if any(e.sparsity for e in epochs) else NOTHING, drawn[3])
    marks = (
        "Dashed uprights: ends of stages. Triangles: cuts." if cuts else "Dashed uprights: ends of stages."
    )
    return joined((tag("div.figures", *used), tag("p.note", marks)))


def _cut_places(report: Report) -> Iterator[float]:
    """Epochs after which the model was cut, counted over all stages."""
    before, first = {}, 0
    for stage in report.stages:
        before[stage.name] = first
        first += stage.epochs
    yield from (float(before[r.stage] + r.epoch) for r in report.rounds if r.stage in before)
