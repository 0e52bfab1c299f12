"""Bars of time, MACs and width by layer, dense and cut, and the layers that kept their width."""

from collections.abc import Callable, Iterable, Iterator

from sparsify.formatting.numbers import (
    add_sign,
    divide,
    format_count,
    format_milliseconds,
    format_share,
    is_known,
)
from sparsify.graph.layer_types import layer_type_of
from sparsify.reporting.html.figure_text import format_pair
from sparsify.reporting.html.markup import NOTHING, Html, escape_text, join_markup, tag
from sparsify.reporting.html.plots import draw_bar
from sparsify.reporting.latency_table import find_headline_latency
from sparsify_schemas.report import Latency, LayerRow, Report

Section = Callable[..., Html]


_ROWS = 100
"""Bars in one list; of more layers, the largest are shown."""


_LONG = 16
"""Bars in one column."""


_NAME = 20
"""Letters of the longest name in two columns of bars."""


_STEPS = 40
"""Ticks on one bar; more would not be told apart."""


def draw_predictions(report: Report) -> Html:
    """Measured against predicted milliseconds, where there is a prediction."""
    rows = []
    for timed in report.latency:
        if timed.predicted_dense_ms is None or timed.predicted_cut_ms is None or not timed.measured:
            continue
        dense = (timed.predicted_dense_ms, timed.dense_ms)
        cut = (timed.predicted_cut_ms, timed.cut_ms)
        scale = max(filter(is_known, (*dense, *cut)), default=0.0)
        rows.append(_draw_prediction(f"dense on {timed.target}", *dense, scale))
        rows.append(_draw_prediction(f"cut on {timed.target}", *cut, scale))
    return _draw_bars("Predicted (hatched) and measured (solid)", rows)


def _draw_prediction(name: str, guess: float, measured: float, scale: float) -> tuple[str, Html, str]:
    said = f"predicted {format_milliseconds(guess)}, measured {format_milliseconds(measured)}"
    drawn = draw_bar(divide(guess, scale) or 0.0, divide(measured, scale) or 0.0, label=said)
    ratio = divide(guess, measured)
    error = add_sign(format_share(None if ratio is None else ratio - 1))
    return name, drawn, f"{format_milliseconds(measured)}, predicted {error}"


def draw_time_by_layer(report: Report, section: Section) -> Iterator[Html]:
    """Predicted milliseconds by layer for each target with a prediction, else MACs by layer."""
    shown = [timed for timed in report.latency if timed.by_layer]
    note = (
        "Predicted by the target's table, as single layers cannot be timed inside a network. "
        "(no layer): calls and other costs of no single layer."
    )
    for timed in shown:
        costs = [(layer.layer or "(no layer)", layer.dense_ms, layer.cut_ms) for layer in timed.by_layer]
        place = f" on {timed.target}" if len(shown) > 1 else ""
        yield section(f"Time by layer{place}", _draw_costs(costs, format_milliseconds), tag("p.note", note))
    if not shown:
        macs = [(layer.name, layer.macs, layer.macs_after) for layer in report.layers if layer.macs]
        yield section("MACs by layer", _draw_costs(macs, format_count))


def _draw_costs(costs: Iterable[tuple[str, float, float]], show: Callable[[float], str]) -> Html:
    every = [
        (name, max(before, 0), max(after, 0))
        for name, before, after in costs
        if is_known(before) and is_known(after)
    ]
    scale = max((max(before, after) for _, before, after in every), default=0.0)
    largest = set(sorted(every, key=lambda row: -max(row[1], row[2]))[:_ROWS])
    rows = []
    for name, before, after in every:
        if (name, before, after) in largest and scale:
            said = format_pair(before, after, show)
            drawn = draw_bar(divide(before, scale) or 0.0, divide(after, scale) or 0.0, label=said)
            rows.append((name, drawn, said))
    return _draw_bars("Dense (hatched) and cut (solid)", rows, len(every))


def draw_widths(report: Report) -> Html:
    """A bar for each layer: the hatched track is its width before, the solid part its width after."""
    timed = find_headline_latency(report)
    wide = [layer for layer in report.layers if layer.outputs and layer.macs]
    changed_first = sorted(wide, key=lambda layer: (layer.outputs_after == layer.outputs, -layer.macs))
    chosen = {layer.name for layer in changed_first[:_ROWS]}
    rows = [_draw_width(layer, timed) for layer in wide if layer.name in chosen]
    caption = "Output width before (hatched, each layer its own scale) and after (solid)"
    if timed is not None and timed.steps is not None:
        steps = timed.steps
        caption += (
            f". Ticks: multiples of {steps.convolution} (linear layers {steps.linear}), "
            f"the widths that are fastest on {timed.target}"
        )
    return _draw_bars(caption, rows, len(wide))


def _draw_width(layer: LayerRow, timed: Latency | None) -> tuple[str, Html, str]:
    left = divide(layer.outputs_after, layer.outputs) or 0.0
    said = str(layer.outputs) if left == 1 else f"{layer.outputs} to {layer.outputs_after}"
    if layer.protected:
        said += ", kept"
    elif layer.removed:
        said += ", removed"
    return layer.name, draw_bar(1.0, left, _place_ticks(layer, timed), label=said), said


def _place_ticks(layer: LayerRow, timed: Latency | None) -> tuple[float, ...]:
    if timed is None or timed.steps is None:
        return ()
    is_linear = layer_type_of(layer.kind or layer.type).timed == "linear"
    step = timed.steps.linear if is_linear else timed.steps.convolution
    if step <= 1 or layer.outputs / step > _STEPS:
        return ()
    return tuple(width / layer.outputs for width in range(step, layer.outputs, step))


def _draw_bars(caption: str, rows: Iterable[tuple[str, Html, str]], of: int = 0) -> Html:
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
        return join_markup((note, tag("div", _join_bars(body))))
    middle = (len(body) + 1) // 2
    return join_markup((note, tag("div.halves", _join_bars(body[:middle]), _join_bars(body[middle:]))))


def _join_bars(rows: Iterable[Html]) -> Html:
    return tag("table.bars", tag("tbody", *rows))


def _break_at_dots(name: str) -> Html:
    """A dotted name that may be broken after its dots."""
    *first, last = name.split(".")
    parts = [join_markup((escape_text(f"{part}."), tag("wbr"))) for part in first]
    return join_markup((*parts, escape_text(last)))


def draw_protected(report: Report) -> Html:
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
