"""apply from end to end, on digits that train in seconds."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsify
from sparsify.data import load_data
from sparsify.errors import DataError, ModelError, RecipeError, RunError, TrainingError, VerificationError
from sparsify.events import CutDone, EpochDone, Measuring, Note, RunStarted, StageStarted, StepDone
from sparsify.models import digits_cnn
from sparsify.objective.objective import CLASSIFICATION, evaluate
from sparsify.runs import run_folder
from sparsify.runs.apply import apply, preview
from sparsify.runs.listing import list_runs
from sparsify.runs.model_base import read_cuts
from sparsify.runs.save_load import load_dense, load_run, verify_run
from sparsify_cli.app import exit_code
from sparsify_schemas.recipe import Recipe

SGD = {"kind": "sgd", "lr": 0.05, "momentum": 0.9}
LEARN = {"kind": "train", "name": "learn", "epochs": 2, "optimizer": SGD}
CUT = {"kind": "cut"}
TUNE = {
    "kind": "train",
    "name": "finetune",
    "epochs": 1,
    "penalties": False,
    "optimizer": {**SGD, "lr": 0.01},
}
LASSO = {"layers": "conv*", "group": "filter", "penalty": {"kind": "group_lasso", "strength": 2e-3}}
RECIPE = {
    "version": 1,
    "title": "Digits",
    "seed": 3,
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "70%"},
    "budget": {"macs": "40%"},
    "rules": [LASSO],
    "stages": [LEARN, CUT, TUNE],
}
ONE_SHOT = {k: v for k, v in RECIPE.items() if k not in ("data", "stages")} | {
    "inputs": [{"shape": [2, 1, 8, 8]}],
    "rules": [{"layers": "conv*", "group": "filter"}],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def go(recipe: dict = RECIPE, model: object = None, **more: object) -> Path:
    return apply(recipe, model, **{"timing": 0.05, "from_scratch": model is None, **more})


def weights(path: Path = Path("model.pt"), seed: int = 1) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(digits_cnn().state_dict(), path)
    return path


def test_from_scratch_trains_cuts_tunes_and_measures():
    heard = []
    before = torch.random.get_rng_state()
    whole = {**RECIPE, "data": {"source": "digits", "validation": "10%"}}
    run = go(whole, listener=heard.append)
    assert torch.equal(before, torch.random.get_rng_state())
    assert run == Path("runs/digits-1")
    report = verify_run(run)
    assert report.cut.macs <= 0.4 * report.dense.macs
    assert [m.met for m in report.limits] == [True]
    assert report.dense.test_metric > 0.85 and report.cut.test_metric > 0.8
    assert report.verdict.outcome == "equal"
    rows = [(s.name, s.epochs) for s in report.stages]
    assert rows == [("learn", 2), ("cut", 0), ("repair", 0), ("finetune", 1)]
    assert [(e.stage, e.epoch) for e in report.history] == [("learn", 1), ("learn", 2), ("finetune", 1)]
    assert report.stages[0].penalty_share > 0 and report.stages[3].penalty_share is None
    assert any("right before the cut" in n for n in report.notes)
    assert (report.dense.epochs, report.cut.epochs) == (2, 3)
    assert "the cut model was fine-tuned for 1 epoch after the cut; the dense model was not" in report.notes

    test = load_data(Recipe.model_validate(RECIPE).data, 3).test
    assert evaluate(load_run(run), test, CLASSIFICATION).deciding == report.cut.test_metric
    assert evaluate(load_dense(run), test, CLASSIFICATION).deciding == report.dense.test_metric

    assert not [e for e in heard if isinstance(e, StepDone) and e.stage == "cut"]
    told = [e for e in heard if not isinstance(e, StepDone)]
    assert [type(e) for e in told if not isinstance(e, Measuring)] == [
        RunStarted,
        StageStarted,
        EpochDone,
        EpochDone,
        StageStarted,
        CutDone,
        StageStarted,
        Note,  # the repair
        StageStarted,
        EpochDone,
        Note,
    ]
    assert told[0] == RunStarted(str(run))
    log = [json.loads(line) for line in (run / run_folder.LOG).read_text().splitlines()]
    assert [entry["event"] for entry in log] == [type(e).__name__ for e in told]
    kept = {p.name for p in run.iterdir()}
    assert kept == {
        run_folder.RECIPE,
        run_folder.PLAN,
        run_folder.CUTS,
        run_folder.WEIGHTS,
        run_folder.DENSE,
        run_folder.PAGE,
        run_folder.HTML,
        run_folder.LOG,
        run_folder.REPORT,
    }
    assert list_runs("runs")[0].metric == report.cut.test_metric


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    first, second, other = (verify_run(go(RECIPE, overrides=(f"seed={s}",))) for s in (3, 3, 4))
    same = ("recipe_digest", "plan_digest", "model_digest", "dense", "cut", "limits", "layers", "verdict")
    assert [getattr(first, f) for f in same] == [getattr(second, f) for f in same]
    assert [e.model_copy(update={"seconds": 0}) for e in first.history] == [
        e.model_copy(update={"seconds": 0}) for e in second.history
    ]
    exact = (run_folder.RECIPE, run_folder.PLAN, run_folder.CUTS, run_folder.WEIGHTS, run_folder.DENSE)
    assert [first.files[f] for f in exact] == [second.files[f] for f in exact]
    assert first.files[run_folder.WEIGHTS] != other.files[run_folder.WEIGHTS]


def test_a_given_model_is_the_dense_one_and_stays_as_it_was():
    path = weights()
    content = path.read_bytes()
    path.chmod(0o444)
    run = go(model=path)
    assert path.read_bytes() == content
    given = torch.load(path)
    assert all(torch.equal(v, given[k]) for k, v in load_dense(run).state_dict().items())
    assert any("dense model is model.pt as given" in n for n in verify_run(run).notes)
    assert any(
        n.startswith("the cut model was trained for 2 epochs before the cut and fine-tuned for 1 epoch after")
        for n in verify_run(run).notes
    )
    assert str(Path.cwd()) not in "".join(
        (run / f).read_text() for f in (run_folder.PLAN, run_folder.REPORT, run_folder.PAGE, run_folder.HTML)
    )


def test_a_one_shot_recipe_needs_no_data():
    run = go(ONE_SHOT, weights())
    report = verify_run(run)
    assert report.cut.macs <= 0.4 * report.dense.macs
    assert report.dense.test_metric is None and report.history == ()
    with torch.no_grad():
        assert load_run(run)(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_taylor_sees_training_batches():
    rules = [{"layers": "conv*", "group": "filter", "criterion": {"kind": "taylor", "batches": 4}}]
    taylor = go({**RECIPE, "rules": rules, "stages": [CUT]}, weights())
    magnitude = go({**RECIPE, "rules": [{"layers": "conv*", "group": "filter"}], "stages": [CUT]}, weights())
    assert read_cuts(taylor)[0].widths != read_cuts(magnitude)[0].widths
    assert verify_run(taylor).verdict.outcome == "equal"


def test_weights_stay_zero_through_the_stages_after_the_cut():
    rules = [{"layers": "conv*", "group": "weight", "sparsity": "80%"}]
    run = go({**RECIPE, "budget": {}, "rules": rules}, weights())
    report = verify_run(run)
    model = load_run(run)
    zero = sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Conv2d))
    total = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d))
    assert abs(zero / total - 0.8) < 1e-4
    assert [(m.what, m.met) for m in report.limits] == [("rules.0.sparsity", True)]
    assert any(
        f"{zero} of {total} stored weights are zero; zeros in the tensors make the model neither faster" in n
        for n in report.notes
    )
    assert report.history[-1].sparsity == pytest.approx(0.8, abs=1e-3)


def test_penalties_may_act_after_the_cut_too():
    heard = []
    report = verify_run(
        go({**RECIPE, "stages": [LEARN, CUT, {**TUNE, "penalties": True}]}, listener=heard.append)
    )
    (what, left), *_ = next(e for e in heard if isinstance(e, EpochDone) and e.stage == "finetune").remaining
    assert (
        what == "macs" and left <= report.cut.macs / report.dense.macs + 1e-6
    )  # of the dense model, not of the cut one
    assert report.history[-1].strength == 2e-3
    assert report.stages[-1].penalty_share > 0


def test_a_whole_module_without_a_builder_runs_and_says_how_it_loads():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    torch.save(model, "module.pt")
    recipe = {
        **{k: v for k, v in RECIPE.items() if k != "model"},
        "rules": [{"layers": "0", "group": "filter"}],
        "stages": [CUT, TUNE],
    }
    run = go(recipe, "module.pt")
    assert any("loads only with a builder" in n for n in verify_run(run).notes)
    with pytest.raises(RunError, match="build=callable"):
        load_run(run)
    test = load_data(Recipe.model_validate(RECIPE).data, 3).test
    assert (
        evaluate(
            load_run(run, build=lambda: torch.load("module.pt", weights_only=False)), test, CLASSIFICATION
        ).deciding
        == verify_run(run).cut.test_metric
    )


def test_a_run_is_a_model_for_the_next_one():
    first = go(ONE_SHOT, weights())
    second = go({**ONE_SHOT, "title": "Again", "budget": {"macs": "50%"}}, first)
    third = go({**ONE_SHOT, "title": "Again", "budget": {"macs": "60%"}}, second)
    a, b, c = (verify_run(r) for r in (first, second, third))
    assert (b.dense.macs, c.dense.macs) == (a.cut.macs, b.cut.macs)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_dense(third)(x), load_run(second)(x))
    assert load_run(third)(x).shape == (2, 10)


def test_targets_of_the_recipe_are_timed():
    recipe = {**ONE_SHOT, "targets": {"one": {"kind": "cpu"}, "eight": {"kind": "cpu", "batch": 8}}}
    report = verify_run(go(recipe, weights()))
    assert [t.target for t in report.latency] == ["one", "eight"]
    assert not any("names no target" in n for n in report.notes)


def test_divergence_names_the_place_and_leaves_the_last_checkpoint():
    steep = {
        **LEARN,
        "epochs": 3,
        "optimizer": {"kind": "sgd", "lr": {"kind": "step", "value": 0.01, "factor": 1e30, "at": ["1ep"]}},
    }
    with pytest.raises(TrainingError, match=r"stage 'learn', epoch 2, step \d+: .*lower the learning rate"):
        go({**RECIPE, "stages": [steep, CUT]})
    assert torch.load("runs/digits-1/checkpoint.pt")["moment"]["epochs"] == 1
    (row,) = list_runs("runs")
    assert row.state == "failed"
    assert row.problem.startswith("stage 'learn', epoch 2, step ")


def test_a_cut_that_fails_its_proof_is_not_saved_and_can_be_gone_on_with(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise VerificationError("group 'conv1' fails by itself")

    with monkeypatch.context() as patched:
        patched.setattr(sparsify.runs.stages.cut, "cut", refuse)
        with pytest.raises(VerificationError):
            go()
    run = Path("runs/digits-1")
    assert [(r.state, r.problem) for r in list_runs("runs")] == [("failed", "group 'conv1' fails by itself")]
    assert not (run / run_folder.WEIGHTS).exists()

    seen = []
    apply(resume=run, timing=0.05, listener=lambda _: seen.append(run_folder.State.read(run).failure))
    assert seen[0] is None
    assert list_runs("runs")[0].state == "complete"
    assert not (run / run_folder.STATE).exists()


def test_a_bug_is_listed_with_its_name():
    def listener(event: object) -> None:
        if isinstance(event, EpochDone):
            raise ZeroDivisionError("oops")

    with pytest.raises(ZeroDivisionError):
        go(listener=listener)
    assert [(r.state, r.problem) for r in list_runs("runs")] == [("failed", "ZeroDivisionError: oops")]


def test_a_model_with_too_few_outputs_is_refused_before_the_first_epoch():
    recipe = {**RECIPE, "model": {"build": "sparsify.models.digits_cnn", "args": {"classes": 7}}}
    with pytest.raises(
        DataError, match=r"^the model has 7 outputs and the data 10 classes; build the model for as many$"
    ):
        go(recipe)
    with pytest.raises(DataError, match="7 outputs"):
        preview(recipe, from_scratch=True)
    assert list_runs("runs") == ()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, None, {}), RunError, "give a recipe"),
        ((RECIPE, None, {"from_scratch": False}), ModelError, "no model file; give one, or --from-scratch"),
        ((RECIPE, "model.pt", {"from_scratch": True}), ModelError, "both model.pt and --from-scratch"),
        ((RECIPE, "nowhere.pt", {}), ModelError, "there is no model file nowhere.pt"),
        (({**RECIPE, "budget": {"macs": "0.1%"}}, None, {}), RecipeError, "cannot be reached"),
        (({**RECIPE, "rules": [{**LASSO, "sparsity": "99%"}]}, None, {}), RecipeError, "cannot be reached"),
        ((RECIPE, None, {"overrides": ("sed=1",)}), RecipeError, "sed"),
    ],
    ids=["nothing", "no model", "both", "no such file", "infeasible", "too sparse", "override"],
)
def test_what_cannot_begin_leaves_no_folder(arguments, error, message):
    recipe, model, more = arguments
    with pytest.raises(error, match=message):
        go(recipe, model, **more)
    assert list_runs("runs") == ()


def test_a_damaged_run_is_no_model():
    run = go(ONE_SHOT, weights())
    (run / run_folder.CUTS).write_text("{}")
    with pytest.raises(RunError, match=r"cuts.json was changed after the run"):
        go(ONE_SHOT, run)


def test_shapes_and_taps_from_training_to_the_report(capsys):
    """A lasso kills shapes and taps, dead units leave with them, zeros are held while the penalties act
    on."""
    rules = [
        {"layers": "conv1", "group": "tap", "penalty": {"kind": "group_lasso", "strength": 0.3, "every": 1}},
        {
            "layers": "conv[34]",
            "group": "shape",
            "sparsity": "80%",
            "penalty": {"kind": "group_lasso", "strength": 5e-3},
        },
        {"layers": "fc", "group": "weight", "sparsity": "50%"},
    ]
    recipe = {
        **{k: v for k, v in RECIPE.items() if k != "budget"},
        "rules": rules,
        "stages": [LEARN, CUT, {**TUNE, "penalties": True}],
    }
    run = go(recipe)
    report = verify_run(run)
    assert report.verdict.outcome == "equal" and report.verdict.difference <= 1e-9
    asked = {m.what: m for m in report.limits}
    assert asked.keys() == {"rules.1.sparsity", "rules.2.sparsity"} and all(m.met for m in asked.values())
    shown = {s.what: s for s in report.sparsities}
    assert shown["rules.1"].effective >= shown["rules.1"].nominal == pytest.approx(0.8, abs=0.01)
    assert shown["rules.2"].nominal == pytest.approx(0.5)
    assert shown["model"].effective == pytest.approx(1 - report.cut.nonzero / report.dense.params)
    assert shown["model"].effective > shown["model"].nominal
    assert report.history[-1].stage == "finetune" and report.cut.macs <= report.dense.macs
    (cuts,), model = read_cuts(run), load_run(run)
    stored = {op.tensor: op.count for op in cuts.operations if op.op == "zero"}
    assert {
        name: int((model.get_parameter(name) == 0).sum()) >= count for name, count in stored.items()
    } == dict.fromkeys(stored, True)
    assert exit_code(["report", str(run)]) == 0
    page = capsys.readouterr().out
    assert "Zeros\n" in page and "nominal" in page
    if report.executions:
        assert "Layers with dead shapes or taps" in page
    assert exit_code(["diff", str(run), str(run)]) == 0
