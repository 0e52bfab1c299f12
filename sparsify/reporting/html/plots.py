"""Plots as inline SVG, told apart by dashes, hatching and shapes first and by colour second.

Colours come from style.css (Okabe and Ito's palette, chosen for the colour-blind), so that one drawing serves light and
dark screens and paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsify.formatting.numbers import known
from sparsify.reporting.html.axes import SMALLEST, Axis, axis
from sparsify.reporting.html.markup import NOTHING, Html, joined, tag

Show = Callable[[float], str]
WIDTH, HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 398, 12, 212
_MOST = 300
"""points of a line; more are thinned evenly"""


@dataclass(frozen=True)
class Series:
    """One line of a plot."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Mark:
    """One point of a plot."""

    name: str
    x: float
    y: float
    role: str
    """dense, cut, or other"""
    said: str
    """both figures, shown under the pointer"""
    span: tuple[float, float] = (math.nan, math.nan)
    """ends of an interval of x, drawn where it is known"""


def hatching() -> Html:
    """The patterns that bars refer to; once on a page."""
    stroke = tag("path", at={"d": "M0 0V5", "class": "hatch"})
    pattern = tag(
        "pattern",
        stroke,
        at={
            "id": "hatch",
            "width": 5,
            "height": 5,
            "patternUnits": "userSpaceOnUse",
            "patternTransform": "rotate(45)",
        },
    )
    return tag(
        "svg",
        tag("defs", pattern),
        at={"width": 0, "height": 0, "aria-hidden": "true", "style": "position:absolute"},
    )


def bar(before: float, after: float, steps: Sequence[float] = (), label: str = "") -> Html:
    """Before as a hatched track and after as a solid bar on it, both in parts of the whole width; steps: ticks, alike."""
    ticks = "".join(f"M{_cut(1000 * _part(x))} 0V14" for x in steps)
    drawn = (
        tag("rect.dense", at={"x": 0, "y": 1, "width": 1000 * _part(before), "height": 12}),
        tag("rect.cut", at={"x": 0, "y": 3, "width": 1000 * _part(after), "height": 8})
        if _part(after)
        else NOTHING,
        tag("path.step", at={"d": ticks}) if ticks else NOTHING,
    )
    return tag(
        "svg.bar",
        *drawn,
        at={"viewBox": "0 0 1000 14", "preserveAspectRatio": "none", "role": "img", "aria-label": label},
    )


def lines(
    label: str,
    series: Sequence[Series],
    show: Show,
    *,
    zero: bool = False,
    ends: Sequence[float] = (),
    cuts: Sequence[float] = (),
    across: str = "epoch",
) -> Html:
    """Lines over epochs (or what else goes across), with a legend where there are several. ends: where stages end. cuts: where the model was cut."""
    drawn = [
        Series(s.name, _thinned(tuple(p for p in s.points if known(p[0]) and known(p[1])))) for s in series
    ]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        return NOTHING
    last = max([*filter(known, ends), *(x for s in drawn for x, _ in s.points)])
    last = last if last > SMALLEST else 1.0  # one point at nought still needs an axis to stand on
    xs = Axis(0.0, last, tuple(t for t in axis([0.0, last], whole=True, most=6).ticks if t <= last))
    ys = axis([y for s in drawn for _, y in s.points], zero=zero)
    body = (
        _frame(xs, ys, lambda x: f"{x:g}", show, across),
        *(
            tag("path.end", at={"d": f"M{_cut(xs.at(x, _LEFT, _RIGHT))} {_TOP}V{_BOTTOM}"})
            for x in ends[:-1]
            if known(x)
        ),
        *(_cut_mark(xs.at(x, _LEFT, _RIGHT)) for x in cuts if known(x)),
        *(_line(s, i, xs, ys) for i, s in enumerate(drawn)),
    )
    names = " and ".join(s.name for s in drawn)
    return tag(
        "figure",
        tag("figcaption", tag("b", label), *_legend(drawn)),
        _svg(f"{label}: {names}, by {across}", body),
    )


