"""What a person sees of plan, apply, bench, report, diff and runs: results on stdout, narration on stderr,
exit codes."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from rich.progress import Progress, TextColumn

import sparsify
from sparsify.events import CutDone, EpochDone, Listener, Note, RunStarted, StageStarted, StepDone
from sparsify.models import digits_cnn
from sparsify.runs.run_folder import State, hash_file
from sparsify_cli import render
from sparsify_cli.app import exit_code, main
from sparsify_cli.progress import draw_events
from sparsify_schemas.report import Baseline, Report

GOLDEN = Path(__file__).parents[2] / "golden"
RECIPE = {
    "version": 1,
    "title": "Digits",
    "model": {"build": "sparsify.models.digits_cnn"},
    "inputs": [{"shape": [2, 1, 8, 8]}],
    "targets": {"laptop": {"kind": "cpu"}},
    "budget": {"macs": "40%"},
    "rules": [{"layers": "Conv2d", "group": "filter"}],
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("SPARSIFY_DEBUG", raising=False)


def write(name: str, **changes: object) -> Path:
    path = Path(name)
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return path


def test_targets_lists_the_presets_and_says_what_is_not_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPARSIFY_TARGETS", str(tmp_path / "mine.yaml"))
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))
    Path("mine.yaml").write_text("big: {kind: cpu, threads: 1000}\nphone: {kind: cpu, table: phone.json}\n")
    assert exit_code(["targets"]) == 0
    page = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in page.partition("big asks")[0].splitlines() if line}
    assert rows["eager"][:4] == ["eager", "1", "1", "float32"] and rows["eager"][-1] == "here"
    assert rows["big"][-1] == "no" and "big asks for 1000 threads, but this machine has" in " ".join(
        page.split()
    )
    assert rows["phone"][:2] == ["by", "table"] and "phone predicted from phone.json." in page
    assert exit_code(["targets", "--json"]) == 0
    assert {row["name"]: row["state"] for row in json.loads(capsys.readouterr().out)}["eager"] == "here"


def test_measuring_a_target_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["targets", "measure", "onnxruntim"]) == 1
    assert capsys.readouterr().err == "there is no target 'onnxruntim'; did you mean 'onnxruntime'?\n"
    assert exit_code(["targets", "measure"]) == 2


def make_run(name: str, *, missed: bool = True, **changes: object) -> Path:
    """A run's folder around the golden report."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    found = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes()).model_copy(
        update={"files": {}, **changes}
    )
    if not missed:
        found = found.model_copy(update={"limits": ()})
    (folder / "report.json").write_text(found.model_dump_json())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "seed": found.seed}))
    return folder


