"""Recipes that cut more than once: in rounds, or between the epochs of a train stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsify.errors import RecipeError
from sparsify.events import CutDone, EpochDone, Event, StageStarted, StepDone
from sparsify.reporting import report_tables
from sparsify.reporting.diff import diff_runs, resolve_recipe
from sparsify.runs import run_folder
from sparsify.runs.apply import apply, preview
from sparsify.runs.model_base import read_cuts
from sparsify.runs.run_folder import read_recipe
from sparsify.runs.save_load import load_dense, load_run, verify_run
from sparsify_schemas.report import Report

SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Rounds",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%"},
    "budget": {"macs": "40%"},
    "rules": [
        {"layers": "conv1", "group": "filter", "sparsity": "50%"},
        {"layers": "conv2", "group": "filter", "penalty": {"kind": "group_lasso", "strength": 1e-3}},
        {"layers": "fc", "group": "weight", "sparsity": "60%"},
    ],
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 1, "optimizer": SGD},
        {"kind": "cut", "name": "first", "way": "50%"},
        {"kind": "train", "name": "between", "epochs": 2, "optimizer": SGD},
        {"kind": "cut", "name": "second"},
        {"kind": "train", "name": "finetune", "epochs": 1, "penalties": False, "optimizer": SGD},
    ],
}
GRADUAL = RECIPE | {
    "title": "Gradual",
    "rules": [
        RECIPE["rules"][0],
        RECIPE["rules"][1]
        | {"penalty": {"kind": "group_lasso", "strength": {"kind": "linear", "from": 0, "to": 4e-3}}},
        RECIPE["rules"][2],
    ],
    "stages": [
        {
            "kind": "train",
            "name": "shrink",
            "epochs": 4,
            "optimizer": {"kind": "adam", "lr": 2e-3},
            "cuts": {"every": "1ep", "end": "3ep"},
        }
    ],
}
RECIPES = {"rounds": RECIPE, "gradual": GRADUAL}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each recipe applied without any interruption."""
    out = tmp_path_factory.mktemp("whole")
    return {
        name: apply(recipe, from_scratch=True, out=out / name, timing=0.02).resolve()
        for name, recipe in RECIPES.items()
    }


def zero(run: Path) -> float:
    weight = load_run(run).get_parameter("fc.weight")
    return float((weight == 0).float().mean())


def parts(found: Report) -> list[float]:
    return [r.macs / found.dense.macs for r in found.rounds]


def test_each_round_goes_its_part_of_the_way(whole: dict[str, Path]) -> None:
    """Half of the way to 40 % of the MACs is 70 %; half of the way to 50 % of the filters is 25 %. All of the
    dense model."""
    found = verify_run(whole["rounds"])
    assert [(r.stage, r.epoch, r.verdict.outcome) for r in found.rounds] == [
        ("first", 0, "equal"),
        ("second", 0, "equal"),
    ]
    assert parts(found)[0] == pytest.approx(0.7, abs=0.03) and parts(found)[0] <= 0.7
    assert parts(found)[1] == pytest.approx(0.4, abs=0.03) and parts(found)[1] <= 0.4
    assert all(limit.met for limit in found.limits), found.limits
    first, second = read_cuts(whole["rounds"])
    assert [{w.group: w.kept for w in c.widths}["conv1"] for c in (first, second)] == [12, 8]
    assert zero(whole["rounds"]) == pytest.approx(0.6, abs=0.001)
    assert found.cut.macs == found.rounds[-1].macs
    assert (found.dense.epochs, found.cut.epochs) == (1, 4)
    assert load_dense(whole["rounds"]).get_parameter("conv1.weight").shape[0] == 16


def test_gradual_cuts_follow_the_cubic_schedule(whole: dict[str, Path]) -> None:
    """way(e) = 1 - (1 - e/3)^3: 19/27 and 26/27 of the way after one and two epochs, all of it after
    three."""
    found = verify_run(whole["gradual"])
    assert [(r.stage, r.epoch) for r in found.rounds] == [("shrink", 1), ("shrink", 2), ("shrink", 3)]
    for left, way in zip(parts(found), (19 / 27, 26 / 27, 1.0), strict=True):
        assert left == pytest.approx(1 - 0.6 * way, abs=0.03) and left <= 1 - 0.6 * way
    kept = [next(w.kept for w in cuts.widths if w.group == "conv1") for cuts in read_cuts(whole["gradual"])]
    assert kept == [16 - round(8 * way) for way in (19 / 27, 26 / 27, 1)]
    assert all(limit.met for limit in found.limits)
    assert [e.strength for e in found.history] == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3]), (
        "schedules go on through the cuts"
    )
    assert [s.name for s in found.stages] == ["shrink"] and [e.epoch for e in found.history] == [1, 2, 3, 4]
    assert (found.dense.epochs, found.cut.epochs) == (1, 4)


