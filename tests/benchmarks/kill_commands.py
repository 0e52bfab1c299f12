"""Kill commands at random moments, go on, and compare the end with that of commands that nobody disturbed.

    .venv/bin/python tests/benchmarks/kill_commands.py --kills 100 --seed 0

Each kill starts a process of the command line on a small recipe (digits, with a penalty, a cut and a repair),
and ends it by SIGKILL or SIGTERM after a random part of its usual time. Nine of ten processes are forked from
one that has imported the package; one is started anew. Of what is left it is asked: every file is whole;
after SIGTERM there is no temporary file, and the message says how to go on; no run is shown as complete or as
running that is not. Then the run is resumed, or the command repeated, and its end is compared with the end of
the undisturbed one: weights, cuts, and the report without times. No lock and no temporary file is left. What
breaks that is printed with the number of the kill, which `--only N` repeats. Exit 1 where there is any. Of a
study (`tune`), the trials' values and figures, the best recipe and each trial's weights are compared.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from sparsify.runs import run_folder
from sparsify.runs.apply import apply
from sparsify.runs.listing import list_runs
from sparsify_cli.app import exit_code

RECIPE: dict[str, Any] = {
    "version": 1,
    "title": "Kills",
    "model": {"build": "sparsify.models.digits_cnn"},
    "data": {"source": "digits", "validation": "10%"},
    "budget": {"macs": "50%"},
    "targets": {"eager": {"kind": "cpu"}},
    "rules": [
        {"layers": "conv*", "group": "filter", "penalty": {"kind": "group_lasso", "strength": 1e-3}},
    ],
    "stages": [
        {
            "kind": "train",
            "name": "learn",
            "epochs": 3,
            "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        },
        {"kind": "cut"},
        {"kind": "repair"},
        {"kind": "train", "name": "finetune", "epochs": 2, "optimizer": {"kind": "adam", "lr": 1e-3}},
    ],
}
STUDY = "runs/kills-study-1"
STUDY_RECIPE: dict[str, Any] = {
    **RECIPE,
    "stages": [{**stage, "epochs": 1} if "epochs" in stage else stage for stage in RECIPE["stages"]],
    "search": {
        "parameters": {"rules.0.penalty.strength": {"choices": [1e-3, 2e-3, 5e-3]}},
        "sampler": "grid",
        "trials": 3,
        "objective": {"metric": "accuracy"},
    },
}
RUN = "runs/kills-1"
FRESH = 0.1
"""Share of the kills that strike a process started anew, which is still importing for some of its time."""
TIMES = ("created", "seconds", "penalty_share", "latency", "files", "environment")
"""Keys of a report that hold times, or digests of files that hold times."""
OF_WORKERS = ("worker", "workers", "restarts", "folder", "notes")
"""Keys of a study's record that say who ran a trial, and how often it was begun."""
FORMATS = ("safetensors", "pt2", "onnx")


@dataclass
class Undisturbed:
    """What commands make and how long they take when nobody disturbs them."""

    folder: Path
    """Holds the recipe, a complete run, and a halted run that was killed after its cut."""
    seconds: dict[str, float] = field(default_factory=dict)
    end: dict[str, str] = field(default_factory=dict)
    """Digests of the complete run."""
    study: dict[str, str] = field(default_factory=dict)
    """Digests of the complete study."""
    files: dict[str, str] = field(default_factory=dict)
    """Name of a file that a command writes -> its digest."""


