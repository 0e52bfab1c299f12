"""The page of a sensitivity profile: a plot for each layer, of how much it can lose."""

from collections.abc import Callable

from sparsify.formatting.numbers import count_noun, format_digits, format_share, metric
from sparsify.reporting.html.document import whole_page
from sparsify.reporting.html.markup import Html, tag
from sparsify.reporting.html.plots import Series, draw_lines
from sparsify_schemas.profile import Curve, Point, Profile


def profile_html(profile: Profile) -> str:
    """A profile as one HTML file that fetches nothing."""
    title = f"Sensitivity by {profile.by}"
    examples = count_noun(profile.examples, "validation example")
    sentence = f"Whole model: {describe_metric(profile)}, loss {format_digits(profile.loss)} on {examples}."
    head = tag("header", tag("h1", title), tag("p.headline", sentence))
    plots = (_plot_curve(profile, curve) for curve in profile.curves)
    section = tag("section", tag("h2", _describe_plots(profile)), tag("div.figures", *plots))
    return whole_page(title, head, tag("main", section))


def describe_metric(profile: Profile) -> str:
    """'accuracy 97.53 %', 'perplexity 35.34'."""
    return f"{profile.judged_by.name} {metric(profile.metric, profile.judged_by.percent)}"


def _describe_plots(profile: Profile) -> str:
    if profile.by == "gsm":
        return "Fraction of a layer's units below the threshold, by the fraction of all units below it"
    return f"Validation {_vertical_axis(profile)[0]}, by the fraction of the layer's units removed"


def _vertical_axis(profile: Profile) -> tuple[str, float, Callable[[float], str]]:
    """The name of the value that is drawn, its value for the whole model, and its format."""
    match profile.by:
        case "ablation":
            judged_by = profile.judged_by
            show = _format_percent if judged_by.percent else format_digits
            return judged_by.name, profile.metric, show
        case "taylor":
            return "loss", profile.loss, format_digits
        case "gsm":
            return "share", 0.0, _format_percent


def _format_percent(value: float) -> str:
    return f"{100 * value:.0f} %" if abs(value) < 1e6 else format_share(value)


def _plot_curve(profile: Profile, curve: Curve) -> Html:
    name, whole, show = _vertical_axis(profile)
    points = [(0.0, whole)]
    for point in curve.points:
        y = _take_value(profile, curve, point)
        if y is not None:
            points.append((100 * point.share, y))
    level = Series("whole model", ((0.0, whole), (100.0, whole)))
    limit = profile.limits.get(curve.group)
    ends = () if limit is None or profile.by == "gsm" else (100 * limit.fraction, 100.0)
    more = f" and {len(curve.layers) - 1} more" if curve.layers[1:] else ""
    title = f"{curve.layers[0]}{more}, {count_noun(curve.width, 'unit')}"
    allowed = "" if limit is None else f", limit {format_share(limit.fraction)}"
    series = [Series(name, tuple(points))]
    if profile.by != "gsm":
        series.append(level)
    return draw_lines(f"{title}{allowed}", series, show, zero=True, ends=ends, across="removed, %")


def _take_value(profile: Profile, curve: Curve, point: Point) -> float | None:
    match profile.by:
        case "ablation":
            return point.metric
        case "taylor":
            return point.loss
        case "gsm":
            return point.removed / curve.width