def make_interrupted_run(name: str) -> None:
    """A run's folder without a report, which says how the run was started."""
    folder = make_run(name)
    (folder / "report.json").unlink()
    State(recipe=RECIPE, model_file=None, model_digest=None).write(folder)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = exit_code([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


# report


def test_the_report_on_the_terminal_is_the_golden_one(call) -> None:
    code, out, err = call("report", GOLDEN / "lenet5.report.json")
    assert (code, out, err) == (0, (GOLDEN / "lenet5.report.txt").read_text(), "")


def test_a_report_fits_eighty_columns(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call("report", GOLDEN / "lenet5.report.json", "--history")
    assert max(map(len, out.splitlines())) <= 80


def test_report_as_json_is_the_report(call) -> None:
    _, out, _ = call("report", GOLDEN / "lenet5.report.json", "--json")
    assert Report.model_validate(json.loads(out)) == Report.model_validate_json(
        (GOLDEN / "lenet5.report.json").read_bytes()
    )


def test_report_as_markdown_is_the_golden_page(call) -> None:
    assert (
        call("report", GOLDEN / "lenet5.report.json", "--md")[1] == (GOLDEN / "lenet5.report.md").read_text()
    )


def test_a_missing_run_is_one_line_that_names_what_to_do(call) -> None:
    assert call("report", "nowhere") == (
        1,
        "",
        "nowhere: no such run; 'sparsify runs' lists them, 'sparsify apply' makes one\n",
    )


def test_two_formats_at_once_are_a_usage_error(call) -> None:
    code, out, err = call("report", GOLDEN / "lenet5.report.json", "--json", "--md")
    message = "Invalid value: --json and --md exclude each other"
    assert (code, json.loads(out)) == (2, {"error": "UsageError", "message": message, "problems": []})
    assert message in err


def test_report_as_html_is_the_page_with_the_recipe(call) -> None:
    run = make_run("a")
    code, out, _ = call("report", run, "--html")
    assert code == 0 and out.startswith("<!doctype html>") and "sparsify.models.digits_cnn" in out
    assert call("report", GOLDEN / "lenet5.report.json", "--html")[0] == 0


def test_open_shows_the_page_and_makes_it_anew_where_it_is_missing_or_was_changed(
    call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, opened = make_run("a"), []
    monkeypatch.setattr("webbrowser.open", lambda uri: opened.append(uri) or True)
    page = run / "report.html"
    assert call("report", run, "--open") == (0, f"{page}\n", "")
    assert opened == [page.resolve().as_uri()]
    assert page.read_text() == call("report", run, "--html")[1]
    page.write_text("<script>")
    assert call("report", run, "--open") == (
        1,
        "",
        f"{page} is no page of sparsify any more; rename it, and the page is made again\n",
    )
    assert page.read_text() == "<script>" and len(opened) == 1
    page.rename("mine.html")
    call("report", run, "--open")
    page.write_text(page.read_text().replace("LeNet", "XeNet"))
    call("report", run, "--open")
    assert page.read_text() == call("report", run, "--html")[1]
    page.write_text("as the run left it")
    found = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**found, "files": {"report.html": hash_file(page)}}))
    call("report", run, "--open")
    assert page.read_text() == "as the run left it"


def test_open_without_a_browser_says_where_the_page_is(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda uri: False)
    assert call("report", make_run("a"), "--open")[::2] == (
        1,
        "no browser could be started; open runs/a/report.html in a browser\n",
    )


# diff


def test_recipes_that_mean_the_same_have_no_difference(call) -> None:
    a, b = write("a.yaml"), write("b.yaml", seed=0, targets={"laptop": {"kind": "cpu", "threads": 1}})
    assert call("diff", a, b) == (0, "The two recipes mean the same.\n", "")
    assert call("diff", a, b, "--json")[1] == "[]\n"


def test_a_difference_shows_the_path_both_values_and_the_step_between(call) -> None:
    a, b = (
        write("a.yaml"),
        write(
            "b.yaml",
            budget={"macs": "25%"},
            rules=[{"layers": "Conv2d", "group": "filter", "keep": {"at_least": 4}}],
        ),
    )
    _, out, _ = call("diff", a, b)
    assert out.splitlines() == [
        "Recipe",
        "path                                old  new  change",
        "-" * 52,
        "budget.macs                         40%  25%  -15 pp",
        "rules[Conv2d/filter].keep.at_least  -    4",
    ]
    changes = json.loads(call("diff", a, b, "--json")[1])
    assert changes[0] == {"path": "budget.macs", "old": "40%", "new": "25%", "delta": -15.0, "remark": ""}
    assert "| budget.macs | 40% | 25% | -15 pp |" in call("diff", a, b, "--md")[1]


def test_all_shows_what_is_the_same_as_well(call) -> None:
    out = call("diff", write("a.yaml"), write("b.yaml"), "--all")[1]
    assert "rules[Conv2d/filter].keep.at_least" in out
    assert not any(c["changed"] for c in json.loads(call("diff", "a.yaml", "b.yaml", "--all", "--json")[1]))


def test_two_runs_differ_in_recipe_figures_and_widths(call) -> None:
    a, other = make_run("a"), Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())
    b = make_run(
        "b",
        seed=7,
        cut=other.cut.model_copy(update={"test_metric": 0.97}),
        layers=(other.layers[0].model_copy(update={"outputs_after": 6}),),
    )
    code, out, _ = call("diff", a, b)
    assert code == 0
    assert [line for line in out.splitlines() if line in ("Recipe", "Measured", "Widths")] == [
        "Recipe",
        "Measured",
        "Widths",
    ]
    assert "cut.test_accuracy  97.50 %  97.00 %  -0.50 pp" in out
    assert call("diff", a, a)[1] == "The two runs have the same recipe, figures and widths.\n"


def test_a_run_and_a_recipe_cannot_be_compared(call) -> None:
    code, out, err = call("diff", make_run("a"), write("a.yaml"))
    assert (code, out) == (1, "")
    assert (
        err
        == "runs/a is a run and a.yaml a recipe; compare two runs, or runs/a/recipe.yaml with the recipe\n"
    )