class Command:
    """A process of the command line; its stdout and stderr go to a file."""

    def __init__(self, arguments: list[str], folder: Path, fresh: bool = False) -> None:
        """fresh: start Python anew; else fork a process that has imported the package and done nothing."""
        with tempfile.NamedTemporaryFile(delete=False) as said:
            self._said = Path(said.name)
        if fresh:
            command = [sys.executable, "-W", "ignore", "-m", "sparsify_cli", *arguments]
            with self._said.open("w") as stream:
                self._process: Any = subprocess.Popen(command, cwd=folder, stdout=stream, stderr=stream)
        else:
            self._process = SERVER.Process(target=_run_command, args=(arguments, folder, self._said))
            self._process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, minus the number of the signal that ended it; None where it goes on."""
        if isinstance(self._process, subprocess.Popen):
            try:
                return self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
        self._process.join(seconds)
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def read(self) -> str:
        """What it said; afterwards the file is gone."""
        text = self._said.read_text(errors="replace")
        self._said.unlink()
        return text


PRELOADED = [f"sparsify_cli.{name}" for name in ("apply", "bench", "export", "sensitivity", "tune")]
PRELOADED += ["sparsify.runs.apply", "sparsify.runs.benchmark", "sparsify.runs.sensitivity"]
PRELOADED += ["sparsify.tuning.tune", "sparsify_cli.study_progress"]
PRELOADED += ["sparsify.exporters", "torch._dynamo", "torch.export", "sklearn.datasets", "onnxscript"]
"""what is imported before the first kill; much of it is imported late in a command"""
SERVER = multiprocessing.get_context("forkserver")
TIMING = 0.1
"""Seconds spent on timing a target in a forked process: `apply` spends 3 otherwise."""


def _run_command(arguments: list[str], folder: Path, said: Path) -> None:
    with said.open("w") as target:
        os.dup2(target.fileno(), 1)
        os.dup2(target.fileno(), 2)
    warnings.simplefilter("ignore")
    os.chdir(folder)
    apply.__kwdefaults__["timing"] = TIMING
    sys.exit(exit_code(arguments))


def finish(arguments: list[str], folder: Path, expected: int = 0) -> float:
    """Run a command to its end and return its seconds. Raises RuntimeError where it fails."""
    began = time.monotonic()
    command = Command(arguments, folder)
    code, said = command.wait(), command.read()
    if code != expected:
        raise RuntimeError(f"sparsify {' '.join(arguments)}: exit {code}: {said[-600:]}")
    return time.monotonic() - began


@dataclass(frozen=True)
class Kill:
    """When a command is killed, and by what."""

    moment: float
    """Seconds after its start."""
    number: signal.Signals
    fresh: bool
    """Whether it is a new process of Python, and not a forked one."""

    def strike(self, arguments: list[str], folder: Path) -> tuple[int, str]:
        """Start a command and kill it; its exit code and what it said."""
        command = Command(arguments, folder, self.fresh)
        code = command.wait(self.moment)
        if code is None:
            with contextlib.suppress(ProcessLookupError):
                command.send(self.number)
            code = command.wait()
        assert code is not None
        return code, command.read()


def hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def drop_keys(value: Any, names: Sequence[str] = TIMES) -> Any:
    if isinstance(value, dict):
        return {key: drop_keys(entry, names) for key, entry in value.items() if key not in names}
    return [drop_keys(entry, names) for entry in value] if isinstance(value, list) else value


def digest_end(run: Path) -> dict[str, str]:
    """Digests of the weights, the cuts, the recipe and the report without times."""
    names = (run_folder.WEIGHTS, run_folder.DENSE, run_folder.CUTS, run_folder.RECIPE, run_folder.PLAN)
    found = {name: hash_bytes((run / name).read_bytes()) for name in names}
    report = drop_keys(json.loads((run / run_folder.REPORT).read_bytes()))
    return found | {run_folder.REPORT: hash_bytes(json.dumps(report, sort_keys=True).encode())}


def digest_study(study: Path) -> dict[str, str]:
    """Digests of the record without times and workers, of the best recipe and of the trials that ran."""
    record = json.loads((study / "study.json").read_bytes())
    told = json.dumps(drop_keys(record, (*TIMES, *OF_WORKERS)), sort_keys=True)
    found = {
        "study.json": hash_bytes(told.encode()),
        "best.yaml": hash_bytes((study / "best.yaml").read_bytes()),
    }
    for trial in record["trials"]:
        end = digest_end(study / trial["folder"])
        found |= {f"trial {trial['number']}, {name}": digest for name, digest in end.items()}
    return found


def digest_all(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): hash_bytes(p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def _check_lines(content: bytes) -> None:
    for line in content.splitlines()[:-1]:  # the last one may have been cut short; it is ended at the resume
        json.loads(line)


def _check_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as opened:
        answer = opened.execute("PRAGMA integrity_check").fetchone()[0]
    if answer != "ok":
        raise ValueError(answer)


READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_bytes()),
    ".yaml": lambda path: yaml.safe_load(path.read_bytes()),
    ".jsonl": lambda path: _check_lines(path.read_bytes()),
    ".safetensors": load_file,
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".db": _check_database,
    ".pt2": lambda path: torch.export.load(path),
    ".onnx": lambda path: __import__("onnx").checker.check_model(str(path)),
    ".html": lambda path: path.read_text(encoding="utf-8").rstrip().endswith("</html>") or 1 / 0,
}


def list_damaged(folder: Path) -> list[str]:
    """Files under their own names that cannot be read whole."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            READERS.get(path.suffix, lambda _: None)(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)} is not whole: {type(error).__name__}: {error}")
    return found


