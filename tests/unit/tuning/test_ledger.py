"""Trials are begun, taken over and finished so that none is lost or doubled: two workers by hand, on one
database."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from sparsify.tuning import ledger as ledgers
from sparsify.tuning.ledger import Ledger, Worker
from sparsify.tuning.optuna_package import keep_quiet
from sparsify.tuning.storage import open_storage


@pytest.fixture(params=["database", "journal"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str | None]:
    with keep_quiet():
        yield None if request.param == "database" else str(tmp_path / "journal.log")


def open_ledger(place: str | None, folder: Path, worker: Worker, wanted: int = 3) -> Ledger:
    storage = open_storage(place, folder)
    study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
    claims = optuna.create_study(storage=storage, study_name="s claims", load_if_exists=True)
    return Ledger(study, claims, worker, wanted)


OWN = Worker.of_this_process()
DEAD = replace(OWN, process=2**22 + 7, token="dead")
"""no system counts so far"""
ELSEWHERE = replace(OWN, host="elsewhere", process=1, token="far")


def test_workers_get_every_trial_once(place: str | None, tmp_path: Path) -> None:
    first, second = (open_ledger(place, tmp_path, worker) for worker in (OWN, ELSEWHERE))
    claims = [one.claim() for one in (first, second, first, second)]
    assert [claim and claim.number for claim in claims] == [0, 1, 2, None]
    for claim, whose in zip(claims[:3], (first, second, first), strict=True):
        assert claim is not None
        whose.finish(claim, TrialState.COMPLETE, [float(claim.number)])
    assert first.is_finished() and second.is_finished()
    assert [trial.value for trial in second.list_trials()] == [0.0, 1.0, 2.0]


def test_of_two_who_begin_the_last_trial_at_once_the_later_withdraws(
    place: str | None, tmp_path: Path
) -> None:
    first, second = (open_ledger(place, tmp_path, worker, wanted=1) for worker in (OWN, ELSEWHERE))
    list_trials, looks = second.list_trials, []

    def look_late() -> list[optuna.trial.FrozenTrial]:
        """Between the second worker's look and its beginning the first one begins."""
        found = list_trials()
        looks.append(len(found))
        if len(looks) == 2:  # the first is that for lost trials
            assert first.claim() is not None
        return found

    second.list_trials = look_late  # type: ignore[method-assign]
    assert second.claim() is None
    assert [trial.number for trial in first.list_trials()] == [0]
    withdrawn = [trial for trial in first.study.trials if trial.number == 1]
    assert [trial.state for trial in withdrawn] == [TrialState.FAIL]


def test_a_trial_of_a_dead_process_is_taken_over_with_its_values(place: str | None, tmp_path: Path) -> None:
    lost = open_ledger(place, tmp_path, DEAD, wanted=1)
    begun = lost.claim()
    assert begun is not None
    drawn = begun.trial.suggest_float("x", 0, 1)
    own = open_ledger(place, tmp_path, OWN, wanted=1)
    claim = own.claim()
    assert claim is not None and (claim.number, claim.restarts) == (0, 1)
    assert claim.trial.suggest_float("x", 0, 1) == drawn
    assert open_ledger(place, tmp_path, ELSEWHERE, wanted=1).claim() is None, "it has a holder again"
    lost.finish(begun, TrialState.COMPLETE, [1.0])
    assert own.list_trials()[0].state == TrialState.RUNNING, "whoever lost it does not finish it"
    own.finish(claim, TrialState.COMPLETE, [2.0])
    assert [trial.value for trial in own.list_trials()] == [2.0]


def test_of_two_claims_for_one_turn_the_earlier_holds(place: str | None, tmp_path: Path) -> None:
    assert open_ledger(place, tmp_path, DEAD, wanted=1).claim() is not None
    own = open_ledger(place, tmp_path, OWN, wanted=1)
    other = open_ledger(place, tmp_path, ELSEWHERE, wanted=1)
    find_holder, asked = own._find_holder, []

    def find_late(trial: optuna.trial.FrozenTrial, turns: object) -> tuple[int, str]:
        found = find_holder(trial, turns)  # type: ignore[arg-type]
        asked.append(found)
        if len(asked) == 1:  # between the look and the claim the other one claims
            other.seen[str(DEAD)] = (0, -1e9)
            assert other.claim() is not None
        return found

    own._find_holder = find_late  # type: ignore[method-assign]
    assert own.claim() is None
    assert asked[-1] == (1, str(ELSEWHERE))


def test_a_worker_of_another_machine_is_lost_when_its_heart_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(ledgers.time, "monotonic", lambda: now[0])
    with keep_quiet():
        far = open_ledger(None, tmp_path, ELSEWHERE, wanted=1)
        assert far.claim() is not None
        far.study.set_user_attr(f"beat {ELSEWHERE}", 0)
        own = open_ledger(None, tmp_path, OWN, wanted=1)
        assert own.claim() is None
        now[0] += ledgers.GRACE - 1
        far.study.set_user_attr(f"beat {ELSEWHERE}", 1)
        assert own.claim() is None
        now[0] += ledgers.GRACE
        assert own.claim() is None, "its last beat was seen a minute ago, not more"
        now[0] += 1
        assert own.claim() is not None


def test_a_worker_that_says_that_it_ends_is_lost_at_once(tmp_path: Path) -> None:
    with keep_quiet():
        far = open_ledger(None, tmp_path, ELSEWHERE, wanted=1)
        with far.beat():
            assert far.claim() is not None
            own = open_ledger(None, tmp_path, OWN, wanted=1)
            assert own.claim() is None
        assert own.claim() is not None


def test_a_call_that_has_ended_in_this_process_is_lost(tmp_path: Path) -> None:
    """As after Ctrl-C in a notebook: the process lives on."""
    earlier = replace(OWN, token="earlier")
    with keep_quiet():
        before = open_ledger(None, tmp_path, earlier, wanted=1)
        own = open_ledger(None, tmp_path, OWN, wanted=1)
        with before.beat():
            assert before.claim() is not None
            assert own.claim() is None
        assert own.claim() is not None


def test_a_process_is_known_by_its_start_too() -> None:
    assert ledgers._is_alive(os.getpid(), OWN.started)
    assert not ledgers._is_alive(DEAD.process, "")
    if OWN.started:
        assert not ledgers._is_alive(os.getpid(), "1"), "its number was given to another one"
    assert Worker.parse(str(OWN)) == OWN
