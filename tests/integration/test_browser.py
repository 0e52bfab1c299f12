"""The page in a real browser: no complaint on its console, nothing wider than the screen, light, dark and on
a phone.

Needs Chromium (Debian: apt install chromium); skipped without.
"""

import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsify.reporting.html import profile_html, to_html
from sparsify_schemas.profile import Curve, Point, Profile
from sparsify_schemas.report import Baseline, LayerTime, Report, Round
from sparsify_schemas.table import Steps

GOLDEN = Path(__file__).parents[1] / "golden"
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here; Debian: apt install chromium")
QUIET = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()
MEASURE = """<script>
const box = e => e.getBoundingClientRect();
const shown = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, pre, defs, head"));
const wide = shown.filter(e => box(e).right > innerWidth + 1);
const small = [...document.querySelectorAll("svg.plot text")].filter(e => box(e).height < 9);
const bars = [...document.querySelectorAll(".bars svg.bar")];
const named = e => e.tagName + "." + e.getAttribute("class") + ": " + e.textContent.slice(0, 40);
document.title = JSON.stringify({wide: wide.map(named), small: small.length,
  width: innerWidth, bars: bars.map(e => Math.round(box(e).width)),
  plots: document.querySelectorAll("svg.plot").length});
</script>"""


def full() -> Report:
    """A report with everything that a page can show."""
    plain = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())
    names = [f"encoder.layers.{i}.block.convolution{j}" for i in range(9) for j in (1, 2)]
    layers = (*plain.layers, *(plain.layers[1].model_copy(update={"name": name}) for name in names))
    spent = tuple(
        LayerTime(layer=n, dense_ms=0.03 / (i + 1), cut_ms=0.01)
        for i, n in enumerate((*(layer.name for layer in layers), ""))
    )
    laptop = plain.latency[0].model_copy(
        update={
            "predicted_dense_ms": 0.41,
            "predicted_cut_ms": 0.24,
            "by_layer": spent,
            "steps": Steps(convolution=4, linear=16),
        }
    )
    verdict = plain.verdict
    others = tuple(
        Baseline(
            kind=kind,
            side=plain.cut.model_copy(update={"test_metric": reached}),
            latency=(laptop.model_copy(update={"speedup": speed}),),
            cut_metric=0.4,
            verdict=verdict,
        )
        for kind, reached, speed in (
            ("uniform_width", 0.962, 1.8),
            ("random", 0.958, 1.91),
            ("magnitude", 0.9635, 1.88),
        )
    )
    rounds = (
        Round(
            stage="learn", epoch=20, macs=1_000_000, params=100_000, validation_metric=0.91, verdict=verdict
        ),
        Round(stage="cut", macs=1, params=1, verdict=verdict),
    )
    history = tuple(
        e.model_copy(
            update={"loss": 0.1 + 2 * math.exp(-i / 8), "validation_loss": 0.2 + 1.9 * math.exp(-i / 7)}
        )
        for i, e in enumerate(plain.history)
    )
    return plain.model_copy(
        update={
            "latency": (laptop, plain.latency[1]),
            "layers": layers,
            "baselines": others,
            "rounds": rounds,
            "history": history,
        }
    )


RECIPE = (
    "version: 1\n"
    "title: LeNet-5\n"
    "rules:\n"
    "  - {layers: 'conv*', group: filter, penalty: {kind: group_lasso, strength: auto}, keep: "
    "{at_least: 2, multiple_of: auto}}\n"
)


def browse(page: Path, *flags: str, width: int = 1200, height: int = 900) -> tuple[str, list[str]]:
    """What the browser prints, and what stands on the page's console."""
    assert BROWSER is not None
    own = page.parent / f"profile-{page.stem}-{width}"
    command = [
        BROWSER,
        *QUIET,
        f"--user-data-dir={own}",
        "--enable-logging=stderr",
        "--v=0",
        f"--window-size={width},{height}",
        *flags,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def write(folder: Path, text: str, name: str = "page.html") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def brightness(picture: Path) -> float:
    """Mean of the pixels, 0 black to 255 white."""
    image = pytest.importorskip("PIL.Image").open(picture).convert("L")
    counts = image.histogram()
    return float(sum(i * n for i, n in enumerate(counts)) / sum(counts))


@needs_browser
@pytest.mark.parametrize(
    ("how", "flags", "low", "high"), [("light", (), 200, 254), ("dark", ("--force-dark-mode",), 15, 80)]
)
def test_the_browser_shows_the_page_without_a_complaint(
    tmp_path: Path, how: str, flags: tuple[str, ...], low: float, high: float
) -> None:
    picture = tmp_path / f"{how}.png"
    _, console = browse(write(tmp_path, to_html(full(), RECIPE)), f"--screenshot={picture}", *flags)
    assert console == []
    assert low < brightness(picture) < high


@needs_browser
def test_a_page_that_would_fetch_is_complained_about(tmp_path: Path) -> None:
    """So that an empty console means something: the policy on the page itself holds back what slips in."""
    stained = to_html(full()).replace(
        "<main>", '<main><img src="http://127.0.0.1:9/x.png"><script>console.log("ran")</script>'
    )
    _, console = browse(write(tmp_path, stained), f"--screenshot={tmp_path / 'x.png'}")
    assert len(console) == 2 and all("Content Security Policy" in line for line in console)
    assert not any('"ran"' in line and "script" not in line for line in console)


@needs_browser
@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_is_wider_than_the_screen_and_no_label_too_small(tmp_path: Path, width: int) -> None:
    text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", to_html(full(), RECIPE)).replace(
        "</body>", f"{MEASURE}</body>"
    )
    shown, _ = browse(write(tmp_path, text), "--dump-dom", width=width)
    title = re.search("<title>(.*?)</title>", shown)
    assert title is not None
    found = json.loads(html.unescape(title[1]))
    assert (found["wide"], found["small"], found["width"]) == ([], 0, width)
    assert found["plots"] == 6 and min(found["bars"]) > width / 8


@needs_browser
def test_a_long_name_above_a_plot_goes_on_in_the_next_line(tmp_path: Path) -> None:
    name = "feature_extractor_stage_one_with_first_three_by_three_convolution_of_eighty_characters"
    curve = Curve(
        group=name, layers=(name,), width=8, points=(Point(share=0.5, removed=4, loss=1.0, accuracy=0.5),)
    )
    page = profile_html(
        Profile(by="ablation", digest="0", examples=10, loss=0.5, accuracy=0.9, curves=(curve,))
    )
    text = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace(
        "</body>", f"{MEASURE}</body>"
    )
    title = re.search("<title>(.*?)</title>", browse(write(tmp_path, text), "--dump-dom", width=500)[0])
    assert title is not None and json.loads(html.unescape(title[1]))["wide"] == []
