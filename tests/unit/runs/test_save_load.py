"""Run folders: what is saved loads again bit for bit, what is damaged is named, and listing never raises."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sparsify
from sparsify import files
from sparsify.errors import ModelError, RunError, VerificationError
from sparsify.modelfile.weights import load_weights, save_weights
from sparsify.models import digits_cnn
from sparsify.pruning.cut import Result, cut
from sparsify.pruning.make_plan import make_plan
from sparsify.runs import run_folder
from sparsify.runs.checkpoint import Checkpoint
from sparsify.runs.listing import list_runs
from sparsify.runs.planned_calls import draw_planned_inputs
from sparsify.runs.save_load import load_dense, load_run, save_run, verify_run
from sparsify_schemas.recipe import Recipe

RECIPE = {
    "version": 1,
    "title": "Digits, by half",
    "model": {"build": "sparsify.models.digits_cnn"},
    "inputs": [{"shape": [2, 1, 8, 8]}],
    "budget": {"macs": "50%"},
    "rules": [{"layers": "conv*", "group": "filter"}],
}
X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def half(recipe: dict = RECIPE, seed: int = 1) -> Result:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = digits_cnn().eval()
    return cut(make_plan(recipe, model), model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(result, folder) of one run that tests only read."""
    result = half()
    return result, save_run(result, tmp_path_factory.mktemp("runs") / "half", timing=0.05)


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it that a test may damage."""
    folder = tmp_path / "half"
    folder.mkdir()
    for file in saved[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_both_models_come_back_bit_for_bit(saved):
    result, folder = saved
    thin, dense = load_run(folder), load_dense(folder)
    assert not thin.training
    assert not any(m.training for m in thin.modules())
    assert torch.equal(thin(X), result.model.eval()(X))
    assert torch.equal(dense(X), result.dense.eval()(X))
    assert sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in dense.parameters())


@pytest.mark.nightly
def test_a_fresh_process_computes_the_same_bits(saved, tmp_path):
    """By day test_every_group.py reads runs in a fresh process."""
    result, folder = saved
    torch.save(X, tmp_path / "x.pt")
    code = (
        "import sys, torch, sparsify; torch.set_num_threads(1); "
        "torch.save(sparsify.load_run(sys.argv[1])(torch.load(sys.argv[2])), "
        "sys.argv[3])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")], check=True
    )
    assert torch.equal(torch.load(tmp_path / "y.pt"), result.model.eval()(X))


def test_the_folder_holds_the_whole_run_and_nothing_temporary(saved):
    _, folder = saved
    kept = {
        run_folder.RECIPE,
        run_folder.PLAN,
        run_folder.CUTS,
        run_folder.WEIGHTS,
        run_folder.DENSE,
        run_folder.PAGE,
        run_folder.HTML,
    }
    assert {p.name for p in folder.iterdir()} == kept | {run_folder.REPORT}
    report = json.loads((folder / run_folder.REPORT).read_text())
    assert report["files"] == {name: run_folder.hash_file(folder / name) for name in kept}
    assert {p.name for p in folder.parent.iterdir()} == {folder.name}


def test_the_report_counts_what_lies_on_disk(saved):
    _, folder = saved
    report = verify_run(folder)
    assert report.cut.params == sum(
        t.numel()
        for n, t in load_file(folder / run_folder.WEIGHTS).items()
        if "running" not in n and "num_batches" not in n
    )
    assert report.cut.bytes == (folder / run_folder.WEIGHTS).stat().st_size
    assert report.dense.test_metric is None
    assert report.cut.macs <= 0.5 * report.dense.macs
    (limit,) = report.limits
    assert (limit.what, limit.asked, limit.limit, limit.met) == ("budget.macs", "50%", 0.5, True)
    assert limit.achieved == report.cut.macs / report.dense.macs
    assert [t.target for t in report.latency] == ["eager"]
    assert any("names no target" in n for n in report.notes)
    rows = {row.name: row for row in report.layers}
    assert rows["conv3"].inputs_after == rows["conv2"].outputs_after == rows["conv4"].outputs_after
    assert rows["conv4"].inputs_after == rows["conv3"].outputs_after
    assert any(row.outputs_after < row.outputs for row in report.layers)
    assert sum(row.params_after for row in report.layers) == report.cut.params
    assert sum(row.macs_after for row in report.layers) == report.cut.macs


@pytest.mark.parametrize(
    ("budget", "limit", "achieved"),
    [
        ({"params": "50%"}, 0.5, lambda a, b: b.params / a.params),
        ({"params": "9k"}, 9000, lambda a, b: b.params),
        ({"macs": "0.2M"}, 200_000, lambda a, b: b.macs),
    ],
    ids=["share", "count", "macs"],
)
def test_budgets_are_judged_in_the_units_in_which_they_were_asked(tmp_path, budget, limit, achieved):
    report = verify_run(save_run(half({**RECIPE, "budget": budget}), tmp_path / "run", timing=0.05))
    (found,) = report.limits
    assert (found.limit, found.achieved, found.met) == (limit, achieved(report.dense, report.cut), True)


def test_a_budget_of_bytes_counts_tensors_not_the_file_header(tmp_path):
    folder = save_run(half({**RECIPE, "budget": {"bytes": "40KiB"}}), tmp_path / "run", timing=0.05)
    report = verify_run(folder)
    stored = sum(t.numel() * t.element_size() for t in load_file(folder / run_folder.WEIGHTS).values())
    assert report.limits[0].achieved == stored <= 40 * 1024
    assert report.cut.bytes > stored


def test_weights_that_are_zero_are_counted_and_said_to_bring_no_speed(tmp_path):
    recipe = {**RECIPE, "budget": {}, "rules": [{"layers": "conv*", "group": "weight", "sparsity": "75%"}]}
    report = verify_run(save_run(half(recipe), tmp_path / "run", timing=0.05))
    total = 16 * 9 + 32 * 16 * 9 + 2 * 32 * 32 * 9
    assert any(
        (
            f"{total * 3 // 4} of {total} stored weights are zero; zeros in the "
            "tensors make the model neither faster"
        )
        in n
        for n in report.notes
    )
    assert report.cut.params == report.dense.params
    assert report.cut.nonzero < report.dense.nonzero
    assert [(m.what, m.achieved, m.met) for m in report.limits] == [("rules.0.sparsity", 0.75, True)]


def test_a_missed_demand_is_reported_as_missed(tmp_path):
    rule = {"layers": "conv1", "group": "filter", "sparsity": "50%"}
    done = half({**RECIPE, "budget": {}, "rules": [rule]})
    asked = Recipe.model_validate({**RECIPE, "budget": {}, "rules": [{**rule, "sparsity": "90%"}]})
    done = replace(done, plan=replace(done.plan, recipe=asked))
    report = verify_run(save_run(done, tmp_path / "run", timing=0.05))
    assert [(m.what, m.achieved, m.met) for m in report.limits] == [("rules.0.sparsity", 0.5, False)]


def test_without_inputs_in_the_recipe_those_of_the_plan_are_measured(tmp_path):
    recipe = {k: v for k, v in RECIPE.items() if k != "inputs"}
    model = digits_cnn().eval()
    run = save_run(cut(make_plan(recipe, model, (X,)), model), tmp_path / "run", timing=0.05)
    report = verify_run(run)
    assert report.dense.macs == verify_run(save_run(half(), tmp_path / "other", timing=0.05)).dense.macs
    assert [tuple(x.shape) for x in draw_planned_inputs(run)] == [(4, 1, 8, 8)]
    (run / run_folder.PLAN).write_text("{}")
    with pytest.raises(RunError, match=r"plan.json is damaged"):
        draw_planned_inputs(run)


def test_a_protected_layer_says_why(tmp_path):
    recipe = {
        **RECIPE,
        "rules": [{"layers": "conv[234]", "group": "filter"}, {"layers": "conv1", "protect": True}],
    }
    report = verify_run(save_run(half(recipe), tmp_path / "run", timing=0.05))
    rows = {row.name: row for row in report.layers}
    assert "rules.1 protects 'conv1'" in rows["conv1"].protected
    assert rows["conv2"].protected is None


def test_a_folder_in_use_is_never_written_over(saved, run):
    with pytest.raises(RunError, match="exists already; choose another folder"):
        save_run(saved[0], run)


def test_saving_leaves_the_models_in_their_modes(tmp_path):
    result = half()
    result.dense.train()
    result.model.train()
    result.model.bn1.eval()
    save_run(result, tmp_path / "run", timing=0.05)
    assert (result.dense.training, result.model.training, result.model.bn1.training) == (True, True, False)


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    assert load_run(save_run(half(), tmp_path / "run", timing=0.05))


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sparsify.runs.save_load, "evaluate_run", lambda *_: (_ for _ in ()).throw(VerificationError("no"))
    )
    with pytest.raises(VerificationError):
        save_run(half(), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_without_a_builder_in_the_recipe_a_run_loads_with_one(tmp_path):
    result = half({k: v for k, v in RECIPE.items() if k != "model"})
    folder = save_run(result, tmp_path / "run", timing=0.05)
    assert any("loads only with a builder" in n for n in verify_run(folder).notes)
    with pytest.raises(RunError) as caught:
        load_run(folder)
    assert str(caught.value) == (
        "the run does not say how its model is built, as its recipe has no `model:`; write `model:` into the "
        "recipe of the next run; in Python, pass build=callable, which returns the dense model"
    )
    assert torch.equal(load_run(folder, build=digits_cnn)(X), result.model.eval()(X))


def test_a_builder_of_another_model_is_refused(tmp_path):
    result = half({**RECIPE, "model": {"build": "sparsify.models.digits_cnn", "args": {"classes": 12}}})
    with pytest.raises(
        RunError,
        match=(
            r"does not fit the rebuilt model: 'fc.weight' is float32 \[10, 128\] in "
            r"the file and float32 \[12, 128\] in the model"
        ),
    ):
        save_run(result, tmp_path / "run")


def test_a_builder_that_only_looks_alike_is_refused(tmp_path, monkeypatch):
    result = half()
    result.dense.relu = nn.Identity()  # no parameters, so no name or shape differs
    with pytest.raises(VerificationError, match="dense model as reloaded from disk does not compute"):
        save_run(result, tmp_path / "run")


@pytest.mark.parametrize("name", [run_folder.RECIPE, run_folder.CUTS, run_folder.WEIGHTS])
def test_a_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(RunError, match=f"{name} is missing"):
        load_run(run)
    assert (list_runs(run.parent)[0].state, list_runs(run.parent)[0].problem) == (
        "damaged",
        f"{name} is missing",
    )


@pytest.mark.parametrize("name", [run_folder.RECIPE, run_folder.CUTS, run_folder.WEIGHTS])
def test_a_file_that_was_cut_short_is_named(run, name):
    (run / name).write_bytes((run / name).read_bytes()[:-10])
    with pytest.raises(RunError, match=f"{name} was changed after the run"):
        load_run(run)
    assert list_runs(run.parent)[0].state == "damaged"


def test_cuts_that_were_edited_are_refused(run):
    text = (run / run_folder.CUTS).read_text()
    (run / run_folder.CUTS).write_text(text.replace('"kept"', '"kept" ').replace("1", "2", 1))
    with pytest.raises(RunError, match=r"cuts.json was changed after the run"):
        load_run(run)


def _resealed(run: Path, name: str) -> None:
    """As if someone had also written the new digest into the report."""
    report = json.loads((run / run_folder.REPORT).read_text())
    report["files"][name] = run_folder.hash_file(run / name)
    (run / run_folder.REPORT).write_text(json.dumps(report))


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"version": 1}', b'{"version": 1, "plan": "p", "operations": []}']
)
def test_cuts_that_do_not_fit_are_refused_even_with_a_matching_digest(run, content):
    (run / run_folder.CUTS).write_bytes(content)
    _resealed(run, run_folder.CUTS)
    with pytest.raises(RunError, match=r"cuts.json is damaged|does not fit the rebuilt model"):
        load_run(run)


def test_weights_that_are_no_safetensors_are_refused_even_with_a_matching_digest(run):
    (run / run_folder.WEIGHTS).write_bytes(b"hello")
    _resealed(run, run_folder.WEIGHTS)
    with pytest.raises(RunError, match=r"model.safetensors is damaged"):
        load_run(run)


def test_a_run_without_a_report_is_not_complete(run):
    (run / run_folder.REPORT).unlink()
    with pytest.raises(RunError) as caught:
        load_run(run)
    assert str(caught.value) == (
        f"{run}: report.json of this run is missing, and it cannot be continued without state.json; "
        f"make the run again with 'sparsify apply {run / 'recipe.yaml'}'"
    )
    (row,) = list_runs(run.parent)
    assert (row.state, row.title, row.problem) == ("damaged", "Digits, by half", "report.json is missing")
    (run / run_folder.STATE).write_text("{}")
    with pytest.raises(RunError, match="has not finished"):
        load_run(run)


def test_a_recipe_alone_is_no_run(run):
    for file in run.iterdir():
        if file.name != run_folder.RECIPE:
            file.unlink()
    assert list_runs(run.parent) == ()
    with pytest.raises(RunError, match=r"there is no report\.json here, so this is not a run"):
        load_run(run)


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"title": 3}', "\x00\x01"])
def test_a_report_that_is_none_is_damage(run, content):
    (run / run_folder.REPORT).write_text(content)
    with pytest.raises(RunError, match=r"report.json: damaged"):
        load_run(run)
    assert list_runs(run.parent)[0].state == "damaged"


def test_listing_says_what_each_run_came_to(saved):
    (row,) = list_runs(saved[1].parent)
    report = verify_run(saved[1])
    assert (row.name, row.state, row.title, row.created) == (
        "half",
        "complete",
        "Digits, by half",
        report.created,
    )
    assert (row.macs, row.params) == (
        report.cut.macs / report.dense.macs,
        report.cut.params / report.dense.params,
    )
    assert (row.metric, row.speedup, row.problem) == (None, report.latency[0].speedup, None)


_STATE = json.dumps({"recipe": {}, "model_file": None, "model_digest": None, "allow": []})


def test_listing_survives_whatever_lies_in_the_folder(tmp_path):
    (tmp_path / "note.txt").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".half.tmp").mkdir()
    (tmp_path / ".half.tmp" / run_folder.RECIPE).write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.csv").write_text("1,2")
    for name in ("run-2", "run-10", "run-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / run_folder.RECIPE).write_bytes(b"\xff\xfe: [")
    (tmp_path / "run-1" / run_folder.REPORT).mkdir()
    (tmp_path / "run-2" / run_folder.STATE).write_text(_STATE)
    (tmp_path / "run-10" / run_folder.STATE).write_text("{")  # no run can be continued by this
    rows = list_runs(tmp_path)
    assert [(r.name, r.state) for r in rows] == [
        ("run-1", "damaged"),
        ("run-2", "interrupted"),
        ("run-10", "damaged"),
    ]
    assert (rows[2].problem or "").endswith("the run cannot be resumed, start a new one")
    assert list_runs(tmp_path / "nowhere") == ()


class Tied(nn.Module):
    """Two names for one tensor, a tensor without elements, a buffer that is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("none", torch.empty(0))
        self.register_buffer("also_none", torch.empty(0))
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).t())


