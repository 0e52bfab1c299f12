"""Plots as inline SVG. Dashes, hatching and shapes tell lines and points apart without colour.

Colours come from style.css (Okabe and Ito's palette for the colour-blind), so a plot suits light and dark
screens and paper.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparsify.formatting.numbers import is_known
from sparsify.reporting.html.axes import SMALLEST, Axis, make_axis
from sparsify.reporting.html.markup import NOTHING, Html, join_markup, tag

Show = Callable[[float], str]
WIDTH, HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 398, 12, 212
_MOST = 300
"""Points of a line; more are thinned evenly."""


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
    """dense, cut, or other."""
    said: str
    """Both figures, shown under the pointer."""
    span: tuple[float, float] = (math.nan, math.nan)
    """Ends of an interval of x; nan where it is unknown."""


def define_hatching() -> Html:
    """The pattern that bars refer to, once on a page."""
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


def draw_bar(before: float, after: float, steps: Sequence[float] = (), label: str = "") -> Html:
    """A hatched track for `before` and a solid bar on it for `after`.

    Both, and the ticks at `steps`, are fractions of the whole width.
    """
    ticks = "".join(f"M{_format_number(1000 * _clamp(x))} 0V14" for x in steps)
    drawn = (
        tag("rect.dense", at={"x": 0, "y": 1, "width": 1000 * _clamp(before), "height": 12}),
        tag("rect.cut", at={"x": 0, "y": 3, "width": 1000 * _clamp(after), "height": 8})
        if _clamp(after)
        else NOTHING,
        tag("path.step", at={"d": ticks}) if ticks else NOTHING,
    )
    return tag(
        "svg.bar",
        *drawn,
        at={"viewBox": "0 0 1000 14", "preserveAspectRatio": "none", "role": "img", "aria-label": label},
    )


def draw_lines(
    label: str,
    series: Sequence[Series],
    show: Show,
    *,
    zero: bool = False,
    ends: Sequence[float] = (),
    cuts: Sequence[float] = (),
    across: str = "epoch",
) -> Html:
    """Lines over epochs, or over what `across` names, with a legend where there are several.

    Args:
        show: Format of the vertical axis.
        zero: Start the vertical axis at zero.
        ends: Where stages end; all but the last get a vertical line.
        cuts: Where the model was cut.
    """
    drawn = [finite for finite in map(_drop_unknown, series) if finite.points]
    if not drawn:
        return NOTHING
    points = [point for s in drawn for point in s.points]
    last = max([*filter(is_known, ends), *(x for x, _ in points)])
    if last <= SMALLEST:
        last = 1.0  # a single point at zero needs an axis as well
    ticks = make_axis([0.0, last], whole=True, most=6).ticks
    xs = Axis(0.0, last, tuple(tick for tick in ticks if tick <= last))
    ys = make_axis([y for _, y in points], zero=zero)
    body = [_draw_frame(xs, ys, lambda x: f"{x:g}", show, across)]
    body += [_end_line(xs.at(x, _LEFT, _RIGHT)) for x in ends[:-1] if is_known(x)]
    body += [_cut_mark(xs.at(x, _LEFT, _RIGHT)) for x in cuts if is_known(x)]
    body += [_draw_line(s, i, xs, ys) for i, s in enumerate(drawn)]
    names = " and ".join(s.name for s in drawn)
    caption = tag("figcaption", tag("b", label), *_draw_legend(drawn))
    return tag("figure", caption, _make_svg(f"{label}: {names}, by {across}", body))


def _drop_unknown(series: Series) -> Series:
    """The finite points of a line, thinned out."""
    points = tuple(point for point in series.points if is_known(point[0]) and is_known(point[1]))
    return Series(series.name, _thin_out(points))


def _end_line(x: float) -> Html:
    return tag("path.end", at={"d": f"M{_format_number(x)} {_TOP}V{_BOTTOM}"})


def draw_scatter(label: str, marks: Sequence[Mark], across: str, show_x: Show, show_y: Show) -> Html:
    """Points with a shape for each name. A dotted line leads from the dense model to the cut one.

    Points that are not finite are left out; without any point nothing is drawn.
    """
    marks = [mark for mark in marks if is_known(mark.x) and is_known(mark.y)]
    if not marks:
        return NOTHING
    names = list(dict.fromkeys(mark.name for mark in marks))
    xs = make_axis([x for mark in marks for x in (mark.x, *mark.span) if is_known(x)], zero=True)
    ys = make_axis([mark.y for mark in marks])
    places = [(xs.at(mark.x, _LEFT, _RIGHT), ys.at(mark.y, _BOTTOM, _TOP)) for mark in marks]
    placed = list(zip(marks, places, strict=True))
    shapes = [_draw_mark(mark, names.index(mark.name), *place) for mark, place in placed]
    body = [
        _draw_frame(xs, ys, show_x, show_y, across),
        _dotted_line(placed),
        _draw_whiskers(placed, xs),
        *shapes,
    ]
    caption = tag("figcaption", tag("b", label), *_mark_legend(marks, names))
    texts = "; ".join(f"{mark.name} {mark.said}" for mark in marks)
    return tag("figure", caption, _make_svg(f"{label}: {texts}", body))


_Placed = Sequence[tuple[Mark, tuple[float, float]]]


def _dotted_line(placed: _Placed) -> Html:
    """From the dense model to the cut one, where there is one of each."""
    ends = [place for role in ("dense", "cut") for mark, place in placed if mark.role == role]
    if len(ends) != 2:
        return NOTHING
    (x0, y0), (x1, y1) = ends
    return tag(
        "path.way",
        at={"d": f"M{_format_number(x0)} {_format_number(y0)}L{_format_number(x1)} {_format_number(y1)}"},
    )


def _draw_whiskers(placed: _Placed, xs: Axis) -> Html:
    parts = []
    for mark, (_, y) in placed:
        low, high = mark.span
        if is_known(low) and is_known(high) and low < high:
            left, right = xs.at(low, _LEFT, _RIGHT), xs.at(high, _LEFT, _RIGHT)
            parts.append(f"M{_format_number(left)} {_format_number(y)}H{_format_number(right)}")
    return tag("path.span", at={"d": "".join(parts)}) if parts else NOTHING


def _mark_legend(marks: Sequence[Mark], names: Sequence[str]) -> list[Html]:
    first = {mark.name: mark for mark in reversed(marks)}
    box = {"viewBox": "0 0 28 20", "aria-hidden": "true"}
    keys = []
    for i, name in enumerate(names):
        swatch = tag("svg.swatch", _draw_mark(first[name], i, 14, 10), at=box)
        keys.append(tag("span.key", swatch, name))
    return keys


def _make_svg(label: str, body: Sequence[Html]) -> Html:
    return tag("svg.plot", *body, at={"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": label})


def _draw_frame(xs: Axis, ys: Axis, show_x: Show, show_y: Show, across: str) -> Html:
    heights = [(tick, ys.at(tick, _BOTTOM, _TOP)) for tick in ys.ticks]
    grid = "".join(f"M{_LEFT} {_format_number(y)}H{_RIGHT}" for _, y in heights)
    parts = [tag("path.grid", at={"d": grid})]
    parts += [tag("text.right", show_y(tick), at={"x": _LEFT - 6, "y": y + 4}) for tick, y in heights]
    for tick in xs.ticks:
        place = {"x": xs.at(tick, _LEFT, _RIGHT), "y": _BOTTOM + 17}
        parts.append(tag("text.middle", show_x(tick), at=place))
    parts.append(tag("text.middle.name", across, at={"x": (_LEFT + _RIGHT) / 2, "y": HEIGHT - 4}))
    return join_markup(parts)


def _draw_line(series: Series, place: int, xs: Axis, ys: Axis) -> Html:
    at = [(xs.at(x, _LEFT, _RIGHT), ys.at(y, _BOTTOM, _TOP)) for x, y in series.points]
    if len(at) == 1:
        return tag(f"circle.s{place}", at={"cx": at[0][0], "cy": at[0][1], "r": 4})
    points = " ".join(f"{_format_number(x)},{_format_number(y)}" for x, y in at)
    return tag(f"polyline.s{place}", at={"points": points})


def _draw_legend(series: Sequence[Series]) -> list[Html]:
    if len(series) < 2:
        return []
    box = {"viewBox": "0 0 28 10", "aria-hidden": "true"}
    keys = []
    for i, s in enumerate(series):
        stroke = tag(f"polyline.s{i}", at={"points": "0,5 28,5"})
        keys.append(tag("span.key", tag("svg.swatch", stroke, at=box), s.name))
    return keys


def _cut_mark(x: float) -> Html:
    left, middle, right = map(_format_number, (x - 5, x, x + 5))
    triangle = f"M{left} {_TOP - 9}L{right} {_TOP - 9}L{middle} {_TOP}Z"
    return tag("path.cutmark", tag("title", "cut"), at={"d": f"{triangle}M{middle} {_TOP}V{_BOTTOM}"})


def _draw_mark(mark: Mark, place: int, x: float, y: float) -> Html:
    """A circle for the dense model, a filled diamond for the cut one, open shapes for others."""
    outlines = {
        "dense": f"M{_format_number(x - 6)} {_format_number(y)}a6 6 0 1 0 12 0a6 6 0 1 0 -12 0",
        "cut": f"M{_format_number(x)} {_format_number(y - 8)}l8 8l-8 8l-8 -8Z",
    }
    plus = f"M{_format_number(x - 6)} {_format_number(y)}h12M{_format_number(x)} {_format_number(y - 6)}v12"
    others = (
        f"M{_format_number(x - 5)} {_format_number(y - 5)}h10v10h-10Z",
        f"M{_format_number(x)} {_format_number(y - 6)}l6 11h-12Z",
        f"M{_format_number(x)} {_format_number(y + 6)}l6 -11h-12Z",
        plus,
    )
    return tag(
        f"path.mark.{mark.role}",
        tag("title", f"{mark.name}: {mark.said}"),
        at={"d": outlines.get(mark.role, others[place % len(others)])},
    )


def _thin_out(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    if len(points) <= _MOST:
        return points
    return tuple(points[round(i * (len(points) - 1) / (_MOST - 1))] for i in range(_MOST))


def _clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0) if is_known(value) else 0.0


def _format_number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
