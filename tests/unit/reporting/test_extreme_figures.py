"""Measured numbers as far out as a float goes: every view of a report shows them or says '-', and none
breaks."""

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsify.cost.measure import compare
from sparsify.formatting import numbers
from sparsify.reporting import benchmark_table
from sparsify.reporting.diff import diff_runs
from sparsify.reporting.headline import write_headline
from sparsify.reporting.html import profile_html, to_html
from sparsify.reporting.html.axes import make_axis
from sparsify.reporting.html.plots import Mark, Series, draw_bar, draw_lines, draw_scatter
from sparsify.reporting.latency_table import speed_words
from sparsify.reporting.report_file import read_report
from sparsify.reporting.report_tables import list_tables, to_markdown
from sparsify.runs import limits_met, seed_statistics
from sparsify_cli import changes
from sparsify_schemas.profile import Curve, Point, Profile
from sparsify_schemas.recipe import Recipe
from sparsify_schemas.report import Baseline, Form, Integers, LayerTime, Report, Search, Side, Trial

GOLDEN = Path(__file__).parents[2] / "golden"
FARTHEST = (
    5e-324,
    -5e-324,
    0.0,
    -0.0,
    1e-308,
    1e-300,
    1e-17,
    1.0,
    -1.0,
    1e17,
    1e300,
    1e308,
    -1e308,
    1.797e308,
    -1.797e308,
    math.inf,
    -math.inf,
    math.nan,
)
extreme = st.sampled_from(FARTHEST) | st.floats()
IN_PLOT = {"x": (0, 420), "y": (0, 250), "cx": (58, 398), "cy": (12, 212)}


def report() -> Report:
    """The golden report with all parts that hold measured figures."""
    found = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())
    timed = found.latency[0].model_copy(
        update={
            "predicted_dense_ms": 0.4,
            "predicted_cut_ms": 0.2,
            "by_layer": (
                LayerTime(layer="conv1", dense_ms=0.3, cut_ms=0.1),
                LayerTime(layer="", dense_ms=0.1, cut_ms=0.1),
            ),
        }
    )
    trials = (
        Trial(depth=0.5, macs=900_000, params=1, validation_metric=0.96, drop=0.01, inside=True, seconds=1.0),
        Trial(
            depth=0.7, macs=400_000, params=1, validation_metric=0.91, drop=0.06, inside=False, seconds=1.0
        ),
    )
    forms = tuple(
        Form(model=model, dtype=dtype, bytes=1000, ms={"server": 1.0}, validation_metric=0.9)
        for dtype in ("float32", "int8")
        for model in ("dense", "cut")
    )
    return found.model_copy(
        update={
            "latency": (timed, *found.latency[1:]),
            "baselines": (Baseline(kind="random", side=found.cut, latency=(timed,), verdict=found.verdict),),
            "search": Search(dense=0.97, trials=trials),
            "integers": Integers(examples=10, forms=forms),
        }
    )


def with_figures(value: Any, draw: Callable[[float], float]) -> Any:
    """The same report with every float passed through `draw`."""
    if isinstance(value, float):
        return draw(value)
    if isinstance(value, dict):
        return {key: with_figures(v, draw) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(with_figures(v, draw) for v in value)
    return value


def changed(found: Report, draw: Callable[[float], float]) -> Report:
    return Report.model_validate(with_figures(found.model_dump(), draw))


def cells(found: Report) -> list[str]:
    return [cell for table in list_tables(found) for row in table.rows for cell in row]


def assert_sound(page: str) -> None:
    """No attribute holds what is no number, and nothing is drawn outside its plot."""
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page)
    for svg in re.findall(r'<svg class="plot".*?</svg>', page):
        for name, at in re.findall(r' (x|y|cx|cy)="(-?[\d.]+)"', svg):
            low, high = IN_PLOT[name]
            assert low <= float(at) <= high, (name, at)
        for points in re.findall(r'points="([^"]*)"', svg):
            for point in points.split():
                x, y = map(float, point.split(","))
                assert 58 <= x <= 398 and 12 <= y <= 212, point


