"""tune in one process: what a study leaves, what its trials read, how it goes on, what is said when it
fails."""

import json
import sqlite3
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import yaml
from tune_parts import BOTH, TOUCHED, make_search

import sparsify
from sparsify.errors import RunError, SparsifyError
from sparsify.events import EpochDone
from sparsify.reporting.report_file import read_report
from sparsify.runs.listing import list_runs
from sparsify.tuning import storage
from sparsify.tuning.optuna_package import keep_quiet
from sparsify.tuning.tune import TuneResult
from sparsify.tuning.tune_events import (
    StudyOpened,
    TrialEvent,
    TrialFinished,
    TrialStarted,
    TuneEvent,
)
from sparsify_cli.app import exit_code
from sparsify_schemas.study import Study


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test pulls the plug, so that SQLite need not wait for the disk at each commit."""
    monkeypatch.chdir(tmp_path)

    def write_at_leisure(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", write_at_leisure)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", write_at_leisure)


def run_study(recipe: dict[str, Any], **more: Any) -> TuneResult:
    return sparsify.tune(recipe, from_scratch=True, **more)


def list_parameters(result: TuneResult) -> list[dict[str, Any]]:
    return [row.parameters for row in result.trials]


def test_a_study_leaves_ordinary_runs_a_record_a_page_and_the_best_recipe() -> None:
    result = run_study(make_search({"parameters": BOTH, "trials": 4}))
    folder = result.folder
    assert folder == Path("runs/heaps-study-1")
    rows = list_runs(folder)
    assert [(row.name, row.state) for row in rows] == [(f"trial-{n}", "complete") for n in range(4)]
    reports = [read_report(folder / f"trial-{n}") for n in range(4)]
    assert [row.metric for row in result.trials] == [report.cut.validation_metric for report in reports]
    best = max(range(4), key=lambda n: (reports[n].cut.validation_metric, -reports[n].cut.macs, -n))
    assert result.best.number == best and result.best_parameters == result.trials[best].parameters
    written = Study.model_validate_json((folder / "study.json").read_bytes())
    assert written == result.study and written.recipes == {str(best): "best.yaml"}
    page = (folder / "report.html").read_text()
    assert "Heaps: study" in page and f"trial {best}" in page
    assert exit_code(["diff", str(folder / "trial-0"), str(folder / "trial-1")]) == 0
    assert exit_code(["report", str(folder / "trial-0")]) == 0


def test_the_test_set_is_read_once_for_the_chosen_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched = tmp_path / "touched"
    monkeypatch.setenv(TOUCHED, str(touched))
    recipe = make_search({"parameters": BOTH, "trials": 3})
    recipe["data"]["source"] = "tune_parts:watched_data"
    seen: list[tuple[str, bool]] = []

    def look(event: TuneEvent) -> None:
        seen.append((type(event).__name__, touched.exists()))

    result = run_study(recipe, listener=look)
    assert not any(was_touched for _, was_touched in seen), "not even its length was asked for"
    read = [line for line in touched.read_text().splitlines() if line != "length"]
    assert read == [str(index) for index in range(90)]
    for row in result.trials:
        report = read_report(result.folder / f"trial-{row.number}")
        is_chosen = row.number == result.best.number
        assert (report.cut.test_metric is not None, row.test_metric is not None) == (is_chosen, is_chosen)
        assert ("the test set was not read" in report.notes) == (not is_chosen)
    assert result.study.dense is not None and result.study.dense.test_metric is not None


def test_the_best_recipe_gives_the_figures_of_its_trial() -> None:
    recipe = make_search({"parameters": {**BOTH, "learn": [1, 2]}, "trials": 3})
    recipe["vars"] = {"learn": 1}
    recipe["stages"][1]["epochs"] = "${learn}"
    result = run_study(recipe)
    run = sparsify.apply(result.best_recipe, from_scratch=True, timing=0)
    again, trial = read_report(run), read_report(result.folder / f"trial-{result.best.number}")
    assert "search" not in yaml.safe_load(result.best_recipe.read_text())
    for key in ("validation_metric", "test_metric", "macs", "params"):
        assert getattr(again.cut, key) == getattr(trial.cut, key), key
    assert again.history == tuple(
        epoch.model_copy(update={"seconds": other.seconds})
        for epoch, other in zip(trial.history, again.history, strict=True)
    )


@pytest.mark.parametrize(
    "sampler", ["tpe", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("random", "grid"))]
)
def test_the_same_seed_gives_the_same_study(sampler: str) -> None:
    parameters: dict[str, Any] = BOTH
    if sampler == "grid":
        parameters = {"rules.0.sparsity": {"choices": ["20%", "50%", "80%"]}, "stages.1.epochs": [1, 2]}
    recipe = make_search({"parameters": parameters, "trials": 2, "sampler": sampler, "seed": 11})
    first, second = run_study(recipe), run_study(recipe)
    assert list_parameters(first) == list_parameters(second)
    assert [row.metric for row in first.trials] == [row.metric for row in second.trials]
    assert (first.study.seed, first.study.recipe_seed) == (11, 3)
    other = run_study(make_search({**recipe["search"], "seed": 12}))
    assert list_parameters(other) != list_parameters(first)


def test_a_grid_ends_with_its_last_combination() -> None:
    recipe = make_search({"parameters": {"stages.1.epochs": [1, 2]}, "trials": 50, "sampler": "grid"})
    result = run_study(recipe)
    assert sorted(row.parameters["stages.1.epochs"] for row in result.trials) == [1, 2]
    assert result.study.wanted == 2


def test_a_front_has_a_recipe_for_each_of_its_trials() -> None:
    search = {"parameters": BOTH, "trials": 5, "sampler": "nsga2", "objective": {"cost": "params"}}
    result = run_study(make_search(search))
    params = [row.costs.params for row in result.front if row.costs is not None]
    metrics = [row.metric or 0 for row in result.front]
    assert params == sorted(params) and metrics == sorted(metrics) and len(set(metrics)) == len(metrics)
    assert result.best == result.front[-1] and result.best_recipe.name == f"best-{result.best.number}.yaml"
    files = {path.name for path in result.folder.glob("best*.yaml")}
    assert files == {f"best-{row.number}.yaml" for row in result.front}
    assert all(row.test_metric is not None for row in result.front)


def test_trials_that_fall_behind_are_stopped_and_written_as_such() -> None:
    search = {
        "parameters": {"stages.1.optimizer.lr": {"choices": [0.3, 1e-7]}},
        "trials": 8,
        "sampler": "grid",
        "early_stopping": "asha",
    }
    search["parameters"]["stages.1.batch"] = {"choices": [8, 16, 32, 64]}
    result = run_study(make_search(search, epochs=9))
    stopped = [row for row in result.trials if row.state == "stopped"]
    assert stopped and result.best.epochs == 9
    for row in stopped:
        assert row.epochs in (1, 3) and row.metric is not None
        assert row.reason == (
            f"stopped early by asha after epoch {row.epochs}: validation accuracy {row.metric:.4g} is not "
            f"among "
            "the best third of the trials that came so far"
        )
    listed = {row.name: row.problem for row in list_runs(result.folder) if row.state == "failed"}
    assert listed == {f"trial-{row.number}": row.reason for row in stopped}
    assert "stopped early" in (result.folder / "report.html").read_text()


def test_trials_that_fail_have_their_reason_and_end_nothing() -> None:
    recipe = make_search(
        {"parameters": {"stages.1.optimizer.lr": {"choices": [0.05, 1e30]}}, "trials": 2, "sampler": "grid"}
    )
    result = run_study(recipe)
    states = {row.parameters["stages.1.optimizer.lr"]: row for row in result.trials}
    assert states[0.05].state == "complete" and states[1e30].state == "failed"
    assert "the loss is" in states[1e30].reason
    assert any(note == f"1 trial failed: {states[1e30].reason}" for note in result.study.notes)


def test_a_missed_budget_is_a_failed_trial() -> None:
    recipe = make_search(
        {"parameters": {"budget.macs": {"choices": ["0.1%", "60%"]}}, "trials": 2, "sampler": "grid"}
    )
    del recipe["rules"][0]["sparsity"]
    result = run_study(recipe)
    states = {row.parameters["budget.macs"]: row for row in result.trials}
    assert states["60%"].state == "complete" and states["0.1%"].state == "failed"
    assert states["0.1%"].reason.startswith("search: budget.macs: ")


def test_when_every_trial_fails_the_most_frequent_reason_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_search({"parameters": BOTH, "trials": 3})
    recipe["model"]["build"] = "tune_parts:broken_net"
    with pytest.raises(RunError) as error:
        run_study(recipe)
    said = str(error.value)
    assert said.startswith(
        "no trial of runs/heaps-study-1 was complete; the most frequent reason (3 of 3): model.build"
    )
    assert "no network today" in said
    record = Study.model_validate_json(Path("runs/heaps-study-1/study.json").read_bytes())
    assert [row.state for row in record.trials] == ["failed"] * 3 and not record.chosen


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a moment of the test's choice."""