def test_what_the_optimizer_knew_outlives_a_gradual_cut() -> None:
    """Adam's count of steps goes on through the cuts of a stage."""
    counts: list[float] = []

    def listener(event: Event) -> None:
        if isinstance(event, EpochDone) and Path("runs/gradual-1/checkpoint.pt").exists():
            state = torch.load("runs/gradual-1/checkpoint.pt", weights_only=True)["moment"]["optimizer"][
                "state"
            ]
            counts.append(float(state[0]["step"]))

    apply(GRADUAL, from_scratch=True, timing=0.02, listener=listener)
    assert len(counts) == 3 and counts[0] > 0
    assert counts == [counts[0] * n for n in (1, 2, 3)]


def interrupted(recipe: dict[str, Any], stop: Any) -> Path:
    def listener(event: Event) -> None:
        if stop(event):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(recipe, from_scratch=True, timing=0.02, listener=listener)
    return Path("runs") / f"{recipe['title'].lower()}-1"


def same_end(a: Path, b: Path) -> bool:
    """Weights, cuts, history and rounds, to the last bit."""
    same = all(
        (a / f).read_bytes() == (b / f).read_bytes()
        for f in (run_folder.WEIGHTS, run_folder.DENSE, run_folder.CUTS)
    )
    (x, y) = ([e.model_copy(update={"seconds": 0}) for e in verify_run(run).history] for run in (a, b))
    return same and x == y and verify_run(a).rounds == verify_run(b).rounds


def nth(kind: type, n: int) -> Any:
    seen: list[Event] = []

    def stop(event: Event) -> bool:
        seen.extend([event] if isinstance(event, kind) else [])
        return isinstance(event, kind) and len(seen) == n

    return stop


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("kind", "n"),
    [
        (EpochDone, 2),
        (EpochDone, 3),
        (CutDone, 1),
        (CutDone, 2),
        (StepDone, 14),
        (StepDone, 20),
        (StepDone, 27),
    ],
)
def test_resume_ends_with_the_same_bits(whole: dict[str, Path], name: str, kind: type, n: int) -> None:
    run = interrupted(RECIPES[name], nth(kind, n))
    assert apply(resume=run, timing=0.02) == run
    assert same_end(run, whole[name])


STEERED: dict[str, Any] = RECIPE | {
    "data": {"source": "digits", "validation": "10%"},
    "title": "Steered",
    "rules": [
        {"layers": "Conv2d", "group": "filter", "penalty": {"kind": "group_lasso", "strength": "auto"}},
        {"layers": "fc", "group": "weight", "sparsity": "60%", "penalty": {"kind": "gsm"}},
    ],
    "stages": [
        {"kind": "train", "name": "learn", "epochs": 2, "penalties": False, "optimizer": SGD},
        {
            "kind": "train",
            "name": "shrink",
            "epochs": 5,
            "optimizer": SGD,
            "cuts": {"every": "2ep", "end": "4ep"},
        },
    ],
}


@pytest.mark.nightly
def test_each_gradual_cut_takes_what_an_automatic_strength_has_brought_to_zero() -> None:
    """What the penalties remember goes through the cut, and a resumed run ends with the same bits."""
    kept: list[dict[Any, Any]] = []

    def listener(event: Event) -> None:
        if isinstance(event, CutDone) or (isinstance(event, StageStarted) and event.done == 2):
            moment = torch.load("runs/steered-1/checkpoint.pt", weights_only=True)[
                "moment"
            ]  # before the first cut, and after it
            kept.append(moment["hooks"]["own"])

    run = apply(STEERED, from_scratch=True, timing=0.02, listener=listener).resolve()
    found = verify_run(run)
    rows = [row for row in found.history if row.stage == "shrink"]
    assert [row.due for row in rows] == [0.5, 1.0, 0.5, 1.0, None]
    assert all(row.reached is not None and row.reached > 0.9 for row in (rows[1], rows[3]))
    assert [r.macs / found.dense.macs for r in found.rounds] == pytest.approx([0.475, 0.4], abs=0.03)
    before, after = kept[:2]
    assert before[0]["gain"] == after[0]["gain"] and before[0]["strength"] == after[0]["strength"] > 0
    first, _ = read_cuts(run)
    assert {name: len(own) for name, own in after[0]["floor"].items()} == {
        w.group: w.kept for w in first.widths if w.group in before[0]["floor"]
    }
    columns = next(w.kept for w in first.widths if w.group == "conv2") / len(before[0]["floor"]["conv2"])
    assert after[1]["active"]["fc.weight"].shape[1] == before[1]["active"]["fc.weight"].shape[1] * columns
    Path("runs/steered-1").rename("whole")
    assert same_end(apply(resume=interrupted(STEERED, nth(StepDone, 110)), timing=0.02), Path("whole"))


