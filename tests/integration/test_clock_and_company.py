"""A clock that is wrong or set back, and two processes that write the same file or into the same folder."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from apart import BRIEFLY, Apart
from safetensors.torch import load_file
from small_run import make_recipe

from sparsify import files
from sparsify.errors import RunError
from sparsify.events import EpochDone, Event
from sparsify.reporting.report_file import read_report
from sparsify.runs import evaluate, run_folder, setup
from sparsify.runs.apply import apply
from sparsify.runs.listing import list_runs
from sparsify_cli.app import exit_code

RECIPE = make_recipe(epochs=2)
RUN = Path("runs/small-1")
SAME = (run_folder.WEIGHTS, run_folder.DENSE, run_folder.CUTS)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(apply.__kwdefaults__, "timing", 0.02)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return apply(RECIPE, from_scratch=True, out=tmp_path_factory.mktemp("whole"), timing=0.02).resolve()


def same_end(run: Path, whole: Path) -> bool:
    return all((run / name).read_bytes() == (whole / name).read_bytes() for name in SAME)


def halt(event: Event) -> None:
    if isinstance(event, EpochDone):
        raise KeyboardInterrupt


class PastClock(datetime):
    """It is 1980: before every file of the run was written."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime(1980, 1, 1, tzinfo=tz or UTC)


def test_a_run_goes_on_under_a_clock_that_was_set_back(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half is of 1980, each look at the clock is earlier than the one before, and the files of the
    first half are of the future."""
    with pytest.raises(KeyboardInterrupt):
        apply(RECIPE, from_scratch=True, listener=halt)
    later = time.time() + 10 * 365 * 86400
    for path in RUN.iterdir():
        os.utime(path, (later, later))
    now = [time.time()]

    def earlier() -> float:
        now[0] -= 3600
        return now[0]

    for module in (setup, evaluate):
        monkeypatch.setattr(module, "datetime", PastClock)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", earlier)
        assert [row.state for row in list_runs("runs")] == ["interrupted"]
        apply(resume=RUN, timing=0.02)
    report = read_report(RUN)
    assert report.created.startswith("1980-01-01") and all(stage.seconds >= 0 for stage in report.stages)
    assert same_end(RUN, whole)


@pytest.mark.parametrize("year", [1970, 2150])
@pytest.mark.parametrize(
    "command", ["report RUN", "runs .", "diff RUN RUN", "export RUN --format pt2 --out made.pt2"]
)
def test_files_of_any_year_are_read(command: str, year: int, whole: Path) -> None:
    moment = (year - 1970) * 365.25 * 86400
    for path in whole.iterdir():
        os.utime(path, (moment, moment))
    assert exit_code(command.replace("RUN", str(whole)).split()) == 0


def write(path: Path, text: str) -> Iterator[None]:
    """Write a file, stopping between its parts."""
    with files.replace_file(path, shared=True) as temporary:
        temporary.write_text(text[:3])
        yield
        temporary.write_text(text)


def test_two_writers_of_one_file_do_not_meet() -> None:
    first, second = write(Path("made"), "first"), write(Path("made"), "second")
    next(first), next(second)
    assert not Path("made").exists()
    assert list(second) == [] and Path("made").read_text() == "second"
    assert list(first) == [] and Path("made").read_text() == "first"
    assert [path.name for path in Path.cwd().iterdir() if path.suffix == ".tmp"] == []


def test_what_a_killed_writer_left_is_removed_and_a_living_ones_file_stays() -> None:
    process = Apart("")
    process.communicate()
    host = files._HOST
    names = {
        f".made.{process.pid}-{host}-0123abcd.tmp": False,
        f".made.{os.getpid()}-{host}-0123abcd.tmp": True,
        f".made.{process.pid}-ffffffff-0123abcd.tmp": True,  # of another machine
        f".other.{process.pid}-{host}-0123abcd.tmp": True,
        ".made.tmp": True,
    }
    for name in names:
        Path(name).touch()
    files.write_bytes(Path("made"), b"whole", shared=True)
    assert {name: Path(name).exists() for name in names} == names
    assert Path("made").read_bytes() == b"whole"


TWICE = (
    BRIEFLY
    + """
import sys, time
from pathlib import Path
from sparsify_cli.app import exit_code
Path(sys.argv[1]).touch()
while not Path("go").exists():
    time.sleep(0.001)
sys.exit(exit_code(sys.argv[2:]))
"""
)


def test_two_processes_at_once(whole: Path) -> None:
    """Two runs get two folders, two exports of one name are one whole file or a refusal."""
    apart = [
        Apart(TWICE, f"ready-{n}", "apply", "recipe.yaml", "--from-scratch", "--quiet") for n in range(2)
    ]
    export = ("export", str(whole), "--format", "safetensors", "--out", "made.safetensors", "--force")
    apart += [Apart(TWICE, f"ready-{n}", *export) for n in range(2, 4)]
    while not all(Path(f"ready-{n}").exists() for n in range(4)):
        assert all(process.returncode is None for process in apart)
        time.sleep(0.01)
    Path("go").touch()
    for process in apart:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert {path.name for path in Path("runs").iterdir()} == {"small-1", "small-2"}
    assert all(same_end(path, whole) for path in Path("runs").iterdir())
    assert not list(Path().rglob(".*.tmp"))
    made, cut = load_file("made.safetensors"), load_file(whole / run_folder.WEIGHTS)
    assert all(torch.equal(made[name], value) for name, value in cut.items())


def test_a_run_in_use_is_refused_to_everybody_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        apply(RECIPE, from_scratch=True, listener=halt)
    with ExitStack() as stack:
        stack.enter_context(run_folder.lock_run(RUN))
        assert exit_code(["apply", "--resume", str(RUN)]) == 1
        said = f"{RUN} is in use by process {os.getpid()}; wait for it, or stop it\n"
        assert capsys.readouterr().err == said
        with pytest.raises(RunError, match="is in use"), run_folder.lock_run(RUN):
            pass
    assert exit_code(["apply", "--resume", str(RUN), "--quiet"]) == 0