def interrupt_at(number: int, what: type[Any]) -> Any:
    """A listener that stops in the middle of a trial."""

    def tell(event: TuneEvent) -> None:
        inner = event.event if isinstance(event, TrialEvent) else event
        if isinstance(inner, what) and getattr(event, "number", None) == number:
            raise Stopped

    return tell


@pytest.mark.parametrize(
    "sampler, what",
    [("tpe", EpochDone), pytest.param("random", TrialStarted, marks=pytest.mark.nightly)],
)
def test_an_interrupted_study_goes_on_to_the_same_trials(sampler: str, what: type[Any]) -> None:
    recipe = make_search({"parameters": BOTH, "trials": 4, "sampler": sampler}, epochs=2)
    whole = run_study(recipe, out="whole")
    with pytest.raises(Stopped):
        run_study(recipe, out="runs", listener=interrupt_at(2, what))
    events: list[TuneEvent] = []
    folder = Path("runs/heaps-study-1")
    result = sparsify.tune(resume=folder, listener=events.append)
    assert events[0] == StudyOpened(str(folder), 4, 2, is_new=False)
    assert list_parameters(result) == list_parameters(whole)
    assert [row.metric for row in result.trials] == [row.metric for row in whole.trials]
    assert [row.restarts for row in result.trials] == [0, 0, 1, 0]
    started = [event.number for event in events if isinstance(event, TrialStarted)]
    assert started == [2, 3], "finished trials are not run again"
    if what is EpochDone:
        log = (folder / "trial-2" / "log.jsonl").read_text()
        assert '"resumed": true' in log, "its run went on where it was"
    with pytest.raises(RunError) as error:
        sparsify.tune(resume=folder)
    assert str(error.value) == f"{folder} is complete: nothing to resume; --trials 8 asks for more"
    more = sparsify.tune(resume=folder, trials=5)
    assert list_parameters(more)[:4] == list_parameters(whole) and len(more.trials) == 5
    with pytest.raises(RunError, match=f"{folder} has 5 trials; ask for more of them, not for 3"):
        sparsify.tune(resume=folder, trials=3)