def test_a_resumed_stage_says_where_it_goes_on() -> None:
    run = interrupted(GRADUAL, nth(StepDone, 14))
    heard: list[Event] = []
    apply(resume=run, timing=0.02, listener=heard.append)
    started = [(e.epochs, e.done) for e in heard if isinstance(e, StageStarted)]
    assert started == [(4, 1), (4, 2), (4, 3)]


def test_a_run_on_rounds_rebuilds(whole: dict[str, Path]) -> None:
    """The base of a run on a run holds every cut before it."""
    again = {k: v for k, v in RECIPE.items() if k != "data"} | {
        "title": "More",
        "rules": [{"layers": "conv2", "group": "filter"}],
        "budget": {"macs": "60%"},
    }
    again |= {"stages": [{"kind": "cut"}], "inputs": [{"shape": [2, 1, 8, 8]}]}
    run = apply(again, whole["gradual"], timing=0.02)
    assert len(json.loads((run / run_folder.BASE).read_text())["cuts"]) == 3
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(load_dense(run)(x), load_run(whole["gradual"])(x))
    assert len(read_cuts(run)) == 1


def test_one_cut_is_logged_as_ever_and_several_as_version_2(whole: dict[str, Path]) -> None:
    assert json.loads((whole["rounds"] / run_folder.CUTS).read_text())["version"] == 2


def test_report_and_diff_show_each_round(whole: dict[str, Path]) -> None:
    found = verify_run(whole["rounds"])
    page = report_tables.to_markdown(found)
    assert "## Cuts" in page and "| first |" in page and "| second |" in page
    a, b = (resolve_recipe(read_recipe(whole[name])) for name in RECIPES)
    paths = {c.path: (c.old, c.new) for c in diff_runs(found, verify_run(whole["gradual"]), a, b)}
    assert paths["metrics.rounds[first].macs_left"] == (parts(found)[0], None)
    assert paths["metrics.rounds[shrink@2].verdict"] == (None, "equal")


def test_an_intermediate_budget_holds() -> None:
    own = [{"kind": "cut", "name": "first", "budget": {"params": "80%"}}, *RECIPE["stages"][2:]]
    rules = [{"layers": "conv*", "group": "filter"}]
    run = apply(RECIPE | {"rules": rules, "stages": own}, from_scratch=True, timing=0.02)
    found = verify_run(run)
    assert 0.77 < found.rounds[0].params / found.dense.params <= 0.8
    assert parts(found)[1] <= 0.4


def test_an_intermediate_budget_below_the_floor_is_refused_at_once() -> None:
    own = [{"kind": "cut", "name": "first", "budget": {"params": "0.1%"}}, {"kind": "cut", "name": "second"}]
    with pytest.raises(RecipeError, match=r"stages\.0\.budget\.params: 0\.1% cannot be reached"):
        preview(RECIPE | {"stages": own}, from_scratch=True)