def test_what_is_not_there_cannot_be_compared(call) -> None:
    code, _, err = call("diff", write("a.yaml"), "b.yaml")
    assert code == 1
    assert err.startswith("b.yaml: no such file or folder; give two recipes, or two folders of runs")


@pytest.mark.parametrize(
    "arguments", [["diff", "a.yaml", "b.yaml"], ["diff", "runs/a", "runs/b"], ["report", "runs/a"], ["runs"]]
)
def test_reading_never_imports_torch(arguments: list[str]) -> None:
    write("a.yaml"), write("b.yaml", seed=2), make_run("a"), make_run("b")
    code = (
        f"import sys; from sparsify_cli.app import exit_code; c = exit_code({arguments!r}); "
        "sys.exit(c or 9 * ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# runs


def test_runs_lists_states_and_says_what_needs_doing(call) -> None:
    make_run("lenet-1")
    make_run("lenet-2", missed=False)
    make_interrupted_run("lenet-3")
    (make_run("lenet-4") / "report.json").write_text("{")
    code, out, _ = call("runs")
    assert code == 0
    assert out.splitlines()[2:4] == [
        "lenet-1  complete     2025-11-20 05:41  17.3 %   9.8 %   97.50 %  1.90x  LeNet-5 on MNIST by",
        "                                                                         structured sparsity",
    ]
    assert "lenet-1 missed budget.params." in out
    assert "Continue lenet-3: sparsify apply --resume runs/lenet-3" in out
    assert "lenet-4 is damaged: " in out
    assert [r["state"] for r in json.loads(call("runs", "--json")[1])] == [
        "complete",
        "complete",
        "interrupted",
        "damaged",
    ]


def make_three(call) -> None:
    other = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())
    for name, macs, accuracy in (("lenet-1", 1.0, 0.95), ("lenet-2", 0.5, 0.99), ("lenet-3", 2.0, 0.97)):
        cut = other.cut.model_copy(update={"macs": int(other.cut.macs * macs), "test_metric": accuracy})
        make_run(name, cut=cut)
    make_interrupted_run("lenet-4")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--sort", "metric"], "lenet-2 lenet-3 lenet-1 lenet-4"),
        (["--sort", "-accuracy"], "lenet-1 lenet-3 lenet-2 lenet-4"),
        (["--sort", "macs"], "lenet-2 lenet-1 lenet-3 lenet-4"),
        (["--sort", "-name"], "lenet-4 lenet-3 lenet-2 lenet-1"),
        (["--where", "macs<20%"], "lenet-1 lenet-2"),
        (["--where", "accuracy >= 0.97", "--where", "macs < 20%"], "lenet-2"),
        (["--where", "state=interrupted"], "lenet-4"),
        (["--where", "speed>1.5x", "--sort", "metric"], "lenet-2 lenet-3 lenet-1"),
        (["--where", "macs<1%"], ""),
    ],
)
def test_runs_are_chosen_and_sorted(call, arguments: list[str], names: str) -> None:
    make_three(call)
    found = json.loads(call("runs", *arguments, "--json")[1])
    assert " ".join(row["name"] for row in found) == names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sort", "marcs"], "--sort names 'marcs', which runs do not have; did you mean 'macs'?\n"),
        (
            ["--where", "macs"],
            "--where 'macs' is no condition; write one such as 'macs<50%' or 'state=complete'\n",
        ),
        (
            ["--where", "macs<half"],
            "--where 'macs<half': 'half' is no number; write one such as 50%, 0.5 or 1.5x\n",
        ),
    ],
)
def test_what_runs_do_not_have(call, arguments: list[str], said: str) -> None:
    make_three(call)
    assert call("runs", *arguments) == (1, "", said)


def test_of_a_metric_that_is_better_lower_the_lowest_comes_first(call) -> None:
    make_three(call)
    facts = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes()).metric
    for name, value in (("lenet-5", 40.0), ("lenet-6", 20.0)):
        other = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())
        cut = other.cut.model_copy(update={"test_metric": value})
        lower = facts.model_copy(update={"name": "perplexity", "better": "lower", "percent": False})
        make_run(name, cut=cut, metric=lower)
    found = json.loads(call("runs", "--sort", "perplexity", "--json")[1])
    assert [row["name"] for row in found][:2] == ["lenet-6", "lenet-5"]
    chosen = json.loads(call("runs", "--where", "perplexity<100", "--json")[1])
    assert [row["name"] for row in chosen] == ["lenet-5", "lenet-6"]