def test_a_trial_that_was_stopped_early_before_a_crash_stays_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    search = {
        "parameters": {"stages.1.optimizer.lr": {"choices": [0.3, 1e-7]}},
        "trials": 2,
        "sampler": "grid",
    }
    recipe = make_search({**search, "early_stopping": "asha", "seed": 1}, epochs=4)
    from sparsify.tuning import work

    write, calls = work.write_outcome, []

    def crash(trial: optuna.trial.Trial, outcome: Any) -> None:
        calls.append(outcome.trial.state)
        if outcome.trial.state == "stopped" and calls.count("stopped") == 1:
            raise Stopped
        write(trial, outcome)

    monkeypatch.setattr(work, "write_outcome", crash)
    with pytest.raises(Stopped):
        run_study(recipe)
    result = sparsify.tune(resume="runs/heaps-study-1")
    states = sorted(row.state for row in result.trials)
    assert states == ["complete", "stopped"] and calls.count("stopped") == 2
    stopped = next(row for row in result.trials if row.state == "stopped")
    assert stopped.epochs == 1 and stopped.reason.startswith("stopped early by asha after epoch 1")


def test_arguments_that_do_not_go_together() -> None:
    recipe = make_search({"parameters": BOTH, "trials": 1})
    cases = [
        ({}, "nothing to tune: give a recipe and a model, --resume STUDY or --join STUDY"),
        ({"resume": "a", "join": "b"}, "both resume and join are given; leave one of them out"),
        ({"resume": "nowhere"}, "there is no study nowhere"),
        (
            {"resume": "nowhere", "from_scratch": True},
            "nowhere goes on as it was started; start a new study to change anything",
        ),
        (
            {"join": "nowhere", "trials": 3},
            "who joins a study takes its number of trials; leave it out, or give it with --resume",
        ),
        ({"recipe": recipe}, "no model file; give one, or --from-scratch to start from random weights"),
        ({"recipe": recipe, "from_scratch": True, "trials": 0}, "a study has at least one trial, not 0"),
        ({"recipe": recipe, "from_scratch": True, "workers": 0}, "a study has at least one worker, not 0"),
        (
            {"recipe": {k: v for k, v in recipe.items() if k != "search"}, "from_scratch": True},
            "the recipe has no 'search'; write what is tried, such as "
            "'search: {parameters: {budget.macs: [30%, 70%]}}'",
        ),
        (
            {"recipe": recipe, "from_scratch": True, "storage": "mysql+nodriver://u:secret@h/d"},
            "a storage of mysql needs nodriver: pip install nodriver",
        ),
    ]
    for arguments, said in cases:
        with pytest.raises(sparsify.SparsifyError) as error:
            sparsify.tune(**arguments)
        assert str(error.value) == said
    assert not Path("runs").exists() or not list(Path("runs").iterdir()), "nothing was begun"
    Path("empty").mkdir()
    with pytest.raises(RunError, match=r"^empty holds no study: tune\.json is missing$"):
        sparsify.tune(resume="empty")