@pytest.mark.parametrize(
    ("stages", "rounds"),
    [
        # structured sparsity learning: train, regularise, cut, fine-tune
        ([("train", {"penalties": False}), ("train", {}), ("cut", {}), ("train", {"penalties": False})], 1),
        # iterative magnitude pruning: a fifth of what is left in each of three rounds
        (
            [
                ("train", {}),
                ("cut", {"way": "41%"}),
                ("train", {}),
                ("cut", {"way": "74%"}),
                ("train", {}),
                ("cut", {}),
                ("train", {}),
            ],
            3,
        ),
        # global sparse momentum: cut and be done
        ([("train", {}), ("cut", {})], 1),
        # cut between epochs, then the rest at once
        ([("train", {"epochs": 2, "cuts": {"way": "60%", "schedule": "linear"}}), ("cut", {})], 3),
    ],
)
def test_what_the_papers_do_is_a_list_of_stages(
    stages: list[tuple[str, dict[str, Any]]], rounds: int
) -> None:
    spelt = [
        {
            "kind": kind,
            "name": f"{kind}{i}",
            **({"epochs": 1, "optimizer": SGD} if kind == "train" else {}),
            **more,
        }
        for i, (kind, more) in enumerate(stages)
    ]
    found = verify_run(apply(RECIPE | {"stages": spelt}, from_scratch=True, timing=0.02))
    assert len(found.rounds) == rounds and all(limit.met for limit in found.limits)
    assert parts(found) == sorted(parts(found), reverse=True)


@pytest.mark.nightly
def test_penalties_that_work_towards_a_goal_end_with_it() -> None:
    """In a stage after the last cut no goal is left; what they brought to zero inside tensors is held
    there."""
    auto = {"kind": "group_lasso", "strength": "auto"}
    rules = [
        {"layers": "conv1", "group": "filter", "sparsity": "50%", "penalty": {"kind": "gsm"}},
        {
            "layers": "conv2",
            "group": "filter",
            "sparsity": "50%",
            "keep": {"multiple_of": 4},
            "penalty": auto,
        },
        {"layers": "conv3", "group": "filter", "sparsity": "50%", "penalty": {"kind": "agp", "every": "5it"}},
        {"layers": "conv3", "group": "shape", "sparsity": "60%", "penalty": {"kind": "growing_l2"}},
        {"layers": "conv4", "group": "4x1", "sparsity": "60%", "penalty": {"kind": "agp", "every": "5it"}},
        {"layers": "fc", "group": "weight", "sparsity": "60%", "penalty": {"kind": "gsm"}},
    ]
    stages = [
        {**stage, "penalties": True} if stage["kind"] == "train" else stage for stage in RECIPE["stages"]
    ]
    bare = {k: v for k, v in STEERED.items() if k != "budget"}
    found = verify_run(apply(bare | {"rules": rules, "stages": stages}, from_scratch=True, timing=0.02))
    assert len(found.rounds) == 2 and [limit.met for limit in found.limits] == [True] * 6
    assert found.stages[-1].penalty_share is not None and found.history[-1].sparsity > 0.3


@pytest.mark.parametrize(("group", "layers"), [("shape", "conv3"), ("tap", "conv2"), ("4x1", "conv3")])
def test_groups_inside_tensors_go_their_part_of_the_way(group: str, layers: str) -> None:
    """Shares are of the dense model also where an earlier round has cropped or gathered a weight."""
    rules = [
        {
            "layers": layers,
            "group": group,
            "sparsity": "60%",
            "penalty": {"kind": "group_lasso", "strength": 1e-3},
        }
    ]
    bare = {k: v for k, v in RECIPE.items() if k != "budget"}
    run = apply(bare | {"rules": rules, "stages": RECIPE["stages"][1:]}, from_scratch=True, timing=0.02)
    found = verify_run(run)
    assert len(found.rounds) == 2 and found.verdict.outcome in (
        "equal",
        "nothing cut",
    )  # zeros alone are no cut
    dense, cut = (load(run).get_parameter(f"{layers}.weight") for load in (load_dense, load_run))
    live = int((cut != 0).sum()) / dense.numel()
    assert live == pytest.approx(0.4, abs=0.08), live
    assert [limit.met for limit in found.limits] == [True]
    assert found.limits[0].achieved == pytest.approx(0.6, abs=0.05)


@pytest.mark.nightly
def test_group_wise_brain_damage_as_the_documentation_has_it() -> None:
    """Ever more filter shapes go while the strength rises; what is gone stays so, and the rule's share is
    met."""
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "shapes.md").read_text()
    Path("gbd.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    run = apply(
        "gbd.yaml", from_scratch=True, overrides=["stages.0.epochs=6", "stages.1.epochs=1"], timing=0.02
    )
    found = verify_run(run)
    assert found.verdict.outcome == "equal" and [limit.met for limit in found.limits] == [True]
    zeros = [row.sparsity for row in found.history]
    assert zeros[1] < zeros[2] < zeros[4] and zeros[-1] > 0.5