def list_temporary(folder: Path) -> list[str]:
    return [f"{path.relative_to(folder)} is left" for path in sorted(folder.rglob(".*"))]


def check_after_kill(folder: Path, code: int, err: str, number: signal.Signals) -> list[str]:
    """What is wrong with what a killed command left."""
    faults = list_damaged(folder)
    is_term = number is signal.SIGTERM
    if code not in ((0, 143, -signal.SIGTERM) if is_term else (0, -signal.SIGKILL)):
        faults.append(f"exit code {code}: {err[-600:]}")
    if is_term:
        faults += list_temporary(folder)
    if "Traceback" in err or "this is a bug" in err:
        faults.append(f"it said: {err[-600:]}")
    for row in list_runs(folder / "runs") if (folder / "runs").is_dir() else ():
        complete = (folder / "runs" / row.name / run_folder.REPORT).exists()
        if row.state != ("complete" if complete else "interrupted"):
            faults.append(f"{row.name} is shown as {row.state}")
    return faults


def try_apply(known: Undisturbed, folder: Path, kill: Kill) -> list[str]:
    arguments = ["apply", "recipe.yaml", "--from-scratch", "--quiet"]
    code, err = kill.strike(arguments, folder)
    faults = check_after_kill(folder, code, err, kill.number)
    run = folder / RUN
    if code == 143:
        began = run.exists()
        said = f"continue with: sparsify apply --resume {RUN}" if began else "nothing was written"
        said = "the run is complete" if (run / run_folder.REPORT).exists() else said
        faults += [] if said in err else [f"a run that {'' if began else 'not '}began said: {err[-300:]}"]
    if (run / run_folder.STATE).exists():
        # After the report was written there is nothing to resume, but files to remove.
        complete = (run / run_folder.REPORT).exists()
        finish(["apply", "--resume", RUN, "--quiet"], folder, expected=int(complete))
    elif not (run / run_folder.REPORT).exists():
        finish(arguments, folder)
        run = run if (run / run_folder.REPORT).exists() else folder / "runs/kills-2"
    return [*faults, *check_end(known, folder, run)]


def try_resume(known: Undisturbed, folder: Path, kill: Kill) -> list[str]:
    shutil.copytree(known.folder / "halted", folder / RUN)
    arguments = ["apply", "--resume", RUN, "--quiet"]
    code, err = kill.strike(arguments, folder)
    faults = check_after_kill(folder, code, err, kill.number)
    said = ("the run is complete", f"continue with: sparsify apply --resume {RUN}")
    if code == 143 and not any(text in err for text in (*said, "before the run began")):
        faults.append(f"a resumed run said: {err[-300:]}")
    if (folder / RUN / run_folder.STATE).exists():
        finish(arguments, folder, expected=int((folder / RUN / run_folder.REPORT).exists()))
    return [*faults, *check_end(known, folder, folder / RUN)]


def check_end(known: Undisturbed, folder: Path, run: Path) -> list[str]:
    """What differs from the undisturbed run, and what is left of the disturbed one."""
    end = digest_end(run)
    faults = [f"{name} ends with another digest" for name in end if end[name] != known.end[name]]
    left = (run_folder.LOCK, run_folder.STATE, run_folder.CHECKPOINT)
    faults += [f"{name} is left" for name in left if (run / name).exists()]
    return faults + list_temporary(folder) + list_damaged(folder)