def test_tied_and_odd_tensors_are_stored_once_and_come_back(tmp_path):
    model, again = Tied(), Tied()
    save_weights(model, tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {
        "a.weight",
        "a.bias",
        "b.bias",
        "none",
        "also_none",
        "turned",
    }
    load_weights(again, tmp_path / "w.safetensors")
    assert again.b.weight is again.a.weight
    assert all(
        torch.equal(x, y)
        for x, y in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_state_that_is_no_tensor_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(ModelError, match="'_extra_state' is a dict; only tensors can be saved"):
        save_weights(Extra(1, 1), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("LeNet-5 on MNIST", "lenet-5-on-mnist"),
        ("  ", "run"),
        ("Größe / ../etc", "groe-etc"),
        ("数字", "run"),
        ("a" * 99, "a" * 48),
    ],
)
def test_titles_become_folder_names(title, name):
    assert run_folder.make_slug(title) == name


def test_run_folders_are_numbered_per_title(tmp_path):
    made = [run_folder.create_folder(tmp_path / "runs", title).name for title in ("A b", "a-b!", "other")]
    assert made == ["a-b-1", "a-b-2", "other-1"]
    (tmp_path / "runs" / "a-b-7").touch()
    assert run_folder.create_folder(tmp_path / "runs", "a b").name == "a-b-8"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match=r"cannot make a run folder in .*runs.*--out"):
        run_folder.create_folder(tmp_path / "runs", "t")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    files.write_bytes(tmp_path / "f", b"old")
    with pytest.raises(KeyboardInterrupt), files.replace_file(tmp_path / "f") as temporary:
        temporary.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("f", b"old")]
    with pytest.raises(RunError, match="cannot write"):
        files.write_bytes(tmp_path / "no" / "f", b"")