def test_a_study_is_no_run(call) -> None:
    folder = Path("runs/search-1")
    folder.mkdir(parents=True)
    (folder / "tune.json").write_text("{}")
    make_interrupted_run("search-1/trial-0")
    unfinished = (
        "runs/search-1 is a study that has not finished; continue it with 'sparsify tune --resume "
        "runs/search-1', or list its trials with 'sparsify runs runs/search-1'\n"
    )
    assert call("report", "runs/search-1") == (1, "", unfinished)
    out = call("runs", "runs/search-1")[1]
    assert "These are trials of a study; continue it: sparsify tune --resume runs/search-1" in out
    (folder / "study.json").write_text("{}")
    said = "runs/search-1 is a study; take a run in it, which 'sparsify runs runs/search-1' lists\n"
    assert call("diff", "runs/search-1", "runs/search-1") == (1, "", said)


def test_metrics_of_different_sets_are_told_apart(call) -> None:
    make_three(call)
    other = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())
    cut = other.cut.model_copy(update={"test_metric": None, "validation_metric": 0.985})
    make_run("lenet-5", cut=cut)
    assert "98.50 % (validation)" in " ".join(call("runs")[1].split())


def test_none_of_the_runs(call) -> None:
    make_three(call)
    assert call("runs", "--where", "macs<1%")[1] == "None of the 4 runs in runs.\n"


def test_several_runs_are_columns(call) -> None:
    make_three(call)
    code, out, _ = call("diff", "runs/lenet-1", "runs/lenet-2", "runs/lenet-3")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["figure", "lenet-1", "lenet-2", "lenet-3"] in lines
    assert ["cut.test_accuracy", "95.00", "%", "99.00", "%", "97.00", "%"] in lines
    rows = json.loads(call("diff", "runs/lenet-1", "runs/lenet-2", "runs/lenet-3", "--json")[1])
    found = {row["path"]: row["values"] for row in rows}
    assert found["metrics.cut.test_accuracy"] == {
        "runs/lenet-1": 0.95,
        "runs/lenet-2": 0.99,
        "runs/lenet-3": 0.97,
    }
    assert (
        call("diff", "runs/lenet-1", "runs/lenet-1", "runs/lenet-1")[1]
        == "The 3 runs have the same recipe, figures and widths.\n"
    )


def test_several_recipes_are_columns(call) -> None:
    write("a.yaml"), write("b.yaml", seed=2), write("c.yaml", seed=3, title="other")
    rows = json.loads(call("diff", "a.yaml", "b.yaml", "c.yaml", "--json")[1])
    found = {row["path"]: list(row["values"].values()) for row in rows}
    assert found["seed"][1:] == [2, 3] and found["title"][2] == "other"
    markdown = call("diff", "a.yaml", "b.yaml", "c.yaml", "--md")[1]
    assert "| path | a.yaml | b.yaml | c.yaml |" in markdown


def test_a_failed_run_is_listed_with_the_error_that_ended_it(call) -> None:
    folder = Path("runs/digits-1")
    folder.mkdir(parents=True)
    State({**RECIPE}, None, None, failure="stage 'learn', epoch 2: the loss is nan").write(folder)
    out = call("runs")[1]
    assert "digits-1  failed" in out
    assert "digits-1 failed: stage 'learn', epoch 2: the loss is nan.\n" in out
    assert "Continue digits-1: sparsify apply --resume runs/digits-1" in out


def test_a_speed_up_whose_interval_holds_one_is_no_difference(call) -> None:
    server = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes()).latency[1]
    make_run("lenet-1", title="LeNet", latency=(server,))
    assert call("runs")[1].splitlines()[2].endswith("97.50 %  no difference  LeNet")