def try_tune(known: Undisturbed, folder: Path, kill: Kill) -> list[str]:
    (folder / "study.yaml").write_text(json.dumps(STUDY_RECIPE))
    code, err = kill.strike(TUNE, folder)
    faults = check_after_kill(folder, code, err, kill.number)
    study = folder / STUDY
    began, complete = (study / "tune.json").exists(), (study / "study.json").exists()
    if code == 143:
        said = f"continue with: sparsify tune --resume {STUDY}" if began else "nothing was written"
        faults += [] if said in err else [f"a study that {'' if began else 'not '}began said: {err[-300:]}"]
    if began and not complete:
        finish(["tune", "--resume", STUDY, "--quiet"], folder)
    elif not complete:
        finish(TUNE, folder)
        study = study if (study / "study.json").exists() else folder / "runs/kills-study-2"
    end = digest_study(study)
    faults += [
        f"{name} ends with another digest" for name in known.study if end.get(name) != known.study[name]
    ]
    return [*faults, *list_temporary(folder), *list_damaged(folder)]


TUNE = ["tune", "study.yaml", "--from-scratch", "--quiet"]


def try_bench(known: Undisturbed, folder: Path, kill: Kill) -> list[str]:
    shutil.copytree(known.folder / RUN, folder / RUN)
    before, arguments = digest_all(folder), ["bench", RUN, "--seconds", "0.3"]
    code, err = kill.strike(arguments, folder)
    faults = check_after_kill(folder, code, err, kill.number)
    finish(arguments, folder)
    return faults + (["bench changed files"] if digest_all(folder) != before else [])


def try_export(known: Undisturbed, folder: Path, kill: Kill, form: str) -> list[str]:
    shutil.copytree(known.folder / RUN, folder / RUN)
    before, arguments = digest_all(folder / RUN), ["export", RUN, "--format", form, "--out", f"made.{form}"]
    code, err = kill.strike(arguments, folder)
    faults = check_after_kill(folder, code, err, kill.number)
    if not (folder / f"made.{form}").exists():
        finish(arguments, folder)
    faults += list_temporary(folder) + list_damaged(folder)
    return faults + compare_file(known, folder / f"made.{form}") + compare_run(before, folder / RUN)


def compare_run(before: dict[str, str], run: Path) -> list[str]:
    return [] if digest_all(run) == before else ["files of the run have changed"]


def compare_file(known: Undisturbed, path: Path) -> list[str]:
    expected = known.files.get(path.name)  # none where two undisturbed files differ already
    return [] if expected in (None, hash_bytes(path.read_bytes())) else [f"{path.name} differs"]


def try_sensitivity(known: Undisturbed, folder: Path, kill: Kill) -> list[str]:
    shutil.copytree(known.folder / RUN, folder / RUN)
    before = digest_all(folder / RUN)
    code, err = kill.strike(SENSITIVITY, folder)
    faults = check_after_kill(folder, code, err, kill.number)
    if code == 143 and not any(
        text in err for text in ("run the same command again", "before anything was measured")
    ):
        faults.append(f"sensitivity said: {err[-300:]}")
    finish(SENSITIVITY, folder)
    faults += list_temporary(folder) + list_damaged(folder)
    return faults + compare_file(known, folder / "sensitivity.json") + compare_run(before, folder / RUN)


SENSITIVITY = ["sensitivity", "recipe.yaml", RUN, "--examples", "50", "--limits", "1pp", "--quiet"]
SENSITIVITY += ["--plot", "curves.html"]
TRIES: dict[str, Callable[[Undisturbed, Path, Kill], list[str]]] = {
    "apply": try_apply,
    "resume": try_resume,
    "tune": try_tune,
    "bench": try_bench,
    **{
        f"export {form}": lambda known, folder, kill, form=form: try_export(known, folder, kill, form)
        for form in FORMATS
    },
    "sensitivity": try_sensitivity,
}


