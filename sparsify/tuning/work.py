"""What a worker does: it takes trials, runs them and tells the storage, until the study is finished."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from optuna.trial import TrialState

from sparsify.events import Event
from sparsify.tuning.finish import finish_study
from sparsify.tuning.ledger import Claim
from sparsify.tuning.open_study import OpenStudy
from sparsify.tuning.samplers import draw_parameters
from sparsify.tuning.study_record import find_best, find_seed, read_rows, write_outcome
from sparsify.tuning.trial_run import Outcome, describe_stop, run_trial
from sparsify.tuning.tune_events import (
    StudyOpened,
    StudyWaits,
    TrialEvent,
    TrialFinished,
    TrialStarted,
    TuneListener,
)
from sparsify_schemas.search_fit import find_judge
from sparsify_schemas.study import Study, StudyTrial, find_cost

STORAGE_VARIABLE = "SPARSIFY_STUDY_STORAGE"
"""Hands a storage's URL to workers that this process starts; a command line would show its password."""
_PAUSE = 0.5
"""Seconds between two looks at trials that others run."""
_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def carry_out(opened: OpenStudy, workers: int, listener: TuneListener) -> Study:
    """Run trials on so many processes until the study is finished, and write what it found."""
    ledger, folder = opened.ledger, opened.setting.folder
    listener(StudyOpened(str(folder), ledger.wanted, ledger.count_finished(), opened.is_new))
    with ledger.beat():
        with _start_workers(opened, workers - 1):
            run_trials(opened, listener)
        return finish_study(opened.setting, ledger)


def run_trials(opened: OpenStudy, listener: TuneListener) -> None:
    """Run trials until the study has as many as are wanted. Those that others run are waited for, and taken
    over where their worker is lost."""
    ledger, waits = opened.ledger, False
    while not ledger.is_finished():
        claim = ledger.claim()
        if claim is None:
            if not waits:
                listener(StudyWaits(ledger.wanted - ledger.count_finished()))
            waits = True
            time.sleep(_PAUSE)
            continue
        waits = False
        outcome = _run_claim(opened, claim, listener)
        _report_finished(opened, outcome, listener)


def _run_claim(opened: OpenStudy, claim: Claim, listener: TuneListener) -> Outcome:
    search, number = opened.setting.recipe.search, claim.number
    assert search is not None
    seed = find_seed(opened.setting.recipe)
    parameters = draw_parameters(opened.ledger.study, claim.trial, search, seed, number)
    listener(TrialStarted(number, parameters, claim.restarts > 0))
    outcome = _take_outcome(opened, claim, parameters, listener)
    more = {"worker": opened.ledger.worker.short, "restarts": claim.restarts}
    row = outcome.trial.model_copy(update=more)
    outcome = replace(outcome, trial=row)
    write_outcome(claim.trial, outcome)
    values = None
    state = _STATES[row.state]
    if row.state == "complete":
        assert row.metric is not None
        cost = search.objective.cost
        values = [row.metric] if cost is None else [row.metric, find_cost(row.costs, cost)]
    opened.ledger.finish(claim, state, values)
    return outcome


def _take_outcome(
    opened: OpenStudy, claim: Claim, parameters: dict[str, Any], listener: TuneListener
) -> Outcome:
    """Run the trial, unless a worker that was lost had stopped it already."""
    known = claim.trial.user_attrs.get("stopped")
    if known is not None:
        name = find_judge(opened.setting.recipe).name
        reason = describe_stop(name, known["epochs"], known["metric"])
        row = StudyTrial(number=claim.number, state="stopped", parameters=parameters, reason=reason)
        return Outcome(row.model_copy(update=known))
    told = set(opened.ledger.study.trials[claim.trial.number].intermediate_values)

    def should_stop(epochs: int, figure: float) -> bool:
        if epochs not in told:
            claim.trial.report(figure, epochs)
            told.add(epochs)
        if not claim.trial.should_prune():
            return False
        claim.trial.set_user_attr("stopped", {"epochs": epochs, "metric": figure})
        return True

    def tell(event: Event) -> None:
        listener(TrialEvent(claim.number, event))

    is_front = len(opened.ledger.study.directions) > 1
    return run_trial(opened.setting, claim.number, parameters, None if is_front else should_stop, tell)


def _report_finished(opened: OpenStudy, outcome: Outcome, listener: TuneListener) -> None:
    rows, judged_by = read_rows(opened.ledger), find_judge(opened.setting.recipe)
    best = find_best(rows, judged_by)
    listener(TrialFinished(outcome.trial, len(rows), opened.ledger.wanted, judged_by, best))


@contextmanager
def _start_workers(opened: OpenStudy, count: int) -> Iterator[None]:
    """Processes that join the study. They end by themselves, or with this one where it is interrupted."""
    environment = dict(os.environ)
    if opened.storage is not None:
        environment[STORAGE_VARIABLE] = opened.storage
    command = [sys.executable, "-m", "sparsify.tuning.worker", str(opened.setting.folder)]
    started = []
    try:
        for number in range(count):
            with (opened.setting.folder / f"worker-{number + 1}.log").open("ab") as log:
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                )
        yield
        for process in started:
            process.wait()
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
