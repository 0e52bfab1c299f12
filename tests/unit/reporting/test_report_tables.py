"""A report as a page: the golden Markdown, and honest words.

The golden pages are made by `sparsify report tests/golden/lenet5.report.json` (--md for the Markdown).
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sparsify.errors import RunError
from sparsify.reporting.headline import write_headline
from sparsify.reporting.html import to_html
from sparsify.reporting.latency_table import latency_table
from sparsify.reporting.provenance_table import provenance_table
from sparsify.reporting.report_file import read_report
from sparsify.reporting.report_tables import list_tables, to_markdown
from sparsify.reporting.training_tables import agreement_table, history_table
from sparsify_schemas.report import Agreement, Baseline, Latency, Limit, Report, StageRow
from sparsify_schemas.task import BUILT_IN

GOLDEN = Path(__file__).parents[2] / "golden"


def report(**changes: Any) -> Report:
    return Report.model_validate_json((GOLDEN / "lenet5.report.json").read_bytes()).model_copy(update=changes)


def timing(**changes: Any) -> Latency:
    return report().latency[0].model_copy(update=changes)


def words(**changes: Any) -> str:
    return write_headline(report(latency=(timing(**changes),)))


def test_the_page_is_the_golden_one() -> None:
    assert to_markdown(report()) == (GOLDEN / "lenet5.report.md").read_text()


def test_the_headline_says_what_came_out_and_what_was_missed() -> None:
    assert write_headline(report(latency=report().latency[:1])) == (
        "17.3 % of the MACs, 9.8 % of the parameters, 1.90x faster (1.85 to 1.95) "
        "on laptop, test accuracy 97.5 % (dense 97.8 %, -0.3 pp); "
        "cut verified: equal to the masked model (difference 3e-16). Missed: parameters 42.2 k (limit 40 k)."
    )


def test_an_accuracy_after_more_training_is_not_put_down_to_the_cut() -> None:
    tuned = report(
        cut=report().cut.model_copy(update={"epochs": 35}),
        dense=report().dense.model_copy(update={"epochs": 30}),
    )
    assert "test accuracy 97.5 % after 5 more epochs of training (dense 97.8 %, -0.3 pp)" in write_headline(
        tuned
    )
    assert "The cut model was trained for 5 more epochs than the dense one." in list_tables(tuned)[0].notes


def test_an_interval_that_holds_one_is_no_difference() -> None:
    assert "no measurable difference in speed (0.97 to 1.07) on laptop" in words(
        speedup=1.02, low=0.97, high=1.07
    )
    assert "faster" not in words(speedup=1.02, low=1.0, high=1.07)


def test_slower_is_called_slower() -> None:
    assert "1.25x slower (1.11 to 1.43) on laptop" in words(speedup=0.8, low=0.7, high=0.9)


def test_an_interval_close_to_one_shows_on_which_side_it_lies() -> None:
    assert "(1.002 to 1.030)" in words(speedup=1.01, low=1.002, high=1.03)


def test_a_speed_that_was_not_measured_is_not_claimed() -> None:
    assert "speed not measured" in words(speedup=math.nan, low=math.nan, high=math.nan)


def test_predicted_stands_against_measured() -> None:
    found = timing(predicted_dense_ms=2.0, predicted_cut_ms=1.2, dense_ms=2.0, cut_ms=1.0, speedup=2.0)
    assert (
        "laptop: predicted 1.20 ms (60.0 % of dense), measured 1.00 ms (50.0 %); "
        "the fraction is off by +20.0 %."
    ) in latency_table((found,), 2).notes


def test_one_run_has_one_share_of_the_time_that_is_left() -> None:
    """The ratio over pairs, by which a budget is judged, is not the ratio of the medians."""
    found = report(
        latency=(timing(predicted_dense_ms=2.0, predicted_cut_ms=1.0, dense_ms=2.0, cut_ms=1.1, speedup=2.0),)
    )
    page, text = to_html(found), str(latency_table(found.latency, 2).notes)
    assert (
        "50.0 % of the time left" in page
        and "measured 1.10 ms (50.0 %)" in text
        and "55.0 %" not in page + text
    )


def test_a_latency_limit_is_shown_as_it_was_asked_for() -> None:
    missed = Limit(what="budget.latency.laptop", asked="2.5ms", limit=2.5, achieved=3.0, met=False)
    share = missed.model_copy(update={"asked": "60%", "limit": 0.6, "achieved": 0.7})
    assert write_headline(report(limits=(missed, share))).endswith(
        "Missed: time on laptop 3.00 ms (limit 2.5 ms), time on laptop 70.0 % (limit 60 %)."
    )


def test_what_a_table_predicts_is_not_called_measured() -> None:
    phone = timing(target="phone", measured=False, speedup=2.0, low=2.0, high=2.0, pairs=0)
    assert "2.00x faster (predicted, not measured) on phone" in write_headline(report(latency=(phone,)))
    assert "1.25x slower (predicted" in write_headline(
        report(latency=(phone.model_copy(update={"speedup": 0.8}),))
    )
    assert latency_table((phone,), 2).rows[0][4] == "-"


@pytest.mark.parametrize(("other", "said"), [(0.5, "lower by 0.1250 than"), (0.25, "higher by 0.1250 than")])
def test_a_metric_that_is_better_when_lower_leads_where_it_is_lower(other: float, said: str) -> None:
    rmse = {"test_metric": 0.375}
    side = report().cut.model_copy(update={"test_metric": other})
    found = report(
        metric=BUILT_IN["rmse"],
        cut=report().cut.model_copy(update=rmse),
        baselines=(
            Baseline(kind="random", side=side, latency=(), cut_metric=None, verdict=report().verdict),
        ),
    )
    table = next(t for t in list_tables(found) if t.title == "Compared with baselines")
    assert any(note.startswith(f"Rmse of the cut model: {said} random.") for note in table.notes)


def test_baselines_stand_beside_the_cut_model_on_one_yardstick() -> None:
    own = report().cut.model_copy(update={"macs": 390_000, "test_metric": 0.98, "epochs": 5})
    fast = timing(dense_ms=0.5, cut_ms=0.25, speedup=2.0)
    found = report(
        latency=(timing(dense_ms=0.4, cut_ms=0.2),),
        cut=report().cut.model_copy(update={"epochs": 35}),
        baselines=(
            Baseline(kind="magnitude", side=own, latency=(fast,), cut_metric=0.5, verdict=report().verdict),
        ),
    )
    table = next(t for t in list_tables(found) if t.title == "Compared with baselines")
    assert table.rows[2] == ("magnitude", "17.0 %", "9.8 %", "0.200 ms", "50.00 %", "97.60 %", "98.00 %", "5")
    assert (
        "Accuracy of the cut model: -0.50 pp over magnitude. One run each: a few "
        "tenths of a point may be chance."
    ) in table.notes
    assert (
        table.notes[-1]
        == "The cut model was trained for more epochs in this run than magnitude: those before its cut."
    )
    assert not [t for t in list_tables(report()) if t.title == "Compared with baselines"]


def test_a_baseline_that_did_not_come_to_the_same_time_is_warned_of() -> None:
    def notes(speedup: float) -> tuple[str, ...]:
        own = Baseline(
            kind="by_macs",
            side=report().cut,
            latency=(timing(speedup=speedup, low=speedup - 0.01, high=speedup + 0.01),),
            verdict=report().verdict,
        )
        limit = Limit(what="budget.latency.laptop", asked="60%", limit=0.6, achieved=0.5, met=True)
        found = report(latency=(timing(speedup=2.0, low=1.99, high=2.01),), limits=(limit,), baselines=(own,))
        return next(t for t in list_tables(found) if t.title == "Compared with baselines").notes

    assert (
        "Warning: by_macs takes 1.25x the time of the cut model on laptop: none "
        "of its cuts that were timed came to the same cost."
    ) in notes(1.6)
    assert not any("Warning" in note for note in notes(1.95))
    assert notes(1.6)[0].startswith(
        "What each removes: by_macs: the recipe's criterion per MAC. Each is cut once, to at most the cost"
    )


def test_load_above_the_cores_is_a_warning() -> None:
    busy = timing(load=2.1)
    assert "(timed under load)" in words(load=2.1)
    assert any(
        note.startswith("Warning: laptop was timed at a load average of 2.1 on 2 cores")
        for note in latency_table((busy,), 2).notes
    )
    assert not any("Warning" in note for note in latency_table((busy,), 4).notes)


def test_without_data_the_accuracy_was_not_measured() -> None:
    bare = {"validation_metric": None, "test_metric": None}
    found = report(dense=report().dense.model_copy(update=bare), cut=report().cut.model_copy(update=bare))
    assert "accuracy not measured" in write_headline(found)
    assert "accuracy" not in str(list_tables(found)[0].rows)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("equal", "equal to the masked model (difference 3e-16)"),
        ("statistics change", "verified against the masked model with renormalised statistics"),
        ("nothing cut", "nothing was cut"),
    ],
)
def test_the_verdict_is_said_in_words(outcome: str, said: str) -> None:
    assert said in write_headline(report(verdict=report().verdict.model_copy(update={"outcome": outcome})))


def test_a_check_that_could_not_see_the_cut_is_a_warning() -> None:
    blind = report(verdict=report().verdict.model_copy(update={"control": 0.0}))
    assert any(note.startswith("Warning") for note in list_tables(blind)[0].notes)


@pytest.mark.parametrize(
    ("correlation", "error", "said"),
    [
        (0.2, 3.0, ""),
        (
            0.1,
            3.0,
            "Warning: after 'cut' the outputs hardly follow the inputs (correlation with the dense outputs "
            "0.100); cut less, choose by criterion 'reconstruction', limit what each layer loses by "
            "keep.limits, or repair.",
        ),
        (
            0.0,
            0.0,
            "Warning: nothing tells whether the outputs after 'cut' follow the inputs: the dense model "
            "returns the same for all examples that were compared; look at the model and its data.",
        ),
    ],
)
def test_outputs_that_do_not_follow_the_inputs_are_warned_of(
    correlation: float, error: float, said: str
) -> None:
    agreement = Agreement(correlation=correlation, error=error)
    stages = (StageRow(name="cut", kind="cut", seconds=1.0, agreement=agreement),)
    assert list(agreement_table(report(stages=stages)).notes) == ([said] if said else [])


def test_zeros_that_are_stored_are_told_apart_from_what_is_gone() -> None:
    sparse = report(cut=report().cut.model_copy(update={"nonzero": report().cut.params // 2}))
    assert "50.0 % of what remains is zero but stored" in write_headline(sparse)


def test_nothing_is_divided_by_zero() -> None:
    empty = {"macs": 0, "params": 0, "nonzero": 0, "bytes": 0}
    found = report(dense=report().dense.model_copy(update=empty), cut=report().cut.model_copy(update=empty))
    assert "- of the MACs" in to_markdown(found)


def test_layers_without_work_of_their_own_are_counted_not_listed() -> None:
    norm = (
        report()
        .layers[0]
        .model_copy(update={"name": "bn1", "type": "BatchNorm2d", "macs": 0, "macs_after": 0})
    )
    table = next(t for t in list_tables(report(layers=(*report().layers, norm))) if t.title == "Layers")
    assert "bn1" not in [row[0] for row in table.rows]
    assert table.notes[-1].startswith("1 layer without MACs")


def test_the_terminal_folds_many_layers_to_those_that_changed() -> None:
    whole = report().layers[0].model_copy(update={"outputs_after": 20, "params_after": 520})
    found = report(
        layers=(*report().layers, *(whole.model_copy(update={"name": f"whole{i}"}) for i in range(30)))
    )
    short, long = (
        next(t for t in list_tables(found, every_layer=e) if t.title == "Layers") for e in (False, True)
    )
    assert (len(short.rows), len(long.rows)) == (4, 34)
    assert "30 layers that kept all weights not shown; --md and --json show them." in short.notes


def test_a_long_history_is_thinned_to_its_ends_and_steps_between() -> None:
    table = history_table(report(), 12)
    assert (table.rows[0][:2], table.rows[-1][:2], len(table.rows)) == (("learn", "1"), ("finetune", "5"), 12)
    assert len(history_table(report()).rows) == 35


def test_markdown_does_not_act_on_names() -> None:
    assert "\\_\\_x\\_\\_ \\| \\<b>" in to_markdown(report(title="__x__ | <b>"))


def test_a_run_that_is_not_there_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run; 'sparsify runs' lists them"):
        read_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"there is no report.json here, so this is not a run"):
        read_report(tmp_path)


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("version: 1\n")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(RunError, match="sparsify apply --resume"):
        read_report(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 0}', "null", "\x00"])
def test_a_damaged_report_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunError, match="damaged, not a report") as caught:
        read_report(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sign"), [({"version": 2}, "version: 2"), ({"emissions": 1}, "it has 'emissions'")]
)
def test_a_report_of_a_newer_version_is_not_called_damaged(
    tmp_path: Path, change: dict[str, int], sign: str
) -> None:
    body = json.loads(report().model_dump_json())
    (tmp_path / "report.json").write_text(json.dumps(body | change))
    with pytest.raises(RunError) as caught:
        read_report(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/report.json was written by a newer sparsify ({sign}); read it with that version"
    )


def test_it_says_by_how_many_processes_it_was_trained() -> None:
    def said(*processes: int | None) -> str:
        epochs = tuple(
            epoch.model_copy(update={"processes": n})
            for epoch, n in zip(report().history, processes, strict=False)
        )
        return dict(provenance_table(report(history=epochs)).rows)["machine"].removeprefix(
            "x86_64 with AVX2, 2 cores, Linux"
        )

    assert said(2, 2, 1, 1) == "; trained by 2 processes, then by 1 process"
    assert said() == said(None, None) == "", "nothing was trained, or the report is an old one"
    assert said(None, 4) == "; trained by 4 processes", "gone on with by a newer version"


def test_parameters_of_the_model_itself_have_a_name() -> None:
    """They belong to no layer, and '' says nothing."""
    found = report()
    first = found.layers[0].model_copy(update={"name": "", "protected": "it feeds the network's output"})
    text = to_markdown(found.model_copy(update={"layers": (first, *found.layers[1:])}))
    assert "| (the model) | " in text
    assert "(the model) kept its width: it feeds the network's output." in text
