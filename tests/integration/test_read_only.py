"""An ordinary user who may not write: to the cache, the home, the output, the run, or a whole file system.

Root may write everywhere; the right to do so is put down while a test runs.
"""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from apart import BRIEFLY, Apart
from small_run import make_recipe

from sparsify.runs import run_folder
from sparsify.runs.apply import apply
from sparsify_cli.app import exit_code

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="rights as Linux has them")
RECIPE = make_recipe(epochs=1)
LIBC = ctypes.CDLL(None, use_errno=True)
_OVERRIDE = 1 << 1 | 1 << 2
"""the capabilities by which root reads and writes what it may not: DAC_OVERRIDE, DAC_READ_SEARCH"""


def set_rights(change: Any) -> None:
    """Change the effective capabilities of this thread. Raises OSError."""
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    LIBC.capget(header, rights)
    rights[0] = change(rights[0], rights[1])
    if LIBC.capset(header, rights):
        raise OSError(ctypes.get_errno(), "capset")


@pytest.fixture
def ordinary(tmp_path: Path) -> Iterator[None]:
    """The rights of an ordinary user; what the test made read-only can be removed afterwards."""
    set_rights(lambda effective, _: effective & ~_OVERRIDE)
    yield
    set_rights(lambda effective, permitted: effective | permitted & _OVERRIDE)
    for folder, _, _ in os.walk(tmp_path):
        Path(folder).chmod(0o755)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(apply.__kwdefaults__, "timing", 0.02)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("closed").mkdir()
    Path("closed").chmod(0o555)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return apply(RECIPE, from_scratch=True, out=tmp_path_factory.mktemp("whole"), timing=0.02).resolve()


PLACES = {
    "out": (
        "apply recipe.yaml --from-scratch --out closed/runs",
        "cannot make a run folder in closed/runs: Permission denied; choose another place with --out",
    ),
    "out that is there": (
        "apply recipe.yaml --from-scratch --out closed",
        "cannot make a run folder in closed: Permission denied; choose another place with --out",
    ),
    "export": (
        "export WHOLE --format pt2 --out closed/made.pt2",
        "cannot write closed/made.pt2: the folder HERE/closed is read-only for you",
    ),
    "sensitivity": (
        "sensitivity recipe.yaml WHOLE --out closed/s.json",
        "cannot write closed/s.json: the folder HERE/closed is read-only for you",
    ),
    "plot": (
        "sensitivity recipe.yaml WHOLE --plot closed/s.html",
        "cannot write closed/s.html: the folder HERE/closed is read-only for you",
    ),
    "targets": (
        "targets measure here recipe.yaml --out closed/t.json",
        "cannot write closed/t.json: the folder HERE/closed is read-only for you",
    ),
    "init": ("init closed/r.yaml", "cannot write closed/r.yaml: the folder HERE/closed is read-only for you"),
}


