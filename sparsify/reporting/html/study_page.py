"""The page of a study: trade-off and course of all trials, importance of parameters, recipe."""

from collections.abc import Callable
from functools import partial

from sparsify.formatting.numbers import (
    divide,
    drop_zeros,
    format_count,
    format_milliseconds,
    format_share,
    format_size,
    is_known,
    metric,
)
from sparsify.reporting import study_tables
from sparsify.reporting.html.document import whole_page
from sparsify.reporting.html.figure_text import format_percent
from sparsify.reporting.html.markup import NOTHING, Html, join_markup, quote_lines, tag
from sparsify.reporting.html.plots import Mark, Series, define_hatching, draw_bar, draw_lines, draw_scatter
from sparsify.reporting.html.tables import draw_table
from sparsify_schemas.study import Study, find_cost


def study_html(study: Study, recipe: str | None = None) -> str:
    """A study as one HTML file that fetches nothing. recipe: the text of its recipe, shown at the end."""
    chosen = study_tables.make_chosen_table(study)
    table = NOTHING if chosen is None else draw_table(chosen, heading=False)
    text = NOTHING if recipe is None else quote_lines(recipe)
    plots = tag("div.figures", draw_front(study), draw_course(study))
    notes = NOTHING
    if study.notes:
        notes = tag("ul", *(tag("li", note) for note in study.notes))
    trials = draw_table(study_tables.make_trials_table(study), heading=False)
    main = tag(
        "main",
        _make_section("Trade-off", plots),
        _make_section(study_tables.CHOSEN, table),
        _make_section("Parameters of the chosen trials", *_list_parameters(study)),
        _make_section(study_tables.IMPORTANCE, draw_importance(study)),
        _make_section(study_tables.TRIALS, trials),
        _make_section(study_tables.NOTES, notes),
        _make_section("Recipe", text),
    )
    way = f"sampler {study.sampler}, early stopping {study.early_stopping}, seed {study.seed}"
    head = tag(
        "header",
        tag("p.made", f"{study.created.replace('T', ' ')[:16]} UTC, {way}"),
        tag("h1", f"{study.title}: study"),
        tag("p.headline", study_tables.write_study_headline(study)),
    )
    return whole_page(f"{study.title}: study", define_hatching(), head, main)


def _make_section(title: str, *content: Html) -> Html:
    inside = join_markup(content)
    return tag("section", tag("h2", title), inside) if inside.text else NOTHING


def _list_parameters(study: Study) -> list[Html]:
    if not study.chosen:
        return []
    parts = []
    for number in study.chosen:
        values = study.trials[number].parameters
        shown = [f"{name}: {study_tables.to_flow_text(value)}" for name, value in values.items()]
        parts.append(tag("p", f"trial {number}: {', '.join(shown)}"))
    return parts


def draw_front(study: Study) -> Html:
    """The validated metric of every complete trial against its cost, beside the dense model.

    The cost is the second objective; where the metric alone decides it is the MACs.
    """
    cost = study.cost or "macs"
    show = partial(metric, percent=study.judged_by.percent)
    dense = None if study.dense is None else find_cost(study.dense.costs, cost)
    is_share = dense is not None and dense > 0 and not cost.startswith("latency.")
    marks = []
    if study.dense is not None and study.dense.metric is not None and dense is not None:
        marks.append(_make_mark(study, "dense", "dense", study.dense.metric, dense, dense, is_share))
    for row in study.trials:
        spent = find_cost(row.costs, cost)
        if row.state != "complete" or row.metric is None or not is_known(spent):
            continue
        is_chosen = row.number in study.chosen
        kind = "chosen" if is_chosen else "trial"
        role = "cut" if is_chosen else "other"
        marks.append(_make_mark(study, kind, role, row.metric, spent, dense or 1.0, is_share, row.number))
    if len(marks) < 2:
        return NOTHING
    name = f"Validation {study.judged_by.name}"
    across = _name_cost(cost) + (" left" if is_share else "")
    ticks = format_percent if is_share else _choose_format(cost)
    return draw_scatter(f"{name} against {across}", marks, across, ticks, lambda y: drop_zeros(show(y)))


_NAMES = {"macs": "MACs", "params": "parameters", "bytes": "size of the file"}


def _name_cost(cost: str) -> str:
    return _NAMES.get(cost) or f"time on {cost.removeprefix('latency.')}"


def _make_mark(
    study: Study,
    name: str,
    role: str,
    reached: float,
    spent: float,
    dense: float,
    is_share: bool,
    number: int | None = None,
) -> Mark:
    cost = study.cost or "macs"
    shown = f"{metric(reached, study.judged_by.percent)} at {_choose_format(cost)(spent)}"
    said = shown if number is None else f"trial {number}: {shown}"
    return Mark(name, spent / dense if is_share else spent, reached, role, said)


def _choose_format(cost: str) -> Callable[[float], str]:
    if cost.startswith("latency."):
        return format_milliseconds
    return format_size if cost == "bytes" else format_count


def draw_course(study: Study) -> Html:
    """The metric of each complete trial by its number, and the best one so far."""
    better = max if study.judged_by.better == "higher" else min
    points: list[tuple[float, float]] = []
    so_far: list[tuple[float, float]] = []
    for row in study.trials:
        if row.state != "complete" or row.metric is None:
            continue
        points.append((float(row.number + 1), row.metric))
        best = row.metric if not so_far else better(so_far[-1][1], row.metric)
        so_far.append((float(row.number + 1), best))
    if len(points) < 2:
        return NOTHING
    show = partial(metric, percent=study.judged_by.percent)
    label = f"Validation {study.judged_by.name} by trial"
    series = [Series("trial", tuple(points)), Series("best so far", tuple(so_far))]
    return draw_lines(label, series, lambda y: drop_zeros(show(y)), across="trials begun")


def draw_importance(study: Study) -> Html:
    """A bar for each parameter."""
    table = study_tables.make_importance_table(study)
    if table is None:
        return NOTHING
    tiles = [
        tag(
            "div.tile",
            tag("span.name", name),
            tag("strong", format_share(share)),
            draw_bar(1.0, divide(share, 1.0) or 0.0, label=f"{format_share(share)} of {name}"),
        )
        for name, share in study.importance.items()
    ]
    return join_markup((tag("div.tiles", *tiles), *(tag("p.note", note) for note in table.notes)))
