"""tune on several processes: the trials of one process, none lost and none doubled when workers are killed,
on SQLite, on a journal and on PostgreSQL."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from postgres_server import run_server, why_missing
from tune_parts import BOTH, make_search

import sparsify
from sparsify.tuning.ledger import Ledger, Worker
from sparsify.tuning.optuna_package import keep_quiet
from sparsify.tuning.storage import close_storage, load_study, open_storage
from sparsify.tuning.study_folder import StudyState
from sparsify.tuning.tune import TuneResult
from sparsify_cli.app import exit_code
from sparsify_schemas.study import Study

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
FOLDER = Path("runs/heaps-study-1")
SEED = int(os.environ.get("TUNE_SEED", "20"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """A worker as a user starts it."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "schemas", TESTS)))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with Path(f"log-{time.monotonic_ns()}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sparsify_cli", "tune", *arguments],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def write_recipe(trials: int, epochs: int = 1, **more: Any) -> dict[str, Any]:
    search = {"parameters": BOTH, "trials": trials, "sampler": "random", **more}
    recipe = make_search(search, epochs)
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    return recipe


def write_digits(trials: int) -> dict[str, Any]:
    """A front of accuracy against MACs of a network on the digits, cut and fine-tuned."""
    recipe = write_recipe(trials, epochs=2, objective={"cost": "macs"})
    recipe["model"] = {"build": "sparsify.models.digits_cnn"}
    recipe["data"]["source"] = "digits"
    del recipe["rules"][0]["sparsity"]
    recipe["rules"][0].update(layers="Conv2d", group="filter")
    recipe["budget"] = {"macs": "50%"}
    rates = recipe["search"]["parameters"]["stages.1.optimizer.lr"]
    recipe["search"]["parameters"] = {
        "budget.macs": ["20%", "80%"],
        "stages.1.optimizer.lr": rates,
        "rules.0.criterion": {"choices": [{"kind": "magnitude"}, {"kind": "taylor"}]},
    }
    Path("r.yaml").write_text(yaml.safe_dump(recipe))
    return recipe