def test_a_storage_that_does_not_open_is_said_without_its_password() -> None:
    recipe = make_search({"parameters": BOTH, "trials": 1})
    with pytest.raises(RunError) as error:
        run_study(recipe, storage="postgresql://me:secret@127.0.0.1:9/none")
    assert str(error.value).startswith("the storage postgresql://me@127.0.0.1:9/none cannot be opened: ")
    assert "secret" not in str(error.value)
    assert list(Path("runs").iterdir()) == []


def test_a_study_whose_recipe_or_model_was_changed_does_not_go_on(tmp_path: Path) -> None:
    recipe = make_search({"parameters": BOTH, "trials": 2})
    run = sparsify.apply({k: v for k, v in recipe.items() if k != "search"}, from_scratch=True, timing=0)
    weights = run / "dense.safetensors"
    with pytest.raises(Stopped):
        sparsify.tune(recipe, weights, listener=interrupt_at(0, TrialStarted))
    folder = Path("runs/heaps-study-1")
    text = (folder / "search.yaml").read_text()
    (folder / "search.yaml").write_text(text + "# changed\n")
    with pytest.raises(RunError) as error:
        sparsify.tune(resume=folder)
    assert str(error.value) == (
        f"{folder / 'search.yaml'} was changed since the study began; start a new study with it"
    )
    (folder / "search.yaml").write_text(text)
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(RunError) as error:
        sparsify.tune(resume=folder)
    assert str(error.value) == f"{weights.resolve()} is not the model that the study began with"


def test_a_launcher_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError) as error:
        run_study(make_search({"parameters": BOTH}))
    assert str(error.value) == (
        "a trial runs in one process; start 'tune' without a launcher, and with workers"
    )


def test_a_missing_optuna_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsify.tuning import optuna_package

    monkeypatch.setattr(optuna_package, "find_spec", lambda name: None)
    with pytest.raises(RunError) as error:
        run_study(make_search({"parameters": BOTH}))
    assert str(error.value) == "'tune' needs Optuna: pip install 'sparsify-recipes[tune]'"