@pytest.fixture
def full_disk():
    """No file may grow beyond 1 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, full_disk):
    model = nn.Linear(100, 100)
    with pytest.raises(RunError, match=r"cannot write .*model.safetensors"):
        save_weights(model, tmp_path / run_folder.WEIGHTS)
    with pytest.raises(RunError, match=r"cannot write .*checkpoint.pt"):
        Checkpoint("r", None, 0, model.state_dict()).write(tmp_path)
    with pytest.raises(RunError, match=r"cannot write .*plan.json: File too large"):
        files.write_bytes(tmp_path / run_folder.PLAN, b" " * 2000)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match=r"cannot write .*log.jsonl: File too large"):
        run_folder.append_log(tmp_path, {"text": "x" * 2000})


def test_only_one_process_holds_a_run(tmp_path):
    with run_folder.lock_run(tmp_path):
        assert run_folder.is_running(tmp_path)
        with pytest.raises(RunError, match=r"is in use by process \d+"), run_folder.lock_run(tmp_path):
            pass
    assert not run_folder.is_running(tmp_path)
    with run_folder.lock_run(tmp_path):
        pass


def test_a_lock_left_by_a_dead_process_holds_nothing(tmp_path):
    code = (
        "import sys, os; from pathlib import Path; from sparsify.runs import "
        "run_folder; held = run_folder.lock_run(Path(sys.argv[1])); "
        "held.__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert (tmp_path / run_folder.LOCK).read_text()
    assert not run_folder.is_running(tmp_path)
    with run_folder.lock_run(tmp_path):
        pass


def test_a_torn_line_spoils_no_other(tmp_path):
    run_folder.append_log(tmp_path, {"a": 1})
    with (tmp_path / run_folder.LOG).open("a") as log:
        log.write('{"b": ')
    run_folder.append_log(tmp_path, {"c": 3})
    assert (tmp_path / run_folder.LOG).read_text().splitlines() == ['{"a": 1}', '{"b": ', '{"c": 3}']


@pytest.mark.parametrize("wrong", [{"model_file": 3}, {"allow": [1]}])
def test_a_state_of_other_types_is_damage(tmp_path, wrong):
    good = {"recipe": {}, "model_file": None, "model_digest": None, "allow": []}
    (tmp_path / run_folder.STATE).write_bytes(files.as_json({**good, **wrong}))
    with pytest.raises(RunError, match=r"state.json is damaged .*start a new one"):
        run_folder.State.read(tmp_path)
