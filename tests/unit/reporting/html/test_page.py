"""The HTML page: everything of the report is on it, nothing of it becomes markup, nothing is fetched."""

import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify.formatting.table import escape_controls
from sparsify.reporting.headline import write_headline
from sparsify.reporting.html import to_html
from sparsify.reporting.html.axes import make_axis
from sparsify.reporting.html.markup import tag
from sparsify.reporting.html.plots import Mark, Series, draw_bar, draw_lines, draw_scatter
from sparsify.reporting.report_tables import list_tables
from sparsify_schemas.report import Form, Integers, LayerTime, Report, Round, Search, Sparsity, Trial
from sparsify_schemas.table import Steps

GOLDEN = Path(__file__).parents[3] / "golden"
EMPTY = {"meta", "line", "rect", "path", "circle", "polyline", "br", "wbr"}
HOSTILE = '</style><script>alert(1)</script><img src=x onerror=alert(2)>"\' onload="alert(3)" &lt;\x00\u202e'


def report(**changes: Any) -> Report:
    return Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes()).model_copy(update=changes)


class Page(HTMLParser):
    """Tags, attributes and text; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.source = "", text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes)
        self.seen.append((name, dict(attributes)))
        self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        assert name in EMPTY
        self.seen.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += f"{data}\n"

    def of(self, name: str, kind: str = "") -> list[dict[str, str | None]]:
        return [
            at
            for found, at in self.seen
            if found == name and (not kind or kind in (at.get("class") or "").split())
        ]


def texts(found: Report) -> Iterator[str]:
    yield write_headline(found)
    for table in list_tables(found):
        yield from (cell for row in table.rows for cell in row)
        yield from (note for note in table.notes if "kept its width" not in note)


def test_every_figure_and_note_of_the_report_is_on_the_page() -> None:
    shown = Page(to_html(report())).text.splitlines()
    missing = [text for text in texts(report()) if escape_controls(text).removeprefix("- ") not in shown]
    assert missing == []
    assert any(line.endswith("x86_64 with AVX2, 2 cores, trained by 2 processes, seed 0") for line in shown)


def test_the_recipe_stands_there_to_the_letter() -> None:
    recipe = "title: <b> & 'x'\n  # indented\n\nrules: []"
    assert recipe in Page(to_html(report(), recipe)).text
    assert "Recipe" not in Page(to_html(report())).text


def test_nothing_is_fetched_and_nothing_runs() -> None:
    text = to_html(report(), "see https://example.org/x.js")
    page = Page(text)
    assert {name for name, _ in page.seen} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "a",
        "base",
        "form",
    } == set()
    assert not [
        at
        for _, at in page.seen
        for key in at
        if key in ("src", "href", "xlink:href", "srcset") or key.startswith("on")
    ]
    assert set(re.findall(r"url\(([^)]*)\)", text)) == {"#hatch"} and "@import" not in text
    assert {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'",
    } in page.of("meta")


def test_a_hostile_name_stays_text() -> None:
    plain = report()
    layer = plain.layers[0].model_copy(update={"name": HOSTILE, "type": HOSTILE, "protected": HOSTILE})
    timing = plain.latency[0].model_copy(
        update={
            "target": HOSTILE,
            "description": HOSTILE,
            "by_layer": (LayerTime(layer=HOSTILE, dense_ms=1, cut_ms=1),),
        }
    )
    changes = {
        "title": HOSTILE,
        "layers": (layer, *plain.layers[1:]),
        "latency": (timing,),
        "notes": (HOSTILE,),
        "stages": (plain.stages[0].model_copy(update={"name": HOSTILE}), *plain.stages[1:]),
        "limits": (plain.limits[1].model_copy(update={"what": HOSTILE, "asked": HOSTILE}),),
        "environment": plain.environment.model_copy(
            update={"processor": HOSTILE, "packages": {HOSTILE: HOSTILE}}
        ),
    }
    page, harmless = (
        Page(to_html(report(**changes), HOSTILE)),
        Page(to_html(report(**{**changes, "title": "x"}), "x")),
    )
    assert {name for name, _ in page.seen} == {name for name, _ in harmless.seen} and "script" not in {
        name for name, _ in page.seen
    }
    assert not [key for _, at in page.seen for key in at if key.startswith("on")]
    assert page.text.count("alert(1)") > 8 and "\x00" not in page.text and "\u202e" not in page.text


def test_attributes_are_escaped_too() -> None:
    assert (
        tag("svg", "a < b", at={"aria-label": '"><script>'}).text
        == '<svg aria-label="&quot;&gt;&lt;script&gt;">a &lt; b</svg>'
    )


def test_a_bar_is_as_long_as_its_figures() -> None:
    drawn = Page(draw_bar(1.0, 0.4, (0.25, 0.5)).text)
    assert [at["width"] for at in drawn.of("rect")] == ["1000", "400"]
    assert drawn.of("path", "step")[0]["d"] == "M250 0V14M500 0V14"
    assert [at["width"] for at in Page(draw_bar(1.0, 1.7).text).of("rect")] == ["1000", "1000"]
    assert len(Page(draw_bar(1.0, 0.0).text).of("rect")) == 1


def test_widths_show_the_steps_that_the_target_rewards() -> None:
    stepped = report().latency[0].model_copy(update={"steps": Steps(convolution=16, linear=8)})
    page = Page(to_html(report(latency=(stepped,))))
    assert (
        "the widths that are fastest on laptop" in page.text
        and "multiples of 16 (linear layers 8)" in page.text
    )
    assert [at["d"] for at in page.of("path", "step")] == [
        "M800 0V14",
        "M320 0V14M640 0V14M960 0V14",
        "M800 0V14",
    ]


def test_milliseconds_by_layer_where_they_are_predicted_else_macs() -> None:
    assert "MACs by layer" in Page(to_html(report())).text
    spent = (
        LayerTime(layer="conv1", dense_ms=0.2, cut_ms=0.1),
        LayerTime(layer="", dense_ms=0.05, cut_ms=0.05),
    )
    found = Page(to_html(report(latency=(report().latency[0].model_copy(update={"by_layer": spent}),)))).text
    assert "Time by layer" in found and "MACs by layer" not in found
    assert "0.200 to 0.100 ms" in found and "(no layer)" in found


def test_two_figures_share_a_unit_but_no_suffix() -> None:
    found = Page(to_html(report())).text.splitlines()
    assert {"0.412 to 0.217 ms on laptop", "431 k to 42.2 k", "1.65 MiB to 166 KiB"} <= set(found)


def test_predicted_stands_against_measured() -> None:
    timing = report().latency[0].model_copy(update={"predicted_dense_ms": 0.412, "predicted_cut_ms": 0.2387})
    assert "0.217 ms, predicted +10.0 %" in Page(to_html(report(latency=(timing,)))).text


def test_lines_go_through_their_points() -> None:
    page = Page(
        draw_lines("Loss", (Series("training", ((1.0, 2.0), (2.0, 0.0))),), str, zero=True, ends=(2.0,)).text
    )
    (found,) = page.of("polyline")
    assert found["points"] == "228,12 398,212"
    assert draw_lines("Loss", (Series("none", ((1.0, math.nan),)),), str).text == ""


def test_cuts_are_marked_where_they_came() -> None:
    verdict = report().verdict
    rounds = tuple(
        Round(stage=stage, epoch=epoch, macs=1, params=1, verdict=verdict)
        for stage, epoch in (("learn", 7), ("cut", 0))
    )
    marks = Page(to_html(report(rounds=rounds))).of("path", "cutmark")
    assert len(marks) == 2 * 4  # in each of the four plots
    at = {str(mark["d"]).rpartition("M")[2] for mark in marks}
    assert at == {f"{58 + 340 * 7 / 35:g} 12V212", f"{58 + 340 * 30 / 35:.1f} 12V212"}


def test_every_point_has_a_shape_of_its_own_that_the_legend_names() -> None:
    marks = [
        Mark(name, 1.0, 0.5, role, "")
        for name, role in zip("abcdef", ("dense", "cut", "other", "other", "other", "other"), strict=True)
    ]
    found = draw_scatter("x", marks, "ms", str, str).text
    shapes = [re.sub(r"M[\d.]+ [\d.]+", "", str(at["d"])) for at in Page(found).of("path", "mark")]
    assert len(set(shapes[:6])) == 6 and shapes[:6] == shapes[6:], (
        "in the legend and in the plot, of as many baselines as there are"
    )
    assert re.findall(r"</svg>(\w)</span>", found) == [*"abcdef"]


def test_a_point_has_the_interval_of_its_time() -> None:
    timed = (
        report()
        .latency[0]
        .model_copy(update={"dense_ms": 0.4, "cut_ms": 0.2, "speedup": 2.0, "low": 1.6, "high": 4.0})
    )
    (drawn,) = Page(to_html(report(latency=(timed,)))).of("path", "span")
    x = [58 + 340 * ms / 0.4 for ms in (0.1, 0.25)]
    assert re.fullmatch(rf"M{x[0]:g} [\d.]+H{x[1]:g}", str(drawn["d"]))
    assert (
        Page(to_html(report(latency=(timed.model_copy(update={"measured": False}),)))).of("path", "span")
        == []
    )


def test_each_target_has_its_plot_and_macs_stand_in_for_none() -> None:
    assert re.findall("accuracy against ([a-zA-Z ]+)$", Page(to_html(report())).text, re.M) == [
        "time on laptop",
        "time on server",
    ]
    assert re.findall("accuracy against ([a-zA-Z ]+)$", Page(to_html(report(latency=()))).text, re.M) == [
        "MACs"
    ]


def test_floats_and_integers_stand_in_one_plot() -> None:
    forms = [
        Form(model=m, dtype=d, bytes=1, ms={"server": ms}, validation_metric=a, test_metric=None)
        for m, d, ms, a in (
            ("dense", "float32", 2.0, 0.97),
            ("cut", "float32", 1.0, 0.96),
            ("dense", "int8", 1.5, 0.968),
            ("cut", "int8", 0.5, 0.955),
        )
    ]
    page = Page(to_html(report(integers=Integers(examples=100, forms=tuple(forms)))))
    (said,) = (str(at["aria-label"]) for at in page.of("svg", "plot") if "on server" in str(at["aria-label"]))
    assert said.startswith(
        "Validation accuracy against time on server: dense, float32 97.00 % at "
        "2.00 ms; cut, float32 96.00 % at 1.00 ms;"
    )


def test_a_search_is_drawn_and_every_table_has_its_place() -> None:
    trials = [
        Trial(depth=d, macs=m, params=1, validation_metric=a, drop=0.97 - a, inside=i, seconds=1.0)
        for d, m, a, i in (
            (0.5, 900_000, 0.96, True),
            (0.75, 400_000, 0.91, False),
            (0.6, 600_000, 0.955, True),
        )
    ]
    zeros = (Sparsity(what="model", group="", nominal=0.5, effective=0.6, weights=10),)
    text = to_html(report(search=Search(dense=0.97, trials=tuple(trials)), sparsities=zeros), "version: 1")
    page = Page(text)
    assert '<h2>Search for the deepest cut</h2><div class="scroll"' in text, (
        "its table has the width of the page"
    )
    assert re.findall("<h2>(.*?)</h2>", page.source) == [
        "Dense and cut",
        "Limits",
        "Latency",
        "Search for the deepest cut",
        "MACs by layer",
        "Widths",
        "Protected",
        "Training",
        "Zeros",
        "Notes",
        "Recipe",
        "Provenance",
    ]
    said = [
        at["aria-label"]
        for at in page.of("svg", "plot")
        if str(at["aria-label"]).startswith("Validation accuracy")
    ]
    assert said == [
        (
            "Validation accuracy against MACs left: dense 97.00 %; within the limit "
            "96.00 % at 39.2 % of the MACs; over the limit 91.00 % at 17.4 % of the "
            "MACs; taken 95.50 % at 26.2 % of the MACs"
        )
    ]


def test_a_page_of_very_little_and_of_what_is_not_finite() -> None:
    zero = {
        "macs": 0,
        "params": 0,
        "nonzero": 0,
        "bytes": 0,
        "validation_metric": None,
        "test_metric": None,
    }
    none = report(
        dense=report().dense.model_copy(update=zero),
        cut=report().cut.model_copy(update=zero),
        layers=(),
        history=(),
        latency=(),
        limits=(),
        stages=(),
    )
    assert "not measured" in Page(to_html(none)).text
    nan = (
        report()
        .latency[0]
        .model_copy(
            update={
                "speedup": math.nan,
                "low": math.nan,
                "high": math.nan,
                "dense_ms": math.nan,
                "cut_ms": math.nan,
            }
        )
    )
    lost = tuple(
        e.model_copy(update={"loss": math.nan, "validation_loss": math.inf}) for e in report().history
    )
    assert not re.search(r'="[^"]*\b(nan|inf)\b', to_html(report(latency=(nan,), history=lost)))


def test_a_long_run_of_a_deep_network_stays_a_small_file() -> None:
    deep = tuple(report().layers[1].model_copy(update={"name": f"layer{i}.conv"}) for i in range(300))
    long = tuple(report().history[0].model_copy(update={"epoch": i}) for i in range(2000))
    assert len(to_html(report())) < 40_000
    assert len(to_html(report(layers=deep, history=long))) < 250_000


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.booleans(), st.booleans())
def test_an_axis_holds_its_values_and_few_round_ticks(values: list[float], zero: bool, whole: bool) -> None:
    found = make_axis(values, zero=zero, whole=whole)
    room = 1e-9 * (found.high - found.low)
    assert found.low < found.high and found.low - room <= min(values) and max(values) <= found.high + room
    assert 2 <= len(found.ticks) <= 7 and found.ticks[0] == found.low
    assert not zero or found.low <= 0 <= found.high or min(values) > 0
    assert not whole or all(t == round(t) for t in found.ticks)


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [1e-9], [-2.0]])
def test_an_axis_of_one_value_has_room_around_it(values: list[float]) -> None:
    found = make_axis(values)
    assert found.low <= values[0] <= found.high and found.low < found.high


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2."""
    digits = colour.lstrip("#") if len(colour) > 4 else "".join(c * 2 for c in colour.lstrip("#"))
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    return sum(
        w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
        for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
    )


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("mode", [0, 1, 2], ids=["light", "dark", "paper"])
def test_what_is_written_and_drawn_stands_out_from_the_ground(mode: int) -> None:
    """4.5 to 1 for text, 3 to 1 for drawings, as WCAG 2.2 asks; the cut model from the dense one in grey as
    well."""
    sheet = to_html(report()).partition("<style>")[2].partition("</style>")[0]
    palettes = [
        dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", sheet, re.S)
    ]
    assert len(palettes) == 3
    colours = palettes[mode]
    for ground in ("paper", "card"):
        for words in ("ink", "soft", "good", "bad"):
            assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
        for drawn in ("cut", "dense", "third"):
            assert contrast(colours[drawn], colours[ground]) >= 3, (drawn, ground)
    assert contrast(colours["cut"], colours["dense"]) >= 1.3