def assert_short(texts: list[str]) -> None:
    """No cell spells out hundreds of digits, or says nan or inf."""
    assert [
        text for text in texts if re.search(r"\d{20}", text) and not re.fullmatch("[0-9a-f]+", text)
    ] == []
    assert [text for text in texts if re.search(r"\b(nan|inf)\b", text)] == []


@pytest.mark.parametrize("value", FARTHEST)
def test_a_report_of_one_extreme_number_everywhere(value: float, tmp_path: Path) -> None:
    found = changed(report(), lambda _: value)
    assert_sound(to_html(found))
    assert_short([*cells(found), write_headline(found)])
    to_markdown(found)
    (tmp_path / "report.json").write_text(found.model_dump_json())
    assert repr(read_report(tmp_path)) == repr(found), "a report is read back as it was written"
    differences = diff_runs(report(), found, {}, {})
    assert_short([cell for table in changes.list_tables(differences) for row in table.rows for cell in row])


@given(st.randoms(use_true_random=True))
@settings(max_examples=30)
def test_a_report_of_any_numbers(chance: random.Random) -> None:
    found = changed(report(), lambda old: chance.choice((old, *FARTHEST)))
    assert_sound(to_html(found))
    assert_short([*cells(found), write_headline(found)])
    to_markdown(found)


def test_counts_beyond_any_float_are_no_numbers() -> None:
    huge = Side(params=10**400, nonzero=10**400, macs=10**400, bytes=10**400)
    found = report().model_copy(update={"cut": huge, "dense": huge})
    assert_sound(to_html(found))
    assert ("MACs", "-", "-", "-", "-") not in list_tables(found)[0].rows, "one of the same size is all of it"
    assert list_tables(found)[0].rows[0][:3] == ("MACs", "-", "-")


@given(st.lists(extreme, min_size=1), st.booleans(), st.booleans(), st.sampled_from([4, 6]))
@example([5e-324], False, False, 4)
@example([5e-324], True, True, 4)
@example([0.0, 5e-324], False, False, 4)
@example([2.2e-308, 4.4e-308], False, False, 4)
@example([1.797e308, -1.797e308], False, False, 4)
@example([math.nan, math.inf], False, False, 4)
def test_an_axis_of_any_numbers(values: list[float], zero: bool, whole: bool, most: int) -> None:
    found = make_axis(values, zero=zero, whole=whole, most=most)
    assert math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high
    assert 2 <= len(found.ticks) <= most + 3
    assert all(a < b for a, b in zip(found.ticks, found.ticks[1:], strict=False))
    assert (found.ticks[0], found.ticks[-1]) == (found.low, found.high)
    room = 1e-9 * (found.high / 2 - found.low / 2) + 1e-300
    for value in (v for v in values if abs(v) <= 1e308):
        assert found.low - room <= value <= found.high + room
    at = [found.at(v, 58, 398) for v in sorted(v for v in values if not math.isnan(v))]
    assert all(58 <= x <= 398 for x in at) and at == sorted(at)


def test_no_values_make_an_axis_from_nought_to_one() -> None:
    assert (make_axis([]).low, make_axis([]).high) == (0.0, 1.0)
    assert make_axis([math.nan]) == make_axis([])


@given(st.lists(st.tuples(extreme, extreme), max_size=6), st.lists(extreme, max_size=2), st.booleans())
@example([(5e-324, 1.0)], [], False)
@example([(0.0, 1.0)], [], True)
def test_lines_of_any_numbers_stay_in_their_plot(
    points: list[tuple[float, float]], ends: list[float], zero: bool
) -> None:
    drawn = draw_lines(
        "Loss", (Series("training", tuple(points)),), numbers.format_plain, zero=zero, ends=ends, cuts=ends
    ).text
    assert_sound(drawn)
    assert bool(drawn) == any(math.isfinite(x) and math.isfinite(y) for x, y in points)


