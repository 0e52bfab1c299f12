"""The disk is full at any write: one sentence, exit 1, what was there stays whole, and the work goes on.

Writes are led to /dev/full, so that each library meets the error as it does on a disk.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from small_run import make_recipe

from sparsify import files
from sparsify.exporters import writer
from sparsify.modelfile import weights
from sparsify.runs import checkpoint, run_folder
from sparsify.runs.apply import apply
from sparsify_cli.app import exit_code

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
RECIPE = make_recipe(epochs=1)
RUN = Path("runs/small-1")
FAILS = Callable[[str], bool]
"""whether the write of a file of this name fails"""


@contextmanager
def full_disk(fails: FAILS, late: bool = False) -> Iterator[None]:
    """Writes that `fails` names meet a full disk; late: when they are brought to the disk, not before."""
    replace_file, open_log, sync = files.replace_file, run_folder._open_without_links, os.fsync

    @contextmanager
    def replace_or_fail(path: Path, shared: bool = False) -> Iterator[Path]:
        is_full = fails(path.name)
        with pytest.MonkeyPatch.context() as inner, replace_file(path, shared) as temporary:
            if is_full and not late:
                temporary.symlink_to("/dev/full")
            yield temporary
            if is_full and late:
                inner.setattr(os, "fsync", refuse)

    def refuse(handle: int) -> None:
        sync(handle)
        raise OSError(28, "No space left on device")

    def open_or_fail(path: Path) -> int:
        return os.open("/dev/full", os.O_RDWR) if fails(path.name) else open_log(path)

    with pytest.MonkeyPatch.context() as patch:
        for module in (files, weights, checkpoint):
            patch.setattr(module, "replace_file", replace_or_fail)
        patch.setattr(run_folder, "_open_without_links", open_or_fail)
        yield


class EachOnce:
    """Fails each write of a run once: of a checkpoint by its number, of the log by the event."""

    def __init__(self) -> None:
        self.failed: list[tuple[str, object]] = []
        self.written: dict[str, int] = {}
        self.event = ""

    def __call__(self, name: str) -> bool:
        what: tuple[str, object] = (name, 0)
        if name == run_folder.LOG:
            what = (name, self.event)
        elif name == run_folder.CHECKPOINT:
            what = (name, self.written.get(name, 0))
        if what not in self.failed:
            self.failed.append(what)
            return True
        self.written[name] = self.written.get(name, 0) + 1
        return False

    def log(self, folder: Path, entry: Mapping[str, Any]) -> None:
        """Append to the log, remembering which event that is."""
        self.event = str([entry.get(key) for key in ("event", "resumed", "name", "stage", "epoch", "text")])
        append_log(folder, dict(entry))


append_log = run_folder.append_log


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a disk with room."""
    return apply(RECIPE, from_scratch=True, out=tmp_path_factory.mktemp("whole"), timing=0.02).resolve()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(apply.__kwdefaults__, "timing", 0.02)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))


def check_files(folder: Path) -> None:
    """Each file is whole, and none is temporary."""
    for path in folder.rglob("*"):
        assert not path.name.endswith(".tmp")
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".safetensors":
            load_file(path)
    checkpoint.Checkpoint.read(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "late", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["at the write", "at the sync"]
)
def test_each_write_of_a_run_fails_once_and_it_ends_with_the_same_bits(
    late: bool, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails, said = EachOnce(), []
    monkeypatch.setattr(run_folder, "append_log", fails.log)
    code = 1
    while code:
        resumed = ["--resume", str(RUN)] if RUN.exists() else ["recipe.yaml", "--from-scratch"]
        with full_disk(fails, late):
            code = exit_code(["apply", *resumed, "--quiet"])
        if code:
            said.append(capsys.readouterr().err)
            assert code == 1 and RUN.exists() == (run_folder.STATE in {p.name for p in RUN.glob("*")})
            check_files(RUN)
        assert len(said) < 40
    assert all(len(text.splitlines()) == 1 and text.startswith("cannot write") for text in said), said
    assert {name for name, _ in fails.failed} == {
        *(run_folder.STATE, run_folder.RECIPE, run_folder.PLAN, run_folder.CHECKPOINT, run_folder.CUTS),
        *(run_folder.DENSE, run_folder.WEIGHTS, run_folder.PAGE, run_folder.HTML, run_folder.REPORT),
        *(run_folder.LOG, run_folder.LOCK),
    }
    for name in (run_folder.WEIGHTS, run_folder.DENSE, run_folder.CUTS):
        assert (RUN / name).read_bytes() == (whole / name).read_bytes()


COMMANDS: dict[str, tuple[list[str], str]] = {
    "safetensors": (["export", "RUN", "--format", "safetensors", "--out", "made.safetensors"], "made."),
    "pt2": (["export", "RUN", "--format", "pt2", "--out", "made.pt2"], "made."),
    "onnx": (["export", "RUN", "--format", "onnx", "--out", "made.onnx"], "made."),
    "sensitivity": (["sensitivity", "recipe.yaml", "RUN", "--quiet", "--examples", "9"], "sensitivity.json"),
    "plot": (
        ["sensitivity", "recipe.yaml", "RUN", "--quiet", "--examples", "9", "--plot", "made.html"],
        "made.",
    ),
    "targets": (["targets", "measure", "here", "recipe.yaml", "--out", "made.json"], "made."),
    "init": (["init", "made.yaml"], "made."),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_does_not_fit_is_one_sentence_and_leaves_nothing(
    name: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, made = COMMANDS[name]
    given = [str(whole) if part == "RUN" else part for part in arguments]
    before = {path.name for path in Path.cwd().iterdir()}
    with full_disk(lambda file: file.startswith(made)):
        assert exit_code(given) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cannot write")]
    left = {path.name for path in Path.cwd().iterdir()} - before
    assert len(lines) == 1 and not {file for file in left if file.startswith((made, "."))}


def test_what_a_library_says_of_a_full_disk(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """save_pretrained of transformers writes by safetensors, whose error is of its own kind."""
    said = "Error while serializing: I/O error: No space left on device (os error 28)"

    def fail(*_: object) -> tuple[str, ...]:
        raise SafetensorError(said)

    monkeypatch.setattr(writer, "write", fail)
    given = ["export", str(whole), "--format", "safetensors", "--out", "made.safetensors"]
    assert exit_code(given) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"cannot write made.safetensors: {said}"
    assert not Path("made.safetensors").exists()