def test_the_command_shows_the_study_and_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(yaml.safe_dump(make_search({"parameters": BOTH, "trials": 2})))
    assert exit_code(["tune", "r.yaml", "--from-scratch"]) == 0
    shown = capsys.readouterr()
    assert "2 trials: 2 complete. Best: trial" in shown.out and "Chosen" in shown.out
    lines = shown.err.splitlines()
    assert lines[0] == "study runs/heaps-study-1: 2 trials"
    assert lines[1].startswith("trial 0: rules.0.sparsity ") and "2 of 2 finished, best " in lines[4]
    assert lines[-1] == "the best recipe: runs/heaps-study-1/best.yaml"
    assert exit_code(["tune", "--resume", "runs/heaps-study-1", "--trials", "3", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("folder") == "runs/heaps-study-1"
    assert len(Study.model_validate(found).trials) == 3
    assert exit_code(["report", "runs/heaps-study-1"]) == 0
    assert capsys.readouterr().out.startswith("3 trials: 3 complete. Best: trial")
    assert exit_code(["report", "runs/heaps-study-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert exit_code(["report", "runs/heaps-study-1", "--md"]) == 0
    assert capsys.readouterr().out.startswith("# Heaps\n\n3 trials: 3 complete. Best: trial")
    assert exit_code(["report", "runs/heaps-study-1", "--html"]) == 0
    assert capsys.readouterr().out == Path("runs/heaps-study-1/report.html").read_text()
    assert exit_code(["tune", "--json"]) == 2
    assert "give a recipe (and a model), --resume STUDY or --join STUDY" in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsify_cli import study_progress

    Path("r.yaml").write_text(yaml.safe_dump(make_search({"parameters": BOTH, "trials": 2})))
    monkeypatch.setattr(study_progress, "_log_study", interrupt_at(1, TrialStarted))
    assert exit_code(["tune", "r.yaml", "--from-scratch"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "interrupted; continue with: sparsify tune --resume runs/heaps-study-1"
    )


def test_apply_and_validate_say_what_becomes_of_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text(yaml.safe_dump(make_search({"parameters": BOTH, "trials": 2})))
    assert exit_code(["validate", "r.yaml"]) == 0
    assert (
        "search   2 trials of rules.0.sparsity, stages.1.optimizer.lr by tpe, for 'sparsify tune' alone"
        in capsys.readouterr().out
    )
    assert exit_code(["apply", "r.yaml", "--from-scratch"]) == 0
    assert "the recipe's `search` is left out: 'sparsify tune' carries it out" in capsys.readouterr().err
    assert "search" not in yaml.safe_load(Path("runs/heaps-1/recipe.yaml").read_text())


def test_best_so_far_is_told_after_each_trial() -> None:
    events: list[TuneEvent] = []
    result = run_study(make_search({"parameters": BOTH, "trials": 3}), listener=events.append)
    finished = [event for event in events if isinstance(event, TrialFinished)]
    assert [event.finished for event in finished] == [1, 2, 3]
    assert finished[-1].best == result.best.model_copy(update={"test_metric": None})


LABELS = "x[:, :3].argmax(1)"
OWN_MODULES = {
    "own_points": f"""
import torch
def load():
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    y = {LABELS}
    return (x[:60], y[:60]), (x[60:], y[60:])
""",
    "own_layers": """
from torch import nn
def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
""",
}


def write_own_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe whose code lies in a folder. Code that was imported is forgotten, as in a new process."""
    for name, text in OWN_MODULES.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    recipe = make_search({"parameters": {"rules.0.sparsity": ["20%", "60%"]}, "trials": 1})
    recipe["model"]["build"] = "own_layers:build"
    recipe["data"]["source"] = "own_points:load"
    return recipe


def count_trials(folder: Path) -> int:
    with keep_quiet():
        backend = storage.open_storage(None, folder)
        study = optuna.load_study(study_name=folder.name, storage=backend)
        storage.close_storage(backend)
    return len(study.trials)


@pytest.mark.parametrize(
    "missing, named",
    [("own_points", "data.source 'own_points:load'"), ("own_layers", "model.build 'own_layers:build'")],
)
def test_who_lacks_the_data_or_the_code_takes_no_trial(
    missing: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_study(write_own_modules(tmp_path, monkeypatch)).folder.resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_own_modules(Path(), monkeypatch)
    Path(f"{missing}.py").unlink()
    for arguments in ({"resume": folder, "trials": 4}, {"join": folder}):
        with pytest.raises(SparsifyError) as error:
            sparsify.tune(**arguments)
        assert str(error.value) == (
            f"{named}: there is no module '{missing}' (looked in the installed packages and in {Path.cwd()})"
        )
    assert count_trials(folder) == 1
    write_own_modules(Path(), monkeypatch)
    more = sparsify.tune(resume=folder, trials=2)
    assert [row.state for row in more.trials] == ["complete", "complete"]


def test_who_has_other_data_or_other_code_takes_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_own_modules(tmp_path, monkeypatch)
    folder = run_study(recipe).folder
    file = tmp_path / "own_points.py"
    file.write_text(OWN_MODULES["own_points"].replace(LABELS, "x[:, 3:].argmax(1)"))
    with pytest.raises(RunError) as error:
        sparsify.tune(resume=folder, trials=2)
    assert str(error.value) == (
        f"{file} (data.source 'own_points:load') was changed since the study began; start a new study with it"
    )
    write_own_modules(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "own_points", types.ModuleType("own_points"))
    exec(OWN_MODULES["own_points"].replace(LABELS, "x[:, 3:].argmax(1)"), vars(sys.modules["own_points"]))
    vars(sys.modules["own_points"])["__file__"] = str(file)  # the file as it was reads other data
    with pytest.raises(RunError) as error:
        sparsify.tune(resume=folder, trials=2)
    assert str(error.value) == (
        "the training targets of data.source 'own_points:load' were changed since the study began; start a "
        "new study with them"
    )
    assert count_trials(folder) == 1


def test_a_study_without_its_data_or_code_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_own_modules(tmp_path, monkeypatch)
    for name in OWN_MODULES:
        (tmp_path / f"{name}.py").rename(tmp_path / f"{name}.kept")
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(SparsifyError, match=f"there is no module '{name}'"):
            run_study(recipe)
        (tmp_path / f"{name}.kept").rename(tmp_path / f"{name}.py")
    assert not Path("runs").exists()


def test_epochs_are_counted_by_the_recipe_of_the_trial() -> None:
    """Where the length of an earlier stage is searched, later epochs are told as they were run."""
    recipe = make_search(
        {
            "parameters": {"learn": {"choices": [1, 2]}},
            "trials": 2,
            "sampler": "grid",
            "early_stopping": "asha",
        }
    )
    recipe["vars"] = {"learn": 6}
    learn = {**recipe["stages"][1], "epochs": "${learn}"}
    recipe["stages"] = [learn, recipe["stages"][0], {**learn, "name": "finetune", "epochs": 2}]
    ran: dict[int, int] = {}

    def count(event: TuneEvent) -> None:
        if isinstance(event, TrialEvent) and isinstance(event.event, EpochDone):
            ran[event.number] = ran.get(event.number, 0) + 1

    result = run_study(recipe, listener=count)
    with keep_quiet():
        backend = storage.open_storage(None, result.folder)
        trials = optuna.load_study(study_name=result.folder.name, storage=backend).trials
        storage.close_storage(backend)
    for row, trial in zip(result.trials, trials, strict=True):
        assert sorted(trial.intermediate_values) == list(range(1, ran[row.number] + 1))
        assert row.epochs == ran[row.number] <= row.parameters["learn"] + 2


def test_a_study_that_goes_on_keeps_what_the_user_wrote() -> None:
    result = run_study(make_search({"parameters": BOTH, "trials": 1}))
    folder, best = result.folder, result.best_recipe
    written = best.read_text()
    changed = written + "# a note of the user\n"
    for name in ("best-of-mine.yaml", "best-7.yaml"):
        (folder / name).write_text("mine: true\n")
    best.write_text(changed)
    result = sparsify.tune(resume=folder, trials=2)
    assert (folder / "best.changed.yaml").read_text() == changed
    assert "best.yaml was not as the study writes it, and is kept as best.changed.yaml" in result.study.notes
    assert "a note of the user" not in best.read_text()
    best.write_text(changed)
    result = sparsify.tune(resume=folder, trials=3)
    assert (folder / "best.changed-2.yaml").read_text() == changed
    for name in ("best-of-mine.yaml", "best-7.yaml"):
        assert (folder / name).read_text() == "mine: true\n"
    before = sorted(path.name for path in folder.glob("best*"))
    result = sparsify.tune(resume=folder, trials=4)
    assert sorted(path.name for path in folder.glob("best*")) == before, "what it wrote itself it replaces"


def test_points_that_left_the_front_leave_no_recipe() -> None:
    recipe = make_search({"parameters": BOTH, "trials": 2, "objective": {"cost": "macs"}})
    folder = run_study(recipe).folder
    stale = folder / "best-9.yaml"
    stale.write_text((folder / sorted(folder.glob("best-*.yaml"))[0].name).read_text())
    result = sparsify.tune(resume=folder, trials=3)
    assert sorted(path.name for path in folder.glob("best*")) == sorted(result.study.recipes.values())


def test_who_is_refused_from_another_machine_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal.log"
    result = run_study(write_own_modules(tmp_path, monkeypatch), storage=str(journal))
    name = json.loads((result.folder / "tune.json").read_text())["name"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_own_modules(Path(), monkeypatch)
    Path("own_points.py").write_text(OWN_MODULES["own_points"].replace("manual_seed(0)", "manual_seed(1)"))
    with pytest.raises(RunError) as error:
        sparsify.tune(join=name, storage=str(journal))
    assert str(error.value) == (
        f"{Path.cwd() / 'own_points.py'} (data.source 'own_points:load') was changed since the study began; "
        "start a new study with it"
    )
    assert not (Path("runs") / name).exists()