def read_trials(folder: Path, storage: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """The valid trials as they stand in the storage."""
    with keep_quiet():
        opened = open_storage(storage, folder)
        study, claims = load_study(StudyState.read(folder).name, opened, None)
        found = Ledger(study, claims, Worker.of_this_process(), 10**6).list_trials()
        close_storage(opened)
        return found


def wait_until(condition: Any, what: str, seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        logs = "\n".join(path.read_text(errors="replace")[-500:] for path in Path().glob("log-*"))
        assert time.monotonic() < ends, f"{what}\n{logs}"
        time.sleep(0.02)


def check_whole(
    result: Study, folder: Path, recipe: dict[str, Any], storage: str | None = None
) -> TuneResult:
    """That a study has every trial of the same study in one process, once, with the same figures."""
    whole = sparsify.tune(recipe, from_scratch=True, out="whole")
    assert [row.number for row in result.trials] == list(range(result.wanted))
    assert [row.parameters for row in result.trials] == [row.parameters for row in whole.trials]
    assert [row.metric for row in result.trials] == [row.metric for row in whole.trials]
    assert [row.costs for row in result.trials] == [row.costs for row in whole.trials]
    assert result.chosen == whole.study.chosen
    kept = read_trials(folder, storage)
    assert len(kept) == result.wanted and all(trial.state.is_finished() for trial in kept)
    names = {path.name for path in folder.glob("trial-*")}
    assert names == {f"trial-{number}" for number in range(result.wanted)}
    return whole


def read_study(folder: Path) -> Study:
    return Study.model_validate_json((folder / "study.json").read_bytes())


def test_two_processes_make_the_study_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first worker is the command itself, which starts the second one."""
    recipe = write_recipe(3)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "schemas", TESTS)))
    monkeypatch.setenv("PYTHONPATH", path)
    assert exit_code(["tune", "r.yaml", "--from-scratch", "--workers", "2", "--quiet"]) == 0
    found = read_study(FOLDER)
    check_whole(found, FOLDER, recipe)
    assert (FOLDER / "worker-1.log").read_text() == ""


@pytest.mark.nightly
def test_a_killed_study_goes_on_where_it_was() -> None:
    recipe = write_recipe(3, epochs=6)
    process = start("r.yaml", "--from-scratch", "-q")
    draw = random.Random(SEED)
    victim = draw.randrange(3)
    wait_until((FOLDER / f"trial-{victim}" / "state.json").exists, f"trial {victim} begins")
    time.sleep(draw.random() / 2)
    process.kill()
    process.wait()
    result = sparsify.tune(resume=FOLDER)
    check_whole(result.study, FOLDER, recipe)
    assert sum(row.restarts for row in result.trials) <= 1


def test_a_worker_joins_from_a_folder_that_is_not_the_study_s() -> None:
    """As on another machine: it has the storage, the name and the recipe alone."""
    recipe = write_recipe(3)
    events: list[Any] = []

    def stop_at_second(event: Any) -> None:
        events.append(event)
        if type(event).__name__ == "TrialStarted" and event.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sparsify.tune(recipe, from_scratch=True, storage="journal.log", listener=stop_at_second)
    name = StudyState.read(FOLDER).name
    assert name.startswith("heaps-study-1-")
    with pytest.raises(sparsify.SparsifyError, match="the storage has no study 'other'"):
        sparsify.tune(join="other", storage="journal.log")
    changed = {**recipe, "seed": 4}
    with pytest.raises(sparsify.SparsifyError) as error:
        sparsify.tune(changed, join=name, storage="journal.log", out="there")
    assert str(error.value) == (f"the recipe is not the one that the study '{name}' began with; leave it out")
    result = sparsify.tune(recipe, join=name, storage="journal.log", out="there")
    assert result.folder == Path("there") / name
    assert {path.name for path in result.folder.glob("trial-*")} == {"trial-1", "trial-2"}
    whole = sparsify.tune(recipe, from_scratch=True, out="whole")
    assert [row.parameters for row in result.trials] == [row.parameters for row in whole.trials]
    assert [row.metric for row in result.trials] == [row.metric for row in whole.trials]
    if result.study.chosen == (0,):  # its run lies in the first folder, which tests it
        assert result.study.notes[-1].startswith("trial 0 was not tested: its run lies with ")
        result = sparsify.tune(resume=FOLDER)
    assert result.best.test_metric == whole.best.test_metric


STORAGES = ["database", "journal", "postgresql"]


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "postgresql":
        if why_missing():
            pytest.skip(why_missing())
        with run_server() as url:
            yield url
        return
    yield "journal.log" if request.param == "journal" else None


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("storage", STORAGES, indirect=True)
def test_workers_killed_at_random_lose_and_double_nothing(storage: str | None) -> None:
    """Two workers at a time, one of them killed again and again, and another one joins in its place."""
    recipe = write_digits(40)
    given = [] if storage is None else ["--storage", storage]
    workers = [start("r.yaml", "--from-scratch", "-q", *given)]
    wait_until((FOLDER / "tune.json").exists, "the study begins")
    workers.append(start("--join", str(FOLDER), "-q"))
    draw, kills = random.Random(SEED), 0
    ends = time.monotonic() + 900
    while not (FOLDER / "study.json").exists():
        assert time.monotonic() < ends, "the study does not end"
        time.sleep(draw.uniform(6, 14))  # a worker takes some seconds to begin
        alive = [worker for worker in workers if worker.poll() is None]
        if not alive or kills >= 12:
            if not alive:
                workers.append(start("--join", str(FOLDER), "-q"))
            continue
        victim = draw.choice(alive)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        kills += 1
        workers.append(start("--join", str(FOLDER), "-q"))
    for worker in workers:
        worker.wait(200)
    found = read_study(FOLDER)
    check_whole(found, FOLDER, recipe, storage)
    restarts = sum(row.restarts for row in found.trials)
    assert kills and restarts, "somebody was killed in the middle of a trial"
    print(f"{kills} kills, {restarts} takeovers, {found.wanted} trials, front {found.chosen}")


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("storage", ["postgresql"], indirect=True)
def test_two_processes_on_a_server_make_the_study_of_one(storage: str) -> None:
    recipe = write_recipe(6)
    process = start("r.yaml", "--from-scratch", "--workers", "2", "--storage", storage)
    assert process.wait(200) == 0, next(Path().glob("log-*")).read_text()
    check_whole(read_study(FOLDER), FOLDER, recipe, storage)