def test_runs_that_differ_in_the_seed_alone_are_one_line_a_model(call) -> None:
    golden = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())
    for seed, reached, other in ((0, 0.97, 0.95), (1, 0.98, 0.97), (2, 0.96, 0.94)):
        cut = golden.cut.model_copy(update={"test_metric": reached})
        rival = Baseline(
            kind="magnitude",
            side=golden.cut.model_copy(update={"test_metric": other}),
            latency=golden.latency[:1],
            verdict=golden.verdict,
        )
        make_run(f"lenet-{seed}", seed=seed, title="LeNet", cut=cut, baselines=(rival,))
    make_run("other-1", title="Other")
    recipe = yaml.safe_load(Path("runs/other-1/recipe.yaml").read_text())
    Path("runs/other-1/recipe.yaml").write_text(yaml.safe_dump({**recipe, "budget": {"macs": "41%"}}))
    make_interrupted_run("broken-1")
    code, out, _ = call("runs", "--seeds", "--json")
    rows = {(r["title"], r["model"]): r for r in json.loads(out)}
    assert code == 0 and set(rows) == {
        ("LeNet", "dense"),
        ("LeNet", "cut"),
        ("LeNet", "magnitude"),
        ("Other", "dense"),
        ("Other", "cut"),
    }
    assert rows["LeNet", "cut"]["seeds"] == [0, 1, 2] and rows["LeNet", "cut"]["metric"] == {
        "mean": pytest.approx(0.97),
        "deviation": pytest.approx(0.01),
    }
    behind = rows["LeNet", "magnitude"]["behind"]
    assert behind == {
        "mean": pytest.approx((0.02 + 0.01 + 0.02) / 3),
        "deviation": pytest.approx(0.01 / 3**0.5),
    }, "seed by seed"
    assert rows["Other", "cut"]["metric"]["deviation"] is None
    table = call("runs", "--seeds")[1]
    assert "97.00 % ± 1.00" in table and "+1.67 pp ± 0.58" in table
    assert "mean ± standard deviation" in table
    assert (
        call("runs", Path("runs").parent / "runs/lenet-0", "--seeds")[1]
        == "No complete runs in runs/lenet-0.\n"
    )


def test_a_seed_counts_once_and_what_is_left_out_is_said(call) -> None:
    golden = Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes())
    rival = Baseline(kind="magnitude", side=golden.cut, latency=golden.latency[:1], verdict=golden.verdict)
    better = golden.cut.model_copy(update={"test_metric": 0.99})
    make_run("lenet-1", seed=0, baselines=(rival,), created="2026-01-02T00:00:00+00:00", cut=better)
    make_run("lenet-2", seed=0, created="2026-01-01T00:00:00+00:00")
    make_run("lenet-3", seed=1, latency=(golden.latency[0].model_copy(update={"target": "elsewhere"}),))
    make_interrupted_run("half-1")
    make_run("other-1")
    recipe = yaml.safe_load(Path("runs/other-1/recipe.yaml").read_text())
    Path("runs/other-1/recipe.yaml").write_text(yaml.safe_dump({**recipe, "budget": {"macs": "41%"}}))
    rows = {(r["model"], r["runs"][0]): r for r in json.loads(call("runs", "--seeds", "--json")[1])}
    assert rows["cut", "lenet-1"]["runs"] == ["lenet-1", "lenet-3"] and rows["cut", "lenet-1"]["seeds"] == [
        0,
        1,
    ]
    assert rows["cut", "lenet-1"]["metric"]["mean"] == pytest.approx((0.99 + golden.cut.test_metric) / 2)
    assert rows["cut", "lenet-1"]["time"] is None, "one was timed on another target"
    assert rows["magnitude", "lenet-1"]["runs"] == ["lenet-1"], "of the run that could make it"
    shown = call("runs", "--seeds")[1]
    assert (
        "2 runs (lenet-1, lenet-3), seed 0, 1" in shown
        and "1 run (other-1), seed 0" in shown
        and "magnitude (1 run)" in shown
    )
    assert "Left out: half-1 (interrupted), lenet-2 (its seed again)." in " ".join(shown.split())


def test_no_runs_and_no_folder(call, tmp_path: Path) -> None:
    assert call("runs", tmp_path)[1] == f"No runs in {tmp_path}.\n"
    code, _, err = call("runs", "nowhere")
    assert code == 1
    assert err.startswith("nowhere: no such folder; ")


# plan