def scatter(label: str, marks: Sequence[Mark], across: str, show_x: Show, show_y: Show) -> Html:
    """Points, told apart by shape, one to each name; from the dense model a dotted line leads to the cut one.

    A point whose figures are not finite has no place; nothing is drawn where no point has one.
    """
    marks = [m for m in marks if known(m.x) and known(m.y)]
    if not marks:
        return NOTHING
    names = list(dict.fromkeys(m.name for m in marks))
    xs, ys = (
        axis([x for m in marks for x in (m.x, *m.span) if known(x)], zero=True),
        axis([m.y for m in marks]),
    )
    at = [(xs.at(m.x, _LEFT, _RIGHT), ys.at(m.y, _BOTTOM, _TOP)) for m in marks]
    ends = [place for role in ("dense", "cut") for m, place in zip(marks, at, strict=True) if m.role == role]
    way = (
        tag(
            "path.way",
            at={"d": f"M{_cut(ends[0][0])} {_cut(ends[0][1])}L{_cut(ends[1][0])} {_cut(ends[1][1])}"},
        )
        if len(ends) == 2
        else NOTHING
    )
    spans = "".join(
        f"M{_cut(xs.at(m.span[0], _LEFT, _RIGHT))} {_cut(y)}H{_cut(xs.at(m.span[1], _LEFT, _RIGHT))}"
        for m, (_, y) in zip(marks, at, strict=True)
        if all(map(known, m.span)) and m.span[0] < m.span[1]
    )
    whiskers = tag("path.span", at={"d": spans}) if spans else NOTHING
    body = (
        _frame(xs, ys, show_x, show_y, across),
        way,
        whiskers,
        *(_shape(m, names.index(m.name), *place) for m, place in zip(marks, at, strict=True)),
    )
    first = {m.name: m for m in reversed(marks)}
    key = (
        tag(
            "span.key",
            tag(
                "svg.swatch",
                _shape(first[name], i, 14, 10),
                at={"viewBox": "0 0 28 20", "aria-hidden": "true"},
            ),
            name,
        )
        for i, name in enumerate(names)
    )
    return tag(
        "figure",
        tag("figcaption", tag("b", label), *key),
        _svg(f"{label}: {'; '.join(f'{m.name} {m.said}' for m in marks)}", body),
    )


def _svg(label: str, body: Sequence[Html]) -> Html:
    return tag("svg.plot", *body, at={"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": label})


def _frame(xs: Axis, ys: Axis, show_x: Show, show_y: Show, across: str) -> Html:
    grid = "".join(f"M{_LEFT} {_cut(ys.at(t, _BOTTOM, _TOP))}H{_RIGHT}" for t in ys.ticks)
    text = [
        tag("text.right", show_y(t), at={"x": _LEFT - 6, "y": ys.at(t, _BOTTOM, _TOP) + 4}) for t in ys.ticks
    ]
    text += [
        tag("text.middle", show_x(t), at={"x": xs.at(t, _LEFT, _RIGHT), "y": _BOTTOM + 17}) for t in xs.ticks
    ]
    return joined(
        (
            tag("path.grid", at={"d": grid}),
            *text,
            tag("text.middle.name", across, at={"x": (_LEFT + _RIGHT) / 2, "y": HEIGHT - 4}),
        )
    )


def _line(series: Series, place: int, xs: Axis, ys: Axis) -> Html:
    at = [(xs.at(x, _LEFT, _RIGHT), ys.at(y, _BOTTOM, _TOP)) for x, y in series.points]
    if len(at) == 1:
        return tag(f"circle.s{place}", at={"cx": at[0][0], "cy": at[0][1], "r": 4})
    return tag(f"polyline.s{place}", at={"points": " ".join(f"{_cut(x)},{_cut(y)}" for x, y in at)})


def _legend(series: Sequence[Series]) -> list[Html]:
    if len(series) < 2:
        return []
    swatches = (
        tag(
            "svg.swatch",
            tag(f"polyline.s{i}", at={"points": "0,5 28,5"}),
            at={"viewBox": "0 0 28 10", "aria-hidden": "true"},
        )
        for i in range(len(series))
    )
    return [tag("span.key", swatch, s.name) for swatch, s in zip(swatches, series, strict=True)]


def _cut_mark(x: float) -> Html:
    return tag(
        "path.cutmark",
        tag("title", "cut"),
        at={
            "d": f"M{_cut(x - 5)} {_TOP - 9}L{_cut(x + 5)} {_TOP - 9}L{_cut(x)} {_TOP}ZM{_cut(x)} {_TOP}V{_BOTTOM}"
        },
    )


def _shape(mark: Mark, place: int, x: float, y: float) -> Html:
    """A circle for the dense model, a filled diamond for the cut one, open shapes for others."""
    outlines = {
        "dense": f"M{_cut(x - 6)} {_cut(y)}a6 6 0 1 0 12 0a6 6 0 1 0 -12 0",
        "cut": f"M{_cut(x)} {_cut(y - 8)}l8 8l-8 8l-8 -8Z",
    }
    plus = f"M{_cut(x - 6)} {_cut(y)}h12M{_cut(x)} {_cut(y - 6)}v12"
    others = (
        f"M{_cut(x - 5)} {_cut(y - 5)}h10v10h-10Z",
        f"M{_cut(x)} {_cut(y - 6)}l6 11h-12Z",
        f"M{_cut(x)} {_cut(y + 6)}l6 -11h-12Z",
        plus,
    )
    return tag(
        f"path.mark.{mark.role}",
        tag("title", f"{mark.name}: {mark.said}"),
        at={"d": outlines.get(mark.role, others[place % len(others)])},
    )


def _thinned(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    if len(points) <= _MOST:
        return points
    return tuple(points[round(i * (len(points) - 1) / (_MOST - 1))] for i in range(_MOST))


def _part(value: float) -> float:
    return min(max(value, 0.0), 1.0) if known(value) else 0.0


def _cut(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
