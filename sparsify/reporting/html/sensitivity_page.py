"""The page of a profile: a plot for each layer, of what it bears to lose."""

from collections.abc import Callable

from sparsify.formatting.numbers import accuracy, digits, plural, share
from sparsify.reporting.html.document import whole_page
from sparsify.reporting.html.markup import Html, tag
from sparsify.reporting.html.plots import Series, lines
from sparsify_schemas.profile import Curve, Point, Profile


def profile_html(profile: Profile) -> str:
    """A profile as one file of HTML that fetches nothing."""
    title = f"Sensitivity by {profile.by}"
    judged = f"Whole model: accuracy {accuracy(profile.accuracy)}, loss {digits(profile.loss)} on {plural(profile.examples, 'validation example')}."
    head = tag("header", tag("h1", title), tag("p.headline", judged))
    plots = (_plot(profile, curve) for curve in profile.curves)
    return whole_page(
        title, head, tag("main", tag("section", tag("h2", _what(profile)), tag("div.figures", *plots)))
    )


def _what(profile: Profile) -> str:
    if profile.by == "gsm":
        return "Share of a layer's units that would be left out with such a share of all units"
    return f"Validation {_measured(profile)[0]} with a share of a layer's units removed"


def _measured(profile: Profile) -> tuple[str, float, Callable[[float], str]]:
    """What is drawn upwards, its value for the whole model, and how it is shown."""
    match profile.by:
        case "ablation":
            return "accuracy", profile.accuracy, _percent
        case "taylor":
            return "loss", profile.loss, digits
        case "gsm":
            return "share", 0.0, _percent


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if abs(value) < 1e6 else share(value)


def _plot(profile: Profile, curve: Curve) -> Html:
    name, whole, show = _measured(profile)
    points = (
        (0.0, whole),
        *((100 * p.share, y) for p in curve.points if (y := _height(profile, curve, p)) is not None),
    )
    level = Series("whole model", ((0.0, whole), (100.0, whole)))
    limit = profile.limits.get(curve.group)
    ends = () if limit is None or profile.by == "gsm" else (100 * limit.fraction, 100.0)
    title = f"{curve.layers[0]}{f' and {len(curve.layers) - 1} more' if curve.layers[1:] else ''}, {plural(curve.width, 'unit')}"
    allowed = "" if limit is None else f", limit {share(limit.fraction)}"
    series = [Series(name, points), *([] if profile.by == "gsm" else [level])]
    return lines(f"{title}{allowed}", series, show, zero=True, ends=ends, across="share removed, %")


def _height(profile: Profile, curve: Curve, point: Point) -> float | None:
    match profile.by:
        case "ablation":
            return point.accuracy
        case "taylor":
            return point.loss
        case "gsm":
            return point.removed / curve.width