@given(st.lists(st.tuples(extreme, extreme, extreme, extreme), max_size=5))
@example([(5e-324, 5e-324, 0.0, 5e-324)])
@example([(math.nan, 1.0, 0.0, 1.0), (1.0, math.inf, 0.0, 1.0)])
def test_points_of_any_numbers_stay_in_their_plot(places: list[tuple[float, float, float, float]]) -> None:
    marks = [Mark(f"m{i}", x, y, "other", "", (low, high)) for i, (x, y, low, high) in enumerate(places)]
    drawn = draw_scatter("Accuracy", marks, "ms", numbers.format_milliseconds, numbers.format_accuracy).text
    assert_sound(drawn)
    shown = [m for m in marks if math.isfinite(m.x) and math.isfinite(m.y)]
    assert drawn.count('<path class="mark other"') == 2 * len(shown), "in the plot and in its legend"


@given(extreme, extreme, st.lists(extreme, max_size=3))
def test_a_bar_of_any_numbers_is_no_longer_than_the_whole(
    before: float, after: float, steps: list[float]
) -> None:
    drawn = draw_bar(before, after, tuple(steps)).text
    assert_sound(drawn)
    assert all(0 <= float(width) <= 1000 for width in re.findall(r'width="([^"]*)"', drawn))


@pytest.mark.parametrize("value", FARTHEST)
def test_a_profile_of_extreme_losses(value: float) -> None:
    points = (
        Point(share=5e-324, removed=1, loss=value, accuracy=value),
        Point(share=0.5, removed=2, loss=0.3, accuracy=0.5),
    )
    for by in ("ablation", "taylor", "gsm"):
        curve = Curve(group="conv1", layers=("conv1",), width=4, points=points)
        page = profile_html(
            Profile(by=by, digest="x", examples=3, loss=value, accuracy=value, curves=(curve,))
        )
        assert_sound(page)
        assert_short(re.findall(r">([^<]+)<", page.partition("</style>")[2]))


@pytest.mark.parametrize(
    ("speedup", "low", "high", "said"),
    [
        (2.0, 1.5, 2.5, "2.00x faster (1.50 to 2.50)"),
        (0.5, 0.4, 0.8, "2.00x slower (1.25 to 2.50)"),
        (0.5, 0.0, 0.8, "2.00x slower (-)"),
        (0.5, 0.0, 1.8, "no measurable difference in speed (0.00 to 1.80)"),
        (0.0, 0.0, 0.0, "speed not measured"),
        (5e-324, 5e-324, 5e-324, "speed not measured"),
        (-1.0, -2.0, -0.5, "speed not measured"),
        (1e308, 1e307, 1.5e308, "1.00e308x faster (1.00e307 to 1.50e308)"),
        (math.inf, math.inf, math.inf, "speed not measured"),
        (math.nan, math.nan, math.nan, "speed not measured"),
    ],
)
def test_a_speed_in_words(speedup: float, low: float, high: float, said: str) -> None:
    timed = report().latency[0].model_copy(update={"speedup": speedup, "low": low, "high": high})
    assert speed_words(timed) == said
    foretold = speed_words(timed.model_copy(update={"measured": False}))
    assert foretold.endswith(" (predicted, not measured)") or foretold == "speed not predicted"
    assert (foretold == "speed not predicted") == (not 0 < speedup < math.inf or speedup < 1e-308)


@pytest.mark.parametrize("value", FARTHEST)
@pytest.mark.parametrize("field", ["a_ms", "b_ms", "speedup", "low", "high", "noise", "load"])
def test_a_contest_of_extreme_numbers(field: str, value: float) -> None:
    sane = {"a_ms": 2.0, "b_ms": 1.0, "speedup": 2.0, "low": 1.9, "high": 2.1, "noise": 1.02, "load": 0.5}
    found = compare.BenchmarkResult(
        target="cpu", description="eager", a="A", b="B", pairs=9, **{**sane, field: value}
    )
    shown = benchmark_table.benchmark_table((found,), 2, "BenchmarkResult")
    assert_short([*(cell for row in shown.rows for cell in row), *shown.notes])
    if field in ("speedup", "low", "high", "noise") and not 0 < value < math.inf:
        assert benchmark_table.describe_result(found) == "speed not measured"