def test_plan_shows_rules_costs_and_what_is_protected(call) -> None:
    code, out, _ = call("plan", write("a.yaml"), "--from-scratch")
    assert code == 0
    for text in (
        "rules.0: filters of Conv2d",
        "narrowed with them",
        "at most 40 %",
        "Protected",
        "it feeds the network's output",
    ):
        assert text in out
    assert json.loads(call("plan", "a.yaml", "--from-scratch", "--json")[1])["preview"]


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_without_a_model_both_ways_are_named(call, command: str) -> None:
    code, out, err = call(command, write("a.yaml"))
    assert (code, out) == (1, "")
    assert "model file" in err
    assert "--from-scratch" in err


def test_a_set_value_shows_in_the_plan(call) -> None:
    assert "at most 70 %" in call("plan", write("a.yaml"), "--from-scratch", "--set", "budget.macs=70%")[1]


# apply


class Faked:
    """Stands in for run.apply: tells its listener what a run tells, and leaves a run's folder."""

    def __init__(self, *, missed: bool = False, interrupt: bool = False) -> None:
        self.missed, self.interrupt = missed, interrupt

    def __call__(self, recipe: Path, model: Path | None, *, listener: Listener, **rest: object) -> Path:
        for event in events():
            listener(event)
            if self.interrupt and isinstance(event, EpochDone):
                raise KeyboardInterrupt
        return make_run("digits-1", missed=self.missed)


def events() -> Iterator[RunStarted | StageStarted | StepDone | EpochDone | CutDone | Note]:
    yield RunStarted("runs/digits-1")
    yield StageStarted("learn", "train", 2, 2)
    for epoch in (1, 2):
        yield StepDone("learn", epoch, 1, 0.5)
        yield StepDone("learn", epoch, 2, 0.4)
        yield EpochDone("learn", epoch, 0.45, 0.9, 0.91, 0.25, (("macs", 0.62), ("peak_memory", 0.8)), 1.5)
    yield StageStarted("cut", "cut", 0, 0)
    yield CutDone("equal", 3e-16, (2000, 800), (1000, 300))
    yield Note("measuring")


def fake(monkeypatch: pytest.MonkeyPatch, **how: bool) -> None:
    monkeypatch.setattr("sparsify.runs.apply.apply", Faked(**how))


