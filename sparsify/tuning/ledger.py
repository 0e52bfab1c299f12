"""Which trial belongs to whom: trials are begun, taken over and finished so that none is lost or doubled.

A storage of Optuna gives trials numbers that follow each other, and that is all that is relied on:

- A trial is valid where fewer valid ones than wanted have smaller numbers. Two workers who begin the last
  trial at once both look, and the later one withdraws.
- A lost trial is taken over by a claim, which is a trial of a second study. Of two claims for the same turn
  the one with the smaller number holds.

A trial is lost when its worker is gone: its process, on the same machine; on others its heart has not beaten
for a minute by the clock of whoever looks.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

BEAT = 10.0
"""Seconds between two beats of a worker's heart."""
GRACE = 60.0
"""Seconds without a beat after which a worker of another machine is taken as lost."""
_active: set[str] = set()
"""Workers of this process."""


@dataclass(frozen=True)
class Worker:
    """A process that runs trials. The same process is another worker when it opens the study again."""

    host: str
    space: str
    """What numbers of processes are counted in: containers of one name may have their own."""
    process: int
    started: str
    """When the process was started, as the system has it."""
    token: str

    @classmethod
    def of_this_process(cls) -> "Worker":
        space = ""
        with suppress(OSError):
            space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
        process = os.getpid()
        return cls(socket.gethostname(), space, process, _read_start(process), token_hex(4))

    @classmethod
    def parse(cls, text: str) -> "Worker":
        host, space, process, started, token = text.split("|")
        return cls(host, space, int(process), started, token)

    def __str__(self) -> str:
        return f"{self.host}|{self.space}|{self.process}|{self.started}|{self.token}"

    @property
    def short(self) -> str:
        """As reports name it."""
        return f"{self.host}:{self.process}"


def _read_start(process: int) -> str:
    """When a process was started; '' where the system does not say."""
    with suppress(OSError, IndexError):
        stat = Path(f"/proc/{process}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]
    return ""


def _is_alive(process: int, started: str) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    if Path(f"/proc/{process}/stat").exists() and _read_state(process) == "Z":
        return False
    return not started or _read_start(process) in (started, "")


def _read_state(process: int) -> str:
    """Z for a process that is dead and not yet fetched by the one that started it."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


@dataclass(frozen=True)
class Claim:
    """A trial that this worker runs."""

    number: int
    """Place among the valid trials, from 0."""
    trial: Trial
    restarts: int = 0
    """How many times the trial was taken over."""


@dataclass
class Ledger:
    """The trials of a study, as this worker sees them."""

    study: optuna.Study
    claims: optuna.Study
    worker: Worker
    wanted: int
    seen: dict[str, tuple[Any, float]] = field(default_factory=dict)
    """worker -> (its last beat, when this process first saw it)"""

    def list_trials(self) -> list[FrozenTrial]:
        """The valid trials in order: a trial's number is its place here."""
        trials = sorted(self.study.get_trials(deepcopy=False), key=lambda trial: trial.number)
        return [trial for trial in trials if not trial.user_attrs.get("withdrawn")]

    def count_finished(self) -> int:
        return sum(trial.state.is_finished() for trial in self.list_trials()[: self.wanted])

    def is_finished(self) -> bool:
        return self.count_finished() >= self.wanted

    def claim(self) -> Claim | None:
        """A trial for this worker to run: a lost one first, else a new one; None where none is left."""
        return self._take_over() or self._begin()

    def _begin(self) -> Claim | None:
        if len(self.list_trials()) >= self.wanted:
            return None
        token = token_hex(8)
        attributes = {"worker": str(self.worker), "token": token}
        self.study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        trials = self.list_trials()
        number = next(i for i, trial in enumerate(trials) if trial.user_attrs.get("token") == token)
        own = self._open(trials[number])
        if number < self.wanted:
            return Claim(number, own)
        own.set_user_attr("withdrawn", True)
        self.study.tell(own, state=TrialState.FAIL, skip_if_finished=True)
        return None

    def _open(self, trial: FrozenTrial) -> Trial:
        # Nothing is drawn here: values are asked for with a sampler of their own.
        self.study.sampler = optuna.samplers.RandomSampler(seed=0)
        return Trial(self.study, trial._trial_id)

    def _take_over(self) -> Claim | None:
        turns = self._list_turns()
        for number, trial in enumerate(self.list_trials()[: self.wanted]):
            if trial.state != TrialState.RUNNING:
                continue
            turn, holder = self._find_holder(trial, turns)
            if not self._is_lost(holder):
                continue
            attributes = {"trial": trial.number, "turn": turn + 1, "worker": str(self.worker)}
            self.claims.add_trial(create_trial(value=0.0, user_attrs=attributes))
            if self._find_holder(trial, self._list_turns()) == (turn + 1, str(self.worker)):
                return Claim(number, self._open(trial), turn + 1)
        return None

    def _list_turns(self) -> Mapping[tuple[int, int], str]:
        """(number of a trial, turn) -> worker that holds it."""
        found: dict[tuple[int, int], str] = {}
        for claim in sorted(self.claims.get_trials(deepcopy=False), key=lambda claim: claim.number):
            held = claim.user_attrs
            found.setdefault((held["trial"], held["turn"]), held["worker"])
        return found

    def _find_holder(self, trial: FrozenTrial, turns: Mapping[tuple[int, int], str]) -> tuple[int, str]:
        """The last turn of a trial, 0 for its beginning, and who holds it."""
        turn, holder = 0, trial.user_attrs["worker"]
        while (trial.number, turn + 1) in turns:
            turn += 1
            holder = turns[trial.number, turn]
        return turn, holder

    def _is_lost(self, holder: str) -> bool:
        if holder == str(self.worker):
            return False
        other = Worker.parse(holder)
        is_here = (other.host, other.space) == (self.worker.host, self.worker.space)
        if is_here and sys.platform != "win32":  # where os.kill would end the process
            if other.process == self.worker.process and other.started == self.worker.started:
                return holder not in _active
            return not _is_alive(other.process, other.started)
        beat, now = self.study.user_attrs.get(f"beat {holder}", 0), time.monotonic()
        if beat is None:  # it has said that it ends
            return True
        if holder not in self.seen or self.seen[holder][0] != beat:
            self.seen[holder] = (beat, now)
        return now - self.seen[holder][1] > GRACE

    def holds(self, claim: Claim) -> bool:
        """Whether a trial is still this worker's."""
        found = next(one for one in self.list_trials() if one._trial_id == claim.trial._trial_id)
        return self._find_holder(found, self._list_turns())[1] == str(self.worker)

    def finish(self, claim: Claim, state: TrialState, values: Sequence[float] | None) -> None:
        """Finish a trial, unless somebody else holds it by now."""
        if self.holds(claim):
            self.study.tell(claim.trial, values=values, state=state, skip_if_finished=True)

    @contextmanager
    def beat(self) -> Iterator[None]:
        """Let this worker's heart beat while the block runs."""
        stopped, key = threading.Event(), f"beat {self.worker}"

        def beat_on() -> None:
            count = 0
            while not stopped.wait(BEAT):
                count += 1
                # The storage may be busy; the next beat comes soon.
                with suppress(Exception):
                    self.study.set_user_attr(key, count)

        self.study.set_user_attr(key, 0)
        _active.add(str(self.worker))
        thread = threading.Thread(target=beat_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            _active.discard(str(self.worker))
            stopped.set()
            thread.join(2 * BEAT)
            with suppress(Exception):
                self.study.set_user_attr(key, None)