def test_seeds_whose_figures_are_not_finite_have_no_mean() -> None:
    assert (
        seed_statistics._make_spread([1.0, math.inf]) is None
        and seed_statistics._make_spread([1.0, math.nan]) is None
    )
    assert seed_statistics._make_spread([1e308, 1e308]) == seed_statistics.Spread(1e308, 0.0)
    assert seed_statistics._make_spread([1.7e308, -1.7e308]) == seed_statistics.Spread(0.0, None)
    assert seed_statistics._make_spread([5e-324, 0.0]) == seed_statistics.Spread(0.0, 5e-324)


@pytest.mark.parametrize("speedup", [0.0, 5e-324, math.nan])
def test_a_time_that_cannot_be_compared_misses_its_limit(speedup: float) -> None:
    found = report()
    timed = found.latency[0].model_copy(update={"speedup": speedup})
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "title": "t",
            "rules": [{"layers": "*", "group": "filter"}],
            "targets": {timed.target: {"kind": "cpu"}},
            "budget": {"latency": {timed.target: "50%"}},
        }
    )
    (limit,) = limits_met._check_latencies(recipe, (timed,))
    assert not limit.met


@given(extreme)
def test_every_figure_is_short(value: float) -> None:
    shown = (
        numbers.format_share,
        numbers.format_accuracy,
        numbers.format_points,
        numbers.format_count,
        numbers.format_size,
        numbers.format_milliseconds,
        numbers.format_seconds,
        numbers.format_times,
        numbers.format_tiny,
        numbers.format_plain,
        numbers.format_digits,
    )
    for show in shown:
        text = show(value)
        assert (text == "-") == (not math.isfinite(value)), show
        assert 0 < len(text) <= 24 and not re.search("nan|inf", text), show
        assert not text.startswith("-0 ") and text != "-0", show
        assert numbers.add_sign(text).count("+") + text.count("-") <= 3
        assert numbers.drop_zeros(text).rstrip(" %spxBhu")[-1:] != "e"


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (numbers.format_share, 5e-324, "< 0.01 %"),
        (numbers.format_share, -5e-324, "> -0.01 %"),
        (numbers.format_share, -0.0, "0 %"),
        (numbers.format_share, -0.382, "-38.2 %"),
        (numbers.format_share, -0.99999999, "< -99.99 %"),
        (numbers.format_share, 1e308, "1.00e310 %"),
        (numbers.format_share, -1e308, "-1.00e310 %"),
        (numbers.format_accuracy, 1e308, "1.00e310 %"),
        (numbers.format_accuracy, -0.0, "0.00 %"),
        (numbers.format_points, -1e308, "-1.00e310 pp"),
        (numbers.format_count, 1e308, "1.00e296 T"),
        (numbers.format_count, -0.0, "0"),
        (numbers.format_size, 1e308, "9.31e298 GiB"),
        (numbers.format_milliseconds, 1e308, "1.00e305 s"),
        (numbers.format_milliseconds, 5e-324, "5e-321 us"),
        (numbers.format_seconds, 1e308, "2.78e304 h"),
        (numbers.format_times, 1e308, "1.00e308x"),
        (numbers.format_times, 0.0, "0x"),
        (numbers.format_tiny, 1e100, "1e100"),
        (numbers.format_plain, -0.0, "0"),
        (numbers.format_digits, math.nan, "-"),
    ],
)
def test_extreme_examples(show: Callable[[float], str], value: float, text: str) -> None:
    assert show(value) == text
    assert numbers.drop_zeros(text) in (text, text.replace(".00 %", " %"))


def test_a_bound_has_no_second_sign() -> None:
    assert [numbers.add_sign(t) for t in ("< 0.01 %", "> -0.01 %", "> 99.99 %")] == [
        "< 0.01 %",
        "> -0.01 %",
        "> 99.99 %",
    ]


def test_a_quotient_that_is_no_number_is_none() -> None:
    assert numbers.divide(1, 4) == 0.25
    for value, by in (
        (1, 0),
        (1.0, 0.0),
        (1, 5e-324),
        (10**400, 1),
        (math.inf, math.inf),
        (math.nan, 1),
        (1, math.nan),
    ):
        assert numbers.divide(value, by) is None
    assert numbers.divide(1, math.inf) == 0