def test_apply_shows_the_report_and_tells_the_rest_on_stderr(call, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    code, out, err = call("apply", "a.yaml", "--from-scratch")
    assert code == 0
    assert out.startswith("LeNet-5 on MNIST by structured sparsity learning\n17.3 % of the MACs")
    assert err.splitlines() == [
        "run runs/digits-1",
        "learn: 2 epochs of 2 steps",
        "learn, epoch 1: loss 0.45, val 91.00 %, zero 25.0 %, MACs 62.0 %, peak memory 80.0 %, 1.5 s",
        "learn, epoch 2: loss 0.45, val 91.00 %, zero 25.0 %, MACs 62.0 %, peak memory 80.0 %, 1.5 s",
        "cut: equal (difference 3e-16); MACs 2.00 k -> 800, parameters 1.00 k -> 300",
        "measuring",
        "saved in runs/digits-1; with plots: sparsify report runs/digits-1 --open",
    ]


def test_a_missed_limit_exits_with_three(call, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, missed=True)
    code, out, err = call("apply", "a.yaml", "--from-scratch", "--quiet", "--json")
    assert code == 3
    assert json.loads(out)["seed"] == 0
    assert err.splitlines() == [
        "saved in runs/digits-1; with plots: sparsify report runs/digits-1 --open",
        "missed: parameters 42.2 k (limit 40 k)",
    ]


def test_an_interrupt_says_how_to_go_on(call, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, interrupt=True)
    code, out, err = call("apply", "a.yaml", "--from-scratch")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted; continue with: sparsify apply --resume runs/digits-1"


def test_apply_without_anything_is_a_usage_error(call) -> None:
    code, _, err = call("apply")
    assert code == 2
    assert "give a recipe (and a model), or --resume RUN" in err


def test_apply_and_bench_on_a_real_model(call) -> None:
    code, out, err = call("apply", write("a.yaml"), "--from-scratch", "--quiet")
    assert (code, err) == (0, "saved in runs/digits-1; with plots: sparsify report runs/digits-1 --open\n")
    assert "cut verified: equal to the masked model (difference" in " ".join(out.split())
    code, out, err = call("bench", "runs/digits-1", "--seconds", "0.1")
    assert (code, err) == (0, "timing dense against cut on laptop for 0.1 s\n")
    assert out.splitlines()[1].split() == [
        "target",
        "dense",
        "cut",
        "speed-up",
        "95",
        "%",
        "interval",
        "noise",
        "rounds",
        "load",
    ]
    (timed,) = json.loads(call("bench", "runs/digits-1", "runs/digits-1", "--seconds", "0.1", "--json")[1])
    assert timed["low"] <= timed["speedup"] <= timed["high"]
    assert (timed["a"], timed["b"]) == ("runs/digits-1", "runs/digits-1")
    assert timed["a_ms"] > 0 and timed["noise"] >= 1
    assert (
        call("bench", "runs/digits-1", "--on", "laptp")[2]
        == "there is no target 'laptp'; did you mean 'laptop'?\n"
    )


def test_a_run_without_inputs_in_its_recipe_is_timed_on_those_of_its_plan(call) -> None:
    recipe = {key: value for key, value in RECIPE.items() if key != "inputs"}
    model = digits_cnn().eval()
    sparsify.save_run(
        sparsify.cut(sparsify.make_plan(recipe, model, (torch.rand(2, 1, 8, 8),)), model), "mine", timing=0.05
    )
    code, out, _ = call("bench", "mine", "--seconds", "0.1", "--json")
    assert (code, [row["target"] for row in json.loads(out)]) == (0, ["laptop"])


def test_a_plan_from_scratch_says_that_its_weights_are_random(call) -> None:
    assert (
        "A cut by the current weights (which are random) would leave"
        in call("plan", write("a.yaml"), "--from-scratch")[1]
    )
    torch.save(digits_cnn().state_dict(), "model.pt")
    assert "A cut by the current weights would leave" in call("plan", "a.yaml", "model.pt")[1]


def test_a_run_as_the_model_is_said_to_come_before_the_models_builder(call) -> None:
    assert call("apply", write("a.yaml"), "--from-scratch", "--quiet")[0] == 0
    note = (
        "the dense model is the cut model of the run digits-1; "
        "the recipe's own model (sparsify.models.digits_cnn) is not used"
    )
    flat = " ".join(call("plan", "a.yaml", "runs/digits-1", "--set", "budget.macs=90%")[1].split())
    assert note in flat
    assert call("apply", "a.yaml", "runs/digits-1", "--set", "budget.macs=90%", "--quiet")[0] == 0
    assert note in json.loads(call("report", "runs/digits-2", "--json")[1])["notes"]


def test_apply_says_how_its_threads_are_set(call) -> None:
    assert "OMP_NUM_THREADS" in call("apply", "--help")[1]


def test_bench_of_a_run_that_is_not_there(call) -> None:
    assert call("bench", "runs/none")[0] == 1


# the terminal


def test_the_bar_fits_eighty_columns_and_a_stage_leaves_one_line() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    with Progress(
        TextColumn("{task.description}"),
        TextColumn("{task.fields[figures]}"),
        console=console,
        auto_refresh=False,
    ) as bar:
        listener = draw_events(bar, lambda text: bar.console.print(text, markup=False))
        for event in events():
            listener(event)
        assert not [t for t in bar.tasks if t.description == "learn"]
    shown = stream.getvalue()
    assert "learn: 2 epochs, loss 0.45, val 91.00 %, zero 25.0 %, MACs 62.0 %" in shown
    assert "cut: equal (difference 3e-16)" in shown


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_bold_titles_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch, call) -> None:
    assert "\x1b" not in call("report", GOLDEN / "lenet5.report.json")[1]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for no_color, code in ((False, "\x1b[1;31m"), (True, "\x1b[1m")):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        exit_code(["report", str(GOLDEN / "lenet5.report.json")])
        assert code in stream.getvalue()
        assert ("\x1b[32m" in stream.getvalue()) is not no_color


def test_json_has_null_where_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    render.show_json({"a": [float("nan"), 1.5], "b": float("inf")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": None}


def test_a_pipe_that_closes_is_no_error() -> None:
    command = (
        f"{sys.executable} -c 'from sparsify_cli.app import main; "
        f"main()' report {GOLDEN / 'lenet5.report.json'} | head -1"
    )
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=env, check=False)
    assert (done.stdout, done.stderr) == ("LeNet-5 on MNIST by structured sparsity learning\n", "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
    ids=str,
)
def test_threads_wait_for_a_short_time_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_torch_is_loaded_after_the_command_line_has_said_how_threads_wait() -> None:
    code = "import sys, sparsify_cli.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