def prepare(folder: Path, wanted: list[str]) -> Undisturbed:
    """Run the commands without any disturbance."""
    known = Undisturbed(folder)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    finish(["validate", "recipe.yaml"], folder)  # starts the server
    known.seconds["apply"] = finish(["apply", "recipe.yaml", "--from-scratch", "--quiet"], folder)
    known.end = digest_end(folder / RUN)
    if "resume" in wanted:
        halt_after_cut(folder)
        shutil.copytree(folder / "halted", folder / "timed" / RUN)
        known.seconds["resume"] = finish(["apply", "--resume", RUN, "--quiet"], folder / "timed")
        if digest_end(folder / "timed" / RUN) != known.end:
            raise RuntimeError("a run resumed after its cut ends with other digests")
    if "tune" in wanted:
        (folder / "study.yaml").write_text(json.dumps(STUDY_RECIPE))
        known.seconds["tune"] = finish(TUNE, folder)
        known.study = digest_study(folder / STUDY)
    if "bench" in wanted:
        known.seconds["bench"] = finish(["bench", RUN, "--seconds", "0.3"], folder)
    for form in FORMATS if any(name.startswith("export") for name in wanted) else ():
        both = []
        for name in (f"made.{form}", f"again.{form}"):
            seconds = finish(["export", RUN, "--format", form, "--out", name], folder)
            known.seconds[f"export {form}"] = seconds
            both.append(hash_bytes((folder / name).read_bytes()))
        if both[0] == both[1]:
            known.files[f"made.{form}"] = both[0]
    if "sensitivity" in wanted:
        known.seconds["sensitivity"] = finish(SENSITIVITY, folder)
        known.files["sensitivity.json"] = hash_bytes((folder / "sensitivity.json").read_bytes())
    return known


def halt_after_cut(folder: Path) -> None:
    """Make `halted`, a run that was killed as soon as its cut was saved."""
    apart = folder / "apart"
    apart.mkdir()
    command = Command(["apply", "../recipe.yaml", "--from-scratch", "--quiet"], apart)
    while not (apart / RUN / run_folder.DENSE).exists():
        if command.wait(0.005) is not None:
            raise RuntimeError(command.read())
    while torch.load(apart / RUN / run_folder.CHECKPOINT, weights_only=True)["stage"] < 2:
        time.sleep(0.005)
    command.send(signal.SIGKILL)
    command.wait()
    command.read()
    (apart / RUN).rename(folder / "halted")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat the kill of this number alone")
    parser.add_argument("--command", default="apply,resume,tune,bench,export,sensitivity")
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    wanted = asked.command.split(",")
    SERVER.set_forkserver_preload(PRELOADED)
    names = [name for name in TRIES if name.partition(" ")[0] in wanted]
    counts: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        known = prepare(Path(place), wanted)
        said = ", ".join(f"{name} {known.seconds[name]:.1f} s" for name in names)
        print(f"undisturbed: {said}; same bytes twice: {', '.join(known.files)}", flush=True)
        for count in range(asked.kills) if asked.only is None else [asked.only]:
            chance = random.Random(asked.seed * 1_000_000 + count)
            name = "apply" if "apply" in names and count % 3 == 0 else chance.choice(names)
            number = chance.choice((signal.SIGKILL, signal.SIGTERM))
            kill = Kill(chance.uniform(0.02, 1.0) * known.seconds[name], number, chance.random() < FRESH)
            folder = Path(place) / f"kill-{count}"
            folder.mkdir()
            shutil.copy(Path(place) / "recipe.yaml", folder)
            try:
                faults = TRIES[name](known, folder, kill)
            except (OSError, RuntimeError, ValueError) as error:
                faults = [f"{type(error).__name__}: {error}"]
            counts[f"{name} {number.name}"] += 1
            what = f"kill {count}: {name}{', fresh' * kill.fresh}, {number.name} after {kill.moment:.2f} s"
            print(what + "".join(f"\n  {fault}" for fault in faults), flush=True)
            failed += bool(faults)
            shutil.rmtree(folder, ignore_errors=True)
    print(", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    print(f"{sum(counts.values())} kills, {failed} with faults")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
