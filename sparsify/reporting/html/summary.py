"""The head of the page: the title, tiles with the main figures, and the headline."""

from collections.abc import Callable, Iterator

from sparsify.formatting.numbers import (
    count_noun,
    divide,
    drop_zeros,
    format_count,
    format_milliseconds,
    format_share,
    format_size,
    format_times,
    format_tiny,
    is_known,
    metric,
    metric_change,
)
from sparsify.formatting.verdict_text import verdict_words
from sparsify.reporting.headline import list_missed
from sparsify.reporting.html.figure_text import format_pair
from sparsify.reporting.html.markup import NOTHING, Html, tag
from sparsify.reporting.html.plots import draw_bar
from sparsify.reporting.latency_table import find_headline_latency, is_overloaded
from sparsify.reporting.provenance_table import describe_processes, format_minute
from sparsify_schemas.report import Latency, Report


def draw_summary(report: Report, sentence: str) -> Html:
    """Title, tiles with the main figures, and the headline."""
    machine = report.environment
    place = [machine.processor, count_noun(machine.cores, "core")]
    place += filter(None, [describe_processes(report)])
    made = f"{format_minute(report.created)}, {', '.join(place)}, seed {report.seed}"
    return tag(
        "header",
        tag("p.made", made),
        tag("h1", report.title),
        tag("div.tiles", *_list_tiles(report)),
        tag("p.headline", sentence),
    )


def _list_tiles(report: Report) -> Iterator[Html]:
    dense, cut = report.dense, report.cut
    timed = find_headline_latency(report)
    if timed is not None:
        yield _draw_speed(report, timed)
    yield _draw_left("MACs left", dense.macs, cut.macs, format_count)
    yield _draw_left("Parameters left", dense.params, cut.params, format_count)
    yield _draw_left("File left", dense.bytes, cut.bytes, format_size)
    yield from _draw_metric(report)
    yield _draw_verdict(report)


def _draw_speed(report: Report, timed: Latency) -> Html:
    left = divide(1, timed.speedup)
    if left is None:
        left = divide(timed.cut_ms, timed.dense_ms)
    figure, remark = _describe_speed(timed)
    change = f"{format_pair(timed.dense_ms, timed.cut_ms, format_milliseconds)} on {timed.target}"
    warning = ", under load" if is_overloaded(timed, report.environment.cores) else ""
    return _draw_tile(
        "Speed",
        figure,
        f"{remark}{change}{warning}",
        draw_bar(1.0, left or 0.0, label=f"{format_share(left)} of the time left"),
        "bad" if figure.endswith("slower") else "",
    )


def _draw_tile(name: str, figure: str, said: str, drawn: Html = NOTHING, role: str = "") -> Html:
    return tag(
        f"div.tile{f'.{role}' if role else ''}",
        tag("span.name", name),
        tag("strong", figure),
        tag("span.said", said),
        drawn,
    )


def _draw_left(name: str, before: int, after: int, show: Callable[[float], str]) -> Html:
    left = divide(after, before)
    drawn = draw_bar(1.0, left or 0.0, label=f"{format_share(left)} left")
    return _draw_tile(name, format_share(left), format_pair(before, after, show), drawn)


def _describe_speed(timed: Latency) -> tuple[str, str]:
    """(the speed-up or why there is none, a remark before the times)."""
    slower = divide(1, timed.speedup)
    if slower is None or slower <= 0:
        return "not measured", ""
    if not timed.measured:
        return format_times(timed.speedup), "predicted: "
    if timed.low <= 1 <= timed.high:
        return "no difference", "not measurably different: "
    if timed.low > 1:
        return f"{format_times(timed.speedup)} faster", ""
    return f"{format_times(slower)} slower", ""


def _draw_metric(report: Report) -> Iterator[Html]:
    dense, cut, judged_by = report.dense, report.cut, report.metric
    for name, before, after in (
        (f"Test {judged_by.name}", dense.test_metric, cut.test_metric),
        (f"Validation {judged_by.name}", dense.validation_metric, cut.validation_metric),
    ):
        if after is not None and is_known(after):
            compared = "dense not measured"
            if before is not None and is_known(before):
                change = metric_change(after - before, judged_by.percent)
                compared = f"dense {drop_zeros(metric(before, judged_by.percent))}, {drop_zeros(change)}"
            yield _draw_tile(name, drop_zeros(metric(after, judged_by.percent)), compared)
            return
    yield _draw_tile(judged_by.name.capitalize(), "not measured", "the recipe has no data")


def _draw_verdict(report: Report) -> Html:
    missed = list_missed(report)
    verdict = report.verdict
    if missed:
        return _draw_tile("Limits", "MISSED", "; ".join(missed), role="bad")
    met = f"; {count_noun(len(report.limits), 'limit')} met" if report.limits else ""
    if verdict.outcome == "equal":
        return _draw_tile(
            "Cut",
            "verified",
            f"same outputs as the masked model, within {format_tiny(verdict.difference)}{met}",
            role="good",
        )
    if verdict.outcome == "wrong":
        return _draw_tile("Cut", "wrong", f"{verdict_words(verdict)}{met}", role="bad")
    figure = "statistics change" if verdict.outcome == "statistics change" else "nothing cut"
    return _draw_tile("Cut", figure, f"{verdict_words(verdict)}{met}")