@pytest.mark.usefixtures("ordinary")
@pytest.mark.parametrize("name", PLACES)
def test_it_is_said_before_the_work(name: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, said = PLACES[name]
    assert exit_code(command.replace("WHOLE", str(whole)).split()) == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == said.replace("HERE", str(Path.cwd()))
    assert "timing" not in err and not list(Path("closed").iterdir())


@pytest.mark.usefixtures("ordinary")
def test_the_current_folder_and_the_home(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the run is written, so that a home and a cache that are read-only do no harm."""
    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "SPARSIFY_CACHE"):
        monkeypatch.setenv(name, str(Path("closed").resolve()))
    recipe = Path("recipe.yaml").resolve()
    monkeypatch.chdir("closed")
    assert exit_code(["apply", str(recipe), "--from-scratch"]) == 1
    assert capsys.readouterr().err.endswith(
        "cannot make a run folder in runs: Permission denied; choose another place with --out\n"
    )
    assert exit_code(["apply", str(recipe), "--from-scratch", "--quiet", "--out", "../open"]) == 0
    assert not list(Path.cwd().iterdir())


@pytest.mark.usefixtures("ordinary")
def test_a_cache_that_is_read_only_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSIFY_CACHE", str(Path("closed").resolve()))
    more = ["--set", "budget.latency.here=90%"]
    assert exit_code(["plan", "recipe.yaml", "--from-scratch", *more]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("cannot write the table ") and line.endswith(
        "Permission denied; set SPARSIFY_CACHE to a folder that can be written to"
    )


@pytest.mark.usefixtures("ordinary")
def test_what_may_not_be_read(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, "run")
    for name in ("secret.yaml", "secret.pt", "secret.npz", "secret.csv"):
        Path(name).touch()
        Path(name).chmod(0)
    Path("run/report.json").chmod(0)
    for command, said in {
        "validate secret.yaml": "secret.yaml: cannot be read: Permission denied",
        "plan recipe.yaml secret.pt": "cannot read HERE/secret.pt: Permission denied",
        "plan recipe.yaml --from-scratch --set data.source=secret.npz": "secret.npz: Permission denied",
        "report run": "cannot read run/report.json: Permission denied",
        "export run --format pt2": "cannot read run/report.json: Permission denied",
        "bench run": "cannot read run/report.json: Permission denied",
        "plan recipe.yaml --from-scratch --set data.source=secret.csv --set data.test=20%": (
            "secret.csv: Permission denied"
        ),
    }.items():
        assert exit_code(command.split()) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("exporting")]
        assert lines == [said.replace("HERE", str(Path.cwd()))]


@pytest.mark.usefixtures("ordinary")
def test_a_run_of_somebody_else_can_be_read_and_not_resumed(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, "run")
    for path in Path("run").iterdir():
        path.chmod(0o444)
    Path("run").chmod(0o555)
    for command in ("report run", "runs .", "diff run run", "bench run --seconds 0.1"):
        assert exit_code(command.split()) == 0
    capsys.readouterr()
    Path("run").chmod(0o755)
    Path("run/report.json").unlink()
    state = run_folder.State(recipe=RECIPE, model_file=None, model_digest=None, from_scratch=True)
    state.write(Path("run"))
    Path("run/recipe.yaml").unlink()
    Path("run").chmod(0o555)
    assert exit_code(["apply", "--resume", "run", "--quiet"]) == 1
    assert capsys.readouterr().err == "cannot write to run: Permission denied\n"


MOUNTED = (
    BRIEFLY
    + """
import ctypes, os, sys
from pathlib import Path
from sparsify_cli.app import exit_code
libc = ctypes.CDLL(None, use_errno=True)
NEW_NAMESPACE, READ_ONLY, REMOUNT, BIND, PRIVATE = 0x20000, 1, 32, 4096, 1 << 18 | 1 << 14

def mount(source, place, kind, flags, options=None):
    if libc.mount(source, place, kind, flags, options):
        sys.exit(77)

if libc.unshare(NEW_NAMESPACE):
    sys.exit(77)
mount(b"none", b"/", None, PRIVATE)
here = str(Path.cwd()).encode()
if sys.argv[1] == "read-only":
    mount(here, here, None, BIND)
    mount(b"none", here, None, BIND | REMOUNT | READ_ONLY)
else:
    os.mkdir("disk")
    mount(b"none", here + b"/disk", b"tmpfs", 0, b"size=" + sys.argv[1].encode())
os.chdir(here)
code = exit_code(sys.argv[2:])
if sys.argv[1] != "read-only":
    mount(b"none", here + b"/disk", None, REMOUNT, b"size=4m")
    print("left", sorted(path.name for path in Path("disk").rglob("*")))
    run = Path("disk/small-1")
    code = [code, exit_code(["apply", "--resume", str(run), "--quiet"]) if run.exists() else 0]
print("code", code)
"""
)


def mounted(how: str, *command: str) -> list[str]:
    """What a command says on a file system of its own."""
    process = Apart(MOUNTED, how, *command)
    out, err = process.communicate()
    if process.returncode == 77:
        pytest.skip("no file system can be mounted here")
    assert process.returncode == 0, err
    return [*err.splitlines(), *out.splitlines()]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "apply recipe.yaml --from-scratch --out .",
            "cannot make a run folder in .: Read-only file system; choose another place with --out",
        ),
        ("init other.yaml", "cannot write other.yaml: the folder HERE is read-only for you"),
        (
            "targets measure here recipe.yaml --out t.json",
            "cannot write t.json: the folder HERE is read-only for you",
        ),
    ],
)
def test_a_read_only_file_system(command: str, said: str) -> None:
    assert mounted("read-only", *command.split()) == [said.replace("HERE", str(Path.cwd())), "code 1"]


@pytest.mark.parametrize("size", ["4k", "48k", "260k"])
def test_a_disk_that_is_really_full(size: str) -> None:
    """Nothing begun, full at the first checkpoint, full later; with more room the run goes on to its end."""
    lines = mounted(size, "apply", "recipe.yaml", "--from-scratch", "--quiet", "--out", "disk")
    assert lines[0].startswith("cannot write disk/small-1/")
    left, code = lines[-2:] if size == "4k" else (next(x for x in lines if x.startswith("left")), lines[-1])
    assert ".tmp" not in left
    assert code == "code [1, 0]"
